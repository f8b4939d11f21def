"""The discrete cosine transform as a matrix, and the colour coordinates it gives.

Source: Discrete Cosine Transform (Ahmed et al., 1974), https://doi.org/10.1109/T-C.1974.223784
"""

import math

import torch
from torch import Tensor

__all__ = ["cosine_matrix", "mix_channels", "unmix_channels"]


def cosine_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II matrix (size, size) in float64: rows are cosines."""
    place = torch.arange(size, dtype=torch.float64) + 0.5
    matrix = torch.cos(math.pi / size * torch.arange(size, dtype=torch.float64)[:, None] * place)
    matrix *= math.sqrt(2.0 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix


def mix_channels(x: Tensor) -> Tensor:
    """The colour coordinates of images (B, C, H, W): the cosine transform of every pixel.

    Of red, green and blue they are grey ``(r + g + b) / sqrt(3)``, ``(r - b) / sqrt(2)`` and
    ``(r - 2 g + b) / sqrt(6)``; one channel stays as it is. The transform is orthonormal: white
    noise stays white, and what a grey picture tells is one coordinate.
    """
    return torch.einsum("dc,bchw->bdhw", cosine_matrix(x.shape[1]).to(x), x)


def unmix_channels(u: Tensor) -> Tensor:
    """Images (B, C, H, W) from their colour coordinates: the inverse of :func:`mix_channels`."""
    return torch.einsum("dc,bdhw->bchw", cosine_matrix(u.shape[1]).to(u), u)
