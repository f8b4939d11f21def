"""Large pictures in equal parts that overlap, and one picture from the parts."""

import math

import torch
from torch import Tensor

from .errors import FlowmendError

__all__ = ["Canvas", "spans"]


def spans(length: int, tile: int, overlap: int, grain: int = 1) -> list[slice]:
    """Spans of one size that cover [0, length) and overlap by at least ``overlap``.

    Args:
        length: What to cover.
        tile: Largest length of a span.
        overlap: Least length that two neighbours share.
        grain: All edges are multiples of it, where ``length`` is one.

    Raises:
        FlowmendError: If a span leaves nothing beside what it shares.
    """
    if length <= tile:
        return [slice(0, length)]
    most = (tile - overlap) // grain * grain
    if most < 1:
        raise FlowmendError(f"Tiles of {tile} pixels are too small: they overlap by {overlap}.")
    size = tile // grain * grain
    count = 1 + math.ceil((length - size) / most)
    last = length - size
    starts = [last * index // (count - 1) // grain * grain for index in range(count)]
    return [slice(start, start + size) for start in starts]


class Canvas:
    """A picture that is put together from overlapping parts.

    Where two parts overlap the picture goes over from one to the other along a line; the outermost
    quarter of an overlap, where a part does not see enough around it, counts nothing.

    Args:
        shape: Shape (..., H, W) of the whole.
        overlap: What neighbouring parts share at least, in pixels.
        like: A tensor whose precision and device the picture has.
    """

    def __init__(self, shape: tuple[int, ...], overlap: int, like: Tensor) -> None:
        self.overlap = overlap
        self.total = like.new_zeros(shape)
        self.weight = like.new_zeros(shape[-2:])

    def add(self, part: Tensor, rows: slice, columns: slice) -> None:
        """Lays a part (..., h, w) at its place."""
        height, width = self.weight.shape
        weight = self._ramp(rows, height)[:, None] * self._ramp(columns, width)
        self.total[..., rows, columns] += part * weight
        self.weight[rows, columns] += weight

    def _ramp(self, place: slice, length: int) -> Tensor:
        distance = torch.arange(place.stop - place.start).to(self.total) + 0.5
        unused = self.overlap / 4.0
        slope = 1.0 / max(1.0, self.overlap - 2.0 * unused)
        weight = torch.ones_like(distance)
        if place.start > 0:
            weight = weight * ((distance - unused) * slope).clamp(1e-6, 1.0)
        if place.stop < length:
            weight = weight * ((distance.flip(0) - unused) * slope).clamp(1e-6, 1.0)
        return weight

    def picture(self) -> Tensor:
        """The whole, (..., H, W)."""
        return self.total / self.weight
