"""The root of the identity and a few directions more."""

import torch
from torch import Tensor

__all__ = ["thin_root"]


def thin_root(thin: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root of ``I + T' T`` for a T of few rows, at the cost of a product with it.

    Args:
        thin: T, shape (R, D).

    Returns:
        Directions B (R, D) and roots r (R,), at least 1. The root is
        ``I + B' diag(1 / (1 + r)) B``, its inverse ``I - B' diag(1 / (r (1 + r))) B`` and its
        determinant the product of r.
    """
    lengths, turns = torch.linalg.eigh(thin @ thin.T)
    return turns.T @ thin, (1.0 + lengths.clamp_min(0.0)).sqrt()
