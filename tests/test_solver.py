"""The solver against closed forms."""

import math

import numpy as np
import pytest
import torch
from conftest import smooth_images
from solver_cases import (
    GAUSSIAN,
    OPERATORS,
    SHAPE,
    SIGMA,
    SIZE,
    flow_prior,
    measure,
    numbers,
    posterior_mean,
)

import flowmend as fm
from flowmend.errors import FlowmendError
from flowmend.latent import minimise
from flowmend.objective import Objective
from flowmend.operators import Downsample, Identity
from flowmend.pixels import quantisation_sigma
from flowmend.prior import GaussianPrior

TOLERANCE = 1e-4
DESCENT = {"steps": 300, "learning_rate": 0.05, "cosine": True}
"""Enough for the least-squares problems below, whose condition numbers are about ten."""
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def white_prior(shape):
    """Independent pixels around mid-grey, for methods that do not look at the prior."""
    size = math.prod(shape)
    mean = torch.full(shape, 0.5, dtype=torch.float64)
    return GaussianPrior.from_covariance(mean, torch.eye(size, dtype=torch.float64))


# Ground truth
@every_operator
def test_map_meets_the_closed_form(operator):
    y = measure(operator)
    wanted = posterior_mean(operator, y, SIGMA)
    assert bool(((wanted > 0.0) & (wanted < 1.0)).all()), "the truth must not be clamped"
    solution = fm.solve(y, operator, GAUSSIAN, method="map", sigma=SIGMA, weight=1.0, **DESCENT)
    assert solution.finished
    assert (solution.x - wanted).abs().max() < TOLERANCE


@every_operator
def test_a_wrong_objective_misses_the_closed_form(operator):
    y = measure(operator)
    wrong = Objective("l2", "likelihood", 1.0, data_weight=2.0 / (2.0 * SIGMA**2))
    start = torch.zeros(2, SIZE, dtype=torch.float64)
    z = minimise(wrong, y, operator, GAUSSIAN, start, **DESCENT)[0]
    assert bool((start == 0).all()), "the first iterate is the caller's"
    x = GAUSSIAN.decode(z)[0]
    assert (x - posterior_mean(operator, y, SIGMA)).abs().max() > 10 * TOLERANCE
    assert (x - posterior_mean(operator, y, SIGMA / math.sqrt(2))).abs().max() < TOLERANCE


@every_operator
def test_lmmse_is_the_closed_form(operator):
    y = measure(operator)
    solution = fm.solve(y, operator, GAUSSIAN, method="lmmse", sigma=SIGMA)
    assert (solution.x - posterior_mean(operator, y, SIGMA)).abs().max() < 1e-6
    assert solution.z is None
    assert solution.trace == {}


def test_lmmse_takes_the_rounding_of_a_file_as_the_least_noise():
    operator = OPERATORS["blur"]
    y = measure(operator, sigma=0.0)
    solution = fm.solve(y, operator, GAUSSIAN, method="lmmse")
    wanted = posterior_mean(operator, y, quantisation_sigma()).clamp(0.0, 1.0)
    assert (solution.x - wanted).abs().max() < 1e-6
    assert quantisation_sigma() == pytest.approx(1 / 255 / math.sqrt(12))


def test_lmmse_takes_the_gaussian_of_a_flow_prior():
    y = measure(OPERATORS["mask"])
    found = fm.solve(y, OPERATORS["mask"], flow_prior(), method="lmmse", sigma=SIGMA)
    wanted = fm.solve(y, OPERATORS["mask"], GAUSSIAN, method="lmmse", sigma=SIGMA)
    assert torch.equal(found.x, wanted.x)


def test_pinv_is_the_operators():
    operator = Downsample(SHAPE, 2)
    y = operator.A(smooth_images(2, *SHAPE))
    solution = fm.solve(y, operator, GAUSSIAN, method="pinv")
    assert torch.equal(solution.x, y.repeat_interleave(2, -1).repeat_interleave(2, -2))
    outside = fm.solve(2.0 * y + 0.5, operator, GAUSSIAN, method="pinv").x
    assert float(outside.max()) == 1.0, "what leaves [0, 1] is clamped"


@pytest.mark.parametrize("channels", [1, 3])
def test_bm3d_is_the_packages(channels):
    package = pytest.importorskip("bm3d")
    shape = (channels, 10, 12)
    y = smooth_images(1, *shape) + 0.1 * numbers(1, *shape)
    solution = fm.solve(y, Identity(shape), white_prior(shape), method="bm3d", sigma=0.1)
    if channels == 3:
        wanted = package.bm3d_rgb(y[0].permute(1, 2, 0).numpy(), 0.1).transpose(2, 0, 1)
    else:
        wanted = package.bm3d(y[0, 0].numpy(), 0.1)[None]
    np.testing.assert_allclose(solution.x[0].numpy(), wanted.clip(0, 1), rtol=0, atol=1e-12)
    assert (solution.x - y).norm() > 0.1


def test_bm3d_says_that_an_image_is_too_small():
    """Below its blocks of 8 x 8 the package raises, and at 8 x 8 it ends the whole process."""
    pytest.importorskip("bm3d")
    shape = (1, 7, 16)
    with pytest.raises(FlowmendError, match=r"(?i)bm3d"):
        fm.solve(numbers(1, *shape), Identity(shape), white_prior(shape), method="bm3d", sigma=0.1)
