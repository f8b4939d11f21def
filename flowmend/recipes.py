"""How a flow is trained: the paper's recipe and ours."""

import math
from dataclasses import dataclass

from .errors import FlowmendError

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a flow is trained.

    Args:
        epochs: Passes over the images.
        batch: Images in a step.
        learning_rate: Peak learning rate of Adam.
        betas: Its decay rates.
        weight_decay: Decoupled weight decay (AdamW) of the convolutions.
        warmup: Steps of linear warm-up.
        cosine: Whether the rate falls along a cosine to zero.
        averaging: Decay of the moving average of the weights that is kept; 0 keeps the weights.
        flip: Whether images are mirrored at random.
        clip: Largest gradient norm, of the loss in bits per dimension; 0 for no limit.
        precision: ``"float32"`` or ``"bfloat16"`` (the coupling networks only).
    """

    epochs: int = 20
    batch: int = 32
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    warmup: int = 200
    cosine: bool = True
    averaging: float = 0.998
    flip: bool = True
    clip: float = 1.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.epochs < 1 or self.batch < 1:
            raise FlowmendError("Training needs at least one epoch and one image a batch.")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise FlowmendError("The learning rate must be a positive number.")
        if not self.weight_decay >= 0 or not math.isfinite(self.weight_decay):
            raise FlowmendError("The weight decay must be a number of at least 0.")
        if self.precision not in ("float32", "bfloat16"):
            raise FlowmendError(
                f"Unknown precision '{self.precision}': choose float32 or bfloat16."
            )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step out of ``steps``."""
        factor = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.cosine:
            factor *= 0.5 * (1.0 + math.cos(math.pi * step / steps))
        return self.learning_rate * factor


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        epochs=100,
        learning_rate=1e-4,
        betas=(0.5, 0.999),
        warmup=0,
        cosine=False,
        weight_decay=0.0,
        averaging=0.0,
        flip=False,
        clip=0.0,
    ),
    "strong": Recipe(),
}
"""``paper``: section 5 of the paper. ``strong``: ours, the default."""
