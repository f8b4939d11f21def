"""Convolution of images with a kernel of any size."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["convolved"]

DIRECT = 49
"""Up to so many values of a kernel it is slid over the image; a larger one takes Fourier's way."""


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """True convolution of every channel, where the kernel lies inside the image.

    Args:
        x: Images (B, C, H, W).
        kernel: Kernel (h, w) of their precision, no larger than they are.

    Returns:
        Images (B, C, H - h + 1, W - w + 1).
    """
    height, width = kernel.shape
    if kernel.numel() <= DIRECT:
        weight = kernel.flip(0, 1).expand(x.shape[1], 1, height, width)
        return functional.conv2d(x, weight, groups=x.shape[1])
    from scipy.fft import next_fast_len

    # what wraps around comes to lie where the kernel is not inside
    sides = tuple(next_fast_len(side, real=True) for side in x.shape[-2:])
    spectrum = torch.fft.rfft2(x, sides) * torch.fft.rfft2(kernel, sides)
    y = torch.fft.irfft2(spectrum, sides)
    return y[..., height - 1 : x.shape[-2], width - 1 : x.shape[-1]]
