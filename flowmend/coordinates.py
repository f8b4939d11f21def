"""Measurements that show single coordinates of an image: noise, holes, grey, and all at once.

Where ``A'A`` is diagonal in colour coordinates, ``A'A = U' diag(d) U``, the values ``U A'y / d``
are all that a measurement with white noise tells: each is a coordinate of the image with noise of
its own, ``sigma / sqrt(d)``, independent of the others. A network that knows a noise level for
every coordinate then gives the posterior mean without any approximation.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .cosines import mix_channels, unmix_channels
from .least_squares import HasAdjoint

__all__ = ["Known", "known_coordinates"]

TOLERANCE = 1e-4
"""Largest relative departure of ``A'A`` from a diagonal, and share of its largest entry below
which a coordinate counts as not seen."""


class _Denoiser(Protocol):
    def denoise(self, y: Tensor, sigma: Tensor | float) -> Tensor: ...


@dataclass(frozen=True)
class Known:
    """Noisy coordinates of images.

    Args:
        values: Their values (B, C, H, W) in colour coordinates, 0 where nothing is known.
        precision: 1 / variance of their noise on the [0, 1] scale, (1, C, H, W); 0 for nothing.
    """

    values: Tensor
    precision: Tensor

    @property
    def even(self) -> bool:
        """Whether all coordinates have the same noise."""
        return _even(self.precision)

    @property
    def holes(self) -> bool:
        """Whether at some pixels nothing at all is known."""
        return bool((self.precision <= 0).all(1).any())

    def mean(self, prior: _Denoiser) -> Tensor:
        """``E[x | values]``, images (B, C, H, W), by one evaluation of a network."""
        return self._denoise(prior, self.values, self.precision)

    def mean_with(self, prior: _Denoiser, x: Tensor, level: float) -> Tensor:
        """``E[x0 | x0 + level n = x, values]``: two noisy values are as good as one of less noise.

        Args:
            prior: Gives ``denoise`` for a noise level of every coordinate.
            x: Images (B, C, H, W) with noise.
            level: Standard deviation of that noise on the [0, 1] scale.
        """
        other = level**-2
        total = self.precision + other
        both = (self.precision * self.values + other * mix_channels(x)) / total
        return self._denoise(prior, both, total)

    @staticmethod
    def _denoise(prior: _Denoiser, values: Tensor, precision: Tensor) -> Tensor:
        if _even(precision) and float(precision.max()) > 0:
            return prior.denoise(unmix_channels(values), float(precision.max()) ** -0.5)
        return prior.denoise(unmix_channels(values), precision.rsqrt().expand_as(values))


def _even(precision: Tensor) -> bool:
    """Whether all values are nearly the same."""
    least, most = float(precision.min()), float(precision.max())
    return most - least <= 1e-6 * most


def known_coordinates(y: Tensor, operator: HasAdjoint, sigma: float, like: Tensor) -> Known | None:
    """What measurements show of single coordinates; None if they mix them.

    Args:
        y: Measurements (B, ...).
        operator: Anything with ``A`` and its adjoint ``A_adjoint``; found out by trying it.
        sigma: Standard deviation of the noise on the [0, 1] scale, above 0.
        like: An image (C, H, W), whose shape, precision and device count.
    """

    def gram(u: Tensor) -> Tensor:
        return mix_channels(operator.A_adjoint(operator.A(unmix_channels(u))))

    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, (2, *like.shape), generator=generator).to(like) - 1.0
    weights = gram(torch.ones_like(like)[None])
    largest = float(weights.abs().max())
    if float((gram(signs) - weights * signs).abs().max()) > TOLERANCE * largest:
        return None
    seen = weights > TOLERANCE * largest
    shown = mix_channels(operator.A_adjoint(y.to(like)))
    values = torch.where(seen, shown / torch.where(seen, weights, 1.0), 0.0)
    return Known(values, torch.where(seen, weights, 0.0) / sigma**2)
