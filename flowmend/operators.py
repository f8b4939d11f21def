"""Linear operators A: what was done to the image, each with its adjoint and pseudo-inverse.

The names ``A``, ``A_adjoint`` and ``A_dagger`` are deepinv's, so that a deepinv physics can stand
wherever an operator of ours does. To add one: subclass :class:`LinearOperator`, write ``A``; the
adjoint comes for free by automatic differentiation. A function will do as well:
:class:`FunctionOperator`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .convolution import convolved
from .errors import FlowmendError
from .least_squares import least_squares
from .linear_operator import LinearOperator, Window
from .linearity import check_linear

__all__ = [
    "BOUNDARIES",
    "PATTERNS",
    "Bayer",
    "Blur",
    "Downsample",
    "FunctionOperator",
    "Grey",
    "Identity",
    "LinearOperator",
    "Mask",
    "OfGrey",
    "Sense",
    "Window",
    "least_squares",
]

BOUNDARIES = ("reflect", "zero", "circular", "paper", "valid")
PATTERNS = ("rggb", "bggr", "grbg", "gbrg")


class Identity(LinearOperator):
    """The image itself: denoising."""

    def window(self, rows: slice, columns: slice) -> Window:
        return Window(self._with(shape=self._inside(rows, columns)), rows, columns)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return y


class Mask(LinearOperator):
    """Keeps the known pixels and sets the others to zero: inpainting.

    Args:
        shape: Shape (C, H, W) of the images.
        mask: Tensor (1, H, W) or (C, H, W), 1 where the image is known and 0 elsewhere.

    Raises:
        FlowmendError: If its size is not the image's, or nothing is known.
    """

    def __init__(self, shape: tuple[int, int, int], mask: Tensor) -> None:
        super().__init__(shape)
        if (
            mask.ndim != 3
            or mask.shape[0] not in (1, shape[0])
            or mask.shape[1:] != self.shape[1:]
        ):
            raise FlowmendError(
                f"The mask has shape {tuple(mask.shape)} but the images {tuple(shape)}: it must "
                "have the images' height and width."
            )
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise FlowmendError("A mask holds only 0 (unknown) and 1 (known).")
        if not bool(mask.any()):
            raise FlowmendError("The mask is all black: no pixel of the image is known.")
        self.mask = mask

    def window(self, rows: slice, columns: slice) -> Window:
        """As :meth:`LinearOperator.window`; of a part nothing at all may be known."""
        part = self._with(
            shape=self._inside(rows, columns), mask=self.mask[:, rows, columns].contiguous()
        )
        return Window(part, rows, columns)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x * self.mask.to(x)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y * self.mask.to(y)

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return y * self.mask.to(y)


class Grey(LinearOperator):
    """The mean of the channels, (B, C, H, W) to (B, 1, H, W): colourisation."""

    def window(self, rows: slice, columns: slice) -> Window:
        return Window(self._with(shape=self._inside(rows, columns)), rows, columns)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x.mean(dim=1, keepdim=True)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y.expand(-1, self.shape[0], -1, -1) / self.shape[0]

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return y.expand(-1, self.shape[0], -1, -1).contiguous()


class OfGrey(LinearOperator):
    """What an operator on grey images makes of the mean of the channels.

    Args:
        inner: The operator, on images (1, H, W).
        channels: Channels C of the images (C, H, W).

    Raises:
        FlowmendError: If the operator's images are not grey.
    """

    def __init__(self, inner: LinearOperator, channels: int) -> None:
        if inner.shape[0] != 1:
            raise FlowmendError(f"An operator on images {inner.shape} does not act on grey ones.")
        super().__init__((channels, *inner.shape[1:]))
        self.inner = inner
        self.grain, self.reach = inner.grain, inner.reach
        self.offset = getattr(inner, "offset", 0.0)

    def window(self, rows: slice, columns: slice) -> Window | None:
        part = self.inner.window(rows, columns)
        if part is None:
            return None
        return Window(OfGrey(part.operator, self.shape[0]), part.rows, part.columns)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return self.inner.A(x.mean(dim=1, keepdim=True))

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return self.inner.A_adjoint(y).expand(-1, self.shape[0], -1, -1) / self.shape[0]


class Bayer(LinearOperator):
    """What a camera's sensor sees, one colour a pixel: (B, 3, H, W) to (B, 1, H, W): demosaicking.

    Red and blue at the two diagonal corners of every square of four pixels, green at the others.

    Args:
        shape: Shape (3, H, W) of the images.
        pattern: The colours of the first square, row by row: one of :data:`PATTERNS`.

    Raises:
        FlowmendError: If the images are not coloured or there is no such pattern.
    """

    grain = 2

    def __init__(self, shape: tuple[int, int, int], pattern: str = "rggb") -> None:
        super().__init__(shape)
        if shape[0] != 3:
            raise FlowmendError("Demosaicking needs a prior of colour images; this one is grey.")
        if pattern not in PATTERNS:
            raise FlowmendError(f"Unknown pattern '{pattern}': choose from {', '.join(PATTERNS)}.")
        self.pattern = pattern
        mask = torch.zeros(3, 2, 2)
        for place, colour in enumerate(pattern):
            mask["rgb".index(colour), place // 2, place % 2] = 1.0
        times = (1, -(-shape[1] // 2), -(-shape[2] // 2))
        self.mask = mask.repeat(times)[:, : shape[1], : shape[2]]

    def window(self, rows: slice, columns: slice) -> Window | None:
        if any(part.start % 2 for part in (rows, columns)):
            return None
        return Window(Bayer(self._inside(rows, columns), self.pattern), rows, columns)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return (x * self.mask.to(x)).sum(1, keepdim=True)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y * self.mask.to(y)

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return self.A_adjoint(y)


class Downsample(LinearOperator):
    """The mean of every block of ``factor`` x ``factor`` pixels: super-resolution.

    Raises:
        FlowmendError: If the image's sides are not multiples of the factor.
    """

    def __init__(self, shape: tuple[int, int, int], factor: int) -> None:
        super().__init__(shape)
        if factor < 1 or shape[1] % factor or shape[2] % factor:
            raise FlowmendError(
                f"A scale of {factor} does not divide images of {shape[1]} x {shape[2]} pixels."
            )
        self.factor = self.grain = factor

    def window(self, rows: slice, columns: slice) -> Window | None:
        if any(edge % self.factor for s in (rows, columns) for edge in (s.start, s.stop)):
            return None
        seen = (slice(s.start // self.factor, s.stop // self.factor) for s in (rows, columns))
        return Window(self._with(shape=self._inside(rows, columns)), *seen)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return functional.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return self.A_dagger(y) / self.factor**2

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


class Blur(LinearOperator):
    """Convolution of every channel with a kernel; but for ``valid`` of the image's size.

    Args:
        shape: Shape (C, H, W) of the images.
        kernel: Kernel (h, w); a true convolution, so it is turned by 180 degrees when slid over
            the image. Its centre is at (h // 2, w // 2).
        boundary: What lies beyond the image: ``reflect`` (mirrored without repeating the edge),
            ``zero`` (black), ``circular``, or ``paper`` (mid-grey: the paper blurs on [-1, 1] with
            zeros outside; see :attr:`offset`). With ``valid`` nothing is assumed: the measurements
            are those that the kernel sees whole, (H - h + 1, W - w + 1) of them.

    Raises:
        FlowmendError: If kernel or boundary cannot be used on images of this size.
    """

    def __init__(
        self, shape: tuple[int, int, int], kernel: Tensor, boundary: str = "reflect"
    ) -> None:
        super().__init__(shape)
        if boundary not in BOUNDARIES:
            raise FlowmendError(
                f"Unknown boundary '{boundary}': choose from {', '.join(BOUNDARIES)}."
            )
        if kernel.ndim != 2 or kernel.numel() == 0 or not bool(torch.isfinite(kernel).all()):
            raise FlowmendError("A blur kernel must be a finite matrix.")
        if not bool((kernel != 0).any()):
            raise FlowmendError("The blur kernel is all zeros.")
        height, width = kernel.shape
        if height > shape[1] or width > shape[2]:
            raise FlowmendError(
                f"The blur kernel ({height} x {width}) is larger than the image "
                f"({shape[1]} x {shape[2]})."
            )
        self.kernel = kernel
        self.boundary = boundary
        self.reach = max(height, width) // 2

    def window(self, rows: slice, columns: slice) -> Window | None:
        """As :meth:`LinearOperator.window`, for the boundary ``valid``."""
        shape = self._inside(rows, columns)
        lost = (self.kernel.shape[0] - 1, self.kernel.shape[1] - 1)
        if self.boundary != "valid" or shape[1] <= lost[0] or shape[2] <= lost[1]:
            return None
        seen = (slice(s.start, s.stop - n) for s, n in zip((rows, columns), lost, strict=True))
        return Window(self._with(shape=shape), *seen)

    @property
    def offset(self) -> Tensor:
        """What the boundary adds to A x, shape (1, C, H, W): nothing but for ``paper``."""
        if self.boundary != "paper":
            return torch.zeros(1, *self.measurement_shape)
        return 0.5 * (1.0 - self.A(torch.ones(1, *self.shape)))

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        height, width = self.kernel.shape
        padding = (width - 1 - width // 2, width // 2, height - 1 - height // 2, height // 2)
        padding = (0, 0, 0, 0) if self.boundary == "valid" else padding
        mode = {"reflect": "reflect", "circular": "circular"}.get(self.boundary, "constant")
        return convolved(functional.pad(x, padding, mode), self.kernel.to(x))


class Sense(LinearOperator):
    """Random Gaussian measurements y = M x, entries of M drawn from N(0, 1/m): compressed sensing.

    Args:
        shape: Shape (C, H, W) of the images.
        measurements: Number m of measurements.
        seed: Seed of the matrix, which is the same on every machine.

    Raises:
        FlowmendError: If m is not between 1 and the number of values of an image, or the memory
            does not hold the matrix.
    """

    def __init__(self, shape: tuple[int, int, int], measurements: int, seed: int = 0) -> None:
        super().__init__(shape)
        size = math.prod(shape)
        if not 1 <= measurements <= size:
            raise FlowmendError(
                f"The number of measurements must be between 1 and {size}, not {measurements}."
            )
        generator = torch.Generator().manual_seed(seed)
        try:
            matrix = torch.randn(measurements, size, generator=generator, dtype=torch.float64)
        except (MemoryError, RuntimeError) as error:
            raise FlowmendError(
                f"The matrix of {measurements} random measurements of {size} values takes "
                f"{8e-9 * measurements * size:,.0f} GB, more than the memory holds: take smaller "
                "images or fewer measurements."
            ) from error
        self.matrix = (matrix / math.sqrt(measurements)).float()

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x.flatten(1) @ self.matrix.to(x).T

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return (y @ self.matrix.to(y)).reshape(-1, *self.shape)


class FunctionOperator(LinearOperator):
    """A linear operator from one function of yours, checked as it is made.

    The adjoint comes by automatic differentiation and the pseudo-inverse by conjugate gradients.
    ``FunctionOperator((3, 32, 32), lambda x: x[..., ::2])`` keeps every other column.

    Args:
        shape: Shape (C, H, W) of the images.
        function: From images (B, C, H, W) to measurements (B, ...), linear, in torch, each image
            on its own, in the precision of its argument.

    Raises:
        FlowmendError: If the function fails, breaks one of these promises, or measures nothing.
    """

    def __init__(self, shape: tuple[int, int, int], function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(shape)
        self.function = function
        check_linear(self.A, self.shape)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return self.function(x.clone())  # a function may write into its argument
