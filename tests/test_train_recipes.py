"""Recipes: rates, decay, averages, clipping and batches."""

import dataclasses
import math

import pytest
import torch
from training_cases import (
    GLOW,
    IMAGES,
    PAPER,
    STEPS,
    STRONG,
    VALIDATION,
    WHITENED,
    log_of,
    run_in,
    start,
)

from flowmend import train as training
from flowmend.errors import FlowmendError
from flowmend.pixels import dequantise
from flowmend.train import RECIPES, Recipe, round_trip_error
from flowmend.weights import load_prior


# Recipes.
def test_recipe_of_the_paper():
    recipe = RECIPES["paper"]
    assert recipe.learning_rate == 1e-4
    assert recipe.betas == (0.5, 0.999)
    assert recipe.batch == 32
    assert recipe.epochs == 100
    assert (recipe.weight_decay, recipe.averaging, recipe.clip) == (0.0, 0.0, 0.0)
    assert not recipe.flip
    assert {recipe.rate(step, 5000) for step in (0, 1, 2500, 4999)} == {1e-4}


def test_rate_warms_up_and_falls_along_a_cosine():
    recipe = Recipe(learning_rate=2.0, warmup=10)
    assert recipe.rate(0, 1000) == pytest.approx(0.2, rel=1e-3)
    assert recipe.rate(4, 1000) == pytest.approx(1.0, rel=1e-3)
    assert recipe.rate(500, 1000) == pytest.approx(1.0)
    assert recipe.rate(250, 1000) == pytest.approx(1.0 + math.sqrt(0.5))
    assert recipe.rate(999, 1000) < 1e-4


def test_rate_of_each_step_reaches_the_optimiser(tmp_path):
    run = run_in(tmp_path)
    for step in range(STEPS):
        run.advance()
        wanted = STRONG.rate(step, STEPS)
        assert {group["lr"] for group in run.optimiser.param_groups} == {wanted}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epoch"),
        ({"batch": 0}, "batch"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"learning_rate": -1.0}, "learning rate"),
        ({"learning_rate": math.nan}, "learning rate"),
        ({"learning_rate": math.inf}, "learning rate"),
        ({"precision": "float8"}, "float8"),
    ],
    ids=str,
)
def test_impossible_recipe_is_refused(changes, message):
    with pytest.raises(FlowmendError, match=message):
        Recipe(**changes)


def test_only_convolutions_of_networks_decay(tmp_path):
    run = run_in(tmp_path, GLOW)
    names = {id(value): name for name, value in run.prior.named_parameters()}
    groups = run.optimiser.param_groups
    found = [{names[id(value)] for value in group["params"]} for group in groups]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert found[0] | found[1] == set(names.values())
    assert found[0] & found[1] == set()
    assert found[0] == {
        name
        for name in names.values()
        if name.endswith((".network.first.weight", ".network.last.weight"))
    }


def test_average_forgets_its_first_steps(tmp_path):
    run = run_in(tmp_path, recipe=dataclasses.replace(STRONG, averaging=0.25))
    key = "scales.0.layers.1.shift"
    wanted = None
    for count in range(8):
        run.advance()
        now = run.prior.flow.state_dict()[key].double()
        decay = min(0.25, (1.0 + count) / (10.0 + count))
        wanted = now if count == 0 else decay * wanted + (1.0 - decay) * now
        found = run.flow.state_dict()[key].double()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)
    assert not torch.equal(found, now)


def test_run_without_averaging_keeps_the_weights(tmp_path):
    run = run_in(tmp_path, recipe=PAPER)
    run.advance()
    assert run.flow is run.prior.flow


def test_gradients_are_clipped(tmp_path, monkeypatch):
    norms = []
    for clip in (1e-3, 0.0):
        run = run_in(tmp_path, recipe=dataclasses.replace(STRONG, clip=clip))
        run.advance()
        squares = [value.grad.square().sum() for value in run.prior.parameters()]
        norms.append(float(sum(squares)) ** 0.5)
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1] > 0.01


def batches_of(run, monkeypatch):
    seen = []
    monkeypatch.setattr(
        training, "dequantise", lambda x, *rest: seen.append(x.clone()) or dequantise(x, *rest)
    )
    for _ in range(2 * run.steps_per_epoch):
        run.advance()
    monkeypatch.undo()
    return [(255.0 * x).round().to(torch.uint8) for x in seen]


def test_every_image_is_seen_once_an_epoch(tmp_path, monkeypatch):
    run = run_in(tmp_path, recipe=PAPER)
    batches = batches_of(run, monkeypatch)
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])

    def keys(images):
        return [image.numpy().tobytes() for image in images]

    assert len(set(keys(IMAGES))) == 64
    assert sorted(keys(first)) == sorted(keys(second)) == sorted(keys(IMAGES))
    assert keys(first) != keys(second)


def test_mirroring_is_random_and_optional(tmp_path, monkeypatch):
    known = {image.numpy().tobytes() for image in IMAGES}
    mirrored = {image.numpy().tobytes() for image in IMAGES.flip(-1)}
    for flip, low, high in ((True, 32, 96), (False, 0, 0)):
        run = run_in(tmp_path, recipe=dataclasses.replace(STRONG, flip=flip))
        seen = [image.numpy().tobytes() for image in torch.cat(batches_of(run, monkeypatch))]
        assert all(image in known | mirrored for image in seen)
        assert low <= sum(image not in known for image in seen) <= high


def test_fewer_images_than_a_batch(tmp_path):
    path = start(tmp_path, images=IMAGES[:5], recipe=dataclasses.replace(STRONG, epochs=2))
    assert [record["epoch"] for record in log_of(tmp_path)] == [1, 2]
    assert load_prior(path).card["training_images"] == 5


def test_actnorms_start_from_the_images(tmp_path):
    run = run_in(tmp_path)
    with torch.no_grad():
        z = run.prior.encode(dequantise(IMAGES.float() / 255.0, 5))[0]
    assert z.abs().max() < 10
    assert run.prior.flow.scales[0].layers[1].log_scale.any()


@pytest.mark.parametrize("recipe", [STRONG, PAPER], ids=["averaged", "not averaged"])
def test_kept_prior_inverts_while_it_trains(tmp_path, recipe):
    """The cached inverse of a 1x1 convolution must follow the optimiser."""
    run = run_in(tmp_path, GLOW, dataclasses.replace(recipe, learning_rate=0.02, warmup=0))
    for _ in range(3):
        assert round_trip_error(run.kept(), VALIDATION) < 1e-3
        run.advance()


def test_lower_precision_trains_too(tmp_path):
    recipe = dataclasses.replace(STRONG, epochs=2, precision="bfloat16")
    prior = load_prior(start(tmp_path, WHITENED, recipe))
    assert all(value.dtype == torch.float32 for value in prior.parameters())
    start(tmp_path / "single", WHITENED, dataclasses.replace(recipe, precision="float32"))
    low, single = (log_of(out)[-1] for out in (tmp_path, tmp_path / "single"))
    assert low["val_bits_per_dim"] != single["val_bits_per_dim"]
    assert low["val_bits_per_dim"] == pytest.approx(single["val_bits_per_dim"], abs=0.05)
