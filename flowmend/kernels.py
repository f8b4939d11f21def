"""Blur kernels, masks and numbers of measurements, from what a user writes."""

import itertools
import math

import torch
from torch import Tensor

from .errors import FlowmendError
from .files import read_image

__all__ = ["parse_kernel", "parse_mask", "parse_measurements"]

MASK_SEED = 0
"""Seed of random masks, so that who damages an image and who restores it mean the same one."""


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise FlowmendError(f"Cannot read {what}: '{text}' is not a number.") from error


def _motion(length: float, angle: float) -> Tensor:
    """The share of a straight line through the centre that lies in each pixel, float64.

    Args:
        length: Length of the line in pixels.
        angle: Degrees, counter-clockwise from the horizontal.
    """
    along = (math.cos(math.radians(angle)), -math.sin(math.radians(angle)))  # columns, rows
    ends = [-0.5 * length, 0.5 * length]
    for step in along:
        if abs(step) > 1e-9:  # where the line crosses from one pixel to the next
            reach = math.ceil(0.5 * length * abs(step))
            crossings = ((k + 0.5) / step for k in range(-reach - 1, reach + 1))
            ends += [at for at in crossings if abs(at) < 0.5 * length]
    ends.sort()
    radius = math.ceil(0.5 * length) + 1
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=torch.float64)
    for first, last in itertools.pairwise(ends):
        middle = 0.5 * (first + last)
        column, row = (round(middle * step) for step in along)
        kernel[radius + row, radius + column] += last - first
    kernel = 0.5 * (kernel + kernel.flip(0, 1))
    filled = kernel > 1e-12 * length
    rows = int((filled.any(1).nonzero() - radius).abs().max())
    columns = int((filled.any(0).nonzero() - radius).abs().max())
    return kernel[radius - rows : radius + rows + 1, radius - columns : radius + columns + 1]


def parse_kernel(text: str | Tensor) -> Tensor:
    """A blur kernel (h, w) that sums to 1.

    Args:
        text: ``box:3`` (uniform, that many pixels a side), ``gaussian:1.6`` (standard deviation in
            pixels), ``motion:7:30`` (a straight line of that many pixels, at that many degrees
            counter-clockwise from the horizontal), a grey picture or ``.npy`` file, or the kernel
            itself.

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
    elif text.startswith("motion:"):
        length, _, angle = text[7:].partition(":")
        pixels = _number(length, "the kernel motion:LENGTH:ANGLE")
        degrees = _number(angle, "the kernel motion:LENGTH:ANGLE")
        if not 1 <= pixels <= 999:
            raise FlowmendError(
                f"The length of a motion kernel must be at least 1 pixel, not {length}."
            )
        if not math.isfinite(degrees):
            raise FlowmendError(f"The angle of a motion kernel must be finite, not {angle}.")
        kernel = _motion(pixels, degrees)
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
        text: ``center:0.4`` (a hole in the middle, that fraction of each side; the paper's),
            ``random:0.5`` (that share of the pixels missing, the same ones every time), a picture
            of the images' size, white where the image is known, or the mask itself.
        shape: Shape (C, H, W) of the images.

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
    if text.startswith("random:"):
        share = _number(text[7:], "the mask random:SHARE")
        if not 0 < share < 1:
            raise FlowmendError(
                f"The share of missing pixels must be between 0 and 1, not {text[7:]}."
            )
        size = height * width
        missing = min(size - 1, max(1, round(share * size)))
        generator = torch.Generator().manual_seed(MASK_SEED)
        mask = torch.ones(size)
        mask[torch.randperm(size, generator=generator)[:missing]] = 0.0
        return mask.reshape(1, height, width)
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


def parse_measurements(given: int | float | str, size: int) -> int:
    """A number of measurements.

    Args:
        given: A count, as a whole number or its text, or a share of the image's values, such as
            ``0.25`` or ``25%``.
        size: Number of values of an image.

    Raises:
        FlowmendError: If it is neither; whether the count fits is for the operator to say.
    """
    if isinstance(given, int):
        return given
    text = str(given).strip()
    try:
        if isinstance(given, str) and "." not in text and not text.endswith("%"):
            return int(text)
        share = float(text[:-1]) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise FlowmendError(
            "The number of measurements must be a count such as 768, or a share such as 0.25 or "
            f"25%, not '{given}'."
        )
    return max(1, round(share * size))
