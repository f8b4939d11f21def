"""What every linear operator of ours is: A, its adjoint, its pseudo-inverse, its parts."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import FlowmendError
from .least_squares import least_squares

__all__ = ["LinearOperator", "Shape", "Window"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """An operator on a part of the images, and where its measurements lie in those of the whole.

    Args:
        operator: The operator.
        rows: Rows of the measurements.
        columns: Their columns.
    """

    operator: "LinearOperator"
    rows: slice
    columns: slice


class LinearOperator(ABC):
    """A linear map from images x (B, C, H, W) to measurements y (B, ...).

    Args:
        shape: Shape (C, H, W) of the images.
    """

    grain = 1
    """What the edges of a :meth:`window` must be multiples of."""
    reach = 0
    """How far, in pixels, what a measurement sees can lie from its middle."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = tuple(shape)

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        """Applies the operator: images (B, C, H, W) to measurements (B, ...)."""

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        """Applies the adjoint: measurements (B, ...) to images (B, C, H, W)."""
        zero = y.new_zeros(y.shape[0], *self.shape)
        return torch.func.vjp(self.A, zero)[1](y)[0]

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        """Applies the pseudo-inverse: the smallest x (B, C, H, W) of least ||A x - y||."""
        return least_squares(self, y)

    def window(self, rows: slice, columns: slice) -> "Window | None":
        """The part of the operator that acts on a part of the images.

        Args:
            rows: Rows of the images, with a start and a stop.
            columns: Likewise; what they cut off is lost.

        Returns:
            None where measurements of a part alone are not those of the whole.
        """
        return None

    def _with(self, **changes: object) -> "LinearOperator":
        """A copy with other attributes."""
        twin = copy.copy(self)
        for name, value in changes.items():
            setattr(twin, name, value)
        return twin

    def _inside(self, rows: slice, columns: slice) -> Shape:
        """Shape of a part of the images."""
        return (self.shape[0], rows.stop - rows.start, columns.stop - columns.start)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """Shape of one measurement."""
        return tuple(self.A(torch.zeros(1, *self.shape)).shape[1:])

    def check_measurements(self, y: Tensor) -> None:
        """Raises :class:`FlowmendError` unless y is a finite float tensor of the right shape."""
        if tuple(y.shape[1:]) != self.measurement_shape:
            raise FlowmendError(
                f"Measurements of shape {tuple(y.shape[1:])} do not fit: this operator makes "
                f"{self.measurement_shape} of images {self.shape}."
            )
        if not y.is_floating_point() or not bool(torch.isfinite(y).all()):
            raise FlowmendError("Measurements must be finite floating-point values.")
