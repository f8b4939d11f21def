"""Blur kernels and masks, from what a user writes on the command line."""

import torch
from torch import Tensor

from .errors import FlowmendError
from .files import read_image

__all__ = ["parse_kernel", "parse_mask"]


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise FlowmendError(f"Cannot read {what}: '{text}' is not a number.") from error


def parse_kernel(text: str | Tensor) -> Tensor:
    """A blur kernel (h, w) that sums to 1.

    Args:
        text: ``box:3`` (uniform, that many pixels a side), ``gaussian:1.6`` (standard deviation in
            pixels), a grey picture or ``.npy`` file, or the kernel itself.

    Raises:
        FlowmendError: If it cannot be read, or does not sum to something positive.
    """
    if isinstance(text, Tensor):
        kernel = text.double()
    elif text.startswith("box:"):
        side = _number(text[4:], "the kernel box:SIDE")
        if not 1 <= side <= 999 or side != int(side):
            raise FlowmendError(f"The side of a box kernel must be 1, 2, 3, ..., not {text[4:]}.")
        kernel = torch.ones(int(side), int(side), dtype=torch.float64)
    elif text.startswith("gaussian:"):
        width = _number(text[9:], "the kernel gaussian:SIGMA")
        if not 0 < width < 100:
            raise FlowmendError(f"The width of a Gaussian kernel must be above 0, not {text[9:]}.")
        radius = max(1, round(3 * width))
        line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / width) ** 2)
        kernel = line[:, None] * line[None, :]
    else:
        image = read_image(text)
        image = image if image.ndim == 2 else image.mean(0) if image.ndim == 3 else image
        kernel = image.double()
    if kernel.ndim != 2:
        raise FlowmendError("A blur kernel must be a grey picture or a matrix.")
    total = kernel.sum()
    if not bool(torch.isfinite(kernel).all()) or total <= 0:
        raise FlowmendError(
            "The values of a blur kernel must be finite and have a positive sum; this one's "
            f"sum is {float(total):g}."
        )
    return kernel / total


def parse_mask(text: str | Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A mask (1, H, W): 1 where the image is known.

    Args:
        text: ``center:0.4`` (a hole in the middle, that fraction of each side; the paper's) or a
            picture of the images' size, white where the image is known; or the mask itself.
        shape: tuple[int, int, int] (C, H, W) of the images.

    Raises:
        FlowmendError: If it cannot be read or has another size than the images.
    """
    height, width = shape[1:]
    if isinstance(text, Tensor):
        return text
    if text.startswith("center:"):
        share = _number(text[7:], "the mask center:FRACTION")
        if not 0 < share < 1:
            raise FlowmendError(f"The hole's fraction must be between 0 and 1, not {text[7:]}.")
        mask = torch.ones(1, height, width)
        low, high = 0.5 - share / 2, 0.5 + share / 2
        rows = slice(int(low * height + 1e-9), int(high * height + 1e-9))
        columns = slice(int(low * width + 1e-9), int(high * width + 1e-9))
        mask[:, rows, columns] = 0.0
        return mask
    image = read_image(text)
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3:
        raise FlowmendError(f"The mask '{text}' is not a picture.")
    if image.shape[-2:] != (height, width):
        raise FlowmendError(
            f"The mask '{text}' has {image.shape[-1]} x {image.shape[-2]} pixels; the images "
            f"have {width} x {height}."
        )
    return (image.mean(0, keepdim=True) >= 0.5).float()
