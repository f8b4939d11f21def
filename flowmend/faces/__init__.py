"""Public-domain sample faces, 32x32, aligned as CelebA is; their sources are in SOURCES.md."""

from importlib import resources

import torch
from torch import Tensor

from ..files import read_image

__all__ = ["names", "sample_faces"]


def names() -> list[str]:
    """Names of the sample faces, in the order of :func:`sample_faces`."""
    inside = resources.files(__package__).iterdir()
    return sorted(item.name.removesuffix(".png") for item in inside if item.name.endswith(".png"))


def sample_faces() -> Tensor:
    """The sample faces as images (8, 3, 32, 32) in [0, 1]."""
    folder = resources.files(__package__)
    return torch.stack([read_image(str(folder / f"{name}.png")) for name in names()])
