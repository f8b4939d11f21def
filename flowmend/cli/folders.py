"""Folders of pictures to train on, read for either kind of prior."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ..data import Progress, hold_out
from .console import warn
from .progress import progress_bar

__all__ = ["read_folders"]

Images = TypeVar("Images", Tensor, list[Tensor])


def read_folders(
    load: Callable[[Path, Progress], tuple[Images, list[str]]],
    folder: Path,
    val: Path | None,
    seed: int,
) -> tuple[Images, Images]:
    """Training and held-out images, with a warning for every file that could not be used.

    Args:
        load: Reads a folder: images, and what was wrong with the others.
        folder: Folder of the training images.
        val: Folder of the held-out images; None holds a twentieth of the others out.
        seed: Seed of what is held out.
    """
    with progress_bar("reading pictures") as progress:
        images, problems = load(folder, progress)
        if val is None:
            images, validation = hold_out(images, seed)
        else:
            validation, more = load(val, progress)
            problems = problems + more
    for problem in problems:
        warn("skipped", problem)
    return images, validation
