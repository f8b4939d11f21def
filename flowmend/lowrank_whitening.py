"""The map that turns images of a Gaussian of low rank into white ones, and back.

With ``C = U diag(v) U' + S`` and ``R = S^(-1/2)``, a filter, the covariance of ``R x`` is
``I + G G'`` with ``G = R U diag(v)^(1/2)``, whose inverse root takes R numbers besides G.
Two transforms and two thin products are all that either direction costs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .flow import Bijection
from .stationary import StationaryGaussian
from .thin_root import thin_root

__all__ = ["LowRankWhitening"]


class LowRankWhitening(Bijection):
    """The affine map that gives images of ``N(mean, U diag(v) U' + S)`` a standard normal
    distribution: ``z = (I + G G')^(-1/2) S^(-1/2) (x - mean)``.

    Both roots are symmetric, so that a value of ``z`` still belongs to the same place of the
    image. Fixed: it holds no parameters.

    Args:
        mean: Mean image (C, H, W) on the [0, 1] scale.
        directions: Images U' (R, C, H, W).
        variances: Variances v along them (R,), above 0.
        rest: The stationary covariance S; its mean does not count.
        dequantisation: Variance of the dequantisation noise, which S does not hold.
    """

    def __init__(
        self,
        mean: Tensor,
        directions: Tensor,
        variances: Tensor,
        rest: StationaryGaussian,
        dequantisation: float,
    ) -> None:
        super().__init__()
        exact = rest.to(mean.double())
        spread = exact.variance + dequantisation
        scaled = exact.apply(directions.double(), lambda v: (v + dequantisation).rsqrt())
        scaled = scaled.flatten(1) * variances.double().sqrt()[:, None]
        beams, roots = thin_root(scaled)
        self.rest, self.dequantisation = rest, dequantisation
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("beams", beams.to(mean), persistent=False)
        self.register_buffer("widen", (1.0 / (1.0 + roots)).to(mean), persistent=False)
        self.register_buffer("narrow", (-1.0 / (roots * (1.0 + roots))).to(mean), persistent=False)
        self.logabsdet = -(0.5 * spread.log().sum() + roots.log().sum()).item()

    def _logdet(self, like: Tensor) -> Tensor:
        return like.new_full((like.shape[0],), self.logabsdet)

    def _filtered(self, h: Tensor, root: Callable[[Tensor], Tensor]) -> Tensor:
        """``f(S + d)`` times ``h`` (B, C, H, W), d the dequantisation noise."""
        self.rest = self.rest.to(self.mean)  # itself, unless this map was moved
        return self.rest.apply(h, lambda v: root(v + self.dequantisation))

    def _along(self, h: Tensor, shares: Tensor) -> Tensor:
        """``h`` (B, C, H, W) and a share of what of it lies along each direction."""
        flat = h.flatten(1)
        return (flat + (flat @ self.beams.T * shares) @ self.beams).view_as(h)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            h = self._filtered(x - self.mean, torch.rsqrt)
            return self._along(h, self.narrow), self._logdet(x)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            x = self._filtered(self._along(z, self.widen), torch.sqrt) + self.mean
        return x, -self._logdet(z)
