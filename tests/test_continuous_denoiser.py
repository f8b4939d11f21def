"""Continuous flows as denoisers of one noise level, of one a value, and by turned copies."""

import math

import pytest
import torch
from conftest import smooth_images
from continuous_cases import TINY, pictures, prior, source
from properties import randomise

import flowmend as fm
from flowmend.continuous import ContinuousPrior
from flowmend.errors import FlowmendError
from flowmend.flow import VelocityConfig, build_velocity
from flowmend.stationary import StationaryGaussian
from flowmend.turns import turned, turned_back


def test_denoiser_needs_one_evaluation(monkeypatch):
    whole = prior()
    calls = []
    whole.velocity.register_forward_hook(lambda *arguments: calls.append(1))
    whole.denoise(pictures(whole), 0.1)
    assert len(calls) == 1


@pytest.mark.parametrize("turns", [2, 4, 8])
def test_the_mean_of_turned_copies_does_not_know_the_top(turns):
    config = VelocityConfig(channels=1, widths=(6, 8), blocks=(1, 1), crop=16)
    velocity = randomise(build_velocity(config), seed=2, size=0.2).float()
    once = ContinuousPrior(velocity, (1, 8, 12)).requires_grad_(False)
    prior = once.with_turns(turns).at_shape((1, 8, 12)).at_precision("float32")
    y = torch.rand(2, 1, 8, 12, generator=source(1))
    map_of_noise = 0.1 + 0.1 * torch.rand(2, 1, 8, 12, generator=source(2))
    for sigma in (0.1, map_of_noise):
        found = prior.denoise(y, sigma)
        for way in range(turns):
            other = sigma if isinstance(sigma, float) else turned(sigma, way)
            again = turned_back(prior.denoise(turned(y, way), other), way)
            torch.testing.assert_close(again, found)
        other = sigma if isinstance(sigma, float) else turned(sigma, turns - 1)
        alone = turned_back(once.denoise(turned(y, turns - 1), other), turns - 1)
        assert float((alone - once.denoise(y, sigma)).abs().max()) > 1e-3
    assert once.turns is None


def test_ways_to_turn_are_the_eight_of_a_square():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert len({tuple(turned(x, way).flatten().tolist()) for way in range(8)}) == 8
    for way in range(8):
        y = torch.rand(1, 2, 3, 5, generator=source(way))
        assert torch.equal(turned_back(turned(y, way), way), y)
    assert torch.equal(turned(x, 1), x.flip(-1))
    assert torch.equal(turned(x, 3), x.rot90(2, (-2, -1)))


def test_numbers_of_turns_that_cannot_be():
    whole = prior()
    assert whole.with_turns(2).turns == 2
    for turns in (0, 3, 4, 8):
        with pytest.raises(FlowmendError, match=f"averages 1, 2 turned copies, not {turns}"):
            whole.with_turns(turns)


def test_without_noise_nothing_is_denoised():
    whole = prior(size=0.3)
    y = pictures(whole)
    assert torch.equal(whole.denoise(y, 0.0), y)
    mixed = whole.denoise(y, torch.tensor([0.0, 0.1, 0.0]))
    assert torch.equal(mixed[0], y[0])
    assert torch.equal(mixed[2], y[2])
    assert not torch.equal(mixed[1], y[1])


def test_each_image_has_its_own_noise():
    whole = prior(size=0.3)
    y, sigma = pictures(whole), torch.tensor([0.02, 0.3, 1.0])
    together = whole.denoise(y, sigma)
    for index in range(3):
        alone = whole.denoise(y[index : index + 1], float(sigma[index]))
        torch.testing.assert_close(alone[0], together[index], rtol=1e-5, atol=1e-5)


def test_each_value_has_its_own_noise():
    whole = prior(size=0.3)
    y = pictures(whole)
    even = torch.full_like(y, 0.1)
    torch.testing.assert_close(whole.denoise(y, even), whole.denoise(y, 0.1))
    mixed = torch.where(torch.arange(y.shape[-1]) < 2, 0.0, torch.tensor(torch.inf)).expand(
        y.shape
    )
    found = whole.denoise(y, mixed)
    # one channel: its colour coordinate is itself; known values stay, unknown ones do not matter
    torch.testing.assert_close(found[..., :2], y[..., :2])
    other = torch.where(mixed > 0, y + 1.0, y)
    torch.testing.assert_close(whole.denoise(other, mixed), found)
    known = y.clone()
    known[..., :2] += 0.1
    assert not torch.allclose(whole.denoise(known, mixed)[..., 2:], found[..., 2:])


def test_colours_of_a_grey_picture_are_unknown_coordinates():
    config = VelocityConfig(channels=3, widths=(4, 6), blocks=(1, 1))
    whole = prior(config, size=0.3).double()
    y = pictures(whole).double()
    sigma = torch.full_like(y, torch.inf)
    sigma[:, 0] = 0.0
    found = whole.denoise(y, sigma)
    torch.testing.assert_close(found.mean(1), y.mean(1))
    grey = y.mean(1, keepdim=True).expand_as(y)
    torch.testing.assert_close(whole.denoise(grey, sigma), found)


def test_denoiser_of_any_size_and_its_gradient():
    whole = prior(TINY)
    y = torch.rand(2, 1, 11, 7, generator=source()).requires_grad_()
    estimate = whole.denoise(y, torch.tensor([0.0, 0.2]))
    gradient = torch.autograd.grad(estimate.sum(), y)[0]
    assert bool(torch.isfinite(gradient).all())
    assert torch.equal(gradient[0], torch.ones(1, 11, 7))


@pytest.mark.parametrize(
    ("y", "sigma", "message"),
    [
        (torch.zeros(2, 1, 4, 6), -0.1, "at least 0"),
        (torch.zeros(2, 1, 4, 6), math.nan, "at least 0"),
        (torch.zeros(2, 1, 4, 6), math.inf, "finite"),
        (torch.zeros(2, 1, 4, 6), torch.tensor([0.1, -1.0]), "at least 0"),
        (torch.zeros(2, 1, 4, 6), torch.full((2,), math.inf), "finite"),
        (torch.zeros(2, 1, 4, 6), torch.zeros(3), "one for each of 2"),
        (torch.zeros(2, 1, 4, 6), torch.zeros(2, 1), "one for each of 2"),
        (torch.zeros(2, 1, 6, 4), 0.1, "only"),
        (torch.zeros(1, 4, 6), 0.1, "B, C, H, W"),
        (torch.zeros(2, 1, 4, 6, dtype=torch.uint8), 0.1, "floating"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_noise_and_images_that_make_no_sense_are_refused(y, sigma, message):
    with pytest.raises(FlowmendError, match=message):
        prior().denoise(y, sigma)


@pytest.mark.parametrize(
    ("size", "flip", "method", "turns"),
    [
        ((8, 8), True, "splitting", 2),
        ((8, 8), True, "posterior", 1),
        ((8, 8), False, "splitting", 1),
        (None, True, "splitting", 1),
    ],
)
def test_mirrored_copies_are_asked_about_where_they_were_learnt(size, flip, method, turns):
    config = VelocityConfig(channels=1, widths=(4, 4), blocks=(1, 1), size=size, crop=8)
    velocity = randomise(build_velocity(config, 0)).float()
    stationary = StationaryGaussian.fit([smooth_images(20, 1, 8, 8)])
    card = {"recipe": {"flip": flip}}
    prior = ContinuousPrior(velocity, (1, 8, 8), None, card, stationary=stationary).eval()
    task = fm.make_task("denoise", (1, 8, 8))
    y = task.measure(smooth_images(2, 1, 8, 8, seed=1), torch.Generator().manual_seed(0))
    found = fm.restore(y, task, prior, method=method)
    assert found.settings["turns"] == turns
    asked = fm.restore(y, task, prior.with_turns(turns), method=method)
    assert torch.equal(found.x, asked.x)
    other = fm.restore(y, task, prior.with_turns(3 - turns), method=method)
    assert not torch.equal(found.x, other.x)
    assert other.settings["turns"] == 3 - turns


@pytest.mark.parametrize("card", [{}, {"recipe": "strong"}, {"recipe": {}}, {"recipe": None}])
def test_a_card_that_says_nothing_of_mirrors_means_none(card):
    config = VelocityConfig(channels=1, widths=(4, 4), blocks=(1, 1), size=(8, 8))
    assert not ContinuousPrior(build_velocity(config, 0), None, None, card).mirrors
