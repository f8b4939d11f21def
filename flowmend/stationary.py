"""A Gaussian of any image size whose covariance the cosine transform makes diagonal.

Neighbouring pixels of photographs are alike wherever they lie, and a covariance of that kind is
(nearly) diagonal in the discrete cosine transform: what is left is a small matrix between the
channels at every frequency. Sums with a multiple of the identity, inverses and roots of such a
covariance cost two transforms, where a dense one of D values needs D x D numbers.

Source: Discrete Cosine Transform (Ahmed et al., 1974), https://doi.org/10.1109/T-C.1974.223784
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from .cosines import cosine_matrix
from .errors import FlowmendError

__all__ = ["StationaryGaussian"]

SMALLEST_VARIANCE = 1e-9
"""Of a frequency, on the [0, 1] scale; far below the rounding of 8 bits."""


class StationaryGaussian:
    """``N(mean, T' S T)``: T the cosine transform of every channel, S a matrix at each frequency.

    Args:
        mean: Mean image (C, H, W) on the [0, 1] scale.
        spectrum: Covariance of the channels at each frequency, (H, W, C, C), symmetric and
            positive semi-definite.

    Raises:
        FlowmendError: If the shapes do not fit or a value is not finite.
    """

    def __init__(self, mean: Tensor, spectrum: Tensor) -> None:
        channels, height, width = mean.shape
        if tuple(spectrum.shape) != (height, width, channels, channels):
            raise FlowmendError(
                f"A spectrum of shape {tuple(spectrum.shape)} does not fit a mean of shape "
                f"{tuple(mean.shape)}."
            )
        if not bool(torch.isfinite(spectrum).all()) or not bool(torch.isfinite(mean).all()):
            raise FlowmendError("Mean and spectrum must be finite.")
        self.mean, self.spectrum = mean, spectrum
        self._origin: StationaryGaussian | None = None
        """What this one is the same spectrum of, at another size."""
        values, vectors = torch.linalg.eigh(spectrum.double())
        # (C, H, W) and (H, W, C, C), in the precision of the mean
        self.variance = values.permute(2, 0, 1).clamp_min(SMALLEST_VARIANCE).to(mean)
        self._vectors = vectors.to(mean)
        self._rows = cosine_matrix(height).to(mean)
        self._columns = cosine_matrix(width).to(mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        return tuple(self.mean.shape)

    @classmethod
    def fit(cls, images: Iterable[Tensor]) -> "StationaryGaussian":
        """Fits mean image and spectrum to batches (N, C, H, W) in [0, 1], all of one size.

        Raises:
            FlowmendError: If there are fewer than two images.
        """
        count, total, outer = 0, 0.0, 0.0
        for part in images:
            x = part.double()
            rows, columns = cosine_matrix(x.shape[-2]), cosine_matrix(x.shape[-1])
            values = rows @ x @ columns.T
            total = total + values.sum(0)
            outer = outer + torch.einsum("nchw,ndhw->hwcd", values, values)
            count += len(x)
        if count < 2:
            raise FlowmendError("A Gaussian needs at least two images.")
        mean = total / count
        spectrum = outer / count - torch.einsum("chw,dhw->hwcd", mean, mean)
        return cls((rows.T @ mean @ columns).float(), spectrum.float())

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> "StationaryGaussian":
        """The part of a Gaussian's covariance that the cosine transform makes diagonal.

        Args:
            mean: Mean image (C, H, W) in [0, 1].
            covariance: Covariance (D, D), D = C*H*W.
        """
        channels, height, width = mean.shape
        rows, columns = cosine_matrix(height), cosine_matrix(width)
        parts = covariance.double().reshape(channels, height, width, channels, height, width)
        parts = torch.einsum("hi,cijdkl,hk->hcjdl", rows, parts, rows)
        spectrum = torch.einsum("wj,hcjdl,wl->hwcd", columns, parts, columns)
        return cls(mean, spectrum.to(mean))

    def at_size(self, height: int, width: int) -> "StationaryGaussian":
        """The same spectrum, as a function of frequency, for images of another size.

        The mean becomes that of each channel.
        """
        if (height, width) == self.shape[1:]:
            return self
        if self._origin is not None:
            return self._origin.at_size(height, width).to(self.mean)
        channels = self.shape[0]
        flat = self.spectrum.permute(2, 3, 0, 1).reshape(1, -1, *self.spectrum.shape[:2])
        old = self.shape[1:]
        grid = torch.stack(
            torch.meshgrid(
                *(
                    (torch.arange(new).to(flat) * (size / new) / max(size - 1, 1) * 2.0 - 1.0)
                    for new, size in zip((height, width), old, strict=True)
                ),
                indexing="ij",
            )[::-1],
            dim=-1,
        )
        taken = functional.grid_sample(flat, grid[None], align_corners=True, padding_mode="border")
        spectrum = taken[0].reshape(channels, channels, height, width).permute(2, 3, 0, 1)
        mean = self.mean.mean((1, 2), keepdim=True).expand(channels, height, width)
        found = StationaryGaussian(mean.contiguous(), spectrum.contiguous())
        found._origin = self
        return found

    def to(self, like: Tensor) -> "StationaryGaussian":
        """The same in the precision and on the device of a tensor."""
        if self.mean.dtype == like.dtype and self.mean.device == like.device:
            return self
        found = StationaryGaussian(self.mean.to(like), self.spectrum.to(like))
        found._origin = self._origin
        return found

    def apply(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``f(C) x`` of images (B, C, H, W), f acting on the eigenvalues (C, H, W)."""
        values = self._rows @ x @ self._columns.T
        values = torch.einsum("hwcd,bchw->bdhw", self._vectors, values)
        values = values * function(self.variance)
        values = torch.einsum("hwcd,bdhw->bchw", self._vectors, values)
        return self._rows.T @ values @ self._columns

    def remaining(self, x: Tensor, sigma: float) -> Tensor:
        """``(C^-1 + I / sigma^2)^-1 x``: the covariance that noise of sigma leaves, times x."""
        return self.apply(x, lambda v: v / (v / sigma**2 + 1.0))

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        """The posterior mean of y = x + sigma n, images (B, C, H, W)."""
        return self.mean + self.apply(y - self.mean, lambda v: v / (v + sigma**2))
