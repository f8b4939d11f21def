"""How a flow is trained: the paper's recipe and ours, and that of a continuous flow."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .chance import MIXED, SURE
from .errors import FlowmendError
from .muon import Muon

__all__ = ["RECIPES", "MatchingRecipe", "Recipe"]

MOST_FOLDS = 20
"""Each has a Gaussian, and times that only its images are seen at."""


@dataclass(frozen=True)
class Recipe:
    """How a flow is trained.

    Args:
        epochs: Passes over the images.
        batch: Images in a step.
        learning_rate: Peak learning rate of Adam.
        betas: Its decay rates.
        weight_decay: Decoupled weight decay (AdamW) of convolutions and linear layers.
        warmup: Steps of linear warm-up.
        cosine: Whether the rate falls along a cosine to zero.
        averaging: Decay of the moving average of the weights that is kept; 0 keeps the weights.
        flip: Whether images are mirrored at random.
        clip: Largest gradient norm, of the loss in bits per dimension; 0 for no limit.
        precision: ``"float32"`` or ``"bfloat16"`` (the networks only).
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

    def rate(self, step: int, steps: float) -> float:
        """Learning rate of a step out of ``steps``."""
        warmup = self._warmup(steps)
        factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if self.cosine:
            factor *= 0.5 * (1.0 + math.cos(math.pi * step / steps))
        return self.learning_rate * factor

    def _warmup(self, steps: float) -> float:
        """Steps of warm-up in a run of so many."""
        return self.warmup

    def optimiser(self, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """AdamW for a module's parameters, on their device."""
        return torch.optim.AdamW(
            _parameter_groups(module, self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            fused=device.type in ("cpu", "cuda"),
        )

    def average(self, module: nn.Module) -> AveragedModel | None:
        """A copy of a module for the moving average of its weights; None to keep the weights."""
        if not self.averaging:
            return None
        return AveragedModel(module, multi_avg_fn=_moving_average(self.averaging))


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Parameters for AdamW: only the weights of convolutions and linear layers decay."""
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    networks = [part.weight for part in module.modules() if isinstance(part, layers)]
    decayed = {id(weight) for weight in networks}
    others = [weight for weight in module.parameters() if id(weight) not in decayed]
    return [
        {"params": networks, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _moving_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """An exponential moving average that forgets its first steps: decay (1 + n) / (10 + n)."""

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = float(count)
        torch._foreach_lerp_(averages, current, 1.0 - min(decay, (1.0 + n) / (10.0 + n)))

    return update


@dataclass(frozen=True)
class MatchingRecipe(Recipe):
    """How a continuous flow is trained: a :class:`Recipe` and a time limit.

    Args:
        minutes: Training ends after so many minutes, the learning rate falling with the clock
            where that is faster than with the steps; 0 for no limit. Two runs with a limit
            differ, and a resumed one goes on with the minutes that are left.
        mixed: Share of the images that have times of several kinds, as in
            :func:`flowmend.chance.time_maps`.
        focused: Share of the single times where noise is what restoring photographs meets,
            likewise.
        sure: How often, of times of several kinds, values are known exactly and others not at
            all, likewise.
        common: Share of the times of several kinds that stand for what is met most, likewise.
        relative: Whether the logarithm of an image's loss is minimised, so that all noise levels,
            and smooth and busy images, count alike.
        jitter: Of an image of one size, the largest share that may be cut off before it is shown;
            see :func:`flowmend.chance.random_parts`.
        affine: How far an image of one size is turned, scaled and moved before it is shown, where
            nothing of it is known but its grey, instead of jitter; see
            :func:`flowmend.chance.random_affine`.
        folds: Parts of the training images of an informed network: of an image it sees what a
            Gaussian makes that was fitted without the image's own part, as it will of new ones;
            1, or fewer than two images in a part, for one Gaussian of all.
        dropout: Share of the features of the coarser levels that are left out at random, against
            learning images by heart.
        forget: How far the weights that training begins with are moved towards fresh ones first,
            of a prior that knows its images by heart; see :func:`flowmend.growth.forgotten`.
        muon: Whether :class:`~flowmend.muon.Muon` is the optimiser, and not AdamW alone.

    The warm-up takes no more than a twentieth of the steps, or 20 where that is more.
    """

    epochs: int = 40
    batch: int = 64
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup: int = 200
    averaging: float = 0.999
    minutes: float = 0.0
    mixed: float = MIXED
    focused: float = 0.0
    sure: float = SURE
    common: float = 0.0
    relative: bool = False
    jitter: float = 0.0
    affine: float = 0.0
    folds: int = 5
    dropout: float = 0.0
    forget: float = 0.0
    muon: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.minutes >= 0 or not math.isfinite(self.minutes):
            raise FlowmendError("The minutes of training must be a number of at least 0.")
        if not 0 <= self.mixed <= 1:
            raise FlowmendError("The share of mixed times must lie between 0 and 1.")
        if not 0 <= self.focused <= 1:
            raise FlowmendError("The share of times about the usual noise is one of 0 to 1.")
        if not 0 <= self.sure <= 1:
            raise FlowmendError("The share of values that are known exactly is one of 0 to 1.")
        if not 0 <= self.common <= 1:
            raise FlowmendError("The share of times of what is most common is one of 0 to 1.")
        if not 0 <= self.jitter <= 0.5:
            raise FlowmendError("The jitter, a share of a picture's side, is one of 0 to 0.5.")
        if not 0 <= self.affine <= 0.5:
            raise FlowmendError("The largest turn, in radians, and shift is one of 0 to 0.5.")
        if not 1 <= self.folds <= MOST_FOLDS:
            raise FlowmendError(f"The folds of the training images are 1 to {MOST_FOLDS}.")
        if not 0 <= self.dropout < 1:
            raise FlowmendError("The dropout, a share of the features, is one of 0 to 1.")
        if not 0 <= self.forget <= 1:
            raise FlowmendError("The share of the weights to forget is one of 0 to 1.")

    def optimiser(self, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """AdamW or Muon for a module's parameters, on their device."""
        if not self.muon:
            return super().optimiser(module, device)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        return Muon(module, self.learning_rate, self.betas, self.weight_decay, dtype)

    def _warmup(self, steps: float) -> float:
        return min(self.warmup, max(20.0, steps / 20.0))


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
