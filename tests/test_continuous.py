"""Continuous flows against truth: the closed-form map, density and posterior mean of a Gaussian,
autograd's Jacobian of the numerical map, estimated against exact traces; the prior built of one;
and its weights files."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import smooth_images
from properties import (
    check_batch,
    check_gradients,
    check_logdet,
    check_pure,
    check_round_trip,
    check_shapes,
    randomise,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions import MultivariateNormal

import flowmend as fm
from flowmend.continuous import ContinuousPrior
from flowmend.errors import FlowmendError
from flowmend.flow import (
    EVALUATIONS,
    ContinuousFlow,
    FlowConfig,
    VelocityConfig,
    build_flow,
    build_velocity,
)
from flowmend.flow import continuous as module
from flowmend.prior import FlowPrior, GaussianPrior
from flowmend.stationary import StationaryGaussian
from flowmend.turns import turned, turned_back
from flowmend.weights import load_prior, save_prior

SHAPE = (1, 4, 6)
SIZE = 24
SIGMA = 0.5
TINY = VelocityConfig(channels=1, widths=(4, 5), blocks=(1, 1), crop=8)
FIXED = dataclasses.replace(TINY, size=(4, 6))
LATENT, LOGDET, IMAGE, ROUND_TRIP = 0.015, 0.005, 5e-3, 2e-3
"""The stated tolerance of 60 evaluations on images whose standard deviations along their axes lie
between 0.002, the rounding of 8 bits, and 20, the brightness of a whole face: of latents, of
log-determinants (nats, of 24 values), and, relative to the largest |x|, of images decoded from
given latents and of decode(encode(x))."""


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)


class GaussianVelocity(nn.Module):
    """``E[x - e | x_t]`` in closed form for images from N(mean, C)."""

    def __init__(self, mean, covariance):
        super().__init__()
        self.config = VelocityConfig(channels=mean.shape[0], size=tuple(mean.shape[1:]))
        self.mean = nn.Parameter(mean.flatten())
        self.values, self.vectors = torch.linalg.eigh(covariance)

    def forward(self, x_t, t):
        t = t[:, None]
        along = (x_t.flatten(1) - t * self.mean) @ self.vectors
        gain = (t * self.values - (1.0 - t)) / (t**2 * self.values + (1.0 - t) ** 2)
        return (self.mean + (gain * along) @ self.vectors.T).view_as(x_t)

    def root(self, power):
        return (self.vectors * self.values**power) @ self.vectors.T


def gaussian(least=0.002, most=0.5, shape=SHAPE, seed=0):
    """A Gaussian with standard deviations between ``least`` and ``most`` along its axes."""
    size = math.prod(shape)
    vectors = torch.linalg.qr(numbers(size, size, seed=seed))[0]
    spread = torch.logspace(math.log10(most), math.log10(least), size, dtype=torch.float64)
    mean = 0.3 * numbers(*shape, seed=seed + 1)
    return GaussianVelocity(mean, (vectors * spread**2) @ vectors.T).requires_grad_(False)


def draws(velocity, count=5, seed=7):
    """Images of the Gaussian, their latents, and the log-determinant of the map between."""
    z = numbers(count, len(velocity.mean), seed=seed)
    x = (velocity.mean + z @ velocity.root(0.5)).view(count, *SHAPE)
    return x, z, -0.5 * float(velocity.values.log().sum())


def worst(found, wanted):
    return float((found - wanted).detach().abs().max())


def errors(velocity, evaluations):
    """Largest errors of latents, both log-determinants, images and the round trip."""
    x, z, logdet = draws(velocity)
    largest = worst(x, 0.0)
    flow = ContinuousFlow(velocity, SHAPE, SIGMA, evaluations)
    found, forth = flow.encode(x)
    back, home = flow.decode(z)
    return {
        "latent": worst(found, z),
        "image": worst(back, x) / largest,
        "forth": worst(forth, logdet),
        "home": worst(home, -logdet),
        "round trip": worst(flow.to_data(found), x) / largest,
    }


def flow(evaluations=24, config=TINY, shape=(1, 4, 4), size=0.05):
    velocity = randomise(build_velocity(config), seed=2, size=size)
    return ContinuousFlow(velocity, shape, SIGMA, evaluations)


def images(count=2, shape=(1, 4, 4), seed=3):
    return SIGMA * numbers(count, *shape, seed=seed)


@pytest.fixture
def estimated(monkeypatch):
    """Traces of everything are estimated."""
    monkeypatch.setattr(module, "EXACT_DIMENSIONS", 0)


# The closed form of a Gaussian.


@pytest.mark.parametrize("most", [0.5, 5.0, 20.0])
@pytest.mark.parametrize("least", [0.3, 0.02, 0.002])
def test_map_and_log_determinant_of_a_gaussian(least, most):
    found = errors(gaussian(least, most), EVALUATIONS)
    assert found["latent"] < LATENT
    assert found["image"] < IMAGE
    assert found["forth"] < LOGDET
    assert found["home"] < LOGDET
    assert found["round trip"] < ROUND_TRIP


def test_grid_that_is_fine_at_one_end_only_is_noticed(monkeypatch):
    for angles in ((0.005, 10.0), (10.0, 0.02)):
        monkeypatch.setattr(module, "FINEST_ANGLES", angles)
        found = errors(gaussian(0.002, 20.0), EVALUATIONS)
        assert max(found["latent"] / LATENT, found["round trip"] / ROUND_TRIP) > 5.0


def test_error_falls_with_the_fourth_power_of_the_evaluations():
    coarse, fine = errors(gaussian(0.02, 5.0), 80), errors(gaussian(0.02, 5.0), 160)
    for name, value in coarse.items():
        assert 8.0 < value / fine[name] < 50.0, name
        assert fine[name] < 1e-3, name


@pytest.mark.parametrize("evaluations", [4, 40])
def test_isotropic_gaussian_of_the_assumed_size_is_exact_whatever_the_steps(evaluations):
    velocity = GaussianVelocity(
        torch.zeros(SHAPE, dtype=torch.float64), SIGMA**2 * torch.eye(SIZE, dtype=torch.float64)
    )
    assert max(errors(velocity, evaluations).values()) < 1e-12


def test_log_density_of_a_gaussian():
    velocity = gaussian(0.01)
    x = draws(velocity)[0]
    prior = ContinuousPrior(velocity, evaluations=160)
    covariance = velocity.root(1.0)
    wanted = MultivariateNormal(velocity.mean, covariance).log_prob(x.flatten(1))
    wanted = wanted + SIZE * math.log(2.0)
    torch.testing.assert_close(prior.log_prob((x + 1.0) / 2.0), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sigma", [1e-3, 25 / 255, 1.0, 30.0])
def test_denoiser_is_the_posterior_mean(sigma):
    """On [0, 1] the images have half the mean's distance and a quarter of the covariance."""
    velocity = gaussian(0.01)
    x = (draws(velocity)[0] + 1.0) / 2.0
    y = x + sigma * numbers(*x.shape, seed=9)
    mean = (velocity.mean + 1.0) / 2.0
    covariance = velocity.root(1.0) / 4.0
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(SIZE).double())
    wanted = (mean + (y.flatten(1) - mean) @ gain.T).view_as(x)
    torch.testing.assert_close(ContinuousPrior(velocity).denoise(y, sigma), wanted)


def test_samples_of_a_gaussian_have_its_moments():
    velocity = gaussian(0.05)
    x = ContinuousPrior(velocity).flow.to_data(numbers(20_000, SIZE, seed=4)).flatten(1)
    torch.testing.assert_close(x.mean(0), velocity.mean.data, rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), velocity.root(1.0), rtol=0, atol=0.005)


# The numerical map of a network.


CHECKED = {
    "exact": lambda: flow(),
    "of one size": lambda: flow(config=FIXED, shape=SHAPE),
    "padded": lambda: flow(shape=(1, 4, 5)),
}


@pytest.mark.parametrize("build", CHECKED.values(), ids=CHECKED)
def test_flow_keeps_what_every_bijection_promises(build):
    bijection = build()
    x = images(shape=bijection.shape)
    check_round_trip(bijection, x, tolerance=1e-3)
    check_logdet(bijection, x[:1], tolerance=1e-4)
    check_pure(bijection, x)
    check_batch(bijection, x)
    check_shapes(bijection, x)


def test_every_parameter_learns_from_either_direction():
    check_gradients(flow(8, FIXED, SHAPE), images(shape=SHAPE))


def test_estimated_flow_keeps_the_other_promises(estimated):
    bijection, x = flow(8), images()
    check_pure(bijection, x)
    check_batch(bijection, x)
    check_shapes(bijection, x)
    check_gradients(flow(8, FIXED, SHAPE), images(shape=SHAPE))


def test_returned_logdet_approaches_that_of_the_numerical_map():
    x = images(1)
    found = []
    for evaluations in (20, 40, 80):
        bijection = flow(evaluations, size=0.1).requires_grad_(False)
        jacobian = torch.autograd.functional.jacobian(bijection.to_latent, x, vectorize=True)
        wanted = torch.linalg.slogdet(jacobian.view(16, 16))[1]
        found.append(worst(bijection.encode(x)[1], wanted))
    assert found[0] < 0.1
    assert found[0] > 8.0 * found[1] > 64.0 * found[2]


class WrongScale(ContinuousFlow):
    def encode(self, x, generator=None):
        z, logdet = super().encode(x, generator)
        return z, logdet + self.dimensions * math.log(self.sigma_data)


class WrongTrace(ContinuousFlow):
    def _slope(self, u, angle, speed, probe):
        value, trace = super()._slope(u, angle, speed, probe)
        return value, 1.05 * trace


class WrongSign(ContinuousFlow):
    def decode(self, z, generator=None):
        x, logdet = super().decode(z, generator)
        return x, -logdet


class OtherGrid(ContinuousFlow):
    """Decodes along a path that starts a little off."""

    def decode(self, z, generator=None):
        return super().decode(z * 1.01, generator)


class LooksAtItsNeighbours(ContinuousFlow):
    def _slope(self, u, angle, speed, probe):
        value, trace = super()._slope(u, angle, speed, probe)
        return value * (1.0 + 1e-4 * u.mean()), trace


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (WrongScale, check_logdet, "log-determinant of encode"),
        (WrongTrace, check_logdet, "log-determinant of encode"),
        (WrongSign, check_logdet, "log-determinant of decode"),
        (WrongSign, check_round_trip, "do not cancel"),
        (OtherGrid, check_round_trip, "is not x"),
        (LooksAtItsNeighbours, check_batch, "depends on its batch"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_checks_notice_a_broken_flow(broken, check, message):
    sound = flow(48, size=0.1)
    part = broken(sound.velocity, sound.shape, SIGMA, sound.evaluations)
    tolerance = {check_round_trip: 1e-3, check_logdet: 1e-4, check_batch: 1e-10}[check]
    x = images(2 if check is check_batch else 1)
    check(sound, x, tolerance=tolerance)
    with pytest.raises(AssertionError, match=message):
        check(part, x, tolerance=tolerance)


def test_values_alone_are_those_with_the_determinant():
    bijection, x = flow(8), images()
    z = bijection.encode(x)[0]
    torch.testing.assert_close(bijection.to_latent(x), z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bijection.to_data(z), bijection.decode(z)[0])


class Counted(nn.Module):
    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.times = velocity, []

    def forward(self, x_t, t):
        self.times += t[:1].tolist()
        return self.velocity(x_t, t)


@pytest.mark.parametrize("evaluations", [4, 12, 40])
def test_evaluations_are_as_many_as_asked_for_and_cover_the_path(evaluations):
    counted = Counted(gaussian())
    x = draws(counted.velocity)[0]
    bijection = ContinuousFlow(counted, SHAPE, SIGMA, evaluations)
    for function, first, last in ((bijection.to_latent, 1.0, 0.0), (bijection.to_data, 0.0, 1.0)):
        counted.times.clear()
        function(x if first else x.flatten(1))
        assert len(counted.times) == evaluations
        assert counted.times[0] == pytest.approx(first, abs=1e-12)
        assert counted.times[-1] == pytest.approx(last, abs=1e-12)
        assert all(0.0 <= t <= 1.0 for t in counted.times)


@pytest.mark.parametrize("evaluations", [0, -4, 6, 2.5, 8.0, None])
def test_impossible_evaluations_are_refused(evaluations):
    with pytest.raises(FlowmendError, match="positive multiple of 4"):
        ContinuousFlow(gaussian(), SHAPE, SIGMA, evaluations)


def test_gradient_of_the_determinant_through_the_path():
    bijection = flow(8, size=0.2)
    z, step = numbers(1, 16).requires_grad_(), 1e-5 * numbers(1, 16, seed=1)
    gradient = torch.autograd.grad(bijection.decode(z)[1].sum(), z)[0]
    with torch.no_grad():
        wanted = (bijection.decode(z + step)[1] - bijection.decode(z - step)[1]) / 2.0
    assert float(wanted.abs()) > 1e-8
    assert float((gradient * step).sum()) == pytest.approx(float(wanted), rel=1e-4)


def test_flow_works_in_inference_mode():
    bijection, x = flow(8).requires_grad_(False), images()
    wanted = bijection.encode(x)
    with torch.inference_mode():
        found = bijection.encode(images())
    for value, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(value.clone(), reference)


# The estimate of the trace.


class WrongSigns(ContinuousFlow):
    def _probe(self, like, generator):
        return 1.05 * super()._probe(like, generator)


def estimates(kind, velocity, shape, count, monkeypatch):
    """The exact log-determinant of one image and ``count`` estimates, each with its own signs."""
    x = images(1, shape)
    exact = ContinuousFlow(velocity, shape, SIGMA, 8).encode(x)[1]
    monkeypatch.setattr(module, "EXACT_DIMENSIONS", 0)
    bijection = kind(velocity, shape, SIGMA, 8)
    return exact, bijection.encode(x.expand(count, *shape), source(11))[1]


def is_unbiased(exact, found):
    """Whether the mean lies within 4 standard errors of the exact value."""
    deviation = float(found.std()) / math.sqrt(len(found))
    assert 1e-3 < deviation < 0.2
    return abs(float(found.mean() - exact)) < 4.0 * deviation


@pytest.mark.parametrize("kind", [ContinuousFlow, WrongSigns], ids=["sound", "broken"])
def test_mean_of_the_estimates_is_the_exact_determinant(monkeypatch, kind):
    found = estimates(kind, gaussian(0.1), SHAPE, 4000, monkeypatch)
    assert is_unbiased(*found) == (kind is ContinuousFlow)


def test_estimates_of_a_network_are_unbiased_too(monkeypatch):
    velocity = flow(size=0.1).velocity.requires_grad_(False)
    assert is_unbiased(*estimates(ContinuousFlow, velocity, (1, 4, 4), 1000, monkeypatch))


def test_estimate_is_exact_where_signs_cannot_matter(monkeypatch):
    """An isotropic Jacobian has no off-diagonal part for the signs to see."""
    velocity = GaussianVelocity(
        torch.zeros(SHAPE).double(), 0.09 * torch.eye(SIZE, dtype=torch.float64)
    )
    exact, found = estimates(ContinuousFlow, velocity, SHAPE, 3, monkeypatch)
    torch.testing.assert_close(found, exact.expand(3), rtol=1e-10, atol=1e-10)


def test_signs_come_from_the_generator_and_stay_along_the_path(estimated):
    bijection, x = flow(8, size=0.2).requires_grad_(False), images(2)
    first, again, other = (bijection.encode(x, source(seed))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-6)
    fixed = bijection.encode(x)[1]
    assert torch.equal(fixed, bijection.encode(x)[1])
    same = torch.cat([x[:1], x[:1]])
    apart = bijection.encode(same, source(3))[1]
    assert abs(float(apart[0] - apart[1])) > 1e-6
    together = bijection.encode(same)[1]
    assert float(together[0]) == pytest.approx(float(together[1]), rel=1e-12)


# The prior.


def prior(config=FIXED, evaluations=8, shape=None, with_gaussian=False, size=0.05):
    velocity = randomise(build_velocity(config), seed=2, size=size).float()
    fitted = None
    if with_gaussian:
        levels = torch.randint(60, 190, (50, *config.shape), generator=source(1))
        fitted = GaussianPrior.fit(levels.to(torch.uint8))
    built = ContinuousPrior(velocity, shape, fitted, {"name": "test"}, evaluations)
    return built.eval().requires_grad_(False)


def pictures(prior, count=3, seed=5):
    return 0.5 + 0.2 * torch.randn(count, *prior.shape, generator=source(seed))


def test_prior_keeps_what_every_bijection_promises():
    whole = prior(evaluations=24).double()
    x = pictures(whole).double()
    check_round_trip(whole, x, tolerance=1e-3)
    check_logdet(whole, x[:1], tolerance=1e-4)
    check_pure(whole, x)
    check_batch(whole, x)
    check_shapes(whole, x)
    torch.testing.assert_close(whole.round_trip(x), whole.decode(whole.encode(x)[0])[0])


def test_single_precision_inverts_within_the_stated_tolerance():
    whole = prior(evaluations=40, size=0.1)
    x = pictures(whole, 8)
    assert worst(whole.round_trip(x), x) < ROUND_TRIP


def test_same_weights_at_another_shape():
    small = prior(TINY)
    assert small.shape == (1, 8, 8)
    large = small.at_shape((1, 9, 14), evaluations=12)
    assert large.shape == (1, 9, 14)
    assert large.dimensions == 126
    assert large.flow.evaluations == 12
    assert small.flow.evaluations == small.at_shape((1, 4, 4)).flow.evaluations == 8
    assert large.velocity is small.velocity
    assert (large.training, large.card) == (False, small.card)
    assert large.sample(2, generator=source()).shape == (2, 1, 9, 14)
    assert large.log_prob(pictures(large)).shape == (3,)
    with pytest.raises(FlowmendError, match="1 channel"):
        small.at_shape((3, 8, 8))
    with pytest.raises(FlowmendError, match="at least 4"):
        small.at_shape((1, 2, 8))
    with pytest.raises(FlowmendError, match="only"):
        prior(FIXED).at_shape((1, 8, 8))


def test_gaussian_stays_only_with_its_shape():
    fixed = prior(FIXED, with_gaussian=True)
    assert fixed.gaussian is not None
    assert fixed.at_shape(SHAPE).gaussian is fixed.gaussian
    any_size = prior(TINY, with_gaussian=True)
    assert any_size.at_shape((1, 9, 9)).gaussian is None
    with pytest.raises(FlowmendError, match="no prior of"):
        ContinuousPrior(any_size.velocity, (1, 9, 9), any_size.gaussian)


def test_lower_precision_is_a_copy_that_stays_close():
    single = prior(size=0.1)
    low = single.at_precision("bfloat16")
    assert single.at_precision("float32") is single
    assert all(value.dtype == torch.float32 for value in single.parameters())
    x = pictures(single)
    found, wanted = low.denoise(x, 0.1), single.denoise(x, 0.1)
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    samples = low.sample(3, generator=source())
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples, single.sample(3, generator=source()), rtol=0, atol=0.1)
    with pytest.raises(FlowmendError, match="float16"):
        single.at_precision("float16")


def test_samples_are_decoded_latents():
    whole = prior()
    found = whole.sample(4, 0.7, source(3))
    wanted = whole.decode(whole.latents(4, 0.7, source(3)))[0].clamp(0.0, 1.0)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(found, whole.sample(4, 0.7, source(3)))
    assert not torch.equal(found, whole.sample(4, 0.7, source(4)))


def test_bits_per_dim_take_noise_and_signs_from_the_generator(estimated):
    whole = prior(size=0.2)
    x = pictures(whole)
    first, again, other = (whole.bits_per_dim(x, 8, source(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    middle = whole.bits_per_dim(x, 8)
    assert torch.equal(middle, whole.bits_per_dim(x, 8))
    torch.testing.assert_close(first, middle, rtol=0.2, atol=0.2)


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


# Weights files.


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prior.safetensors"


@pytest.mark.parametrize("config", [TINY, FIXED], ids=["every size", "one size"])
def test_what_is_saved_comes_back(path, config):
    saved = prior(config)
    loaded = load_prior(save_prior(path, saved))
    assert isinstance(loaded, ContinuousPrior)
    assert (loaded.config, loaded.card, loaded.shape) == (config, saved.card, saved.shape)
    wanted = saved.velocity.state_dict()
    found = loaded.velocity.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())
    x = pictures(saved)
    assert torch.equal(loaded.denoise(x, 0.1), saved.denoise(x, 0.1))
    facts = json.loads(path.with_suffix(".json").read_text())
    assert VelocityConfig.from_dict(facts["config"]) == config


def test_gaussian_and_half_precision_come_back(path):
    saved = prior(FIXED, with_gaussian=True)
    loaded = load_prior(save_prior(path, saved, half=True))
    assert torch.equal(loaded.gaussian.mean, saved.gaussian.mean)
    for key, value in saved.velocity.state_dict().items():
        found = loaded.velocity.state_dict()[key]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-6)


def coupling():
    config = FlowConfig(height=8, width=8, channels=1, steps=(1,), split=(False,), hidden=3)
    return FlowPrior(build_flow(config), card={"name": "old"})


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def rewritten(path, **changes):
    """The same file with other metadata; None takes an entry away."""
    metadata = {k: v for k, v in (metadata_of(path) | changes).items() if v is not None}
    save_file(load_file(path), path, metadata=metadata)
    path.with_suffix(".json").unlink(missing_ok=True)
    return path


def test_files_say_their_kind_and_old_ones_are_coupling_flows(path):
    assert metadata_of(save_prior(path, prior()))["kind"] == "continuous"
    assert metadata_of(save_prior(path, coupling()))["kind"] == "coupling"
    loaded = load_prior(rewritten(path, kind=None))
    assert isinstance(loaded, FlowPrior)
    assert loaded.card == {"name": "old"}


@pytest.mark.parametrize("kind", ["", "diffusion", "Continuous", "[]"])
def test_unknown_kind_is_refused(path, kind):
    save_prior(path, prior())
    with pytest.raises(FlowmendError, match=r"kind '.*coupling, continuous"):
        load_prior(rewritten(path, kind=kind))


@pytest.mark.parametrize("kind", ["coupling", None])
def test_continuous_flow_under_the_wrong_kind_is_refused(path, kind):
    save_prior(path, prior())
    with pytest.raises(FlowmendError, match="Unknown flow setting"):
        load_prior(rewritten(path, kind=kind))
    save_prior(path, coupling())
    with pytest.raises(FlowmendError, match="Unknown network setting"):
        load_prior(rewritten(path, kind="continuous"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (6, 9)}, "do not fit the configuration"),
        ({"widths": (6, 8, 8), "blocks": (1, 1, 1)}, "do not fit the configuration"),
        ({"blocks": (2, 1)}, "do not fit the configuration"),
        ({"size": None}, "do not fit the configuration"),
        ({"size": (8, 8)}, "do not fit the configuration"),
        ({"channels": 3}, "do not fit the configuration"),
        ({"widths": (2**14,) * 8, "blocks": (64,) * 8}, "do not fit the configuration"),
        ({"widths": (10**30, 8)}, "widths"),
        ({"widths": [[6], [8]]}, "widths"),
        ({"widths": 6}, "not readable"),
        ({"blocks": None}, "prior.safetensors"),
        ({"size": (2**60, 2**60)}, "size"),
        ({"sigma_data": 0}, "sigma_data"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_hostile_configuration_is_refused(path, changes, message):
    save_prior(path, prior())
    config = FIXED.to_dict() | changes
    with pytest.raises(FlowmendError, match=message):
        load_prior(rewritten(path, config=json.dumps(config)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(path, value):
    broken = prior()
    save_prior(path, broken)
    tensors = load_file(path)
    tensors["flow.network.first.weight"][0, 0, 0, 0] = value
    save_file(tensors, path, metadata=metadata_of(path))
    path.with_suffix(".json").unlink()
    with pytest.raises(FlowmendError, match="not finite"):
        load_prior(path)
    broken.velocity.network.first.weight[0, 0, 0, 0] = value
    with pytest.raises(FlowmendError, match="not finite"):
        save_prior(path.with_name("other.safetensors"), broken)
    assert not path.with_name("other.safetensors").exists()


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
