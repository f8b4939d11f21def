"""A basis of the latents in which every coordinate has a scale of its own.

A whitened image weighs all frequencies alike, but an image does not: on the way back, a latent
along a low frequency moves the image hundreds of times as far as one along a high frequency.
Optimisers that scale coordinates one by one, as Adam does, need coordinates that are frequencies.
Rotating a standard normal latent changes neither its density nor any log-determinant.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .bijection import Bijection
from .layers import ActNorm, InvertibleConv1x1
from .multiscale import MultiscaleFlow

__all__ = ["FrequencyBasis", "cosine_matrix"]


def cosine_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II matrix (size, size), one frequency a row, float64."""
    place = torch.arange(size, dtype=torch.float64) + 0.5
    rows = torch.cos(math.pi / size * torch.arange(size, dtype=torch.float64)[:, None] * place)
    rows = rows * math.sqrt(2.0 / size)
    rows[0] /= math.sqrt(2.0)
    return rows


class FrequencyBasis(Bijection):
    """Rotates the latents (B, D) of a flow on whitened images to spatial frequencies.

    The 1x1 convolutions of such a flow mix channels; their orthogonal part, scale by scale, is
    undone, which brings the latents back to pixels. Then a discrete cosine transform along both
    axes and one across the channels. All of it is orthogonal: log-determinants are zero.

    Args:
        flow: The trained flow whose latents these are; read here, once.
    """

    def __init__(self, flow: MultiscaleFlow) -> None:
        super().__init__()
        self.flow_config = flow.config
        self.rotations = nn.ParameterList(
            nn.Parameter(self._orthogonal_part(scale), requires_grad=False)
            for scale in flow.scales
        )
        channels, height, width = flow.config.shape
        for name, size in (("across", channels), ("down", height), ("along", width)):
            self.register_buffer(name, cosine_matrix(size).float(), persistent=False)

    @staticmethod
    @torch.no_grad()
    def _orthogonal_part(scale: nn.Module) -> Tensor:
        """The rotation (C, C) nearest to what actnorms and convolutions of a scale do."""
        total: Tensor | None = None
        for layer in scale.layers:
            if isinstance(layer, ActNorm):
                factor = torch.diag(layer.log_scale.flatten().double().exp())
            elif isinstance(layer, InvertibleConv1x1):
                factor = layer.weight.double()
            else:
                continue
            total = factor if total is None else factor @ total
        if total is None or not bool(torch.isfinite(total).all()):
            raise ValueError("a scale without finite steps has no rotation")
        left, _, right = torch.linalg.svd(total)
        return (left @ right).float()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From the flow's latents (B, D) to frequencies (B, D)."""
        h: Tensor | None = None
        parts = self.flow_config.unflatten(x)
        for rotation, part in zip(reversed(self.rotations), reversed(parts), strict=True):
            h = torch.cat([tensor for tensor in (h, part) if tensor is not None], dim=1)
            h = functional.conv2d(h, rotation.to(h).T[:, :, None, None])
            h = functional.pixel_shuffle(h, 2)
        h = torch.einsum("ac,dh,ew,nchw->nade", *self._matrices(h), h)
        return h.flatten(1), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From frequencies (B, D) to the flow's latents (B, D)."""
        h = z.reshape(-1, *self.flow_config.shape)
        h = torch.einsum("ac,dh,ew,nade->nchw", *self._matrices(h), h)
        latents = []
        for rotation, split in zip(self.rotations, self.flow_config.split, strict=True):
            h = functional.pixel_unshuffle(h, 2)
            h = functional.conv2d(h, rotation.to(h)[:, :, None, None])
            if split:
                h, latent = h.chunk(2, dim=1)
                latents.append(latent.flatten(1))
        return torch.cat([*latents, h.flatten(1)], dim=1), z.new_zeros(z.shape[0])

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.across.to(like), self.down.to(like), self.along.to(like)
