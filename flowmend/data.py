"""Folders of clean pictures as training images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .chance import random_crop
from .errors import FlowmendError
from .files import find_pictures, read_picture, resize_and_crop
from .flow import FlowConfig, VelocityConfig
from .pixels import from_bytes, to_bytes

__all__ = [
    "as_trained",
    "hold_out",
    "load_folder",
    "load_photographs",
    "middle_crop",
    "random_patches",
]

Progress = Callable[[int, int, str], None]
Images = TypeVar("Images", Tensor, list[Tensor])
LARGEST_KEPT = 2**20
"""Photographs of more pixels are made smaller: a folder of them has to fit in memory."""


def load_folder(
    folder: str | Path,
    config: FlowConfig | VelocityConfig,
    progress: Progress | None = None,
    zoom: int = 1,
) -> tuple[Tensor, list[str]]:
    """Reads every picture under a folder at the size a flow wants.

    Args:
        folder: The folder, searched to any depth for JPEG, PNG, TIFF, WebP and BMP.
        config: Gives the shape of the images.
        progress: Called with (done, total, what) after each picture.
        zoom: How many times as many pixels a side to keep.

    Returns:
        Images uint8 (N, C, zoom * H, zoom * W), and one sentence for every file that could not be
        used.

    Raises:
        FlowmendError: If there is no usable picture.
    """
    channels, height, width = config.shape
    images, problems = _load(
        folder,
        lambda picture: to_bytes(resize_and_crop(picture, height, width, channels, zoom)),
        progress,
    )
    return torch.stack(images), problems


def load_photographs(
    folder: str | Path,
    config: FlowConfig | VelocityConfig,
    progress: Progress | None = None,
) -> tuple[list[Tensor], list[str]]:
    """Reads every picture under a folder at its own size, for training on crops.

    Pictures of more than 2^20 pixels are reduced to about as many. Others stay as they are: a
    photograph that was resized has other fine details than one that was not.

    Args:
        folder: The folder, searched to any depth for JPEG, PNG, TIFF, WebP and BMP.
        config: Gives the channels and the side of the crops.
        progress: Called with (done, total, what) after each picture.

    Returns:
        Images uint8 (C, H, W) of different sizes, none smaller than a crop, and one sentence for
        every file that could not be used.

    Raises:
        FlowmendError: If there is no usable picture.
    """
    return _load(folder, lambda picture: _photograph(picture, config), progress)


def as_trained(picture: Image.Image, config: FlowConfig | VelocityConfig) -> Tensor:
    """Brings a picture to what a flow was trained on: resized and cropped to its one size, or,
    where the flow takes every size, the middle crop of the picture as it is.

    Returns:
        The image (C, H, W) in [0, 1], of the configuration's shape.

    Raises:
        FlowmendError: If the picture is smaller than a crop, or far too long and narrow.
    """
    channels, height, width = config.shape
    if not config.patches if isinstance(config, FlowConfig) else config.size is not None:
        return resize_and_crop(picture, height, width, channels)
    return from_bytes(middle_crop(_photograph(picture, config), height, width))


def middle_crop(image: Tensor, height: int, width: int) -> Tensor:
    """The middle (C, height, width) of an image (C, H, W) that is not smaller."""
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def random_patches(images: list[Tensor], side: int, count: int, seed: int) -> Tensor:
    """Squares uint8 (count, C, side, side) at random places of images (C, H, W), each image with
    a chance that goes with its pixels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([float(image[0].numel()) for image in images])
    owners = torch.multinomial(sizes, count, True, generator=generator).tolist()
    return torch.stack([random_crop(images[owner], side, generator) for owner in owners])


def _photograph(picture: Image.Image, config: FlowConfig | VelocityConfig) -> Tensor:
    """A picture at its own size, or reduced to the most pixels that are kept, uint8 (C, H, W)."""
    shrink = math.sqrt(LARGEST_KEPT / math.prod(picture.size))
    if shrink < 1.0:
        width, height = (max(1, round(side * shrink)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    if min(picture.size) < config.crop:
        raise FlowmendError(
            f"it is {picture.width} x {picture.height} pixels, smaller than crops of "
            f"{config.crop} x {config.crop}: choose a smaller crop"
        )
    levels = np.array(picture.convert("L" if config.channels == 1 else "RGB"))
    levels = levels.reshape(*levels.shape[:2], config.channels)
    return torch.from_numpy(levels).permute(2, 0, 1).contiguous()


def _load(
    folder: str | Path,
    prepare: Callable[[Image.Image], Tensor],
    progress: Progress | None,
) -> tuple[list[Tensor], list[str]]:
    """What ``prepare`` makes of every picture under a folder, and what was wrong with others."""
    if not Path(folder).is_dir():
        raise FlowmendError(f"'{folder}' is not a folder.")
    paths = find_pictures([folder])
    images, problems = [], []
    for index, path in enumerate(paths):
        try:
            images.append(prepare(read_picture(path)))
        except FlowmendError as error:
            problem = str(error)
            problems.append(problem if str(path) in problem else f"'{path}': {problem}")
        if progress is not None:
            progress(index + 1, len(paths), "reading pictures")
    if not images:
        raise FlowmendError(f"No picture in '{folder}' can be used. First reason: {problems[0]}")
    return images, problems


def hold_out(images: Images, seed: int) -> tuple[Images, Images]:
    """Sets a twentieth of the images aside (at least 1, at most 512): (training, held out).

    Raises:
        FlowmendError: If there are fewer than two images.
    """
    if len(images) < 2:
        raise FlowmendError("Training needs at least two pictures: one is held out for checks.")
    count = min(512, max(1, len(images) // 20))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    if isinstance(images, Tensor):
        return images[order[count:]], images[order[:count]]
    shuffled = [images[index] for index in order.tolist()]
    return shuffled[count:], shuffled[:count]
