"""Full disks, interruptions and too little memory: what was written stays."""

import errno
import functools
import json
import os

import pytest
from bad_cases import (
    CLOSED,
    RESTORE,
    SHAPE,
    check_one_message,
    everything,
    filled,
    images,
    sentences,
)
from conftest import SIDE, leftovers, save_png
from PIL import Image

import flowmend as fm
from flowmend.files import read_image


@pytest.fixture
def place(tmp_path, tiny_prior_path):
    """Everything that the commands name; its files are ``name``."""
    return filled(tmp_path / "place", tiny_prior_path)


# Disks that are full and people who are in a hurry
def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["PIL.Image.Image.save", "os.replace"])
def test_a_full_disk_while_restoring(where, run, tiny_prior_path, tmp_path, monkeypatch):
    for name, image in zip(("a", "b"), images(2), strict=True):
        save_png(tmp_path / "in" / f"{name}.png", image)
    before = everything(tmp_path)
    monkeypatch.setattr(where, full)
    out, results = tmp_path / "out", tmp_path / "results.json"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED, "--json", results)
    outcome = run("restore", tmp_path / "in", *arguments)
    monkeypatch.undo()
    check_one_message(outcome, "No space left on device")
    after = everything(tmp_path)
    assert {path for path in after if path.suffix == ".png"} == set(before)
    assert leftovers(tmp_path) == []
    if results.exists():
        assert all(
            record["output"] is None for record in json.loads(results.read_text())["images"]
        )


def test_a_disk_that_fills_up_keeps_what_was_written(run, tiny_prior_path, tmp_path, monkeypatch):
    for name, image in zip(("a", "b", "c"), images(), strict=True):
        save_png(tmp_path / "in" / f"{name}.png", image)
    saves = []
    save = Image.Image.save

    def limited(picture, *arguments, **options):
        saves.append(picture)
        return save(picture, *arguments, **options) if len(saves) == 1 else full()

    monkeypatch.setattr("PIL.Image.Image.save", limited)
    out, results = tmp_path / "out", tmp_path / "results.json"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED, "--json", results)
    outcome = run("restore", tmp_path / "in", *arguments)
    check_one_message(outcome, "No space left on device")
    assert [path.name for path in out.iterdir()] == ["a.png"]
    assert read_image(out / "a.png").shape == SHAPE
    records = json.loads(results.read_text())["images"]
    assert [record["status"] == "restored" for record in records] == [True, False, False]
    assert [record["output"] is None for record in records] == [False, True, True]


@pytest.mark.parametrize("where", ["PIL.Image.Image.save", "numpy.save", "os.replace"])
def test_a_full_disk_while_degrading(where, run, clean_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(where, full)
    out = tmp_path / "out"
    outcome = run("degrade", clean_folder, "-t", "denoise", "--size", SIDE, "-o", out)
    monkeypatch.undo()
    check_one_message(outcome, "No space left on device")
    assert leftovers(tmp_path) == []
    assert not list(out.rglob("*.npy"))


@pytest.mark.parametrize(
    "command", ["sample prior.safetensors --out s.png", "score prior.safetensors in --json s.json"]
)
def test_a_full_disk_for_other_commands(command, run, place, monkeypatch):
    monkeypatch.chdir(place)
    before = everything(place)
    monkeypatch.setattr("os.replace", full)
    outcome = run(*command.split())
    assert outcome.code == 1
    assert sum("No space left on device" in line for line in sentences(outcome)) == 1
    assert everything(place) == before
    assert leftovers(place) == []


def test_a_full_disk_while_training(run, clean_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", full)
    out = tmp_path / "out"
    options = ("--size", 8, "--steps", 1, "--hidden", 2, "--epochs", 1, "--device", "cpu")
    outcome = run("train", clean_folder, "--out", out, *options)
    assert outcome.code == 1
    assert sum("No space left on device" in line for line in sentences(outcome)) == 1
    assert not everything(out)


def test_results_that_cannot_be_written_spare_the_pictures(run, place, monkeypatch):
    monkeypatch.chdir(place)
    line = f"{RESTORE} --task denoise --json file/results.json"
    check_one_message(run(*line.split(), *CLOSED), "file/results.json")
    for name in ("a", "b", "c"):
        assert read_image(place / "out" / f"{name}.png").shape == SHAPE


def test_an_interruption_keeps_what_was_finished(run, tiny_prior_path, tmp_path, monkeypatch):
    from flowmend import batch

    for index, image in enumerate(images(5)):
        save_png(tmp_path / "in" / f"{index}.png", image)
    calls = []

    def interrupted(*arguments, **options):
        calls.append(len(arguments[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fm.restore(*arguments, **options)

    monkeypatch.setattr(batch, "restore", interrupted)
    in_pairs = functools.partial(batch.restore_items, batch=2)
    monkeypatch.setattr("flowmend.cli.restore.restore_items", in_pairs)
    out, results = tmp_path / "out", tmp_path / "results.json"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED, "--json", results)
    outcome = run("restore", tmp_path / "in", *arguments)
    assert outcome.code == 130
    lines = sentences(outcome)
    assert len(lines) == 1
    assert "what was finished is kept" in lines[0]
    assert calls == [2, 2]
    assert {path.name for path in out.iterdir()} == {"0.png", "1.png", "report.png"}
    assert all(read_image(out / f"{index}.png").shape == SHAPE for index in range(2))
    values = json.loads(results.read_text())
    assert [r["status"] for r in values["images"]] == ["restored"] * 2 + ["not reached"] * 3
    assert [r["output"] is None for r in values["images"]] == [False] * 2 + [True] * 3
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("moment", ["flowmend.batch.save_image", "PIL.Image.Image.save"])
def test_an_interruption_while_writing_leaves_no_part(
    moment, run, tiny_prior_path, tmp_path, monkeypatch
):
    save_png(tmp_path / "in" / "a.png", images(1)[0])

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, stop)
    out = tmp_path / "out"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED)
    outcome = run("restore", tmp_path / "in", *arguments)
    assert outcome.code == 130
    assert len(sentences(outcome)) == 1
    assert not out.exists() or not everything(out)


def test_too_little_memory_is_said_in_a_sentence(run, place, monkeypatch):
    monkeypatch.chdir(place)

    def starve(*arguments, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("flowmend.batch.restore", starve)
    check_one_message(run(*f"{RESTORE} --task denoise".split(), *CLOSED), "not enough memory")
