"""The table of the named tasks, for command line, benchmarks and documentation alike.

A new task is a function that builds its operator and a line in :data:`TASKS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from .decimation import Decimate, bicubic_kernel
from .errors import FlowmendError
from .kernels import parse_kernel, parse_mask, parse_measurements
from .operators import Bayer, Blur, Downsample, Grey, Identity, LinearOperator, Mask, Sense

__all__ = ["BICUBIC", "TASKS", "Shape", "TaskOptions", "TaskSpec"]

BICUBIC = "bicubic"
"""The name of the kernel of bicubic reduction, which depends on the scale."""
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class TaskOptions:
    """What a user may say about a task; None takes the task's default."""

    sigma: float | str | Tensor | None = None
    kernel: str | Tensor | None = None
    boundary: str | None = None
    mask: str | Tensor | None = None
    scale: int | None = None
    measurements: int | float | str | None = None
    noise: str | None = None
    peak: float | None = None
    share: float | None = None
    pattern: str | None = None


@dataclass(frozen=True)
class TaskSpec:
    """A line of the table of tasks.

    Args:
        name: Its name on the command line.
        title: What it does, in a sentence.
        build: From image shape and options, those that :meth:`with_defaults` returns, to the
            operator.
        options: The options, besides sigma, that mean something to it, with their defaults; None
            where the default follows from the image.
        sigma: Default standard deviation of the noise, on the [0, 1] scale.
        presets: For each method, the settings of :func:`~flowmend.solver.solve` the paper gives,
            brought to the [0, 1] scale.
        image_shape: From the images' channels and the size of a measurement, and such options, to
            the shape of the images; None where a measurement is no picture.
        grey: Whether measurements of coloured images are grey.
    """

    name: str
    title: str
    build: Callable[[Shape, TaskOptions], LinearOperator]
    options: dict[str, str | int | None] = field(default_factory=dict)
    sigma: float = 0.0
    presets: dict[str, dict[str, float]] = field(default_factory=dict)
    image_shape: Callable[[Shape, TaskOptions], Shape] | None = lambda shape, options: shape
    grey: bool = False

    def with_defaults(self, options: TaskOptions) -> TaskOptions:
        """The options with the task's defaults where the user said nothing."""
        silent = {k: v for k, v in self.options.items() if getattr(options, k) is None}
        return replace(options, **silent)


def _denoise(shape: Shape, options: TaskOptions) -> LinearOperator:
    return Identity(shape)


def _deblur(shape: Shape, options: TaskOptions) -> LinearOperator:
    return Blur(shape, parse_kernel(options.kernel), options.boundary)


def _before_blur(shape: Shape, options: TaskOptions) -> Shape:
    if options.boundary != "valid":
        return shape
    kernel = parse_kernel(options.kernel)
    return (shape[0], *(n + k - 1 for n, k in zip(shape[1:], kernel.shape, strict=True)))


def _inpaint(shape: Shape, options: TaskOptions) -> LinearOperator:
    return Mask(shape, parse_mask(options.mask, shape))


def _colorize(shape: Shape, options: TaskOptions) -> LinearOperator:
    if shape[0] == 1:
        raise FlowmendError("Colourisation needs a prior of colour images; this one knows grey.")
    return Grey(shape)


def _demosaic(shape: Shape, options: TaskOptions) -> LinearOperator:
    return Bayer(shape, options.pattern)


def _upscale(shape: Shape, options: TaskOptions) -> LinearOperator:
    factor, kernel = options.scale, options.kernel
    if kernel is None:
        return Downsample(shape, factor)
    if isinstance(kernel, str) and kernel == BICUBIC:
        return Decimate(shape, factor, bicubic_kernel(max(1, factor)))
    return Decimate(shape, factor, parse_kernel(kernel))


def _upscaled(shape: Shape, options: TaskOptions) -> Shape:
    return (shape[0], *(side * max(1, options.scale) for side in shape[1:]))


def _sense(shape: Shape, options: TaskOptions) -> LinearOperator:
    size = shape[0] * shape[1] * shape[2]
    given = max(1, size // 4) if options.measurements is None else options.measurements
    return Sense(shape, parse_measurements(given, size))


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
            "Remove noise, Gaussian of standard deviation --sigma or another --noise",
            _denoise,
            sigma=0.1,
            presets=_paper(alpha=0.05, csgm=0.1, glowip=0.1),
        ),
        TaskSpec(
            "deblur",
            "Undo a blur by a known --kernel",
            _deblur,
            options={"kernel": "box:3", "boundary": "reflect"},
            image_shape=_before_blur,
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0),
        ),
        TaskSpec(
            "inpaint",
            "Fill what a --mask hides",
            _inpaint,
            options={"mask": "center:0.4"},
            presets=_paper(alpha=0.002, csgm=0.01, glowip=0.0),
        ),
        TaskSpec(
            "colorize",
            "Give a grey image its colours",
            _colorize,
            # The paper's code compares three copies of the grey image.
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0, copies=3),
            grey=True,
        ),
        TaskSpec(
            "demosaic",
            "Find the colours a sensor did not see, of a Bayer --pattern",
            _demosaic,
            options={"pattern": "rggb"},
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0),
            grey=True,
        ),
        TaskSpec(
            "upscale",
            "Enlarge an image --scale times, made small by averaging blocks or by a --kernel",
            _upscale,
            options={"scale": 2, "kernel": None},
            image_shape=_upscaled,
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0),
        ),
        TaskSpec(
            "sense",
            "Recover an image from few random measurements",
            _sense,
            options={"measurements": None},
            image_shape=None,
            presets=_paper(alpha=0.02, csgm=0.01, glowip=0.0),
        ),
    )
}
"""Named tasks. Of the paper: denoise, deblur, inpaint, colorize; the others are ours."""
