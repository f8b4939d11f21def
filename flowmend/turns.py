"""The eight ways to turn and mirror a picture."""

from torch import Tensor

__all__ = ["TURNS", "turned", "turned_back"]

TURNS = (1, 2, 4, 8)
"""Numbers of ways that make a set: as it is; mirrored left to right; upside down too; and all
these with rows and columns exchanged."""


def turned(x: Tensor, way: int) -> Tensor:
    """Images (B, C, H, W) in one of the eight ways, 0 as they are; 4 and more are (B, C, W, H)."""
    x = x.transpose(-1, -2) if way & 4 else x
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if way & bit]
    return x.flip(dims) if dims else x


def turned_back(x: Tensor, way: int) -> Tensor:
    """The inverse of :func:`turned`."""
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if way & bit]
    x = x.flip(dims) if dims else x
    return x.transpose(-1, -2) if way & 4 else x
