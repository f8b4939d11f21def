"""A measurement made part of what a denoiser says of an image: guidance of continuous flows.

A continuous flow gives ``D(x_s, s)``, the mean of x given ``x_s = x + s n``, in one evaluation. To
know the measurement too, the image is taken to be Gaussian around D with the covariance ``S`` that
noise of level s leaves of a stationary Gaussian prior: then

    E[x | x_s, y] = D + S A' (A S A' + sigma^2 I)^-1 (y - A D),

one linear system, solved by conjugate gradients with A and its adjoint alone. At the largest noise
D is the mean image and this is the LMMSE solution; towards none it is the flow's own. For a
Gaussian prior it is exact at every level. Where the measurement shows single coordinates of the
image (:mod:`flowmend.coordinates`) the network itself gives ``E[x | x_s, y]``, for every prior.

Sources: Flower: A Flow-Matching Solver for Inverse Problems (Pourya et al., 2026),
https://arxiv.org/abs/2509.26287; Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song
et al., 2023), https://openreview.net/forum?id=9_gsMA8MRKQ
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .coordinates import Known
from .gaussian import GaussianPosterior
from .least_squares import HasAdjoint, conjugate_gradients
from .linear_operator import LinearOperator
from .lowrank_posterior import LowRankPosterior
from .stationary import StationaryGaussian

__all__ = ["Denoiser", "Guidance", "Normal", "shared_noise"]

Normal = Callable[[Tensor], Tensor]
MOST_NOISE, LEAST_NOISE = 1.0, 0.004
"""Levels between which noise is taken away, on the [0, 1] scale: at the first only the coarsest
structure of an image is left, and the last is the rounding of 8 bits."""
LINEAR_NOISE = 0.3
"""Limit to the Gaussian's standard deviations where splitting starts."""
LOOSE = 1e-2
"""Tolerance of the systems of splitting: each begins at an estimate that the next one mends."""
DOUBT, DOUBTS = 2.0, 32
"""The first level of splitting as a multiple of the error that a dense Gaussian expects of where
it starts, found from so many draws. Chosen on validation faces."""
RISE, MOST_RISE = 150.0, 0.5
"""The same where the stationary one expects it: a multiple of its square, and the largest level.
What a blur leaves is larger than what a mosaic leaves, and less like noise. Chosen on training
photographs."""
CORNER = 128
"""Largest side in pixels of the images on which that error is found."""


class Denoiser(Protocol):
    """What the solver needs of a prior."""

    def denoise(self, y: Tensor, sigma: Tensor | float) -> Tensor: ...


@dataclass
class Guidance:
    """A measurement, ready to be made part of what the network says.

    Args:
        y: Measurements (B, ...).
        operator: Anything with ``A`` and ``A_adjoint``.
        sigma: Standard deviation of its noise on the [0, 1] scale, above 0.
        covariance: A stationary Gaussian of the images' size.
        known: What y shows of single coordinates; then no system need be solved.
        gaussian: The posterior of a Gaussian that knows these images better than the stationary
            one; draws begin there.
        steps: Most iterations of conjugate gradients.
        tolerance: An image's system is solved when its residual has shrunk by this factor; those
            of splitting by :data:`LOOSE` at most.
    """

    y: Tensor
    operator: HasAdjoint
    sigma: float
    covariance: StationaryGaussian
    known: Known | None = None
    gaussian: GaussianPosterior | LowRankPosterior | None = None
    steps: int = 60
    tolerance: float = 1e-3

    def mean(self, prior: Denoiser, x: Tensor, level: float) -> Tensor:
        """``E[x0 | x0 + level n = x, y]``, images (B, C, H, W).

        It is exact where single coordinates are known.
        """
        if self.known is not None:
            return self.known.mean_with(prior, x, level)
        estimate = prior.denoise(x, level)
        return estimate + self._gain(
            self.y - self.operator.A(estimate), lambda v: self.covariance.remaining(v, level)
        )

    def draw(self, normal: Normal) -> Tensor:
        """Images (B, C, H, W) from the posterior under a Gaussian alone.

        Under the stationary one it is a draw from the prior, moved by what its own measurement
        lacks to y (Matheron's rule).

        Args:
            normal: Draws standard normal noise of a tensor's shape.
        """
        if self.gaussian is not None:
            mean = self.gaussian.mean(self.y)
            return mean + self.gaussian.colour(normal(mean.flatten(1)))
        mean = self.covariance.mean.expand(len(self.y), *self.covariance.shape)
        lack = self.y - self.operator.A(mean)
        return mean + self._deviation(lack, normal, math.inf)

    def _deviation(self, lack: Tensor, normal: Normal, most: float) -> Tensor:
        """A draw (B, C, H, W) about the mean of the stationary Gaussian (Matheron's rule).

        Args:
            lack: What the measurements (B, ...) have beyond those of the mean.
            normal: As :meth:`draw`.
            most: As :meth:`linear`.
        """
        gaussian = self.covariance
        like = gaussian.mean.expand(len(lack), *gaussian.shape)
        x = gaussian.apply(normal(like), lambda v: (v / (v / most**2 + 1.0)).sqrt())
        lack = lack - self.operator.A(x) - self.sigma * normal(lack)
        return x + self._gain(lack, lambda v: gaussian.remaining(v, most))

    def linear(self, most: float = math.inf) -> Tensor:
        """The posterior mean under a Gaussian alone, images (B, C, H, W).

        Args:
            most: Standard deviation, on the [0, 1] scale, that no frequency of the stationary
                Gaussian exceeds by far. Those of the lowest do by orders of magnitude, and cost
                conjugate gradients many iterations for what the measurement settles anyway.
        """
        if self.gaussian is not None:
            return self.gaussian.mean(self.y)
        mean = self.covariance.mean.expand(len(self.y), *self.covariance.shape)
        lack = self.y - self.operator.A(mean)
        return mean + self._gain(lack, lambda v: self.covariance.remaining(v, most))

    def first_level(self) -> float:
        """The noise level at which splitting starts, from how far from the truth that is."""
        generator = torch.Generator().manual_seed(0)
        if self.gaussian is None:
            level = RISE * self._linear_error(generator) ** 2
            return min(max(level, 2.0 * LEAST_NOISE), MOST_RISE)
        draws = torch.randn(DOUBTS, self.covariance.mean.numel(), generator=generator)
        spread = self.gaussian.colour(draws.to(self.y)).square().mean().sqrt()
        return min(max(DOUBT * float(spread), 2.0 * LEAST_NOISE), MOST_NOISE)

    def _linear_error(self, generator: torch.Generator) -> float:
        """Root mean square of what :meth:`linear` gets wrong, of one draw from what it assumes.

        Of a large picture a corner is enough, and says the same of the whole and of its parts.
        """
        corner = self._corner()
        nothing = torch.zeros_like(corner.operator.A(corner.covariance.mean[None]))
        found = corner._deviation(nothing, shared_noise(generator), LINEAR_NOISE)
        return float(found.square().mean().sqrt())

    def _corner(self) -> "Guidance":
        """The same on a corner of the images, where they are large and the operator has parts."""
        operator, shape = self.operator, self.covariance.shape
        if not isinstance(operator, LinearOperator) or max(shape[1:]) <= CORNER:
            return self
        side = CORNER // operator.grain * operator.grain
        height, width = (min(side, length) for length in shape[1:])
        window = operator.window(slice(0, height), slice(0, width))
        if window is None:
            return self
        return dataclasses.replace(
            self, operator=window.operator, covariance=self.covariance.at_size(height, width)
        )

    def corrected(self, x: Tensor, variance: float) -> Tensor:
        """The mean given the measurements of images that are x (B, C, H, W) up to white noise."""
        lack = self.y - self.operator.A(x)
        return x + self._gain(lack, lambda v: variance * v, max(LOOSE, self.tolerance))

    def _gain(
        self,
        residual: Tensor,
        spread: Callable[[Tensor], Tensor],
        tolerance: float | None = None,
    ) -> Tensor:
        """``S A' (A S A' + sigma^2 I)^-1 r``, S given by what it makes of images."""

        def back(v: Tensor) -> Tensor:
            return spread(self.operator.A_adjoint(v))

        def matrix(v: Tensor) -> Tensor:
            return self.operator.A(back(v)) + self.sigma**2 * v

        tolerance = self.tolerance if tolerance is None else tolerance
        return back(conjugate_gradients(matrix, residual, self.steps, tolerance))


def shared_noise(generator: torch.Generator) -> Normal:
    """Draws noise for the first of a batch and gives it to all, so that none depends on others."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn((1, *like.shape[1:]), generator=generator).to(like).expand_as(like)

    return normal
