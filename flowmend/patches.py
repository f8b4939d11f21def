"""The paper's own kind of flow on pictures of any size: a density of small patches.

A coupling flow knows images of one size. Trained on patches of photographs it judges pictures of
every size by the expected patch log-likelihood: the mean, over all places of a grid of patches
that covers the picture, of the patches' summed log-densities. Each step takes one place of the
grid, so that it costs one pass over the picture; over the steps no border between patches stays.

Sources: From Learning Models of Natural Image Patches to Whole Image Restoration (Zoran and Weiss,
2011), https://doi.org/10.1109/ICCV.2011.6126278; PatchNR: Learning from Very Few Images by Patch
Normalizing Flow Regularization (Altekrueger et al., 2023), https://arxiv.org/abs/2205.12021
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .errors import FlowmendError
from .flow import FlowConfig
from .prior import FlowPrior, Prior
from .stationary import StationaryGaussian

__all__ = ["PatchPrior"]

STEPS = 32
"""Steps in which a picture is denoised."""
STRIDE = 0.08
"""Adam's first rate as a share of the noise level."""
BETAS = (0.8, 0.98)


class PatchPrior(Prior):
    """Pictures of any size by a flow of patches: a regulariser, not a flow of its own.

    Args:
        patch: A flow trained on patches.
        shape: Shape (C, H, W) of the pictures; None is that of a patch.

    Raises:
        FlowmendError: If the flow was not trained on patches, or the pictures do not fit it.
    """

    def __init__(self, patch: FlowPrior, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        if not patch.config.patches or patch.gaussian is None:
            raise FlowmendError(
                "Only a flow trained on patches knows pictures of every size: train one with "
                "--crop."
            )
        self._shape = patch.shape if shape is None else tuple(shape)
        side, channels = patch.config.crop, patch.config.channels
        if len(self._shape) != 3 or self._shape[0] != channels or min(self._shape[1:]) < side:
            raise FlowmendError(
                f"This prior knows patches of {channels} channel(s) and {side} x {side} pixels; "
                f"pictures of shape {self._shape} are smaller, or of another kind."
            )
        self.patch = patch
        gaussian = patch.gaussian
        self.stationary = StationaryGaussian.from_covariance(
            gaussian.mean, gaussian.covariance()
        ).at_size(*self._shape[1:])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def config(self) -> FlowConfig:
        """The architecture of the flow of patches."""
        return self.patch.config

    @property
    def card(self) -> dict:
        """Facts about the training."""
        return self.patch.card

    def at_shape(self, shape: tuple[int, int, int]) -> "PatchPrior":
        """The same weights (shared, not copied) for pictures of another shape (C, H, W).

        Raises:
            FlowmendError: If such pictures do not fit.
        """
        return PatchPrior(self.patch, shape).train(self.training)

    def at_precision(self, precision: str) -> "PatchPrior":
        """A copy whose coupling networks compute in bfloat16; with ``"float32"`` itself."""
        super().at_precision(precision)
        quick = self.patch.at_precision(precision)
        return self if quick is self.patch else PatchPrior(quick, self.shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise FlowmendError(_NO_LATENTS)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        raise FlowmendError(_NO_LATENTS)

    def log_prob(self, x: Tensor) -> Tensor:
        """The expected patch log-likelihood (B,), nats, of pictures x (B, C, H, W) in [0, 1].

        It takes all the places of the grid, as many as a patch has pixels.
        """
        side = self.config.crop
        places = [(row, column) for row in range(side) for column in range(side)]
        return sum(self.grid_log_prob(x, place) for place in places) / len(places)

    def grid_log_prob(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The summed log-densities (B,) of the patches of one grid.

        Args:
            x: Pictures (B, C, H, W); beyond their borders they are mirrored.
            place: Rows and columns of the first patches that lie beyond the border.
        """
        side = self.config.crop
        ends = [(-(size + first)) % side for size, first in zip(x.shape[-2:], place, strict=True)]
        x = functional.pad(x, (place[1], ends[1], place[0], ends[0]), mode="reflect")
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // side, side, width // side, side)
        patches = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side, side)
        return self.patch.log_prob(patches).reshape(batch, -1).sum(1)

    def denoise(self, y: Tensor, sigma: Tensor | float) -> Tensor:
        """The most probable pictures x (B, C, H, W) given y = x + sigma n.

        Adam from the posterior mean under a stationary Gaussian, every step on another grid.

        Args:
            y: Pictures with noise.
            sigma: Standard deviation of the noise on the [0, 1] scale, above 0, the same for all.

        Raises:
            FlowmendError: If sigma is none, or not the same everywhere.
        """
        level = sigma if isinstance(sigma, float) else _one_level(sigma)
        with torch.no_grad():
            first = self.stationary.to(y).denoise(y, level)
        x = first.detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([x], lr=STRIDE * level, betas=BETAS)
        side, bits = self.config.crop, self.config.bits
        generator = torch.Generator().manual_seed(0)
        places = torch.randperm(side * side, generator=generator).tolist()
        for step in range(STEPS):
            place = divmod(places[step % len(places)], side)
            dither = torch.rand(1, *x.shape[1:], generator=generator).to(x)
            dither = (dither - 0.5) / 2**bits
            adam.param_groups[0]["lr"] = (
                STRIDE * level * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
            )
            with torch.enable_grad():
                fit = 0.5 * ((x - y) / level).square().flatten(1).sum(1)
                energy = fit - self.grid_log_prob(x + dither, place)
                (x.grad,) = torch.autograd.grad(energy.sum(), x)
            adam.step()
        found = x.detach()
        return torch.where(torch.isfinite(found), found, first)


_NO_LATENTS = (
    "A prior of patches judges pictures but has no latents of them: use the method splitting."
)


def _one_level(sigma: Tensor | float) -> float:
    """The noise level that is the same everywhere."""
    levels = torch.as_tensor(sigma, dtype=torch.float64)
    low, high = float(levels.min()), float(levels.max())
    if not 0 < low <= high < math.inf or high - low > 1e-6 * high:
        raise FlowmendError("A prior of patches denoises at one noise level, above 0.")
    return high
