"""Gaussian priors, operators and measurements whose answers are known."""

import math

import torch
from properties import randomise

from flowmend.flow import FlowConfig, build_flow
from flowmend.operators import Blur, Identity, Mask, Sense
from flowmend.prior import FlowPrior, GaussianPrior

SHAPE = (3, 4, 6)
SIZE = math.prod(SHAPE)
SIGMA = 0.1


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gaussian_prior():
    """Neighbouring pixels and channels go together, with a deviation of 0.08; in float64."""
    places = torch.cartesian_prod(*(torch.arange(side).double() for side in SHAPE))
    covariance = 0.08**2 * torch.exp(-0.7 * torch.cdist(places, places))
    mean = 0.5 + 0.1 * torch.sin(numbers(*SHAPE, seed=1))
    return GaussianPrior.from_covariance(mean, covariance), mean, covariance


GAUSSIAN, MEAN, COVARIANCE = gaussian_prior()
HALF_MASK = (torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(2)) < 0.5).float()
KERNEL = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.3, 0.2], [0.05, 0.0, 0.05]], dtype=torch.float64)
OPERATORS = {
    "denoise": Identity(SHAPE),
    "blur": Blur(SHAPE, KERNEL, "zero"),
    "mask": Mask(SHAPE, HALF_MASK),
    "sense": Sense(SHAPE, 20),
}


def measure(operator, count=2, sigma=SIGMA):
    root = torch.linalg.cholesky(COVARIANCE)
    x = MEAN + (numbers(count, SIZE, seed=21) @ root.T).reshape(-1, *SHAPE)
    y = operator.A(x)
    return y + sigma * numbers(*y.shape, seed=5)


def posterior_mean(operator, y, sigma):
    """(C^-1 + A'A / sigma^2)^-1 (C^-1 mean + A'y / sigma^2), with dense matrices."""
    units = torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)
    A = operator.A(units).flatten(1).T
    precision = torch.linalg.inv(COVARIANCE)
    left = precision + A.T @ A / sigma**2
    right = (precision @ MEAN.flatten())[:, None] + A.T @ y.flatten(1).T / sigma**2
    return torch.linalg.solve(left, right).T.reshape(-1, *SHAPE)


def flow_prior(seed=3):
    """A flow prior with random couplings on images of SHAPE, in float64, weights not frozen."""
    config = FlowConfig(
        channels=3, height=4, width=6, steps=(3,), split=(False,), hidden=6, whiten=True
    )
    flow = randomise(build_flow(config, seed), seed=seed)
    return FlowPrior(flow, gaussian_prior()[0]).double()


def options(**changes):
    usual = {"method": "likelihood", "steps": 15, "learning_rate": 0.02}
    return {**usual, "start": numbers(3, SIZE, seed=8), **changes}
