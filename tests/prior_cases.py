"""Small priors."""

import math

import torch
from properties import randomise

from flowmend.flow import FlowConfig, build_flow
from flowmend.pixels import to_bytes
from flowmend.prior import FlowPrior, GaussianPrior

SHAPE = (3, 2, 4)
SIZE = 24
FLOW = FlowConfig(
    height=8, width=8, channels=1, steps=(1, 2), split=(True, False), hidden=3, positional=True
)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)


def covariance(size=SIZE, seed=1):
    factor = numbers(size, size, seed=seed)
    return 0.02 * (factor @ factor.T / size + 0.2 * torch.eye(size, dtype=torch.float64))


def gaussian(*shape, dtype=torch.float64):
    mean = 0.5 + 0.1 * numbers(*shape, seed=2)
    return GaussianPrior.from_covariance(mean.to(dtype), covariance(math.prod(shape)))


def flow_prior(whiten):
    config = FlowConfig(**(FLOW.to_dict() | {"whiten": whiten}))
    return randomise(FlowPrior(build_flow(config), gaussian(1, 8, 8)), seed=3)


PRIORS = {
    "gaussian": lambda: gaussian(*SHAPE),
    "flow": lambda: flow_prior(False),
    "whitened flow": lambda: flow_prior(True),
}


def images(prior, count=4, seed=5):
    return 0.5 + 0.2 * numbers(count, *prior.shape, seed=seed)


def levels(count, shape=(2, 3, 4), seed=0):
    """Images uint8 with correlated pixels, and what they are drawn from, in [0, 1]."""
    size = math.prod(shape)
    mean = 0.5 + 0.1 * numbers(size, seed=seed + 1)
    factor = 0.06 * numbers(size, 5, seed=seed + 2)
    noise = 0.02 * numbers(count, size, seed=seed + 4)
    x = mean + numbers(count, 5, seed=seed + 3) @ factor.T + noise
    spread = factor @ factor.T + 0.02**2 * torch.eye(size, dtype=torch.float64)
    return to_bytes(x).reshape(count, *shape), mean.reshape(shape), spread
