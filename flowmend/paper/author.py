"""The error measures of the paper's code, for columns that compare with its table.

Its images have 5 bits (32 levels, the highest 248), the squared error is pooled over a batch of
32, and SSIM looks at the same images. Our own columns hold :mod:`flowmend.metrics`.
"""

import math

from torch import Tensor

from ..metrics import psnr, ssim
from ..pixels import reduce_bits
from .plan import BATCH

__all__ = ["five_bit_errors", "pooled_psnr"]

BITS = 5


def five_bit_errors(x: Tensor, reference: Tensor) -> tuple[list[float], list[float]]:
    """Mean squared error, in 8-bit levels squared, and SSIM of images reduced to 5 bits.

    Args:
        x: Images (B, C, H, W) in [0, 1].
        reference: The truth, of the same shape.

    Returns:
        One value an image of each. The SSIM (11x11 Gaussian window of 1.5 pixels, where it fits)
        is that of pytorch-msssim, which the paper's code calls.
    """
    x, reference = reduce_bits(x, BITS), reduce_bits(reference, BITS)
    errors = [255.0**2 / 10.0 ** (value / 10.0) for value in psnr(x, reference)]
    return errors, ssim(x, reference)


def pooled_psnr(errors: list[float]) -> float:
    """True PSNR in dB of errors pooled over batches of 32 in order, then averaged.

    Args:
        errors: Mean squared error of every image, in 8-bit levels squared.
    """
    batches = [errors[first : first + BATCH] for first in range(0, len(errors), BATCH)]
    values = []
    for batch in batches:
        mean = sum(batch) / len(batch)
        values.append(math.inf if mean == 0 else 10.0 * math.log10(255.0**2 / mean))
    return sum(values) / len(values)
