"""Restoring what degrade made by another task, or with other options, is not passed over."""

import json

import pytest
from conftest import SIDE

from flowmend.cli.made import check_folders, differences
from flowmend.errors import FlowmendError
from flowmend.items import Item
from flowmend.tasks import task_noise

OTHERS = {
    "hole": ("inpaint", ["--mask", "random:0.7"], [], "--mask random:0.7 (here: center:0.4)"),
    "kernel": ("deblur", [], ["--kernel", "box:5"], "--kernel box:3 (here: box:5)"),
    "none": ("upscale", ["--kernel", "bicubic"], [], "--kernel bicubic (here: none)"),
    "some": ("upscale", [], ["--kernel", "bicubic"], "no --kernel (here: bicubic)"),
    "level": ("denoise", ["--sigma", "0.2"], [], "--sigma 0.2 (here: 0.1)"),
    "peak": (
        "colorize",
        ["--noise", "poisson"],
        ["--noise", "poisson", "--peak", "9"],
        "--peak 30.0 (here: 9.0)",
    ),
    "noise": ("denoise", ["--noise", "salt-pepper"], [], "--noise salt-pepper (here: gaussian)"),
    "two": (
        "deblur",
        ["--boundary", "zero", "--sigma", "0.1"],
        [],
        "--boundary zero (here: reflect), --sigma 0.1 (here: 0.0)",
    ),
}
SAME = {
    "defaults": ("deblur", [], ["--kernel", "box:3", "--boundary", "reflect"]),
    "level": ("denoise", ["--sigma", "0.0784313"], ["--sigma", "0.0784"]),
    "auto": ("denoise", ["--sigma", "0.2"], ["--sigma", "auto"]),
    "share": ("sense", ["--measurements", "25%"], []),
}


@pytest.fixture
def made(run, clean_folder, tmp_path):
    def call(task, *options):
        places = ["--size", SIDE, "--out", tmp_path / "try"]
        outcome = run("degrade", clean_folder, "--task", task, *places, *options)
        assert outcome.code == 0, outcome.err
        return tmp_path / "try"

    return call


@pytest.fixture
def restored(run, tiny_prior_path, tmp_path):
    def call(inputs, task, *options):
        places = ["--out", tmp_path / "out", "--prior", tiny_prior_path, "--method", "lmmse"]
        return run("restore", inputs, "--task", task, *places, *options)

    return call


@pytest.mark.parametrize("case", OTHERS)
def test_other_options_than_those_of_degrade_are_told(case, made, restored):
    task, before, now, said = OTHERS[case]
    folder = made(task, *before) / "measurement"
    outcome = restored(folder, task, *now)
    assert outcome.code == 0, outcome.err
    wanted = f"{folder}: made with {said}, says the degrade.json beside it"
    assert outcome.err.count(wanted) == 1
    assert "3 of 3 restored" in outcome.err
    assert "made with" not in restored(folder, task, *before).err


@pytest.mark.parametrize("case", SAME)
def test_the_same_in_other_words_is_not(case, made, restored):
    task, before, now = SAME[case]
    outcome = restored(made(task, *before) / "measurement", task, *now)
    assert outcome.code == 0, outcome.err
    assert "made with" not in outcome.err


def test_another_task_is_told_and_nothing_else(made, restored):
    folder = made("inpaint", "--mask", "random:0.7", "--sigma", 0.2) / "measurement"
    outcome = restored(folder, "denoise")
    assert f"{folder}: made with --task inpaint (here: denoise), says" in outcome.err
    assert "mask" not in outcome.err
    assert "sigma" not in outcome.err


def test_a_file_from_inside_the_folder_counts(made, restored, monkeypatch):
    folder = made("denoise", "--sigma", 0.3) / "measurement"
    monkeypatch.chdir(folder / "inside")
    assert "--sigma 0.3 (here: 0.1)" in restored("c.png", "denoise").err


def test_the_clean_pictures_are_not_restored(made, restored, tmp_path):
    folder = made("denoise")
    outcome = restored(folder, "denoise")
    assert outcome.code == 1
    assert f"restore '{folder / 'measurement'}'" in outcome.err
    assert f"--reference '{folder / 'reference'}'" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_such_names_of_another_make_is_restored(tmp_path):
    (tmp_path / "measurement").mkdir()
    check_folders([str(tmp_path)])
    (tmp_path / "degrade.json").write_text("{}")
    with pytest.raises(FlowmendError, match="clean pictures"):
        check_folders([str(tmp_path)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"task": "fly"}',
        '{"task": ["denoise"]}',
        '{"task": {}}',
        '{"task": "denoise"}',
        '{"task": "denoise", "noise": [1], "sigma": "\\u001b[2J"}',
        '{"task": "denoise", "noise": "gaussian", "sigma": {"a": 1}}',
    ],
)
def test_a_note_that_says_nothing_is_passed_over(text, tmp_path):
    (tmp_path / "degrade.json").write_text(text)
    item = Item(tmp_path / "measurement" / "a.png", tmp_path / "out" / "a.png")
    assert list(differences([item], "denoise", task_noise("denoise"), {})) == []
    (tmp_path / "degrade.json").write_bytes(b"\xff\xfe{")
    assert list(differences([item], "denoise", task_noise("denoise"), {})) == []


def test_files_are_the_same_by_their_names(tmp_path):
    item = Item(tmp_path / "measurement" / "a.png", tmp_path / "out" / "a.png")
    note = {"task": "deblur", "noise": "gaussian", "sigma": 0.0, "kernel": "here/kernel.png"}
    (tmp_path / "degrade.json").write_text(json.dumps(note))

    def found(kernel):
        return list(differences([item], "deblur", task_noise("deblur"), {"kernel": kernel}))

    assert found("/there/kernel.png") == []
    ((folder, said),) = found("/there/other.png")
    assert folder == tmp_path / "measurement"
    assert "here/kernel.png (here: /there/other.png)" in said
