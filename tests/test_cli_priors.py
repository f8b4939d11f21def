"""The commands about priors: sample, score, info and train; and the help."""

import json
import math

import pytest
import torch
from conftest import NAMES, QUICK, SIDE, leftovers, save_png, smooth_images
from PIL import Image
from safetensors.torch import load_file

import flowmend as fm
from flowmend.files import read_image
from flowmend.train import Run


# sample, score and info
def test_sample_draws_a_sheet(run, tiny_prior_path, tmp_path):
    def draw(name, *options):
        path = tmp_path / name
        outcome = run(
            "sample", tiny_prior_path, "-n", 5, "--columns", 3, "--scale", 2, "-o", path, *options
        )
        assert outcome.code == 0, outcome.err
        return path

    first = draw("first.png")
    assert first.read_bytes() == draw("same.png").read_bytes()
    assert first.read_bytes() != draw("other.png", "--seed", 1).read_bytes()
    sheet = read_image(first)
    assert sheet.shape == (3, 2 * (2 * SIDE + 2) + 2, 3 * (2 * SIDE + 2) + 2)
    assert bool((sheet[:, -2 * SIDE - 2 :, -2 * SIDE - 4 :] == 1.0).all()), "five of six places"
    side = 2 * SIDE
    cold = read_image(draw("cold.png", "--temperature", 0))
    images = [cold[:, 2 : 2 + side, left : left + side] for left in (2, side + 4)]
    assert torch.equal(*images)
    assert float(images[0].std()) > 0


def test_score_prints_bits_per_dimension(run, tiny_prior_path, clean_folder, tmp_path):
    results = tmp_path / "score.json"
    outcome = run("score", tiny_prior_path, clean_folder, "--json", results, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    values = json.loads(results.read_text())
    assert [image["input"] for image in values["images"]] == [
        str(clean_folder / f"{name}.png") for name in NAMES
    ]
    bits = [image["bits_per_dim"] for image in values["images"]]
    assert values["mean"] == pytest.approx(sum(bits) / 3)
    lines = outcome.out.splitlines()
    assert len(lines) == 4
    for line, image in zip(lines, values["images"], strict=False):
        assert line == f"{image['bits_per_dim']:.4f}  {image['input']}"
    assert lines[3].startswith(f"{values['mean']:.4f}  mean of 3")
    noise = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    noisy = save_png(tmp_path / "noise.png", noise)
    outcome = run("score", tiny_prior_path, noisy, "--device", "cpu")
    assert float(outcome.out.split()[0]) > max(bits) + 2


def test_score_is_the_log_density(run, tiny_prior_path, tmp_path):
    x = (smooth_images(1, 3, SIDE, SIDE, seed=3) * 255).round().float() / 255
    path = save_png(tmp_path / "x.png", x[0])
    outcome = run("score", tiny_prior_path, path, "--seed", 0, "--device", "cpu")
    prior = fm.load(tiny_prior_path)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    spread = ((x * 255).round().div(8).floor() + noise) / 32
    log_prob = float(prior.log_prob(spread))
    wanted = 5 - log_prob / (3 * SIDE * SIDE * math.log(2))
    assert float(outcome.out.split()[0]) == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "parameters"), [("paper", 32_736_864), ("glow", 33_780_096), ("whitened", None)]
)
def test_info_about_presets(run, name, parameters):
    outcome = run("info", name, "--json")
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    with torch.device("meta"):
        flow = fm.MultiscaleFlow(fm.preset(name))
    counted = sum(math.prod(parameter.shape) for parameter in flow.parameters())
    assert facts["parameters"] == counted
    if parameters is not None:
        assert facts["parameters"] == parameters
    assert fm.FlowConfig.from_dict(facts["config"]) == fm.preset(name)
    table = run("info", name)
    assert table.code == 0
    assert f"{counted:,}" in table.out


def test_info_about_a_prior(run, tiny_prior_path):
    outcome = run("info", tiny_prior_path, "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    prior = fm.load(tiny_prior_path)
    assert facts["parameters"] == sum(value.numel() for value in prior.flow.parameters())
    assert facts["bytes"] == tiny_prior_path.stat().st_size
    assert facts["gaussian"] is True
    assert 0 <= facts["sample_round_trip_error"] < 1e-4
    assert fm.FlowConfig.from_dict(facts["config"]) == prior.config
    assert facts["card"]["name"] == "tiny"
    card = json.loads(tiny_prior_path.with_suffix(".json").read_text())
    assert facts["sha256"] == card["sha256"]
    table = run("info", tiny_prior_path)
    assert table.code == 0
    assert f"{facts['parameters']:,}" in table.out


# train
TRAINING = (
    *("--size", 8, "--steps", "1,1", "--hidden", 4, "--depth", 2, "--epochs", 2, "--batch", 4),
    *("--device", "cpu", "--precision", "float32"),
)


@pytest.fixture
def training_folder(tmp_path):
    folder = tmp_path / "training"
    for index, image in enumerate(smooth_images(10, 3, 9, 12, seed=2)):
        save_png(folder / f"{index}.png", image)
    return folder


def test_train_from_a_folder_to_a_restoration(run, training_folder, tmp_path):
    out = tmp_path / "prior"
    outcome = run("train", training_folder, "--out", out, *TRAINING)
    assert outcome.code == 0, outcome.err
    assert "9 training and 1 held-out" in outcome.err
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]
    assert all(math.isfinite(record["val_bits_per_dim"]) for record in log)
    with Image.open(out / "samples" / "epoch-0002.png") as samples:
        assert samples.size == (8 * 10 + 2, 8 * 10 + 2)
    card = json.loads((out / "prior.json").read_text())
    assert card["val_bits_per_dim"] == round(min(r["val_bits_per_dim"] for r in log), 4)
    assert card["round_trip_error"] < 1e-4
    assert card["training_images"] == 9
    prior = fm.load(out)
    assert prior.shape == (3, 8, 8)
    assert prior.config.hidden == 4
    restored = tmp_path / "restored"
    measurement = save_png(tmp_path / "y.png", smooth_images(1, 3, 8, 8)[0])
    outcome = run("restore", measurement, "-t", "denoise", "-o", restored, "-p", out, *QUICK)
    assert outcome.code == 0, outcome.err
    assert read_image(restored / "y.png").shape == (3, 8, 8)
    assert leftovers(tmp_path) == []


def test_a_run_is_not_overwritten_and_resuming_a_finished_one_changes_nothing(
    run, training_folder, tmp_path
):
    out = tmp_path / "prior"
    assert run("train", training_folder, "--out", out, *TRAINING).code == 0
    weights = load_file(out / "prior.safetensors")
    again = run("train", training_folder, "--out", out, *TRAINING)
    assert again.code == 1
    assert "--resume" in again.err
    assert run("train", training_folder, "--out", out, "--resume", *TRAINING).code == 0
    after = load_file(out / "prior.safetensors")
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    other = run("train", training_folder, "--out", out, "--resume", "--seed", 1, *TRAINING)
    assert other.code == 1
    assert "other settings" in other.err


def test_an_interrupted_run_resumes_to_the_same_weights(
    run, training_folder, tmp_path, monkeypatch
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("train", training_folder, "--out", whole, *TRAINING).code == 0
    advance = Run.advance

    def interrupted(self):
        if self.step == self.steps_per_epoch:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", interrupted)
        outcome = run("train", training_folder, "--out", broken, *TRAINING)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert len((broken / "log.jsonl").read_text().splitlines()) == 1
    outcome = run("train", training_folder, "--out", broken, "--resume", *TRAINING)
    assert outcome.code == 0, outcome.err
    wanted = load_file(whole / "prior.safetensors")
    found = load_file(broken / "prior.safetensors")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert leftovers(tmp_path) == []


# Help
@pytest.mark.parametrize(
    "command",
    ["restore", "degrade", "train", "sample", "score", "info", "convert", "demo", "paper"],
)
def test_every_command_has_help_with_an_example(run, command):
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert f"flowmend {command}" in outcome.out
    assert "Example" in outcome.out
    assert outcome.err == ""


def test_help_names_tasks_methods_and_presets(run):
    text = run("restore", "--help").out
    for name in [*fm.TASKS, *fm.METHODS]:
        assert name in text
    assert "whitened" in run("train", "--help").out
    assert "restore" in run("--help").out


def test_no_arguments_show_the_help(run):
    outcome = run()
    assert "restore" in outcome.out + outcome.err
    assert "Traceback" not in outcome.err
