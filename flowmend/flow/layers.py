"""Layers without a network inside: squeeze, actnorm, 1x1 convolution, affine maps."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cosines import mix_channels, unmix_channels
from ..pixels import CENTRE_LOGDET, centre, uncentre
from .bijection import Bijection

__all__ = ["ActNorm", "Centre", "ChannelMix", "InvertibleConv1x1", "Squeeze", "Whitening"]

LARGEST_KEPT = 4096
"""Side of the largest triangle that is kept in case it is wanted again."""


class Centre(Bijection):
    """Moves an image from [0, 1] to the [-1, 1] the network sees."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return centre(x), x.new_full((x.shape[0],), CENTRE_LOGDET * x[0].numel())

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return uncentre(z), z.new_full((z.shape[0],), -CENTRE_LOGDET * z[0].numel())


class ChannelMix(Bijection):
    """The colour coordinates of :func:`flowmend.cosines.mix_channels`: it keeps volumes."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return mix_channels(x), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return unmix_channels(z), z.new_zeros(z.shape[0])


class Squeeze(Bijection):
    """Turns every 2x2 block of pixels into channels: (B, C, H, W) to (B, 4C, H/2, W/2).

    Source: Density estimation using Real NVP (Dinh et al., 2017),
    https://arxiv.org/abs/1605.08803
    """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.pixel_unshuffle(x, 2), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return functional.pixel_shuffle(z, 2), z.new_zeros(z.shape[0])


class ActNorm(Bijection):
    """A learned shift and scale per channel, set from the first batch by :meth:`initialise`.

    ``z = (x + shift) * exp(log_scale)``.

    Source: Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def _logdet(self, like: Tensor) -> Tensor:
        pixels = like.shape[2] * like.shape[3]
        return (pixels * self.log_scale.sum()).to(like.dtype).expand(like.shape[0])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x + self.shift) * self.log_scale.exp(), self._logdet(x)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * (-self.log_scale).exp() - self.shift, -self._logdet(z)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Gives every channel of ``x`` mean 0 and standard deviation 1."""
        self.shift.copy_(-x.mean(dim=(0, 2, 3), keepdim=True))
        deviation = x.std(dim=(0, 2, 3), keepdim=True, correction=0)
        self.log_scale.copy_(-(deviation + 1e-6).log())
        return self.encode(x)[0]


class InvertibleConv1x1(Bijection):
    """A learned C x C matrix that mixes the channels of every pixel.

    The baseline that the paper replaces: decoding needs the inverse of the matrix. It is computed
    in float64; of frozen weights it is kept while they stay the same, unless ``cached`` is False.

    Source: Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        self.weight = nn.Parameter(rotation.contiguous())
        self.cached = True
        self._inverse: tuple[Tensor, Tensor] | None = None

    def _logdet(self, like: Tensor) -> Tensor:
        pixels = like.shape[2] * like.shape[3]
        logdet = torch.linalg.slogdet(self.weight.double())[1] * pixels
        return logdet.to(like.dtype).expand(like.shape[0])

    def inverse(self) -> Tensor:
        """The inverse (C, C) of the matrix, from the cache where the weights allow it."""
        weight = self.weight.detach()
        if self.weight.requires_grad or not self.cached:
            return torch.linalg.inv(self.weight.double()).to(weight.dtype)
        kept = self._inverse
        if kept is None or kept[0].dtype != weight.dtype or kept[0].device != weight.device:
            kept = None
        if kept is None or not torch.equal(kept[0], weight):
            with torch.inference_mode(False):
                matrix = torch.linalg.inv(weight.double()).to(weight.dtype)
                self._inverse = kept = (weight.clone(), matrix)
        return kept[1]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            return functional.conv2d(x, self.weight[:, :, None, None]), self._logdet(x)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            return functional.conv2d(z, self.inverse()[:, :, None, None]), -self._logdet(z)


class Whitening(Bijection):
    """The affine map that gives images of a Gaussian a standard normal distribution.

    ``z = W (x - mean)`` with the symmetric ``W = C^(-1/2)`` of a covariance ``C`` (ZCA), so that
    a pixel of ``z`` still belongs to the same place of the image. Fixed: it holds no parameters.

    Args:
        mean: Mean image, shape (C, H, W).
        matrix: Symmetric positive definite ``W``, shape (D, D) with D = C*H*W.
    """

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("matrix", matrix, persistent=False)
        self._unwhitening: Tensor | None = None
        self._logabsdet: float | None = None
        self._factor: Tensor | None = None

    @property
    def unwhitening(self) -> Tensor:
        """The inverse ``C^(1/2)`` of the matrix, shape (D, D), in the matrix's precision."""
        kept = self._unwhitening
        if kept is None or kept.dtype != self.matrix.dtype or kept.device != self.matrix.device:
            with torch.inference_mode(False), torch.no_grad():
                factor = self._factor
                if factor is None or factor.device != self.matrix.device:
                    factor = torch.linalg.cholesky(self.matrix.double())
                kept = torch.cholesky_inverse(factor)
                self._factor = None
                self._unwhitening = kept = kept.to(self.matrix.dtype)
        return kept

    def _logdet(self, like: Tensor) -> Tensor:
        if self._logabsdet is None:
            with torch.inference_mode(False), torch.no_grad():
                factor = torch.linalg.cholesky(self.matrix.double())
            self._logabsdet = 2.0 * factor.diagonal().log().sum().item()
            if self._unwhitening is None and len(factor) <= LARGEST_KEPT:
                self._factor = factor  # the inverse needs it too
        return like.new_full((like.shape[0],), self._logabsdet)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            z = (x - self.mean).flatten(1) @ self.matrix
        return z.view_as(x), self._logdet(x)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            x = (z.flatten(1) @ self.unwhitening).view_as(z) + self.mean
        return x, -self._logdet(z)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Log-density of N(0, I) at ``z`` (B, D): shape (B,), nats."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2.0 * math.pi))
