"""The named tasks: one table for command line, benchmarks and documentation.

A new task is a function that builds its operator and a line in :data:`TASKS`.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .errors import FlowmendError
from .kernels import parse_kernel, parse_mask
from .methods import Progress, default_settings, solve
from .operators import Blur, Downsample, Grey, Identity, LinearOperator, Mask, Sense
from .prior import Prior
from .solution import Solution

__all__ = ["TASKS", "Task", "TaskSpec", "make_task", "parse_kernel", "parse_mask", "restore"]

Shape = tuple[int, int, int]
LONGEST_STRIDE = 0.05
"""Largest learning rate that :func:`restore` chooses when it is given few steps."""


@dataclass(frozen=True)
class TaskOptions:
    """What a user may say about a task; None takes the task's default."""

    sigma: float | None = None
    kernel: str | Tensor | None = None
    boundary: str | None = None
    mask: str | Tensor | None = None
    scale: int | None = None
    measurements: int | None = None


@dataclass(frozen=True)
class TaskSpec:
    """A line of the table of tasks.

    Args:
        name: Its name on the command line.
        title: What it does, in a sentence.
        build: From image shape and options to the operator.
        options: Names of the options, besides sigma, that mean something to it.
        sigma: Default standard deviation of the noise, on the [0, 1] scale.
        presets: For each method, the settings of :func:`~flowmend.methods.solve` the paper gives,
            brought to the [0, 1] scale.
    """

    name: str
    title: str
    build: Callable[[Shape, TaskOptions], LinearOperator]
    options: tuple[str, ...] = ()
    sigma: float = 0.0
    presets: dict[str, dict[str, float]] = field(default_factory=dict)


def _denoise(shape: Shape, options: TaskOptions) -> LinearOperator:
    return Identity(shape)


def _deblur(shape: Shape, options: TaskOptions) -> LinearOperator:
    kernel = parse_kernel("box:3" if options.kernel is None else options.kernel)
    return Blur(shape, kernel, options.boundary or "reflect")


def _inpaint(shape: Shape, options: TaskOptions) -> LinearOperator:
    return Mask(shape, parse_mask("center:0.4" if options.mask is None else options.mask, shape))


def _colorize(shape: Shape, options: TaskOptions) -> LinearOperator:
    if shape[0] == 1:
        raise FlowmendError("Colourisation needs a prior of colour images; this one knows grey.")
    return Grey(shape)


def _upscale(shape: Shape, options: TaskOptions) -> LinearOperator:
    return Downsample(shape, 2 if options.scale is None else options.scale)


def _sense(shape: Shape, options: TaskOptions) -> LinearOperator:
    quarter = max(1, shape[0] * shape[1] * shape[2] // 4)
    return Sense(shape, quarter if options.measurements is None else options.measurements)


def _paper(alpha: float, csgm: float, glowip: float, copies: int = 1) -> dict:
    """The paper's alpha and gammas, which hold on [-1, 1] and for ``copies`` of every value."""
    return {
        "likelihood": {"weight": alpha / 2 / copies},
        "csgm": {"weight": csgm / 4 / copies},
        "glowip": {"weight": glowip / 4 / copies},
    }


TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "denoise",
            "Remove Gaussian noise of standard deviation --sigma",
            _denoise,
            sigma=0.1,
            presets=_paper(alpha=0.05, csgm=0.1, glowip=0.1),
        ),
        TaskSpec(
            "deblur",
            "Undo a blur by a known --kernel",
            _deblur,
            options=("kernel", "boundary"),
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0),
        ),
        TaskSpec(
            "inpaint",
            "Fill what a --mask hides",
            _inpaint,
            options=("mask",),
            presets=_paper(alpha=0.002, csgm=0.01, glowip=0.0),
        ),
        TaskSpec(
            "colorize",
            "Give a grey image its colours",
            _colorize,
            # The paper's code compares three copies of the grey image.
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0, copies=3),
        ),
        TaskSpec(
            "upscale",
            "Enlarge an image --scale times",
            _upscale,
            options=("scale",),
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0),
        ),
        TaskSpec(
            "sense",
            "Recover an image from few random measurements",
            _sense,
            options=("measurements",),
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0),
        ),
    )
}
"""Named tasks. Of the paper: denoise, deblur, inpaint, colorize; upscale and sense are ours."""


class Task:
    """A task on images of one shape: the operator, the noise and the paper's settings.

    Args:
        spec: The line of the table.
        shape: Shape (C, H, W) of the images.
        options: What the user said.
    """

    def __init__(self, spec: TaskSpec, shape: Shape, options: TaskOptions) -> None:
        self.spec = spec
        self.name = spec.name
        self.operator = spec.build(shape, options)
        self.sigma = spec.sigma if options.sigma is None else float(options.sigma)
        self.offset: Tensor | float = getattr(self.operator, "offset", 0.0)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """Shape of one measurement."""
        return self.operator.measurement_shape

    def measure(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Damages images x (B, C, H, W) in [0, 1]: y = A x + offset + sigma n."""
        y = self.operator.A(x) + self.offset
        if self.sigma > 0:
            y = y + self.sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)
        return y

    def picture(self, y: Tensor) -> Tensor:
        """Measurements as images (B, C, H, W) in [0, 1], to look at and compare."""
        channels, height, width = self.operator.shape
        if y.ndim != 4:
            y = self.operator.A_adjoint(y)
        if y.shape[1] == 1:
            y = y.expand(-1, channels, -1, -1)
        if y.shape[-2:] != (height, width):
            y = functional.interpolate(y, (height, width), mode="nearest")
        return y.clamp(0.0, 1.0)


def make_task(
    name: str,
    shape: Shape,
    *,
    sigma: float | None = None,
    kernel: str | Tensor | None = None,
    boundary: str | None = None,
    mask: str | Tensor | None = None,
    scale: int | None = None,
    measurements: int | None = None,
) -> Task:
    """Builds a task by name.

    Args:
        name: A name of :data:`TASKS`.
        shape: Shape (C, H, W) of the images.

    Keyword Args:
        sigma: Standard deviation of the noise on the [0, 1] scale.
        kernel: For deblur, see :func:`parse_kernel`.
        boundary: For deblur, see :class:`~flowmend.operators.Blur`.
        mask: For inpaint, see :func:`parse_mask`.
        scale: For upscale, the factor.
        measurements: For sense, how many; default a quarter of the image's values.

    Raises:
        FlowmendError: If the task is unknown, or an option is wrong or not one of the task's.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise FlowmendError(f"Unknown task '{name}': choose from {', '.join(TASKS)}.{hint}")
    spec = TASKS[name]
    options = TaskOptions(sigma, kernel, boundary, mask, scale, measurements)
    for option in ("kernel", "boundary", "mask", "scale", "measurements"):
        if getattr(options, option) is not None and option not in spec.options:
            raise FlowmendError(f"The task {name} has no option {option}.")
    if sigma is not None and not (0 <= sigma < float("inf")):
        raise FlowmendError(f"The noise level sigma must be a number of at least 0, not {sigma}.")
    return Task(spec, shape, options)


def restore(
    y: Tensor,
    task: Task,
    prior: Prior,
    method: str = "likelihood",
    *,
    weight: float | None = None,
    steps: int | None = None,
    start: str | Tensor | None = None,
    precision: str = "float32",
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Restores measurements of a task with the settings the paper gives for it.

    Args:
        y: Measurements (B, ...) on the [0, 1] scale.
        task: The task, from :func:`make_task`.
        prior: What is known about the images.
        method: A name of :data:`~flowmend.methods.METHODS`.

    Keyword Args:
        weight: Weight of the regulariser on the [0, 1] scale; None takes the paper's.
        steps: Steps of the latent optimisation; None takes the method's. With fewer than the
            paper's 1500 the learning rate is raised in proportion (to 0.05 at most) and falls
            along a cosine.
        start: See :func:`~flowmend.methods.default_settings`.
        precision: See :func:`~flowmend.methods.solve`.
        generator: Source of the random start.
        progress: Called with (step, steps, what).

    Raises:
        FlowmendError: As :func:`~flowmend.methods.solve`.
    """
    usual = default_settings(method, prior, start)
    strides: dict[str, float | bool] = {}
    if steps is not None and 0 < steps < usual["steps"] and not usual["cosine"]:
        longer = usual["learning_rate"] * usual["steps"] / steps
        strides = {"learning_rate": min(LONGEST_STRIDE, longer), "cosine": True}
    settings = dict(task.spec.presets.get(method, {}))
    if weight is not None:
        settings["weight"] = weight
    offset = task.offset
    return solve(
        y - (offset.to(y) if isinstance(offset, Tensor) else offset),
        task.operator,
        prior,
        method=method,
        sigma=task.sigma,
        steps=steps,
        start=start,
        precision=precision,
        generator=generator,
        progress=progress,
        **strides,
        **settings,
    )
