"""Noise models: what they draw against their moments, likelihoods and gradients."""

import math
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
import scipy.stats
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from flowmend.noise import (
    FAINTEST,
    NOISES,
    Gaussian,
    Noise,
    Poisson,
    SaltAndPepper,
    known_pixels,
    make_noise,
)
from flowmend.pixels import quantisation_sigma, round_to_bytes

ROUNDING = quantisation_sigma()
MODELS = {
    "gaussian": Gaussian(0.1),
    "gaussian, weak": Gaussian(0.02),
    "poisson, dark": Poisson(3.0),
    "poisson": Poisson(30.0),
    "poisson, bright": Poisson(2000.0),
    "salt-pepper": SaltAndPepper(0.1),
    "salt-pepper, strong": SaltAndPepper(0.6),
}
every_model = pytest.mark.parametrize("noise", MODELS.values(), ids=MODELS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=0, low=0.05, high=0.95):
    return low + (high - low) * torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


# Checkers
def check_moments(noise, draws=40_000):
    """What is drawn about a level has the promised mean squared error, and the right mean."""
    for level in (0.05, 0.3, 0.5, 0.9):
        clean = torch.full((1, 1, draws // 100, 100), level, dtype=torch.float64)
        error = (noise.corrupt(clean, seeded(3)) - level).flatten()
        squares = error.square()
        doubt = 4.5 * squares.std() / math.sqrt(draws)
        promised = noise.variance(clean).flatten()
        assert bool((promised == promised[0]).all())
        difference = abs(float(squares.mean() - promised[0]))
        assert difference <= float(doubt), f"mean squared error at {level}: {difference:.3g} off"
        bias = 0.0
        if isinstance(noise, SaltAndPepper):
            bias = noise.share * (0.5 - level)
        shift = abs(float(error.mean()) - bias)
        assert shift <= 4.5 * float(error.std()) / math.sqrt(draws), (
            f"mean at {level}: {shift:.3g}"
        )


def log_density(noise, y, measured):
    """Reference log p(y | measured), value by value, from scipy."""
    y, measured = y.numpy(), measured.numpy()
    if isinstance(noise, Gaussian):
        return scipy.stats.norm.logpdf(y, measured, max(noise.sigma, ROUNDING))
    if isinstance(noise, Poisson):
        return scipy.stats.poisson.logpmf(np.round(y * noise.peak), noise.peak * measured)
    values = scipy.stats.laplace.logpdf(y, measured, ROUNDING / math.sqrt(2.0))
    return np.where(known_pixels(torch.from_numpy(y)).numpy(), values, 0.0)


def check_likelihood(noise):
    """Differences of the negative log-likelihood are those of scipy's, image by image."""
    clean = uniform(5, 3, 6, 7)
    y = noise.corrupt(clean, seeded(1))
    first, second = (0.04 * uniform(5, 3, 6, 7, seed=seed) + 0.95 * clean for seed in (4, 5))
    found = noise.negative_log_likelihood(first, y) - noise.negative_log_likelihood(second, y)
    wanted = log_density(noise, y, second) - log_density(noise, y, first)
    wanted = torch.from_numpy(wanted).flatten(1).sum(1)
    assert found.shape == (5,)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-8), "the likelihood is not scipy's"


def check_gradient(noise, low=-0.3, high=1.3):
    """Autograd's gradient is that of central differences, beyond [0, 1] too."""
    y = noise.corrupt(uniform(2, 3, 4, 5), seeded(2))
    measured = uniform(2, 3, 4, 5, seed=7, low=low, high=high).requires_grad_(True)
    (gradient,) = torch.autograd.grad(noise.negative_log_likelihood(measured, y).sum(), measured)
    assert gradcheck(
        lambda value: noise.negative_log_likelihood(value, y),
        measured,
        eps=1e-7,
        atol=1e-6 * float(gradient.abs().max()),
        rtol=1e-4,
    )
    assert bool((gradient[known_pixels(y).expand_as(y)] != 0).all())


@every_model
def test_moments_of_what_is_drawn(noise):
    check_moments(noise)


@every_model
def test_likelihood_is_scipys(noise):
    check_likelihood(noise)


@every_model
def test_gradients(noise):
    check_gradient(noise)


class Louder(Gaussian):
    """Draws more noise than it says."""

    def corrupt(self, clean, generator):
        return clean + 1.1 * (super().corrupt(clean, generator) - clean)


class Shifted(Poisson):
    """Draws a little too much light."""

    def corrupt(self, clean, generator):
        return super().corrupt(clean, generator) + 0.01


class Saltier(SaltAndPepper):
    """Draws nothing but salt."""

    def corrupt(self, clean, generator):
        y = super().corrupt(clean, generator)
        return torch.where(y == 0.0, 1.0, y)


class Doubled(Gaussian):
    """Forgets the half."""

    def negative_log_likelihood(self, measured, y):
        return 2.0 * super().negative_log_likelihood(measured, y)


class Squares(Poisson):
    """Takes Poisson noise for Gaussian."""

    def negative_log_likelihood(self, measured, y):
        return Gaussian(self.sigma).negative_log_likelihood(measured, y)


class Trusting(SaltAndPepper):
    """Takes lost pixels for measurements."""

    def negative_log_likelihood(self, measured, y):
        return (measured - y).abs().flatten(1).sum(1) * math.sqrt(2.0) / ROUNDING


class Detached(Gaussian):
    """Its gradient lacks a factor."""

    def negative_log_likelihood(self, measured, y):
        value = super().negative_log_likelihood(measured, y)
        return 0.9 * value + 0.1 * value.detach()


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (check_moments, Louder(0.1)),
        (check_moments, Shifted(30.0)),
        (check_moments, Saltier(0.1)),
        (check_likelihood, Doubled(0.1)),
        (check_likelihood, Squares(30.0)),
        (check_likelihood, Trusting(0.1)),
    ],
    ids=lambda part: getattr(part, "__name__", type(part).__name__),
)
def test_the_checkers_notice(check, broken):
    with pytest.raises(AssertionError):
        check(broken)


def test_the_gradient_check_notices():
    with pytest.raises(GradcheckError):
        check_gradient(Detached(0.1))


# Gaussian
def test_gaussian_noise_is_bit_for_bit_what_it_was():
    clean = uniform(2, 3, 4, 5).float()
    noise = torch.randn(clean.shape, generator=seeded(9), dtype=clean.dtype)
    assert torch.equal(Gaussian(0.07).corrupt(clean, seeded(9)), clean + 0.07 * noise)
    assert Gaussian(0.0).corrupt(clean, seeded(9)) is clean


def test_no_noise_leaves_rounding():
    clean = uniform(2, 3, 4, 5)
    assert torch.allclose(Gaussian(0.0).variance(clean), torch.full_like(clean, ROUNDING**2))
    far = Gaussian(0.0).negative_log_likelihood(clean + ROUNDING, clean)
    assert torch.allclose(far, torch.full((2,), 0.5 * 60, dtype=torch.float64))


# Poisson
def test_poisson_counts():
    y = Poisson(30.0).corrupt(uniform(2, 3, 8, 8), seeded()) * 30.0
    assert torch.allclose(y, y.round(), rtol=0, atol=1e-10)
    black = torch.zeros(1, 1, 4, 4)
    assert torch.equal(Poisson(30.0).corrupt(black, seeded()), black)
    assert torch.equal(Poisson(30.0).corrupt(black - 0.5, seeded()), black)
    assert Poisson(30.0).variance(black).unique().item() == pytest.approx(ROUNDING**2)


def test_poisson_sigma_is_that_of_mid_grey():
    noise = Poisson(50.0)
    assert noise.sigma == pytest.approx(0.1)
    assert noise.variance(torch.full((2,), 0.5)).sqrt().tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("peak", [1.0, 30.0, 2000.0])
def test_poisson_is_least_at_the_measurement_and_zero_there(peak):
    noise = Poisson(peak)
    y = noise.corrupt(uniform(4, 1, 5, 5), seeded(1))
    y = y.clamp_min(2.0 / peak)
    value = noise.negative_log_likelihood(y, y)
    assert torch.allclose(value, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert bool((noise.negative_log_likelihood(factor * y, y) > value).all())


@pytest.mark.parametrize("peak", [3.0, 30.0, 2000.0])
def test_poisson_at_and_below_black(peak):
    """Finite, convex and of continuous slope across the seams; it leads back to light."""
    noise = Poisson(peak)
    least = max(FAINTEST, (peak * ROUNDING) ** 2) / peak
    points = torch.linspace(-0.5, 3.0, 7001, dtype=torch.float64)
    for seam in (0.0, least):
        points = torch.cat([points, seam + torch.tensor([-1e-9, 1e-9], dtype=torch.float64)])
    points = points.sort().values
    for count in (0.0, 1.0, 7.0):
        y = torch.full((len(points), 1), count / peak, dtype=torch.float64)
        measured = points[:, None].clone().requires_grad_(True)
        value = noise.negative_log_likelihood(measured, y)
        (slope,) = torch.autograd.grad(value.sum(), measured)
        slope = slope[:, 0]
        assert bool(torch.isfinite(value).all())
        assert bool((slope[1:] >= slope[:-1] - 1e-9 * slope.abs().max()).all()), "not convex"
        for seam in (0.0, least):
            inside = (points - seam).abs() <= 1e-9 + 1e-15
            jump = slope[inside].max() - slope[inside].min()
            assert float(jump) <= 1e-5 * float(slope.abs().max())
        assert bool((slope[points < -2 * least] < 0).all())
        lowest = float(points[int(value.argmin())])
        assert abs(lowest - count / peak) <= max(2 * least, 1e-3)


def test_poisson_in_single_precision_and_for_measurements_below_black():
    y = torch.tensor([[-0.1, 0.0, 0.5, 1.0]])
    value = Poisson(1000.0).negative_log_likelihood(y.clamp_min(0.01), y)
    assert value.dtype == torch.float32
    assert bool(torch.isfinite(value).all())


# Salt and pepper
def test_salt_and_pepper_falls_on_whole_pixels():
    clean = uniform(8, 3, 32, 32)
    y = SaltAndPepper(0.2).corrupt(clean, seeded())
    known = known_pixels(y)
    assert known.shape == (8, 1, 32, 32)
    assert known.dtype == torch.bool
    assert torch.equal(y[known.expand_as(y)], clean[known.expand_as(y)])
    lost = y[(~known).expand_as(y)].reshape(3, -1)
    assert set(lost.unique().tolist()) == {0.0, 1.0}
    count = known.numel()
    doubt = 4.5 * math.sqrt(0.2 * 0.8 / count)
    assert float((~known).double().mean()) == pytest.approx(0.2, abs=doubt)
    salt = y[:, :1][~known].mean()
    assert float(salt) == pytest.approx(0.5, abs=4.5 * 0.5 / math.sqrt(0.2 * count))
    rounded = round_to_bytes(y)
    assert torch.equal(known_pixels(rounded), known)


def test_known_pixels_by_hand():
    y = torch.full((1, 3, 1, 5), 0.5)
    y[0, :, 0, 0] = 0.0
    y[0, :, 0, 1] = 1.0
    y[0, :, 0, 2] = torch.tensor([0.0, 1.0, 0.0])  # pure green is a colour
    y[0, :, 0, 3] = torch.tensor([0.0, 0.0, 0.5])
    assert known_pixels(y).tolist() == [[[[False, False, True, True, True]]]]
    assert known_pixels(torch.tensor([[0.0, 0.3, 1.0]])).tolist() == [[False, True, False]]


def test_lost_pixels_say_nothing():
    noise = SaltAndPepper(0.3)
    y = noise.corrupt(uniform(2, 3, 4, 5), seeded(2))
    measured = uniform(2, 3, 4, 5, seed=1)
    lost = ~known_pixels(y).expand_as(y)
    other = torch.where(lost, 1.0 - measured, measured)
    assert not torch.equal(other, measured)
    value = noise.negative_log_likelihood(measured, y)
    assert torch.equal(noise.negative_log_likelihood(other, y), value)
    measured.requires_grad_(True)
    (gradient,) = torch.autograd.grad(noise.negative_log_likelihood(measured, y).sum(), measured)
    assert bool((gradient[lost] == 0).all())
    size = math.sqrt(2.0) / ROUNDING
    assert torch.allclose(gradient[~lost].abs(), torch.full_like(gradient[~lost], size))


# What all promise
@every_model
def test_images_are_judged_on_their_own(noise):
    y, measured = noise.corrupt(uniform(3, 3, 4, 5), seeded(2)), uniform(3, 3, 4, 5, seed=1)
    together = noise.negative_log_likelihood(measured, y)
    for index in range(3):
        one = slice(index, index + 1)
        alone = noise.negative_log_likelihood(measured[one], y[one])
        assert torch.allclose(alone, together[one], rtol=1e-12)


@every_model
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (7,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_precision_and_arguments(noise, shape, dtype):
    clean = uniform(2, *shape).to(dtype)
    kept = clean.clone()
    y = noise.corrupt(clean, seeded(1))
    assert y.shape == clean.shape
    assert noise.variance(clean).shape == clean.shape
    assert noise.negative_log_likelihood(clean, y).shape == (2,)
    for value in (y, noise.variance(clean), noise.negative_log_likelihood(clean, y)):
        assert value.dtype == dtype
    assert bool((noise.variance(clean) > 0).all())
    assert torch.equal(clean, kept)
    assert torch.equal(y, noise.corrupt(clean, seeded(1)))
    assert not torch.equal(y, noise.corrupt(uniform(2, *shape, seed=2).to(dtype), seeded(1)))
    random = torch.random.get_rng_state()
    noise.corrupt(clean, seeded(1))
    assert torch.equal(random, torch.random.get_rng_state())


def test_models_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Gaussian(0.1).sigma = 0.2


def test_a_model_without_a_likelihood_is_none():
    @dataclass(frozen=True)
    class Half(Noise):
        sigma: float = 0.0

    with pytest.raises(TypeError, match="abstract"):
        Half()


# By name
def test_the_table():
    assert list(NOISES) == ["gaussian", "poisson", "salt-pepper"]
    assert make_noise() == Gaussian(0.1)
    assert make_noise("gaussian", sigma=0.3, peak=None) == Gaussian(0.3)
    assert make_noise("poisson", peak=12.0) == Poisson(12.0)
    assert make_noise("poisson") == Poisson(30.0)
    assert make_noise("salt-pepper", share=0.25) == SaltAndPepper(0.25)
    assert [kind().sigma for kind in NOISES.values()] == [0.1, math.sqrt(0.5 / 30), 0.0]
