"""``flowmend degrade``: measurements from clean pictures, to try a task on."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from ..errors import FlowmendError
from ..files import read_picture, resize_and_crop, save_array, save_image
from ..items import find_items
from ..provenance import provenance
from ..report import write_json
from ..tasks import make_task, task_noise
from . import options as o
from .console import tell, warn
from .made import MEASURED, NOTE, TRUE
from .progress import progress_bar

__all__ = ["degrade"]


def _clean(path: Path, size: int | None, channels: int, scale: int) -> Tensor:
    """A picture (1, C, H, W) in [0, 1]: of one size, or of its own, cut to whole blocks."""
    picture = read_picture(path)
    if size is not None:
        return resize_and_crop(picture, size, size, channels)[None]
    block = max(1, scale)
    width, height = (side // block * block for side in picture.size)
    return resize_and_crop(picture.crop((0, 0, width, height)), height, width, channels)[None]


def degrade(
    inputs: o.Inputs,
    task: o.TaskName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images in pixels, for a prior of one size. Default: every picture "
            "keeps its own."
        ),
    ] = None,
    sigma: o.Sigma = None,
    kernel: o.Kernel = None,
    boundary: o.Boundary = None,
    mask: o.MaskOption = None,
    scale: o.Scale = None,
    measurements: o.Measurements = None,
    noise: o.NoiseName = None,
    peak: o.Peak = None,
    share: o.Share = None,
    pattern: o.Pattern = None,
    channels: Annotated[int, typer.Option(help="3 for colour, 1 for grey.")] = 3,
    seed: o.Seed = 0,
) -> None:
    """Make measurements from clean pictures.

    With --size pictures are resized (shorter side, bilinear) and cropped in the middle, as the
    paper does. OUT receives reference/NAME.png, measurement/NAME.png (8 bits) and
    measurement/NAME.npy (exact; restore prefers it when it is given the folder).

    Example: flowmend degrade photos/ --task deblur --kernel gaussian:1.6 --size 32 --out try/
    """
    if size is not None and not 1 <= size <= 8192:
        raise FlowmendError(f"--size must be between 1 and 8192 pixels, not {size}.")
    if channels not in (1, 3):
        raise FlowmendError(f"--channels must be 1 or 3, not {channels}.")
    described: dict[str, object] = {
        "sigma": sigma,
        "kernel": kernel,
        "boundary": boundary,
        "mask": mask,
        "scale": scale,
        "measurements": measurements,
        "noise": noise,
        "peak": peak,
        "share": share,
        "pattern": pattern,
    }
    level = task_noise(task, **described)
    if level is None:
        raise FlowmendError(
            "degrade makes the noise, so it cannot be auto: give --sigma a number."
        )
    work = None if size is None else make_task(task, (channels, size, size), **described)
    items = find_items(inputs, out / TRUE, arrays=False)
    originals = {item.input.resolve() for item in items}
    for item in items:
        inside = item.output.relative_to(out / TRUE)
        made = (out / MEASURED / inside, item.output)
        if any(path.resolve() in originals for path in made):
            raise FlowmendError(
                f"'{inside}' in '{out}' is one of the inputs: choose another folder for --out."
            )
    failed = 0
    with progress_bar("degrading") as progress:
        for index, item in enumerate(items):
            inside = item.output.relative_to(out / TRUE)
            try:
                if item.input.suffix.lower() == ".npy":
                    raise FlowmendError(f"'{item.input}' is an array; degrade takes pictures.")
                x = _clean(item.input, size, channels, (scale or 2) if task == "upscale" else 1)
                made = work or make_task(task, tuple(x.shape[1:]), **described)
            except FlowmendError as error:
                problem = str(error)
                named = str(item.input) in problem
                warn("skipped", problem if named else f"'{item.input}': {problem}")
                failed += 1
                continue
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            y = made.measure(x, generator)
            picture = y if y.ndim == 4 else made.picture(y)
            save_image(out / TRUE / inside, x[0])
            save_image(out / MEASURED / inside, picture[0])
            save_array((out / MEASURED / inside).with_suffix(".npy"), y[0])
            progress(index + 1, len(items), "degrading")
    write_json(
        out / NOTE,
        {
            "task": task,
            "size": size,
            "channels": channels,
            "sigma": level.sigma,
            "noise": level.name,
            "peak": getattr(level, "peak", None),
            "share": getattr(level, "share", None),
            "kernel": kernel,
            "boundary": boundary,
            "mask": mask,
            "scale": scale,
            "measurements": measurements,
            "pattern": pattern,
            "seed": seed,
            "made_with": provenance(),
        },
    )
    tell(
        f"{len(items) - failed} of {len(items)} pictures measured into '{out / 'measurement'}'; "
        f"the clean ones, cut likewise, are in '{out / 'reference'}'."
    )
    if failed:
        raise typer.Exit(1)
