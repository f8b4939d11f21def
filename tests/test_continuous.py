"""Continuous flows against truth: the closed-form map, density and posterior of a Gaussian."""

import math

import pytest
import torch
from continuous_cases import (
    IMAGE,
    LATENT,
    LOGDET,
    ROUND_TRIP,
    SHAPE,
    SIGMA,
    SIZE,
    GaussianVelocity,
    draws,
    gaussian,
    numbers,
    worst,
)
from torch.distributions import MultivariateNormal

from flowmend.continuous import ContinuousPrior
from flowmend.flow import EVALUATIONS, ContinuousFlow
from flowmend.flow import continuous as module


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
