"""What is random in training, each from a generator that is passed."""

import torch
from torch import Tensor

__all__ = ["generator_at", "mirrored", "random_crop", "stratified_times"]


def generator_at(seed: int, *place: int) -> torch.Generator:
    """A generator that depends on the seed and a place in the run, so that resuming is exact."""
    value = seed
    for number in place:
        value = (value * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(value)


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W), each left as it is or turned left to right, with equal chances."""
    turned = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(turned, images.flip(-1), images)


def random_crop(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square (C, side, side) at a random place of an image (C, H, W) that is not smaller."""
    top, left = (
        int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape[1:]
    )
    return image[:, top : top + side, left : left + side]


def stratified_times(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Times (count,), uniform in [0, 1], one in each of ``count`` equal parts, in order.

    Args:
        count: How many.
        generator: Source of the place in each part; None takes the middle.
    """
    place = 0.5 if generator is None else torch.rand(count, generator=generator)
    return (torch.arange(count) + place) / count
