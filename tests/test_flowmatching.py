"""Flow matching: the loss against closed forms, batches that are drawn fairly, runs that resume to
the same bits or end with their minutes, photographs of any size, and the commands."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import leftovers, save_png, smooth_images
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import flowmend as fm
from flowmend import data, flowmatching, training
from flowmend.chance import mirrored, random_crop, stratified_times, time_maps
from flowmend.continuous import ContinuousPrior
from flowmend.errors import FlowmendError
from flowmend.files import read_image, read_picture
from flowmend.flow import FlowConfig, VelocityConfig, VelocityNet, build_velocity
from flowmend.flowmatching import (
    MatchingRun,
    finish,
    match,
)
from flowmend.matching_loss import held_out_loss, held_out_psnr, matching_loss
from flowmend.recipes import MatchingRecipe
from flowmend.weights import load_prior

SIZE = 8
FIXED = VelocityConfig(channels=1, widths=(6, 8), blocks=(1, 1), size=(SIZE, SIZE))
CROPS = dataclasses.replace(FIXED, size=None, crop=SIZE)
RECIPE = MatchingRecipe(epochs=3, batch=8, learning_rate=5e-3, warmup=2, averaging=0.9)
STEPS = 12


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def levels(count, height=SIZE, width=SIZE, channels=1, seed=0):
    """Smooth images uint8 (N, C, H, W)."""
    images = smooth_images(count, channels, height, width, seed)
    return (255.0 * images).round().to(torch.uint8)


IMAGES, VALIDATION = levels(32), levels(6, seed=1)
PHOTOGRAPHS = [levels(1, 8 + 3 * k, 24 - 2 * k, seed=k)[0] for k in range(4)]
CASES = {
    "one size": (FIXED, IMAGES, VALIDATION),
    "crops": (CROPS, [*PHOTOGRAPHS, *IMAGES[:13]], [PHOTOGRAPHS[0], VALIDATION[0]]),
}


def start(out, case="one size", recipe=RECIPE, **options):
    config, images, validation = CASES[case]
    return match(images, validation, out, config, recipe, **options)


def run_in(out, case="one size", recipe=RECIPE, seed=0):
    config, images, validation = CASES[case]
    return MatchingRun(out, config, recipe, images, validation, seed, "cpu")


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def result_of(out):
    """All that a run leaves but times and the machine it ran on."""
    card = json.loads((out / "prior.json").read_text())
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        values = json.loads(file.metadata()["values"])
    return {
        "card": {k: v for k, v in card.items() if k not in ("made_with", "sha256", "name")},
        "log": [{k: v for k, v in record.items() if k != "seconds"} for record in log_of(out)],
        "values": values,
        "samples": {path.name: path.read_bytes() for path in (out / "samples").iterdir()},
        "prior": load_file(out / "prior.safetensors"),
        "checkpoint": load_file(out / "checkpoint.safetensors"),
    }


def assert_same(found, wanted):
    for key in ("prior", "checkpoint"):
        assert found[key].keys() == wanted[key].keys()
        for name, value in wanted[key].items():
            assert torch.equal(found[key][name], value), f"{name} of the {key} differs"
    for key in ("card", "log", "values", "samples"):
        assert found[key] == wanted[key]


class Interrupted(Exception):  # noqa: N818
    pass


def interrupt_at(step):
    def progress(done, total, what):
        if done == step:
            raise Interrupted

    return progress


# The loss.


@pytest.mark.parametrize("spread", [0.5, 0.2])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.8, 0.99])
def test_loss_without_a_network_in_closed_form(t, spread):
    """For images of N(0, spread^2 I) the velocity of a fresh network errs by two independent
    parts; it is the best there is, of size 1, where the spread is the one assumed."""
    config = dataclasses.replace(FIXED, sigma_data=0.5)
    velocity = build_velocity(config).double()
    x = spread * torch.randn(4000, 1, SIZE, SIZE, generator=source(), dtype=torch.float64)
    noise = torch.randn(x.shape, generator=source(1), dtype=torch.float64)
    with torch.no_grad():
        loss = matching_loss(velocity, x, torch.full((4000,), t, dtype=torch.float64), noise)
    assert loss.shape == (4000,)
    variance = t**2 * 0.25 + (1 - t) ** 2
    c_skip, c_out = (t * 0.25 - (1 - t)) / variance, 0.5 / math.sqrt(variance)
    of_x, of_noise = (1 - c_skip * t) * spread, -1 - c_skip * (1 - t)
    wanted = (of_x**2 + of_noise**2) / c_out**2
    assert float(loss.mean()) == pytest.approx(wanted, rel=0.02)
    if spread == 0.5:
        assert wanted == pytest.approx(1.0)


class Truth(VelocityNet):
    """The residual of the true velocity for the single image m: ``v = (m - x_t) / (1 - t)``."""

    def __init__(self, config, image):
        super().__init__(config)
        self.image = nn.Parameter(image)

    def residual(self, u, t, linear=None, drop=None):
        c_in, c_skip, c_out = self.factors(u, t)
        x_t = u / c_in
        return ((self.image - x_t) / (1.0 - t).view(-1, 1, 1, 1) - c_skip * x_t) / c_out


def test_loss_of_the_true_velocity_is_zero():
    image = torch.randn(1, SIZE, SIZE, generator=source(), dtype=torch.float64)
    t = torch.tensor([0.0, 0.4, 0.95], dtype=torch.float64)
    noise = torch.randn(3, 1, SIZE, SIZE, generator=source(1), dtype=torch.float64)
    truth = Truth(FIXED, image).double().requires_grad_(False)
    assert float(matching_loss(truth, image.expand(3, -1, -1, -1), t, noise).max()) < 1e-20
    off = Truth(FIXED, image + 0.1).double().requires_grad_(False)
    assert float(matching_loss(off, image.expand(3, -1, -1, -1), t, noise).min()) > 1e-3


def test_held_out_measures_do_not_depend_on_the_batch():
    prior = ContinuousPrior(build_velocity(FIXED))
    for measure in (held_out_loss, held_out_psnr):
        whole = measure(prior, VALIDATION)
        assert whole == measure(prior, VALIDATION)
        assert whole != measure(prior, VALIDATION, seed=1)
    noisy = held_out_psnr(prior, VALIDATION, sigma=0.3)
    assert noisy < held_out_psnr(prior, VALIDATION, sigma=0.05)


# What is random.


def test_times_are_one_in_each_part():
    for count in (1, 7, 64):
        t = stratified_times(count, source(count))
        assert t.shape == (count,)
        assert torch.equal((t * count).floor(), torch.arange(count).float())
    t = torch.cat([stratified_times(10, source(seed)) for seed in range(1000)])
    assert float(t.mean()) == pytest.approx(0.5, abs=0.01)
    assert float((10 * t).frac().var()) == pytest.approx(1 / 12, rel=0.05)
    assert torch.equal(stratified_times(2), torch.tensor([0.25, 0.75]))


def test_values_that_are_known_do_not_count():
    velocity = build_velocity(dataclasses.replace(FIXED, sigma_data=0.5)).double()
    x, noise = (torch.randn(2, 1, SIZE, SIZE, generator=source(k)).double() for k in (0, 1))
    t = torch.full_like(x, 0.3)
    t[:, :, :, : SIZE // 2] = 1.0
    with torch.no_grad():
        found = matching_loss(velocity, x, t, noise)
        changed = torch.where(t == 1.0, 5.0 * noise, noise)
        right = matching_loss(velocity, x, torch.full((2,), 0.3).double(), noise)
        assert torch.equal(found, matching_loss(velocity, x, t, changed))
        assert not torch.allclose(found, right)
    # a fresh network errs by itself at every value: the loss is the mean over the unknown half
    _, c_skip, c_out = velocity.factors(x, t)
    target = (x - noise - c_skip * (0.7 * noise + 0.3 * x)) / c_out
    wanted = target[:, :, :, SIZE // 2 :].square().flatten(1).mean(1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_times_of_values_are_even_or_of_two_kinds(channels):
    t = time_maps((2000, channels, 8, 12), source())
    assert t.shape == (2000, channels, 8, 12)
    assert 0.0 <= float(t.min()) <= float(t.max()) <= 1.0
    low, high = t.flatten(1).min(1).values, t.flatten(1).max(1).values
    kinds = torch.tensor([len(image.unique()) for image in t])
    assert set(kinds.tolist()) == {1, 2}
    even = kinds == 1
    assert 0.3 < float(even.double().mean()) < (0.5 if channels == 3 else 0.7)
    assert float(low[even].quantile(0.1)) == pytest.approx(0.1, abs=0.04)
    assert float(high[even].quantile(0.9)) == pytest.approx(0.9, abs=0.04)
    assert float((high[~even] == 1.0).double().mean()) == pytest.approx(0.6, abs=0.05)
    assert float((low[~even] == 0.0).double().mean()) == pytest.approx(0.6, abs=0.05)
    assert torch.equal(t, time_maps((2000, channels, 8, 12), source()))
    sure = time_maps((2000, channels, 8, 12), source(), sure=1.0).flatten(1)
    assert set(sure[kinds > 1].unique().tolist()) == {0.0, 1.0}
    if channels == 3:
        grey = (t[:, :1] > t[:, 1:]).flatten(1).all(1)
        assert 0.03 < float(grey.double().mean()) < 0.3


def test_focused_times_have_the_noise_of_photographs():
    t = time_maps((4000, 1, 2, 2), source(), mixed=0.0, focused=1.0)
    assert torch.equal(t, t[:, :, :1, :1].expand(t.shape))
    noise = (0.5 * (1.0 / t[:, 0, 0, 0] - 1.0)).log()
    assert float(noise.exp().median()) == pytest.approx(0.08, rel=0.01)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)
    half = time_maps((4000, 1, 2, 2), source(), mixed=0.0, focused=0.5)[:, 0, 0, 0]
    # P(t < 0.5), noise over a half: 0.5 of the even times, 0.033 of the others
    assert float((half < 0.5).double().mean()) == pytest.approx(0.267, abs=0.02)


def test_a_relative_loss_weighs_all_images_alike(tmp_path, monkeypatch):
    losses = torch.tensor([0.25, 4.0, 0.0])
    monkeypatch.setattr(flowmatching, "matching_loss", lambda *arguments: leaf)
    floored = 1.0 / (losses + flowmatching.LEAST_LOSS)
    for relative, wanted in ((False, torch.ones(3)), (True, floored)):
        leaf = losses.clone().requires_grad_()
        run = run_in(tmp_path, "crops", dataclasses.replace(RECIPE, relative=relative))
        loss = run.loss(torch.arange(3), source())
        loss.backward()
        assert bool(torch.isfinite(loss))
        torch.testing.assert_close(3.0 * leaf.grad, wanted)


def test_crops_come_from_everywhere():
    image = torch.arange(5 * 4).view(1, 5, 4)
    generator = source()
    corners = [int(random_crop(image, 3, generator)[0, 0, 0]) for _ in range(600)]
    assert set(corners) == {0, 1, 4, 5, 8, 9}
    assert min(corners.count(corner) for corner in set(corners)) > 60
    crop = random_crop(image, 3, generator)
    assert torch.equal(crop - crop[0, 0, 0], image[:, :3, :3])
    assert torch.equal(random_crop(image[:, :4], 4, generator), image[:, :4])


def test_half_of_the_images_are_mirrored():
    images = torch.arange(3.0).expand(2000, 1, 1, 3)
    kept = images.clone()
    seen = mirrored(images, source())
    turned = (seen == images.flip(-1)).flatten(1).all(1)
    assert bool(((seen == images).flatten(1).all(1) | turned).all())
    assert 900 < int(turned.sum()) < 1100
    assert torch.equal(images, kept)


def batches_of(run, monkeypatch, epochs=1):
    seen = []
    loss = matching_loss
    monkeypatch.setattr(
        flowmatching,
        "matching_loss",
        lambda velocity, x, t, noise, linear, drop: (
            seen.append((x, t, noise)) or loss(velocity, x, t, noise, linear)
        ),
    )
    for _ in range(epochs * run.steps_per_epoch):
        run.advance()
    monkeypatch.undo()
    return [torch.cat(parts) for parts in zip(*seen, strict=True)]


def test_every_image_is_seen_once_an_epoch(tmp_path, monkeypatch):
    run = run_in(tmp_path, recipe=dataclasses.replace(RECIPE, flip=False))
    x, t, noise = batches_of(run, monkeypatch)
    seen = (127.5 * (x + 1.0)).floor().clamp(0, 255)
    near = (seen[:, None] - IMAGES[None].float()).abs().flatten(2).amax(2) <= 1.0
    assert torch.equal(near.sum(0), torch.ones(32))
    assert t.shape == x.shape
    assert float(t.min()) == 0.0
    assert float(t.max()) == 1.0
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    assert float((noise * x).mean()) == pytest.approx(0.0, abs=0.05)


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


# Interruptions.


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = {}
    for case in CASES:
        for precision in ("float32", "bfloat16"):
            out = tmp_path_factory.mktemp("whole")
            start(out, case, dataclasses.replace(RECIPE, precision=precision))
            results[case, precision] = result_of(out)
    return results


@pytest.mark.parametrize("step", [1, 4, 6, 8])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_resumed_run_is_the_uninterrupted_one(
    tmp_path, monkeypatch, uninterrupted, case, precision, step
):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    monkeypatch.setattr(flowmatching, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(Interrupted):
        start(tmp_path, case, recipe, progress=interrupt_at(step))
    start(tmp_path, case, recipe, resume=True)
    assert_same(result_of(tmp_path), uninterrupted[case, precision])


def test_precision_reaches_the_network(uninterrupted):
    single, low = (uninterrupted["one size", key] for key in ("float32", "bfloat16"))
    assert single["log"] != low["log"]
    assert single["log"][-1]["val_loss"] == pytest.approx(low["log"][-1]["val_loss"], rel=0.05)


def test_run_does_not_depend_on_global_random_numbers(tmp_path, uninterrupted):
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    start(tmp_path, "crops")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(result_of(tmp_path), uninterrupted["crops", "float32"])
    other = tmp_path / "other"
    start(other, "crops", seed=1)
    assert result_of(other)["log"] != uninterrupted["crops", "float32"]["log"]


def test_step_that_is_not_finite_changes_nothing(tmp_path, monkeypatch):
    run = run_in(tmp_path)
    run.advance()
    before = {key: value.clone() for key, value in run.prior.state_dict().items()}
    loss = matching_loss
    monkeypatch.setattr(
        flowmatching, "matching_loss", lambda *arguments: loss(*arguments) * math.nan
    )
    run.advance()
    assert (run.step, run.skipped) == (2, 1)
    assert all(torch.equal(value, before[k]) for k, value in run.prior.state_dict().items())


def test_hopeless_run_is_one_sentence_and_keeps_no_prior(tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, warmup=0)
    with pytest.raises(FlowmendError, match=r"finite.*lower the learning rate"):
        start(tmp_path, recipe=recipe)
    assert not (tmp_path / "prior.safetensors").exists()


def test_best_prior_is_kept(tmp_path, monkeypatch):
    values = iter((0.5, 0.4, 0.6))
    monkeypatch.setattr(flowmatching, "held_out_loss", lambda *arguments: next(values))
    card = load_prior(start(tmp_path)).card
    assert (card["epoch"], card["val_loss"]) == (2, 0.4)


# The time limit.


class Clock:
    """A clock that a training step moves by 10 seconds."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(training.time, "monotonic", lambda: self.now)
        advance = MatchingRun.advance

        def slow(run):
            advance(run)
            self.now += 10.0

        monkeypatch.setattr(MatchingRun, "advance", slow)


def test_training_ends_with_its_minutes(tmp_path, monkeypatch):
    Clock(monkeypatch)
    recipe = dataclasses.replace(RECIPE, epochs=1000, minutes=1.0, warmup=0)
    rates = []
    told = []

    def progress(done, total, what):
        if what.startswith("epoch"):
            told.append((done, total))

    rate = MatchingRecipe.rate
    monkeypatch.setattr(
        MatchingRecipe, "rate", lambda *arguments: rates.append(rate(*arguments)) or rates[-1]
    )
    path = start(tmp_path, recipe=recipe, progress=progress)
    assert told[-1] == (6, 6)
    wanted = [5e-3 * 0.5 * (1.0 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates[::2] == pytest.approx(wanted)
    assert [record["epoch"] for record in log_of(tmp_path)] == [1, 2]
    assert load_prior(path).card["recipe"]["minutes"] == 1.0


def test_resumed_run_has_the_minutes_that_are_left(tmp_path, monkeypatch):
    Clock(monkeypatch)
    monkeypatch.setattr(flowmatching, "CHECKPOINT_SECONDS", -1.0)
    recipe = dataclasses.replace(RECIPE, epochs=1000, minutes=1.0)
    with pytest.raises(Interrupted):
        start(tmp_path, recipe=recipe, progress=interrupt_at(2))
    told = []
    start(tmp_path, recipe=recipe, resume=True, progress=lambda *now: told.append(now[0]))
    assert [step for step in told if step] == [3, 4, 5, 6]
    before = (tmp_path / "prior.safetensors").read_bytes()
    start(tmp_path, recipe=recipe, resume=True)
    assert (tmp_path / "prior.safetensors").read_bytes() == before


def test_steps_can_end_before_the_minutes(tmp_path):
    recipe = dataclasses.replace(RECIPE, minutes=60.0)
    start(tmp_path, recipe=recipe)
    assert len(log_of(tmp_path)) == 3
    assert log_of(tmp_path)[-1]["learning_rate"] == pytest.approx(RECIPE.rate(11, 12))


def test_warm_up_is_a_twentieth_of_a_long_run_at_most():
    recipe = MatchingRecipe(learning_rate=1.0, warmup=100)
    assert recipe.rate(0, 100_000) == pytest.approx(0.01)
    assert recipe.rate(0, 1000) == pytest.approx(0.02)
    assert recipe.rate(49, 1000) == pytest.approx(1.0, abs=0.01)
    assert recipe.rate(0, 10) == pytest.approx(0.05)
    assert dataclasses.replace(recipe, warmup=2).rate(1, 10_000) == pytest.approx(1.0)


@pytest.mark.parametrize("minutes", [-1.0, math.nan, math.inf])
def test_impossible_minutes_are_refused(minutes):
    with pytest.raises(FlowmendError, match="minutes"):
        MatchingRecipe(minutes=minutes)


# What is refused.


@pytest.mark.parametrize(
    ("config", "images", "message"),
    [
        (FIXED, levels(4, 8, 9), r"shape \(1, 8, 8\)"),
        (FIXED, levels(4, channels=3), "1 channel"),
        (CROPS, [*PHOTOGRAPHS, levels(1, 7, 30)[0]], r"at least 8 pixels.*\(1, 7, 30\)"),
        (CROPS, [levels(1, 9, 9, 3)[0]], "1 channel"),
    ],
    ids=["size", "channels", "too small", "crop channels"],
)
def test_images_that_do_not_fit_are_refused(tmp_path, config, images, message):
    with pytest.raises(FlowmendError, match=message):
        match(images, VALIDATION, tmp_path, config, RECIPE)
    with pytest.raises(FlowmendError, match=message):
        match(IMAGES, images, tmp_path, config, RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_existing_run_and_other_settings_are_refused(tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path, progress=interrupt_at(4))
    with pytest.raises(FlowmendError, match="add --resume"):
        start(tmp_path)
    for changes, message in (
        ({"recipe": dataclasses.replace(RECIPE, epochs=9)}, r"\(recipe\)"),
        ({"recipe": dataclasses.replace(RECIPE, minutes=5.0)}, r"\(recipe\)"),
        ({"seed": 1}, r"\(seed\)"),
        ({"case": "crops"}, "belongs to another configuration"),
    ):
        with pytest.raises(FlowmendError, match=message):
            start(tmp_path, resume=True, **changes)
    with pytest.raises(FlowmendError, match="no run to resume"):
        start(tmp_path / "nowhere", resume=True)


# Photographs.


@pytest.fixture
def photographs(tmp_path):
    """Photographs of many sizes, one of them too small."""
    folder = tmp_path / "photographs"
    for index, (height, width) in enumerate(
        [(9, 20), (16, 8), (30, 31), (8, 8), (12, 9), (7, 40)]
    ):
        save_png(folder / f"{index}.png", smooth_images(1, 3, height, width, seed=index)[0])
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_keep_their_size(photographs, channels):
    config = dataclasses.replace(CROPS, channels=channels)
    images, problems = data.load_photographs(photographs, config)
    sizes = [(9, 20), (16, 8), (30, 31), (8, 8), (12, 9)]
    assert [tuple(image.shape) for image in images] == [(channels, *size) for size in sizes]
    assert all(image.dtype == torch.uint8 for image in images)
    assert len(problems) == 1
    assert "5.png" in problems[0]
    assert "40 x 7 pixels, smaller than crops of 8 x 8: choose a smaller crop" in problems[0]
    wanted = np.array(Image.open(photographs / "2.png").convert("L" if channels == 1 else "RGB"))
    found = images[2].permute(1, 2, 0).numpy()
    assert np.array_equal(found[..., 0] if channels == 1 else found, wanted)


def test_large_photographs_are_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGEST_KEPT", 200)
    save_png(tmp_path / "a.png", smooth_images(1, 3, 40, 20)[0])
    save_png(tmp_path / "b.png", torch.full((3, 20, 20), 100 / 255))
    images, problems = data.load_photographs(tmp_path, dataclasses.replace(CROPS, channels=3))
    assert [tuple(image.shape) for image in images] == [(3, 20, 10), (3, 14, 14)]
    assert bool((images[1] == 100).all())
    assert problems == []


def test_folder_of_small_pictures_is_refused(photographs):
    with pytest.raises(FlowmendError, match=r"No picture.*smaller than crops of 64 x 64"):
        data.load_photographs(photographs, dataclasses.replace(CROPS, crop=64))
    with pytest.raises(FlowmendError, match="is not a folder"):
        data.load_photographs(photographs / "0.png", CROPS)


def test_list_is_held_out_like_a_tensor():
    images = torch.arange(60).reshape(60, 1, 1, 1)
    for found, wanted in zip(
        data.hold_out(list(images), seed=3), data.hold_out(images, seed=3), strict=True
    ):
        assert isinstance(found, list)
        assert torch.equal(torch.stack(found), wanted)


def test_pictures_are_scored_as_they_were_trained(photographs):
    picture = read_picture(photographs / "2.png")
    x = data.as_trained(picture, dataclasses.replace(CROPS, channels=3))
    assert torch.equal(x, read_image(photographs / "2.png")[:, 11:19, 11:19])
    for config in (
        VelocityConfig(size=(8, 8)),
        FlowConfig(height=8, width=8, steps=(1,), split=(False,)),
    ):
        resized = data.as_trained(picture, config)
        assert resized.shape == (3, 8, 8)
        assert not torch.equal(resized, x)
    with pytest.raises(FlowmendError, match="smaller than crops"):
        data.as_trained(picture, VelocityConfig(crop=64))


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
