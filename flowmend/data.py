"""Folders of clean pictures as training images."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .errors import FlowmendError
from .files import find_pictures, read_picture, resize_and_crop
from .flow import FlowConfig
from .pixels import to_bytes

__all__ = ["hold_out", "load_folder"]

Progress = Callable[[int, int, str], None]


def load_folder(
    folder: str | Path, config: FlowConfig, progress: Progress | None = None
) -> tuple[Tensor, list[str]]:
    """Reads every picture under a folder at the size a flow wants.

    Args:
        folder: The folder, searched to any depth for JPEG, PNG, TIFF, WebP and BMP.
        config: Gives height, width and channels.
        progress: Called with (done, total, what) after each picture.

    Returns:
        Images uint8 (N, C, H, W), and one sentence for every file that could not be used.

    Raises:
        FlowmendError: If there is no usable picture.
    """
    if not Path(folder).is_dir():
        raise FlowmendError(f"'{folder}' is not a folder.")
    paths = find_pictures([folder])
    images, problems = [], []
    for index, path in enumerate(paths):
        try:
            picture = read_picture(path)
            image = resize_and_crop(picture, config.height, config.width, config.channels)
            images.append(to_bytes(image))
        except FlowmendError as error:
            problem = str(error)
            problems.append(problem if str(path) in problem else f"'{path}': {problem}")
        if progress is not None:
            progress(index + 1, len(paths), "reading pictures")
    if not images:
        raise FlowmendError(f"No picture in '{folder}' can be used. First reason: {problems[0]}")
    return torch.stack(images), problems


def hold_out(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Sets a twentieth of the images aside (at least 1, at most 512): (training, held out).

    Raises:
        FlowmendError: If there are fewer than two images.
    """
    if len(images) < 2:
        raise FlowmendError("Training needs at least two pictures: one is held out for checks.")
    count = min(512, max(1, len(images) // 20))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[count:]], images[order[:count]]
