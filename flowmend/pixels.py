"""Value ranges: the only module that knows any range but [0, 1].

Everywhere else an image is a float tensor ``x`` of shape (B, C, H, W) in [0, 1]. Here live the
8-bit levels of files, the n-bit levels of training, and the [-1, 1] that a network sees.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "CENTRE_LOGDET",
    "centre",
    "dequantisation_variance",
    "dequantise",
    "floor_to_bytes",
    "from_bytes",
    "grid",
    "on_byte_grid",
    "path_time",
    "quantisation_sigma",
    "reduce_bits",
    "round_to_bytes",
    "to_bytes",
    "uncentre",
]

CENTRE_LOGDET = math.log(2.0)
"""Log-determinant, in nats per dimension, of :func:`centre`."""


def centre(x: Tensor) -> Tensor:
    """Maps [0, 1] to the [-1, 1] a network sees."""
    return 2.0 * x - 1.0


def uncentre(u: Tensor) -> Tensor:
    """Maps [-1, 1] back to [0, 1]; the inverse of :func:`centre`."""
    return 0.5 * (u + 1.0)


def path_time(sigma: Tensor) -> Tensor:
    """The time t at which a path ``t u + (1 - t) e`` to a centred image u has noise of sigma.

    Args:
        sigma: Standard deviation of the noise on the [0, 1] scale, twice as large once centred.

    Returns:
        ``1 / (1 + 2 sigma)``: 1 without noise, 0 where it is infinite.
    """
    return 1.0 / (1.0 + 2.0 * sigma)


def to_bytes(x: Tensor) -> Tensor:
    """Rounds an image in [0, 1] to 8-bit levels, uint8; values outside are clamped."""
    return (x.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def from_bytes(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turns uint8 levels into an image in [0, 1]."""
    return levels.to(dtype) / 255.0


def round_to_bytes(x: Tensor) -> Tensor:
    """Returns the image as an 8-bit file would give it back: clamped to [0, 1] and rounded."""
    return from_bytes(to_bytes(x), x.dtype)


def quantisation_sigma(bits: int = 8) -> float:
    """Standard deviation, on the [0, 1] scale, of the rounding error of a ``bits``-bit image."""
    return 1.0 / ((2**bits - 1) * math.sqrt(12.0))


def dequantisation_variance(bits: int) -> float:
    """Variance, on the [0, 1] scale, of the noise that :func:`dequantise` adds."""
    return 1.0 / (12.0 * 4.0**bits)


def on_byte_grid(y: Tensor) -> Tensor:
    """Which of a batch (B, ...) hold levels of 8 bits only, as pictures from files do: (B,)."""
    levels = 255.0 * y.flatten(1)
    return ((levels - levels.round()).abs() < 1e-3).all(1)


def dequantise(x: Tensor, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """Reduces an image to ``bits`` bits and spreads each level uniformly over its cell.

    The result has a density, which is what a flow is trained on: a level ``k`` of ``2**bits``
    becomes ``(k + u) / 2**bits`` with ``u`` uniform in [0, 1).

    Source: A note on the evaluation of generative models (Theis et al., 2016),
    https://arxiv.org/abs/1511.01844

    Args:
        x: Image (B, C, H, W) in [0, 1], on the 8-bit grid or not.
        bits: Bits per channel, 1 to 8.
        generator: Source of the noise; None uses the centre of each cell.

    Returns:
        Image (B, C, H, W) in [0, 1).
    """
    levels = torch.div(to_bytes(x).to(x.dtype), 2 ** (8 - bits), rounding_mode="floor")
    if generator is None:
        noise: Tensor | float = 0.5
    else:
        noise = torch.rand(
            x.shape, generator=generator, dtype=x.dtype, device=generator.device
        ).to(x.device)
    below_one = 1.0 - torch.finfo(x.dtype).eps
    return ((levels + noise) / 2**bits).clamp_max(below_one)


def grid(images: Tensor, columns: int, gap: int = 2, scale: int = 1) -> Tensor:
    """Lays images out on a white sheet, row by row.

    Args:
        images: Images (B, C, H, W) in [0, 1].
        columns: Images in a row.
        gap: White pixels between and around images.
        scale: Integer enlargement of every image (nearest neighbour).

    Returns:
        The sheet (C, H', W') in [0, 1].
    """
    images = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2).clamp(0.0, 1.0)
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_ones(channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for index, image in enumerate(images):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def reduce_bits(x: Tensor, bits: int) -> Tensor:
    """Keeps the ``bits`` highest bits of every 8-bit level; the image stays in [0, 1].

    At 5 bits the levels are 0, 8, ..., 248 of 255.
    """
    step = 2 ** (8 - bits)
    return from_bytes(to_bytes(x) // step * step, x.dtype)


def floor_to_bytes(x: Tensor) -> Tensor:
    """Returns the image clamped to [0, 1] and rounded down to 8-bit levels."""
    return (x.clamp(0.0, 1.0) * 255.0).floor() / 255.0
