"""Minimum-norm least squares by conjugate gradients: the pseudo-inverse of any operator."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["HasAdjoint", "conjugate_gradients", "least_squares"]


class HasAdjoint(Protocol):
    """A linear map and its adjoint."""

    def A(self, x: Tensor) -> Tensor: ...  # noqa: N802

    def A_adjoint(self, y: Tensor) -> Tensor: ...  # noqa: N802


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    b: Tensor,
    steps: int,
    tolerance: float,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Solves M x = b for a symmetric positive semi-definite M, each of a batch on its own.

    Args:
        matrix: Applies M to tensors of b's shape (B, ...).
        b: Right-hand sides (B, ...).
        steps: Most iterations.
        tolerance: One of the batch stops when its residual has shrunk by this factor.
        precondition: Applies a symmetric positive definite matrix that is near the inverse of M.

    Source: Methods of Conjugate Gradients for Solving Linear Systems (Hestenes and Stiefel, 1952),
    https://doi.org/10.6028/jres.049.044
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))

    residual = b
    x = torch.zeros_like(residual)
    ready = residual if precondition is None else precondition(residual)
    direction = ready
    energy, left = dot(residual, ready), dot(residual, residual)
    goal = left * tolerance**2
    for _ in range(steps):
        active = left > goal
        if not bool(active.any()):
            break
        image = matrix(direction)
        curvature = dot(direction, image)
        length = torch.where(active & (curvature > 0), energy / curvature.clamp_min(1e-30), 0.0)
        x = x + length * direction
        residual = residual - length * image
        ready = residual if precondition is None else precondition(residual)
        new = torch.where(active, dot(residual, ready), energy)
        left = torch.where(active, dot(residual, residual), left)
        direction = ready + torch.where(active, new / energy.clamp_min(1e-30), 0.0) * direction
        energy = new
    return x


def least_squares(
    operator: HasAdjoint, y: Tensor, steps: int = 500, tolerance: float = 1e-6
) -> Tensor:
    """Minimum-norm least squares by conjugate gradients on A'A x = A'y, each image on its own.

    Args:
        operator: Anything with ``A`` and ``A_adjoint``.
        y: Measurements (B, ...).
        steps: Most iterations.
        tolerance: An image stops when its gradient has shrunk by this factor.

    Returns:
        Images x (B, C, H, W).
    """

    def normal(x: Tensor) -> Tensor:
        return operator.A_adjoint(operator.A(x))

    return conjugate_gradients(normal, operator.A_adjoint(y), steps, tolerance)
