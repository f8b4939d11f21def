"""The loss of flow matching against closed forms, and the batches that are drawn."""

import dataclasses
import math

import pytest
import torch
from matching_cases import FIXED, IMAGES, RECIPE, SIZE, VALIDATION, batches_of, run_in
from torch import nn

from flowmend import flowmatching
from flowmend.chance import mirrored, random_crop, stratified_times, time_maps
from flowmend.continuous import ContinuousPrior
from flowmend.flow import VelocityNet, build_velocity
from flowmend.matching_loss import held_out_loss, held_out_psnr, matching_loss


def source(seed=0):
    return torch.Generator().manual_seed(seed)


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


def test_common_times_are_of_lost_colours_and_holes_about_the_middle():
    shape = (1500, 3, 20, 30)
    t = time_maps(shape, source(), mixed=1.0, sure=1.0, common=1.0)
    unknown = t == 0.0
    assert torch.equal(unknown, t < 1.0)
    colours = torch.tensor([False, True, True]).view(1, 3, 1, 1)
    grey = (unknown == colours).flatten(1).all(1)
    assert float(grey.double().mean()) == pytest.approx(0.5, abs=0.05)
    holes = unknown[~grey]
    assert torch.equal(holes, holes[:, :1].expand(holes.shape))
    for side, length in ((1, 20), (2, 30)):
        lines = holes[:, 0].any(3 - side)
        lengths = lines.sum(1)
        assert int(lengths.min()) == round(0.3 * length)
        assert int(lengths.max()) == round(0.5 * length)
        place = torch.arange(length)
        middle = (lines * (place + 0.5)).sum(1) / lengths - length / 2
        assert 0.05 * length < float(middle.abs().max()) <= 0.1 * length + 1.0
        gaps = (lines[:, 1:] != lines[:, :-1]).sum(1)
        assert int(gaps.max()) == 2
        filled = holes[:, 0].sum((1, 2)) == holes[:, 0].any(2).sum(1) * holes[:, 0].any(1).sum(1)
        assert bool(filled.all())
    rare = time_maps(shape, source(), mixed=1.0, sure=1.0, common=0.3)
    usual = time_maps(shape, source(), mixed=1.0, sure=1.0)
    assert torch.equal(usual, time_maps(shape, source(), mixed=1.0, sure=1.0, common=0.0))
    shares = [
        float(((m == 0.0) == colours).flatten(1).all(1).double().mean()) for m in (usual, rare)
    ]
    assert shares[1] > shares[0]


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
