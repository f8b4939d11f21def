"""What a restoration returns."""

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Posterior", "Solution"]


@dataclass(frozen=True)
class Posterior:
    """What is known of images after measuring them.

    Args:
        x: Mean images (B, C, H, W), not clamped.
        std: Standard deviation of every pixel (B, C, H, W) on the [0, 1] scale.
        samples: Draws (S, B, C, H, W), not clamped.
        mean_error: Standard error of x (B,), as :class:`Solution`.
        trace: ``"objective"`` (steps, B) where something was optimised, else empty.
        status: For each image, as :class:`Solution`.
    """

    x: Tensor
    std: Tensor
    samples: Tensor
    mean_error: Tensor
    trace: dict[str, Tensor]
    status: list[str]


@dataclass
class Solution:
    """Restored images and how they came about.

    Args:
        x: Restored images (B, C, H, W), clamped to [0, 1].
        z: Their latents (B, D); None for methods that have none.
        trace: ``"objective"``, ``"data"`` and ``"regulariser"`` at every step before it is taken,
            where the method has them, each of shape (steps, B); empty for methods without steps.
        status: For each image ``"finished"``, or why it stopped early and what was kept.
        seconds: Wall time for the whole batch.
        method: The method's name.
        settings: Steps, learning rate, weight and start as used.
        std: Posterior standard deviation of every pixel (B, C, H, W) on the [0, 1] scale; None
            for methods that give one image and no more.
        samples: Draws from the posterior (S, B, C, H, W), clamped to [0, 1]; None likewise.
        mean_error: How far x is from the mean of infinitely many draws (B,): its standard error,
            the root of its mean square over an image, on the [0, 1] scale. The draws are
            independent, so that their effective number is their number. 0 where the mean takes
            no draws; None likewise.
    """

    x: Tensor
    z: Tensor | None
    trace: dict[str, Tensor]
    status: list[str]
    seconds: float
    method: str
    settings: dict[str, object] = field(default_factory=dict)
    std: Tensor | None = None
    samples: Tensor | None = None
    mean_error: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether every image ran to the end, or settled before it."""
        return all(status.startswith(("finished", "settled")) for status in self.status)
