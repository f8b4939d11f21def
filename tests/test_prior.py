"""Priors as densities: closed forms of a Gaussian and its fit."""

import math

import pytest
import torch
from prior_cases import PRIORS, SHAPE, SIZE, covariance, gaussian, images, levels, numbers, source
from properties import randomise
from torch.distributions import MultivariateNormal

from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig, build_flow, standard_normal_log_prob
from flowmend.pixels import dequantisation_variance, dequantise
from flowmend.prior import FlowPrior, GaussianPrior


@pytest.fixture(params=PRIORS.values(), ids=PRIORS.keys())
def prior(request):
    return request.param().requires_grad_(False)


# The Gaussian against closed forms.
def test_gaussian_log_prob_against_torch():
    prior = gaussian(*SHAPE)
    x = images(prior, 7)
    wanted = MultivariateNormal(prior.mean.flatten(), covariance()).log_prob(x.flatten(1))
    torch.testing.assert_close(prior.log_prob(x), wanted, rtol=1e-10, atol=1e-10)


def test_gaussian_keeps_mean_and_covariance():
    prior = gaussian(*SHAPE)
    assert torch.equal(prior.mean, 0.5 + 0.1 * numbers(*SHAPE, seed=2))
    torch.testing.assert_close(prior.covariance(), covariance(), rtol=1e-10, atol=1e-12)
    assert prior.covariance(torch.float32).dtype == torch.float32
    assert prior.shape == SHAPE
    assert prior.dimensions == SIZE


def test_whitening_is_the_symmetric_root():
    matrix = gaussian(*SHAPE).whitening.matrix
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=0)
    identity = torch.eye(SIZE, dtype=torch.float64)
    torch.testing.assert_close(matrix @ covariance() @ matrix, identity, rtol=0, atol=1e-10)
    assert torch.linalg.eigvalsh(matrix)[0] > 0


def test_gaussian_in_single_precision_stays_close():
    double, single = gaussian(*SHAPE), gaussian(*SHAPE, dtype=torch.float32)
    x = images(double)
    assert single.log_prob(x.float()).dtype == torch.float32
    torch.testing.assert_close(
        single.log_prob(x.float()).double(), double.log_prob(x), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    "broken",
    [
        torch.diag(torch.tensor([1.0, 0.0])),
        torch.diag(torch.tensor([1.0, -1.0])),
        torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
    ],
    ids=["singular", "negative", "indefinite"],
)
def test_impossible_covariance_is_refused(broken):
    with pytest.raises(FlowmendError, match="positive definite"):
        GaussianPrior.from_covariance(torch.zeros(1, 1, 2), broken)


def test_density_sums_to_one():
    prior = GaussianPrior.from_covariance(
        torch.full((1, 1, 2), 0.4, dtype=torch.float64),
        torch.tensor([[0.010, 0.006], [0.006, 0.020]]),
    )
    axis = torch.linspace(-0.8, 1.6, 301, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
    cell = float(axis[1] - axis[0]) ** 2
    assert float(prior.log_prob(points).exp().sum()) * cell == pytest.approx(1.0, abs=1e-6)


def test_density_of_a_flow_sums_to_one():
    """A two-dimensional image does not fit a squeeze, so two of four values stay at the mean of
    a coupling's untouched half: p(x) there is checked through its conditional density."""
    config = FlowConfig(
        height=2, width=2, channels=1, steps=(1,), split=(False,), hidden=4, scale="bounded"
    )
    prior = randomise(FlowPrior(build_flow(config)), seed=8, size=0.3)
    axis = torch.linspace(-4.0, 5.0, 301, dtype=torch.float64)
    inner = torch.cartesian_prod(axis, axis)
    x = torch.cat([torch.full_like(inner, 0.4), inner], 1).reshape(-1, 1, 2, 2)
    with torch.no_grad():
        z, _ = prior.encode(x[:1])
        kept = prior.flow.scales[0].layers[1].log_scale[0, :2].sum() + 2 * math.log(2.0)
        marginal = standard_normal_log_prob(z[:, :2]) + kept
        conditional = (prior.log_prob(x) - marginal).exp().sum()
    assert float(conditional) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("bits", [5, 8])
def test_dequantisation_adds_the_variance_that_is_said(bits):
    x = torch.full((1, 1, 200, 200), 128 / 255, dtype=torch.float64)
    found = dequantise(x, bits, torch.Generator().manual_seed(0)).var()
    assert float(found) == pytest.approx(dequantisation_variance(bits), rel=0.02)


def sample_covariance(x):
    x = (x - x.mean(0)).flatten(1)
    return sum(torch.outer(row, row) for row in x) / len(x)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_fit_takes_a_given_shrinkage(shrinkage):
    pictures = levels(60)[0]
    x = dequantise(pictures.float() / 255.0, 5).double()
    sample = sample_covariance(x)
    target = torch.eye(SIZE, dtype=torch.float64) * sample.trace() / SIZE
    noise = torch.eye(SIZE, dtype=torch.float64) / (12 * 32**2)
    wanted = shrinkage * target + (1 - shrinkage) * sample + noise
    given = {"smoothing": 0.0, "shrinkage": shrinkage}
    prior = GaussianPrior.fit(pictures, bits=5, flip=False, **given)
    torch.testing.assert_close(prior.mean.double(), x.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(prior.double().covariance(), wanted, rtol=1e-3, atol=1e-6)


def test_fit_averages_over_images_shifted_by_one_pixel():
    pictures = levels(60)[0]
    x = dequantise(pictures.float() / 255.0, 5).double()
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    places = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    shifted = [padded[:, :, i : i + height, j : j + width] for i, j in places]
    mean = sum(sample_covariance(image) for image in shifted) / 8
    noise = torch.eye(SIZE, dtype=torch.float64) / (12 * 32**2)
    wanted = 0.75 * sample_covariance(x) + 0.25 * mean + noise
    given = {"smoothing": 0.25, "shrinkage": 0.0}
    prior = GaussianPrior.fit(pictures, bits=5, flip=False, **given)
    torch.testing.assert_close(prior.double().covariance(), wanted, rtol=1e-3, atol=1e-6)


def test_fit_to_few_images_is_likelier_elsewhere_than_their_sample_covariance():
    pictures = levels(430)[0]
    fresh = pictures[30:].double() / 255.0

    def likelihood(prior):
        return prior.double().log_prob(fresh).mean()

    chosen = GaussianPrior.fit(pictures[:30], bits=8, flip=False)
    sample = GaussianPrior.fit(pictures[:30], bits=8, flip=False, smoothing=0.0, shrinkage=0.0)
    identity = GaussianPrior.fit(pictures[:30], bits=8, flip=False, smoothing=0.0, shrinkage=1.0)
    assert likelihood(chosen) > likelihood(sample) + 1.0
    assert likelihood(chosen) > likelihood(identity) + 1.0


def test_fit_recovers_what_the_images_were_drawn_from():
    pictures, mean, spread = levels(4000)
    prior = GaussianPrior.fit(pictures, bits=8, flip=False).double()
    torch.testing.assert_close(prior.mean, mean, rtol=0, atol=0.01)
    error = torch.linalg.matrix_norm(prior.covariance() - spread, 2)
    assert error < 0.1 * torch.linalg.matrix_norm(spread, 2)
    worse = GaussianPrior.fit(pictures[:20], bits=8, flip=False).double()
    assert torch.linalg.matrix_norm(worse.covariance() - spread, 2) > 2 * error


def test_fit_with_mirrored_images_is_symmetric():
    prior = GaussianPrior.fit(levels(50)[0]).double()
    torch.testing.assert_close(prior.mean, prior.mean.flip(-1), rtol=0, atol=1e-6)
    found = prior.covariance().reshape(2, 3, 4, 2, 3, 4)
    torch.testing.assert_close(found, found.flip(2, 5), rtol=1e-3, atol=1e-6)


def test_fit_does_not_change_its_images():
    pictures = levels(30)[0]
    kept = pictures.clone()
    GaussianPrior.fit(pictures)
    assert torch.equal(pictures, kept)


def test_fit_of_equal_images_keeps_the_dequantisation_noise():
    prior = GaussianPrior.fit(torch.full((5, 1, 2, 2), 100, dtype=torch.uint8), bits=5)
    wanted = torch.eye(4, dtype=torch.float64) / (12 * 32**2)
    torch.testing.assert_close(prior.double().covariance(), wanted, rtol=1e-5, atol=1e-12)
    assert bool(torch.isfinite(prior.log_prob(prior.mean[None])).all())


def test_fitted_latents_are_white():
    pictures = levels(4000)[0]
    prior = GaussianPrior.fit(pictures, bits=8, flip=False).double()
    z = prior.encode(dequantise(pictures.double() / 255.0, 8, source()))[0]
    assert z.mean(0).abs().max() < 0.1
    torch.testing.assert_close(z.T.cov(), torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=0.15)


# Densities through either direction.
def test_log_prob_from_encode_equals_log_prob_from_decode(prior):
    x = images(prior)
    z = prior.encode(x)[0]
    back, logdet = prior.decode(z)
    assert z.shape == (4, prior.dimensions)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    found = standard_normal_log_prob(z) - logdet
    torch.testing.assert_close(prior.log_prob(x), found, rtol=1e-10, atol=1e-9)


def test_log_prob_differentiates(prior):
    x = images(prior).requires_grad_()
    gradient = torch.autograd.grad(prior.log_prob(x).sum(), x)[0]
    step = 1e-6 * numbers(*x.shape, seed=6)
    with torch.no_grad():
        change = prior.log_prob(x + step) - prior.log_prob(x - step)
    wanted = (2 * gradient * step).flatten(1).sum(1)
    torch.testing.assert_close(change, wanted, rtol=1e-4, atol=1e-9)


def test_log_prob_of_a_flow_starts_at_the_range_of_images():
    """A flow without steps is N(0, I) on [-1, 1]: its density on [0, 1] is 2^D times as high."""
    config = FlowConfig(height=4, width=4, channels=1, steps=(0,), split=(False,))
    prior = FlowPrior(build_flow(config), gaussian(1, 4, 4))
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    wanted = 16 * (math.log(2.0) - 0.5 * math.log(2.0 * math.pi))
    assert prior.log_prob(x).item() == pytest.approx(wanted)


def test_whitened_flow_without_steps_is_its_gaussian():
    config = FlowConfig(height=8, width=8, channels=1, steps=(0,), split=(False,), whiten=True)
    prior = FlowPrior(build_flow(config), gaussian(1, 8, 8))
    x = images(prior)
    torch.testing.assert_close(prior.log_prob(x), prior.gaussian.log_prob(x))
