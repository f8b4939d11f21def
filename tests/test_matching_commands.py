"""The commands for continuous flows."""

import json

import pytest
from conftest import leftovers, save_png, smooth_images
from matching_cases import photographs_in

import flowmend as fm
from flowmend.files import read_image


@pytest.fixture
def photographs(tmp_path):
    return photographs_in(tmp_path / "photographs")


# The commands.
TRAINING = (
    *("--kind", "continuous", "--hidden", "4,6", "--epochs", 2, "--batch", 4),
    *("--device", "cpu", "--precision", "float32"),
)


@pytest.mark.parametrize("shape", [("--crop", 8), ("--size", 8), ("--crop", 8, "--channels", 1)])
def test_train_sample_score_info_and_restore(run, photographs, tmp_path, shape):
    out = tmp_path / "prior"
    outcome = run("train", photographs, "--out", out, *TRAINING, *shape)
    assert outcome.code == 0, outcome.err
    skipped = "--crop" in shape
    assert ("5.png" in outcome.err) == skipped
    assert f"{4 if skipped else 5} training and 1 held-out" in outcome.err
    assert "bits/dim" in outcome.err
    card = json.loads((out / "prior.json").read_text())
    assert card["round_trip_error"] < 0.2
    channels = 1 if "--channels" in shape else 3
    prior = fm.load(out)
    assert prior.shape == (channels, 8, 8)
    assert prior.config.widths == (4, 6)
    assert (prior.config.size is None) == skipped
    sheet = tmp_path / "s.png"
    assert run("sample", out, "--out", sheet, "-n", 3, "--scale", 1).code == 0
    assert read_image(sheet).shape[1:] == (12, 32)
    outcome = run("score", out, photographs)
    assert outcome.code == int(skipped)
    assert f"mean of {5 if skipped else 6}, at 8 bits" in outcome.out
    assert run("score", out, photographs, "--seed", 1).out != outcome.out
    facts = json.loads(run("info", out, "--json").out)
    assert facts["kind"] == "continuous"
    assert facts["gaussian"] == (not skipped)
    assert 0 <= facts["sample_round_trip_error"] < 0.2
    assert run("train", photographs, "--out", out, *TRAINING, *shape, "--resume").code == 0
    y = save_png(tmp_path / "y.png", smooth_images(1, channels, 8, 8)[0])
    restored = ("-t", "denoise", "-o", tmp_path / "restored", "-p", out)
    outcome = run("restore", y, *restored, "--steps", 2, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert leftovers(tmp_path) == []


def test_train_for_some_minutes(run, photographs, tmp_path):
    options = [str(option) for option in TRAINING]
    at = options.index("--epochs")
    del options[at : at + 2]
    out = tmp_path / "prior"
    limit = ("--crop", 8, "--minutes", 0.02)
    outcome = run("train", photographs, "--out", out, *options, *limit)
    assert outcome.code == 0, outcome.err
    assert "0.02 minutes" in outcome.err
    assert json.loads((out / "prior.json").read_text())["recipe"]["minutes"] == 0.02


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (("--kind", "magic"), "Unknown kind 'magic': choose from coupling, continuous"),
        (("--kind", "continuous", "--crop", 8, "--size", 8), "give one of them"),
        (
            ("--kind", "continuous", "--steps", "1,1"),
            "'blocks' must have one entry for each level",
        ),
        (("--kind", "continuous", "--depth", 2), "--depth is an option of --kind coupling"),
        (("--kind", "continuous", "--recipe", "paper"), "--recipe is an option"),
        (("--kind", "continuous", "--preset", "glow"), "--preset is an option"),
        (("--kind", "continuous", "--crop", 2), "'crop'"),
        (("--kind", "continuous", "--size", 2), "'size'"),
        (("--kind", "continuous", "--hidden", "0"), "'widths'"),
        (("--kind", "continuous", "--crop", 8, "--minutes", -1), "minutes"),
        (("--kind", "continuous"), "smaller than crops of 96 x 96: choose a smaller crop"),
        (("--minutes", 1), "--minutes is an option of --kind continuous"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense_are_one_sentence(run, photographs, tmp_path, options, phrase):
    outcome = run("train", photographs, "--out", tmp_path / "out", *options)
    assert outcome.code == 1
    assert phrase in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()
