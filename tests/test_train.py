"""Training on a handful of tiny images: it improves, and says what it did."""

import dataclasses
import json
import math

import pytest
import torch
from PIL import Image
from training_cases import (
    CONFIG,
    GLOW,
    IMAGES,
    SIZE,
    STRONG,
    VALIDATION,
    WHITENED,
    log_of,
    run_in,
    start,
)

from flowmend import train as training
from flowmend.pixels import dequantise
from flowmend.prior import FlowPrior, GaussianPrior
from flowmend.train import Recipe, finish, held_out_bits, round_trip_error
from flowmend.weights import load_prior


# It learns, and writes what it says.
@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One longer run on whitened images that several tests look at."""
    out = tmp_path_factory.mktemp("finished")
    recipe = dataclasses.replace(STRONG, epochs=8)
    records, steps = [], []
    path = start(
        out,
        WHITENED,
        recipe,
        report=records.append,
        progress=lambda *arguments: steps.append(arguments),
    )
    return {"out": out, "path": path, "records": records, "steps": steps, "recipe": recipe}


@pytest.mark.parametrize("config", [CONFIG, GLOW], ids=["swap", "conv1x1"])
def test_bits_per_dim_improve(tmp_path, config):
    recipe = dataclasses.replace(STRONG, epochs=8, learning_rate=5e-3)
    before = held_out_bits(run_in(tmp_path / "unused", config, recipe).kept(), VALIDATION)
    prior = load_prior(start(tmp_path, config, recipe))
    bits = [record["val_bits_per_dim"] for record in log_of(tmp_path)]
    assert bits[-1] < bits[0] - 0.05
    assert bits[-1] < before - 0.2
    assert held_out_bits(prior, VALIDATION) == pytest.approx(min(bits), abs=1e-5)
    assert held_out_bits(prior, VALIDATION) < held_out_bits(
        prior, torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    )


def test_card_compares_the_flow_with_its_gaussian(finished):
    """Both numbers are of the same images with the same dequantisation noise."""
    card = json.loads((finished["out"] / "prior.json").read_text())
    assert card["val_bits_per_dim"] < finished["records"][0]["val_bits_per_dim"] - 0.01
    gaussian = GaussianPrior.fit(IMAGES, WHITENED.bits, flip=True)
    noise = training.generator_at(0, 0)
    bits = gaussian.bits_per_dim(VALIDATION.float() / 255.0, WHITENED.bits, noise).mean()
    assert card["gaussian_val_bits_per_dim"] == pytest.approx(bits.item(), abs=1e-4)


def test_log_has_a_line_for_each_epoch(finished):
    log = log_of(finished["out"])
    assert log == finished["records"]
    assert [record["epoch"] for record in log] == list(range(1, 9))
    for record in log:
        assert set(record) == {
            "epoch",
            "train_bits_per_dim",
            "val_bits_per_dim",
            "learning_rate",
            "skipped_steps",
            "seconds",
        }
        assert all(math.isfinite(value) for value in record.values())
        assert record["skipped_steps"] == 0
        assert record["seconds"] >= 0


def test_progress_counts_every_step(finished):
    fit, *steps = finished["steps"]
    assert fit == (0, 32, "fitting a Gaussian")
    assert steps == [(step, 32, f"epoch {(step + 3) // 4}") for step in range(1, 33)]


def test_samples_of_each_epoch_are_a_sheet(finished):
    folder = finished["out"] / "samples"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"epoch-{epoch:04d}.png" for epoch in range(1, 9)]
    with Image.open(folder / names[-1]) as sheet:
        assert sheet.size == (8 * (SIZE + 2) + 2, 8 * (SIZE + 2) + 2)
        assert sheet.mode == "L"
        assert len(sheet.getcolors()) > 10


def test_nothing_else_is_left_in_the_folder(finished):
    assert sorted(path.name for path in finished["out"].iterdir()) == [
        "checkpoint.safetensors",
        "log.jsonl",
        "prior.json",
        "prior.safetensors",
        "samples",
    ]
    assert finished["path"] == finished["out"] / "prior.safetensors"


def test_card_says_how_it_was_trained(finished):
    card = load_prior(finished["path"]).card
    best = min(finished["records"], key=lambda record: record["val_bits_per_dim"])
    assert card["epoch"] == best["epoch"]
    assert card["val_bits_per_dim"] == round(best["val_bits_per_dim"], 4)
    assert card["training_images"] == 64
    assert card["validation_images"] == 12
    assert Recipe(**card["recipe"]) == finished["recipe"]
    assert card["parameters"] == sum(
        value.numel() for value in load_prior(finished["path"]).parameters()
    )
    assert card["made_with"]["torch"] == torch.__version__


def test_kept_prior_gives_the_bits_of_its_card(finished):
    """The bits of the card are those of the file, whatever precision the Gaussian is kept in."""
    prior = load_prior(finished["path"])
    found = held_out_bits(prior, VALIDATION)
    assert found == pytest.approx(prior.card["val_bits_per_dim"], abs=2e-3)


def test_finish_measures_the_round_trip(finished):
    card = finish(finished["path"], VALIDATION)
    prior = load_prior(finished["path"])
    assert 0 < card["round_trip_error"] < 1e-3
    assert card["round_trip_error"] == round_trip_error(prior, VALIDATION)
    assert prior.card == card
    assert json.loads((finished["out"] / "prior.json").read_text())["round_trip_error"] > 0


def test_round_trip_error_is_the_largest_difference(finished):
    prior = load_prior(finished["path"])
    x = dequantise(VALIDATION.float() / 255.0, WHITENED.bits)
    wanted = (prior.decode(prior.encode(x)[0])[0] - x).abs().max().item()
    for batch in (5, 64):
        found = round_trip_error(prior, VALIDATION, batch)
        assert found == pytest.approx(wanted, abs=2e-6)
    with torch.no_grad():
        prior.flow.scales[1].layers[1].shift.fill_(torch.nan)
    assert round_trip_error(prior, VALIDATION) == math.inf


def test_round_trip_error_notices_a_wrong_inverse(finished, monkeypatch):
    prior = load_prior(finished["path"])
    decode = FlowPrior.decode

    def slightly_wrong(self, z):
        x, logdet = decode(self, z)
        x[-1, 0, 3, 5] += 0.01
        return x, logdet

    monkeypatch.setattr(FlowPrior, "decode", slightly_wrong)
    assert round_trip_error(prior, VALIDATION) == pytest.approx(0.01, abs=1e-3)


def test_held_out_bits_are_a_mean_over_images(finished):
    prior = load_prior(finished["path"])
    whole = held_out_bits(prior, VALIDATION)
    assert whole == held_out_bits(prior, VALIDATION)
    assert whole != held_out_bits(prior, VALIDATION, seed=1)
    parts = [held_out_bits(prior, VALIDATION[index : index + 1]) for index in range(12)]
    assert whole == pytest.approx(sum(parts) / 12, abs=0.1)
    assert whole == pytest.approx(held_out_bits(prior, VALIDATION, batch=5), abs=0.1)
