"""Restores pictures of any size, large ones in parts, with a prior that takes every size."""

from collections.abc import Callable

import torch
from torch import Tensor

from .continuous import ContinuousPrior
from .errors import FlowmendError
from .noise_level import noise_level
from .operators import Blur, OfGrey
from .patches import PatchPrior
from .restoration import restore
from .solution import Solution
from .tasks import TASKS, Task, make_task, task_shape
from .tiles import Canvas, spans

__all__ = ["TILE", "photograph_task", "restore_photograph"]

TILE, OVERLAP = 512, 64
"""Side of the parts of a large picture, and what two neighbours share, in pixels."""
Progress = Callable[[int, int, str], None]


def photograph_task(name: str, measured: tuple[int, int, int], channels: int, **options) -> Task:  # noqa: ANN003
    """The task whose measurements have a given size.

    Beyond the borders of a blurred picture nothing is assumed, unless ``boundary`` says so: what
    lies there is restored too, and cut off. A grey picture is that of a coloured one whose colours
    are unknown.

    Args:
        name: A name of :data:`~flowmend.tasks.TASKS`.
        measured: Shape (c, h, w) of a measurement.
        channels: Channels of the prior's images.
        options: Those of :func:`~flowmend.tasks.make_task`.

    Raises:
        FlowmendError: As :func:`~flowmend.tasks.make_task`, or if the task has no such
            measurements, or the picture is coloured and the prior is not.
    """
    if measured[0] > channels:
        raise FlowmendError("The picture is coloured, and this prior knows grey ones only.")
    if name == "deblur" and options.get("boundary") is None:
        options = options | {"boundary": "valid"}
    grey = measured[0] == 1 and channels > 1 and not (name in TASKS and TASKS[name].grey)
    shape = task_shape(name, (1 if grey else channels, *measured[1:]), **options)
    task = make_task(name, shape, **options)
    return task.on(OfGrey(task.operator, channels)) if grey else task


def restore_photograph(
    y: Tensor,
    task: Task,
    prior: ContinuousPrior | PatchPrior,
    method: str | None = None,
    *,
    tile: int = TILE,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    **options: object,
) -> Solution:
    """Restores one measurement of any size.

    A large picture is restored in overlapping parts, each a problem of its own, so that memory
    stays bounded; noise of an unknown level is estimated from the whole. Where a part does not
    fit the memory, smaller ones are tried.

    Args:
        y: The measurement (1, c, h, w) on the [0, 1] scale.
        task: Its task, from :func:`photograph_task`.
        prior: A prior that takes every size.
        method: As :func:`~flowmend.restoration.restore`.
        tile: Largest side of a part in pixels.
        generator: Source of noise.
        progress: Called with (done, total, what).
        options: Others of :func:`~flowmend.restoration.restore`.

    Returns:
        The solution; grey and without what lies beyond the borders, where the measurement is.
        ``settings["tiles"]`` counts the parts, ``settings["tile"]`` is their largest side.

    Raises:
        FlowmendError: As :func:`~flowmend.restoration.restore`; if y is not one measurement; if
            the picture is larger than a tile and its operator cannot be had in parts; or if not
            even the smallest parts fit the memory.
    """
    if len(y) != 1:
        raise FlowmendError(f"Photographs are restored one at a time, not {len(y)}.")
    if task.noise is None:
        moved = y - task.offset_like(y)
        sigma = noise_level(moved, task.operator, prior, None, task.limits(y))
        task = task.with_sigma(float(sigma))
    overlap = OVERLAP + 2 * task.operator.reach
    side = max(tile, 2 * overlap)
    begun = None if generator is None else generator.get_state()
    while True:
        try:
            return _in_parts(y, task, prior, method, side, overlap, generator, progress, **options)
        except (MemoryError, RuntimeError) as error:
            if not _memory_is_full(error):
                raise
        # out of the handler, whose traceback holds what has to be let go
        side = _smaller(task, side, overlap)
        if begun is not None:
            generator.set_state(begun)


def _memory_is_full(error: Exception) -> bool:
    """Whether an error says that memory, of the machine or of a device, is used up."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)


def _smaller(task: Task, side: int, overlap: int) -> int:
    """The side of the parts to try after those of a side did not fit the memory."""
    _, height, width = task.operator.shape
    longest = min(side, max(height, width))
    smaller = max(longest // 2, 2 * overlap)
    corner = (slice(0, min(smaller, height)), slice(0, min(smaller, width)))
    if smaller >= longest or task.operator.window(*corner) is None:
        raise FlowmendError(
            f"The memory does not hold a part of {min(side, width)} x {min(side, height)} pixels, "
            "and this task cannot be done in smaller ones: close other programs, take another "
            "--device, or a smaller picture."
        )
    return smaller


def _in_parts(
    y: Tensor,
    task: Task,
    prior: ContinuousPrior | PatchPrior,
    method: str | None,
    tile: int,
    overlap: int,
    generator: torch.Generator | None,
    progress: Progress | None,
    **options: object,
) -> Solution:
    """Restores one measurement in parts of a side that overlap by so many pixels."""
    shape, grain = task.operator.shape, task.operator.grain
    rows, columns = (spans(side, tile, overlap, grain) for side in shape[1:])
    count = len(rows) * len(columns)
    local: ContinuousPrior | PatchPrior | None = None
    x = std = samples = first = None
    status: list[str] = []
    errors: list[Tensor] = []
    seconds = 0.0
    for index, (row, column) in enumerate((r, c) for r in rows for c in columns):
        part, measured = task, y
        if count > 1:
            window = task.operator.window(row, column)
            if window is None:
                raise FlowmendError(
                    f"The task {task.name} with these settings needs the whole picture at once, "
                    f"and {shape[2]} x {shape[1]} pixels are more than a tile of {tile}: use a "
                    "larger --tile, or the boundary valid."
                )
            part, measured = task.part(window), y[..., window.rows, window.columns]
        wanted = part.operator.shape
        if local is None or local.shape != wanted:
            local = prior.at_shape(wanted)

        def move(done: int, total: int, what: str, index: int = index) -> None:
            if progress is not None:
                progress(index * total + done, count * total, what)

        found = restore(
            measured, part, local, method, generator=generator, progress=move, **options
        )
        seconds += found.seconds
        status += found.status
        if first is None:
            first = found
            x = Canvas((1, *shape), overlap, found.x)
            if found.std is not None:
                std = Canvas((1, *shape), overlap, found.x)
                samples = Canvas((len(found.samples), 1, *shape), overlap, found.x)
        x.add(found.x, row, column)
        if std is not None:
            std.add(found.std, row, column)
            samples.add(found.samples, row, column)
            errors.append(found.mean_error)
    bad = next((s for s in status if not s.startswith(("finished", "settled"))), "finished")
    return Solution(
        _shown(x, task, y),
        None,
        {},
        [bad],
        seconds,
        first.method,
        first.settings | {"sigma": task.sigma, "tiles": count, "tile": tile},
        _shown(std, task, y),
        _shown(samples, task, y),
        torch.stack(errors).square().mean(0).sqrt() if errors else None,
    )


def _shown(canvas: Canvas | None, task: Task, y: Tensor) -> Tensor | None:
    """What a canvas holds, grey where the measurement is, without what lies beyond its borders."""
    if canvas is None:
        return None
    x = canvas.picture()
    operator = task.operator
    if isinstance(operator, OfGrey):
        x, operator = x.mean(-3, keepdim=True), operator.inner
    if isinstance(operator, Blur) and operator.boundary == "valid":
        top, left = ((n - 1) - n // 2 for n in operator.kernel.shape)
        x = x[..., top : top + y.shape[-2], left : left + y.shape[-1]]
    return x
