"""Folders of photographs of any sizes in, folders of restorations out."""

import torch

from .batch import Progress, finish
from .continuous import ContinuousPrior
from .errors import FlowmendError
from .files import picture_size
from .items import Item, as_picture, read_reference
from .originals import read_original
from .patches import PatchPrior
from .photographs import TILE, photograph_task, restore_photograph
from .tasks import TASKS, task_shape

__all__ = ["restore_photographs", "usual_prior"]


FACES, COUPLING, PHOTOGRAPHS = "faces32-continuous", "faces32", "natural"
FACE = (32, 32)
"""Height and width of the images of :data:`FACES` and :data:`COUPLING`."""
CONTINUOUS = ("splitting", "posterior", "lmmse", "pinv", "bm3d")
"""Methods that a continuous prior serves at least as well as a coupling flow."""


def usual_prior(
    items: list[Item], name: str, options: dict[str, object], method: str | None = None
) -> str:
    """The shipped prior for a task's measurements, by the size of their images.

    One of faces where all that can be read are of its size, or are no pictures:
    ``faces32-continuous``, or ``faces32`` for a method that needs a coupling flow and for random
    measurements, of which ``fast-map`` makes more. Else ``natural``.

    Args:
        items: From :func:`~flowmend.items.find_items`.
        name: The task.
        options: Of :func:`~flowmend.tasks.make_task`.
        method: The method, or None.

    Raises:
        FlowmendError: If the task is unknown.
    """
    faces = FACES if method is None or method in CONTINUOUS else COUPLING
    if TASKS[name].image_shape is None:
        return COUPLING if method is None else faces
    sizes = {picture_size(item.input) for item in items} - {None}
    images = {task_shape(name, (3, *size), **options)[1:] for size in sizes}
    return PHOTOGRAPHS if images - {FACE} else faces


def restore_photographs(
    items: list[Item],
    name: str,
    prior: ContinuousPrior | PatchPrior,
    method: str | None = None,
    *,
    options: dict[str, object] | None = None,
    tile: int = TILE,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    **settings: object,
) -> float:
    """Restores items in place, one after the other; a bad file harms no other.

    Args:
        items: From :func:`~flowmend.items.find_items`.
        name: The task.
        prior: A prior that takes every size, on ``device``.
        method: A name of :data:`~flowmend.methods.METHODS`; None takes the prior's default.
        options: Of :func:`~flowmend.tasks.make_task`.
        tile: Largest side of the parts of a large picture.
        seed: Seed of noise; an image's own depends on its place in the list only.
        device: Where to compute.
        progress: Called with (done, total, what), in steps of the whole list.
        settings: Others of :func:`~flowmend.restoration.restore`.

    Returns:
        Seconds spent restoring.
    """
    seconds = 0.0
    for index, item in enumerate(items):
        try:
            item.original = read_original(item.input)
            y = as_picture(item.original.values, item.input)
            if TASKS[name].grey:
                y = y.mean(0, keepdim=True)
            task = photograph_task(name, tuple(y.shape), prior.shape[0], **(options or {}))
            task.operator.check_measurements(y[None])

            def move(done: int, total: int, what: str, index: int = index) -> None:
                if progress is not None:
                    progress(index * total + done, len(items) * total, "restoring")

            solution = restore_photograph(
                y[None].to(device),
                task,
                prior,
                method,
                tile=tile,
                generator=torch.Generator().manual_seed(seed * 1_000_003 + index),
                progress=move,
                **settings,
            )
        except FlowmendError as error:
            text = str(error)
            item.status = text if str(item.input) in text else f"'{item.input}': {text}"
            continue
        seconds += solution.seconds
        shape = tuple(solution.x.shape[1:])
        read_reference(item, shape)
        picture = y if y.shape[1:] == shape[1:] else task.picture(y[None])[0]
        item.measurement = y
        finish(item, solution, 0, picture.expand(shape[0], -1, -1))
    return seconds
