"""The objectives: Eq. 1, 2, 7 and 8 by hand, their names and weights, and Eq. 7's gradient."""

import dataclasses
import math

import pytest
import torch
from properties import randomise

from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig, build_flow
from flowmend.objective import (
    Objective,
    latent_norm,
    likelihood,
    map_estimate,
    negative_log_likelihood,
)
from flowmend.operators import Blur
from flowmend.prior import FlowPrior

SHAPE = (2, 4, 8)
SIZE = math.prod(SHAPE)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module", params=["swap", "conv1x1"])
def prior(request):
    """A small flow prior in float64 with random couplings and a split."""
    config = FlowConfig(
        channels=2,
        height=4,
        width=8,
        steps=(2, 2),
        split=(True, False),
        hidden=6,
        permutation=request.param,
    )
    flow = randomise(build_flow(config, 0), seed=1)
    return FlowPrior(flow).double().requires_grad_(False)


def test_eq8_is_the_negative_log_density_of_the_image(prior):
    z = numbers(3, SIZE)
    x, logdet = prior.decode(z)
    found = negative_log_likelihood(z, logdet)
    assert torch.allclose(found, -prior.log_prob(x), rtol=1e-10, atol=0)
    density = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(1)
    assert torch.allclose(found, -density + logdet, rtol=1e-12, atol=0)


def test_eq8_agrees_with_the_jacobian(prior):
    z = numbers(1, SIZE, seed=4)
    jacobian = torch.autograd.functional.jacobian(lambda v: prior.decode(v)[0].flatten(), z)
    volume = torch.linalg.slogdet(jacobian.reshape(SIZE, SIZE))[1]
    wanted = 0.5 * z.square().sum() + 0.5 * SIZE * math.log(2 * math.pi) + volume
    assert torch.allclose(negative_log_likelihood(z, prior.decode(z)[1]), wanted[None])


# Two images; latents (2, 2), log-determinants, residuals (2, 1, 1, 3).
LATENTS = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
LOGDET = torch.tensor([0.25, -1.0], dtype=torch.float64)
RESIDUAL = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.5, -1.0]], dtype=torch.float64)
SUMS = {"l1": (0.6, 1.5), "l2": (0.14, 1.25)}
LOG_TWO_PI = math.log(2 * math.pi)
PENALTIES = {
    "likelihood": (0.25 + 2.5 + LOG_TWO_PI, -1.0 + 0.125 + LOG_TWO_PI),
    "latent": (5.0, 0.25),
}
BY_HAND = {
    "Eq. 7": (likelihood(0.3), "l1", 1.0, "likelihood", 0.3),
    "Eq. 1": (latent_norm(0.2), "l2", 1.0, "latent", 0.2),
    "Eq. 1 without a penalty": (latent_norm(0.0), "l2", 1.0, "latent", 0.0),
    "Eq. 2": (map_estimate(0.1), "l2", 50.0, "likelihood", 1.0),
    "Eq. 2 with beta": (map_estimate(0.5, 0.7), "l2", 2.0, "likelihood", 0.7),
    "own": (Objective("l1", "latent", 3.0, 0.5), "l1", 0.5, "latent", 3.0),
}


@pytest.mark.parametrize(
    ("objective", "norm", "data_weight", "penalty", "weight"), BY_HAND.values(), ids=BY_HAND
)
def test_terms_by_hand(objective, norm, data_weight, penalty, weight):
    data, regulariser = objective.terms(LATENTS, LOGDET, RESIDUAL.reshape(2, 1, 1, 3))
    wanted = data_weight * torch.tensor(SUMS[norm], dtype=torch.float64)
    assert torch.allclose(data, wanted, rtol=1e-12, atol=0)
    wanted = weight * torch.tensor(PENALTIES[penalty], dtype=torch.float64)
    assert torch.allclose(regulariser, wanted, rtol=1e-12, atol=0)


def test_a_vector_of_measurements_gives_the_same_terms():
    objective = likelihood(0.3)
    flat = objective.terms(LATENTS, LOGDET, RESIDUAL)
    image = objective.terms(LATENTS, LOGDET, RESIDUAL.reshape(2, 3, 1, 1))
    assert torch.equal(flat[0], image[0])
    assert torch.equal(flat[1], image[1])


@pytest.mark.parametrize(
    ("build", "phrase"),
    [
        (lambda: Objective("l3", "latent", 1.0), "Unknown norm 'l3'"),
        (lambda: Objective("l2", "entropy", 1.0), "Unknown regulariser 'entropy'"),
        (lambda: likelihood(-0.1), "weight of an objective"),
        (lambda: likelihood(math.nan), "weight of an objective"),
        (lambda: latent_norm(math.inf), "weight of an objective"),
        (lambda: Objective("l2", "latent", 1.0, -1.0), "data weight of an objective"),
        (lambda: Objective("l2", "latent", 1.0, math.nan), "data weight of an objective"),
        (lambda: map_estimate(0.0), "sigma must be above 0"),
        (lambda: map_estimate(-1.0), "sigma must be above 0"),
        (lambda: map_estimate(math.nan), "sigma must be above 0"),
        (lambda: map_estimate(math.inf), "sigma must be above 0"),
        (lambda: map_estimate(0.1, -1.0), "weight of an objective"),
    ],
)
def test_objectives_that_cannot_be(build, phrase):
    with pytest.raises(FlowmendError, match=phrase):
        build()


def test_an_objective_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        likelihood(0.1).weight = 1.0


def test_gradient_of_eq7_matches_finite_differences(prior):
    operator = Blur(SHAPE, torch.tensor([[0.1, 0.2], [0.3, 0.4]]).double())
    objective = likelihood(0.05)
    y = 0.5 + 0.3 * numbers(1, *SHAPE, seed=2)
    z = numbers(1, SIZE, seed=3)

    def value(latent):
        x, logdet = prior.decode(latent)
        return sum(objective.terms(latent, logdet, operator.A(x) - y)).sum()

    z.requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(z), z)
    step = 1e-6
    with torch.no_grad():
        differences = torch.stack(
            [
                (value(z + step * unit) - value(z - step * unit)) / (2 * step)
                for unit in torch.eye(SIZE, dtype=torch.float64)
            ]
        )
    assert torch.allclose(gradient[0], differences, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(1.01 * gradient[0], differences, rtol=1e-5, atol=1e-6)
