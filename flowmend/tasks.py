"""Tasks on images of one shape: what was done to them, and measuring it."""

import copy
import difflib
import math

import torch
from torch import Tensor
from torch.nn import functional

from .clipping import Limits
from .errors import FlowmendError
from .kernels import parse_kernel, parse_mask
from .noise import (
    AUTO,
    Gaussian,
    GaussianMap,
    Noise,
    Poisson,
    SaltAndPepper,
    make_noise,
    parse_sigma,
)
from .operators import LinearOperator, Window
from .task_table import TASKS, Shape, TaskOptions, TaskSpec

__all__ = [
    "TASKS",
    "Task",
    "TaskSpec",
    "make_task",
    "parse_kernel",
    "parse_mask",
    "task_noise",
    "task_shape",
]


class Task:
    """A task on images of one shape: the operator, the noise and the paper's settings.

    ``noise`` is the noise model, and None where sigma is ``auto``: until :meth:`with_sigma`.

    Args:
        spec: The line of the table.
        shape: Shape (C, H, W) of the images.
        options: What the user said.

    Raises:
        FlowmendError: As :func:`make_task`.
    """

    def __init__(self, spec: TaskSpec, shape: Shape, options: TaskOptions) -> None:
        self.spec = spec
        self.name = spec.name
        self.operator = spec.build(shape, spec.with_defaults(options))
        self.noise = _noise(spec, options)
        self.offset: Tensor | float = getattr(self.operator, "offset", 0.0)
        if isinstance(self.noise, GaussianMap):
            self.noise.check(self.measurement_shape)
        if isinstance(self.noise, Poisson) and len(self.measurement_shape) == 1:
            raise FlowmendError(
                f"Poisson noise counts light, and measurements of the task {self.name} can be "
                "negative: choose another noise."
            )

    @property
    def sigma(self) -> float | None:
        """Standard deviation of the noise, or what is like it; None while it is unknown."""
        return None if self.noise is None else self.noise.sigma

    def part(self, window: Window) -> "Task":
        """The same task on a part of its images."""
        twin = self.on(window.operator)
        if isinstance(self.noise, GaussianMap):
            twin.noise = self.noise.part(window.rows, window.columns)
        return twin

    def on(self, operator: LinearOperator) -> "Task":
        """The same task with another operator of measurements of the same size."""
        twin = copy.copy(self)
        twin.operator = operator
        twin.offset = getattr(operator, "offset", 0.0)
        return twin

    def with_sigma(self, sigma: float) -> "Task":
        """The same task with Gaussian noise of a known level.

        Raises:
            FlowmendError: If its noise is of another kind, or sigma is negative or not finite.
        """
        if not isinstance(self.noise, Gaussian | None):
            raise FlowmendError(f"The noise {self.noise.name} has no option sigma.")
        twin = copy.copy(self)
        twin.noise = Gaussian(float(sigma))
        return twin

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """Shape of one measurement."""
        return self.operator.measurement_shape

    def measure(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Damages images x (B, C, H, W) in [0, 1]: y = A x + offset, and noise about it.

        Raises:
            FlowmendError: If the noise level is unknown.
        """
        return known_noise(self).corrupt(self.operator.A(x) + self.offset, generator)

    def offset_like(self, y: Tensor) -> Tensor | float:
        """What measurements have beyond A x, in the precision and on the device of y."""
        return self.offset.to(y) if isinstance(self.offset, Tensor) else self.offset

    def limits(self, y: Tensor) -> Limits | None:
        """Lowest and highest value of measurements y (B, ...) in a file, their offset taken off.

        None where y is no picture, or where black and white are the noise itself. No light is
        exactly black: Poisson noise has no lower limit.
        """
        if y.ndim != 4 or isinstance(self.noise, SaltAndPepper):
            return None
        black = -math.inf if isinstance(self.noise, Poisson) else 0.0
        offset = self.offset_like(y)
        return black - offset, 1.0 - offset

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


def known_noise(task: Task) -> Noise:
    """The noise of a task; one whose level is unknown raises :class:`FlowmendError`."""
    if task.noise is None:
        raise FlowmendError(
            f"The noise level of this task is '{AUTO}', which is to be estimated: give sigma."
        )
    return task.noise


def task_noise(name: str, **options: object) -> Noise | None:
    """The noise of a task, whatever the size of the images; None where its level is unknown.

    Args:
        name: A name of :data:`TASKS`.
        options: Those of :func:`make_task`.

    Raises:
        FlowmendError: As :func:`make_task`, but for what depends on the images' size.
    """
    spec, known = _find(name), TaskOptions(**options)
    _check_options(spec, known)
    return _noise(spec, known)


def _check_options(spec: TaskSpec, options: TaskOptions) -> None:
    for option in ("kernel", "boundary", "mask", "scale", "measurements", "pattern"):
        if getattr(options, option) is not None and option not in spec.options:
            raise FlowmendError(f"The task {spec.name} has no option {option}.")


def _noise(spec: TaskSpec, options: TaskOptions) -> Noise | None:
    name = "gaussian" if options.noise is None else options.noise
    sigma = parse_sigma(options.sigma)
    if name == "gaussian" and sigma is None:
        sigma = spec.sigma
    if isinstance(sigma, Tensor):
        make_noise(name, sigma=0.0, peak=options.peak, share=options.share)
        return GaussianMap(sigma)
    level = 0.0 if sigma == AUTO else sigma
    noise = make_noise(name, sigma=level, peak=options.peak, share=options.share)
    return None if sigma == AUTO else noise


def task_shape(name: str, measured: Shape, **options: object) -> Shape:
    """Shape (C, H, W) of the images of which a task has measurements of a given size.

    Args:
        name: A name of :data:`TASKS`.
        measured: The images' channels, and height and width of a measurement.
        options: Those of :func:`make_task`.

    Raises:
        FlowmendError: If the task is unknown or its measurements are no pictures.
    """
    spec = _find(name)
    if spec.image_shape is None:
        raise FlowmendError(
            f"Measurements of the task {name} are no pictures, so they do not tell the size of "
            "the image: use a prior of one size."
        )
    return spec.image_shape(measured, spec.with_defaults(TaskOptions(**options)))


def _find(name: str) -> TaskSpec:
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise FlowmendError(f"Unknown task '{name}': choose from {', '.join(TASKS)}.{hint}")
    return TASKS[name]


def make_task(
    name: str,
    shape: Shape,
    *,
    sigma: float | str | Tensor | None = None,
    kernel: str | Tensor | None = None,
    boundary: str | None = None,
    mask: str | Tensor | None = None,
    scale: int | None = None,
    measurements: int | float | str | None = None,
    noise: str | None = None,
    peak: float | None = None,
    share: float | None = None,
    pattern: str | None = None,
) -> Task:
    """Builds a task by name.

    Args:
        name: A name of :data:`TASKS`.
        shape: Shape (C, H, W) of the images.

    Keyword Args:
        sigma: Standard deviation of Gaussian noise on the [0, 1] scale, or ``auto``: unknown, or
            a map of it; see :func:`~flowmend.noise.parse_sigma`.
        kernel: For deblur, see :func:`parse_kernel`. For upscale likewise, or ``bicubic``: the
            filter of :class:`~flowmend.decimation.Decimate`; None averages blocks.
        boundary: For deblur, see :class:`~flowmend.operators.Blur`.
        mask: For inpaint, see :func:`parse_mask`.
        scale: For upscale, the factor.
        measurements: For sense, see :func:`~flowmend.kernels.parse_measurements`; default a
            quarter of the image's values.
        noise: A name of :data:`~flowmend.noise.NOISES`; default gaussian.
        peak: For Poisson noise, the expected count of a white pixel; default 30.
        share: For salt-and-pepper noise, the share of the pixels that is lost; default 0.1.
        pattern: For demosaic, see :class:`~flowmend.operators.Bayer`.

    Raises:
        FlowmendError: If the task or the noise is unknown, or an option is wrong or belongs to
            another task or noise.
    """
    spec = _find(name)
    options = TaskOptions(
        sigma, kernel, boundary, mask, scale, measurements, noise, peak, share, pattern
    )
    _check_options(spec, options)
    return Task(spec, shape, options)
