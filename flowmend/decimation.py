"""Super-resolution from pictures that were filtered before pixels were left out."""

import torch
from torch import Tensor
from torch.nn import functional

from .errors import FlowmendError
from .linear_operator import LinearOperator, Window

__all__ = ["Decimate", "bicubic_kernel"]


def bicubic_kernel(factor: int) -> Tensor:
    """The filter by which pictures are made smaller bicubically, float64, its sum 1.

    The cubic of parameter -1/2, stretched by the factor: away from the borders it gives what
    Pillow's and MATLAB's ``imresize`` do.

    Source: Cubic Convolution Interpolation for Digital Image Processing (Keys, 1981),
    https://doi.org/10.1109/TASSP.1981.1163711

    Args:
        factor: How many times smaller, at least 1.
    """
    size = 4 * factor if factor % 2 == 0 else 4 * factor - 1
    at = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / factor
    at = at.abs()
    near = 1.5 * at**3 - 2.5 * at**2 + 1.0
    far = -0.5 * at**3 + 2.5 * at**2 - 4.0 * at + 2.0
    line = torch.where(at < 1.0, near, far * (at < 2.0))
    line = line / line.sum()
    return line[:, None] * line[None, :]


class Decimate(LinearOperator):
    """One pixel for every block of ``factor`` x ``factor``, seen through a filter.

    The middle of the filter lies on that of the block, so that the small picture is not shifted
    against the large one; where one has an even and the other an odd number of pixels, half a
    pixel above and left of it. Beyond the borders the image is mirrored.

    Args:
        shape: Shape (C, H, W) of the images.
        factor: How many times smaller the measurements are.
        kernel: The filter (h, w); like that of :class:`~flowmend.operators.Blur` it is turned by
            180 degrees when slid over the image.

    Raises:
        FlowmendError: If the image's sides are not multiples of the factor, or the kernel cannot
            be used on it.
    """

    def __init__(self, shape: tuple[int, int, int], factor: int, kernel: Tensor) -> None:
        super().__init__(shape)
        if factor < 1 or shape[1] % factor or shape[2] % factor:
            raise FlowmendError(
                f"A scale of {factor} does not divide images of {shape[1]} x {shape[2]} pixels."
            )
        if kernel.ndim != 2 or kernel.numel() == 0 or not bool(torch.isfinite(kernel).all()):
            raise FlowmendError("A filter must be a finite matrix.")
        missing = [max(0, factor - side) for side in kernel.shape]
        rows, columns = ((n - n // 2, n // 2) for n in missing)  # turned, it begins with less
        self.kernel = functional.pad(kernel, (*columns, *rows))
        self.factor = self.grain = factor
        self.reach = max(self.kernel.shape) // 2
        self.lost = (0, 0, 0, 0)
        """Measurements that are left out at the top, bottom, left and right."""
        beyond = max(
            -(-(side - factor) // 2) - length + 1
            for side, length in zip(self.kernel.shape, shape[1:], strict=True)
        )
        if beyond > 0:
            raise FlowmendError(
                f"The filter ({kernel.shape[0]} x {kernel.shape[1]}) is too large for images of "
                f"{shape[1]} x {shape[2]} pixels."
            )

    def window(self, rows: slice, columns: slice) -> Window | None:
        """As :meth:`LinearOperator.window`: what sees beyond a cut is left out."""
        if self.lost != (0, 0, 0, 0):
            return None
        lost, seen = [], []
        for part, length, side in zip(
            (rows, columns), self.shape[1:], self.kernel.shape, strict=True
        ):
            if part.start % self.factor or part.stop % self.factor:
                return None
            blind = -(-((side - self.factor + 1) // 2) // self.factor)
            ends = (blind if part.start > 0 else 0, blind if part.stop < length else 0)
            first, last = part.start // self.factor + ends[0], part.stop // self.factor - ends[1]
            if last <= first:
                return None
            lost += ends
            seen.append(slice(first, last))
        part = self._with(shape=self._inside(rows, columns), lost=tuple(lost))
        return Window(part, *seen)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        kernel, factor = self.kernel.to(x), self.factor
        # a block of the factor's length begins (side - factor + 1) // 2 after what it sees
        before = [(side - factor + 1) // 2 for side in kernel.shape]
        after = [side - factor - first for side, first in zip(kernel.shape, before, strict=True)]
        x = functional.pad(x, (before[1], after[1], before[0], after[0]), mode="reflect")
        weight = kernel.flip(0, 1).expand(x.shape[1], 1, *kernel.shape)
        y = functional.conv2d(x, weight, stride=factor, groups=x.shape[1])
        top, bottom, left, right = self.lost
        return y[..., top : y.shape[-2] - bottom, left : y.shape[-1] - right]
