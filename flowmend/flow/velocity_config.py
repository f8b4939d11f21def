"""The architecture of a velocity network."""

import dataclasses
import math
from dataclasses import dataclass

from ..errors import FlowmendError

__all__ = ["SMALLEST", "VelocityConfig"]

SMALLEST = 4
"""Fewest pixels that a side of an image may have."""


@dataclass(frozen=True)
class VelocityConfig:
    """The architecture of a velocity network; saved inside every weights file.

    Args:
        channels: Image channels.
        widths: Features at each level, finest first; the finest has half the image's resolution.
        blocks: Residual blocks at each level on the way down and again on the way up; the
            coarsest level has them once. Empty is 3, 2, 1, 1, ...
        size: None for images of every size, or (height, width) for one size only, of which the
            network then knows every place by a learned map.
        crop: Side in pixels of the square images that a prior for every size is trained on, and
            stands for until it is asked for another size.
        bits: Bits per channel of the training images.
        sigma_data: Standard deviation of images about their mean, on the range [-1, 1].
        informed: Whether the network also sees what a Gaussian fitted to the training images
            makes of a point; for one size only.

    Raises:
        FlowmendError: If a value makes no network; the message names it.
    """

    channels: int = 3
    widths: tuple[int, ...] = (64, 128, 192)
    blocks: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    crop: int = 96
    bits: int = 8
    sigma_data: float = 0.5
    informed: bool = False

    def __post_init__(self) -> None:
        for field in ("widths", "blocks", "size"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, tuple(value))
        if not self.blocks:
            blocks = tuple(max(1, 3 - level) for level in range(len(self.widths)))
            object.__setattr__(self, "blocks", blocks)
        self._check()

    def _check(self) -> None:
        whole = {
            "channels": (1, 64, (self.channels,)),
            "widths": (1, 2**14, self.widths),
            "blocks": (1, 64, self.blocks),
            "size": (SMALLEST, 2**14, () if self.size is None else self.size),
            "crop": (SMALLEST, 2**14, (self.crop,)),
            "bits": (1, 8, (self.bits,)),
        }
        for name, (least, most, values) in whole.items():
            for value in values:
                if type(value) is not int or not least <= value <= most:
                    kind = "a whole number" if len(values) == 1 else "whole numbers"
                    self._refuse(f"'{name}' must be {kind} between {least} and {most}")
        if not 1 <= len(self.widths) <= 8:
            self._refuse("'widths' must name at least one level and at most 8")
        if len(self.blocks) != len(self.widths):
            self._refuse("'blocks' must have one entry for each level")
        if self.size is not None and len(self.size) != 2:
            self._refuse("'size' must be a height and a width, or nothing")
        if type(self.informed) is not bool or (self.informed and self.size is None):
            self._refuse("'informed' must be true or false, and needs a 'size'")
        if type(self.sigma_data) not in (int, float) or not 1e-3 <= self.sigma_data <= 1e3:
            self._refuse("'sigma_data' must be a number between 0.001 and 1000")

    @staticmethod
    def _refuse(reason: str) -> None:
        raise FlowmendError(f"This network cannot be built: {reason}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image, the crop's where every size will do."""
        return (self.channels, *(self.size or (self.crop, self.crop)))

    @property
    def dimensions(self) -> int:
        """Number of values D of an image of :attr:`shape`."""
        return math.prod(self.shape)

    @property
    def multiple(self) -> int:
        """What the sides of an image are padded to a multiple of, inside the network."""
        return 2 ** len(self.widths)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises :class:`FlowmendError` unless images of a shape (C, H, W) fit the network."""
        if self.size is not None and shape != self.shape:
            raise FlowmendError(
                f"This network knows images of shape {self.shape} (channels, height, width) "
                f"only; got {shape}."
            )
        if len(shape) != 3 or shape[0] != self.channels or min(shape[1:]) < SMALLEST:
            raise FlowmendError(
                f"This network takes images of {self.channels} channel(s) and at least {SMALLEST} "
                f"pixels a side; got {shape}."
            )

    def to_dict(self) -> dict:
        """The configuration as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "VelocityConfig":
        """The configuration from plain values; an unknown name raises :class:`FlowmendError`."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise FlowmendError(f"Unknown network setting: {', '.join(unknown)}.")
        return cls(**values)
