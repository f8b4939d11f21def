"""Flow matching: what a run learns, and what it leaves behind."""

import dataclasses
import math

import pytest
import torch
from matching_cases import CASES, RECIPE, SIZE, batches_of, log_of, run_in, start
from PIL import Image

import flowmend as fm
from flowmend import data
from flowmend.continuous import ContinuousPrior
from flowmend.flow import build_velocity
from flowmend.flowmatching import finish
from flowmend.matching_loss import held_out_loss, held_out_psnr
from flowmend.recipes import MatchingRecipe
from flowmend.weights import load_prior

STEPS = 12


def test_epoch_of_photographs_covers_their_area(tmp_path, monkeypatch):
    run = run_in(tmp_path, "crops")
    areas = [image[0].numel() // SIZE**2 for image in CASES["crops"][1]]
    assert run.items == sum(areas)
    assert torch.equal(run.owner.bincount(), torch.tensor(areas))
    assert areas[:4] == [3, 3, 4, 4]
    x = batches_of(run, monkeypatch)[0]
    assert x.shape == (run.steps_per_epoch * 8, 1, SIZE, SIZE)
    assert run.held.shape == (4, 1, SIZE, SIZE)


# A run.
@pytest.fixture(scope="module", params=CASES)
def finished(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    recipe = dataclasses.replace(RECIPE, epochs=60)
    records, steps = [], []
    path = start(
        out,
        request.param,
        recipe,
        report=records.append,
        progress=lambda *arguments: steps.append(arguments),
    )
    return {"out": out, "path": path, "records": records, "steps": steps, "case": request.param}


def test_it_learns_to_denoise(finished):
    config = CASES[finished["case"]][0]
    fresh = ContinuousPrior(build_velocity(config))
    prior = load_prior(finished["path"])
    held = run_in(finished["out"], finished["case"]).held
    assert held_out_loss(prior, held) < 0.85 * held_out_loss(fresh, held)
    assert held_out_psnr(prior, held) > held_out_psnr(fresh, held) + 0.6
    best = min(finished["records"], key=lambda record: record["val_loss"])
    assert held_out_loss(prior, held) == pytest.approx(best["val_loss"], rel=1e-5)
    assert held_out_psnr(prior, held) == pytest.approx(best["val_psnr_25"], abs=1e-3)


def test_log_card_and_samples(finished):
    out, records = finished["out"], finished["records"]
    assert log_of(out) == records
    assert [record["epoch"] for record in records] == list(range(1, 61))
    for record in records:
        assert list(record) == [
            *("epoch", "train_loss", "val_loss", "val_psnr_25"),
            *("learning_rate", "skipped_steps", "seconds"),
        ]
        assert all(math.isfinite(value) for value in record.values())
    best = min(records, key=lambda record: record["val_loss"])
    card = load_prior(finished["path"]).card
    assert card["epoch"] == best["epoch"]
    assert card["val_loss"] == round(best["val_loss"], 5)
    assert MatchingRecipe(**card["recipe"]).epochs == 60
    steps = [done for done, _, what in finished["steps"] if what.startswith("epoch")]
    assert steps == list(range(1, finished["steps"][-1][1] + 1))
    assert sorted(path.name for path in out.iterdir()) == [
        *("checkpoint.safetensors", "log.jsonl", "prior.json", "prior.safetensors", "samples"),
    ]
    with Image.open(out / "samples" / "epoch-0060.png") as sheet:
        assert sheet.size == (8 * (SIZE + 2) + 2, 8 * (SIZE + 2) + 2)


def test_gaussian_only_for_one_size(finished):
    prior = load_prior(finished["path"])
    assert (prior.gaussian is not None) == (finished["case"] == "one size")


def test_finish_measures_likelihood_and_inverse(finished):
    validation = CASES[finished["case"]][2]
    card = finish(finished["path"], validation)
    prior = load_prior(finished["path"])
    assert prior.card == card
    assert card["scored"] == len(validation)
    assert 0 < card["round_trip_error"] < 0.1
    middles = [data.middle_crop(image, SIZE, SIZE) for image in validation]
    x = torch.stack(middles).float() / 255.0
    bits = prior.bits_per_dim(x, 8, fm.chance.generator_at(0, 0))
    assert card["val_bits_per_dim"] == pytest.approx(float(bits.mean()), abs=1e-3)
    assert card["val_bits_per_dim"] < 7.9


def test_average_is_kept_and_layers_decay(tmp_path):
    run = run_in(tmp_path)
    names = {id(value): name for name, value in run.prior.named_parameters()}
    decayed, others = (
        {names[id(value)] for value in group["params"]} for group in run.optimiser.param_groups
    )
    assert decayed | others == set(names.values())
    assert all(name.endswith("weight") for name in decayed)
    assert all(name.endswith(("bias", "position")) for name in others)
    for _ in range(3):
        run.advance()
    assert run.kept().velocity is run.flow.velocity
    assert run.flow is not run.prior.flow
    key = "velocity.network.first.weight"
    assert not torch.equal(run.flow.state_dict()[key], run.prior.flow.state_dict()[key])
