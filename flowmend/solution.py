"""What a restoration returns."""

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Solution"]


@dataclass
class Solution:
    """Restored images and how they came about.

    Args:
        x: Restored images (B, C, H, W), clamped to [0, 1].
        z: Their latents (B, D); None for methods that have none.
        trace: ``"objective"``, ``"data"`` and ``"regulariser"`` at every step before it is taken,
            each of shape (steps, B); empty for methods without steps.
        status: For each image ``"finished"``, or why it stopped early and what was kept.
        seconds: Wall time for the whole batch.
        method: The method's name.
        settings: Steps, learning rate, weight and start as used.
    """

    x: Tensor
    z: Tensor | None
    trace: dict[str, Tensor]
    status: list[str]
    seconds: float
    method: str
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every image ran to the end."""
        return all(status == "finished" for status in self.status)
