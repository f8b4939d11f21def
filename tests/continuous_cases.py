"""Continuous flows whose map, density and posterior are known, and what tests compare them by."""

import dataclasses
import math

import torch
from properties import randomise
from torch import nn

from flowmend.continuous import ContinuousPrior
from flowmend.flow import ContinuousFlow, VelocityConfig, build_velocity
from flowmend.prior import GaussianPrior

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


def flow(evaluations=24, config=TINY, shape=(1, 4, 4), size=0.05):
    velocity = randomise(build_velocity(config), seed=2, size=size)
    return ContinuousFlow(velocity, shape, SIGMA, evaluations)


def images(count=2, shape=(1, 4, 4), seed=3):
    return SIGMA * numbers(count, *shape, seed=seed)


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
