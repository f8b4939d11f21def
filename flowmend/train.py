"""Maximum likelihood on a folder of images (Eq. 3): resumable, never writing a bad weight."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .chance import generator_at, mirrored
from .checkpoint import open_folder
from .errors import FlowmendError
from .flow import FlowConfig, build_flow
from .lowrank import LowRankGaussian
from .pixels import dequantise
from .prior import FlowPrior, GaussianPrior
from .recipes import RECIPES, Recipe
from .training import LARGEST_GAUSSIAN, Progress, TrainingRun
from .weights import add_to_card

__all__ = ["RECIPES", "Recipe", "Run", "finish", "round_trip_error", "train"]

SAMPLES, SAMPLE_TEMPERATURE = 64, 0.8
CHECKPOINT_SECONDS = 300.0


@torch.no_grad()
def round_trip_error(prior: FlowPrior, images: Tensor, batch: int = 64) -> float:
    """Largest |decode(encode(x)) - x| over images uint8 (N, C, H, W), on the [0, 1] scale."""
    device = next(prior.parameters()).device
    worst = 0.0
    for part in images.split(batch):
        x = dequantise(part.to(device, torch.float32) / 255.0, prior.config.bits)
        error = (prior.decode(prior.encode(x)[0])[0] - x).abs().max()
        worst = max(worst, float(error)) if bool(torch.isfinite(error)) else math.inf
    return worst


@torch.no_grad()
def held_out_bits(prior: FlowPrior, images: Tensor, seed: int = 0, batch: int = 64) -> float:
    """Mean bits per dimension of uint8 images (N, C, H, W), with seeded dequantisation."""
    device = next(prior.parameters()).device
    generator = generator_at(seed, 0)
    total = 0.0
    for part in images.split(batch):
        x = part.to(device, torch.float32) / 255.0
        total += float(prior.bits_per_dim(x, prior.config.bits, generator).double().sum())
    return total / len(images)


class Run(TrainingRun):
    """A run that maximises the likelihood of a coupling flow."""

    metric, unit = "bits_per_dim", "bits per dim"

    def __init__(
        self,
        out: Path,
        config: FlowConfig,
        recipe: Recipe,
        images: Tensor,
        validation: Tensor,
        seed: int,
        device: str | torch.device,
        progress: Progress | None = None,
    ) -> None:
        if images.shape[1:] != config.shape or validation.shape[1:] != config.shape:
            raise FlowmendError(f"Training images must have shape {config.shape}.")
        super().__init__(out, config, recipe, images, validation, seed, device, len(images))
        self.gaussian = self._fit_gaussian(
            progress, config.dimensions <= LARGEST_GAUSSIAN
        ).as_stored()
        prior = FlowPrior(build_flow(config, seed), self.gaussian).to(self.device)
        first = images[torch.randperm(len(images), generator=generator_at(seed, 1))[:256]]
        start = dequantise(first.float() / 255.0, config.bits, generator_at(seed, 2))
        prior.initialise(start.to(self.device))
        self._begin(prior)

    def kept(self, card: dict | None = None) -> FlowPrior:
        return FlowPrior(self.flow, self.gaussian, card)

    def loss(self, chosen: Tensor, noise: torch.Generator) -> Tensor:
        """Bits per dimension of a batch of images."""
        levels = self.images[chosen]
        levels = mirrored(levels, noise) if self.recipe.flip else levels
        x = dequantise(levels.float() / 255.0, self.config.bits, noise).to(self.device)
        with self._autocast():
            log_prob = self.prior.log_prob(x)
        return self.config.bits - log_prob.mean() / (self.config.dimensions * math.log(2.0))

    def measure(self) -> dict[str, float]:
        return {"val_bits_per_dim": held_out_bits(self.kept(), self.validation)}

    def samples(self) -> Tensor:
        return self.kept().sample(SAMPLES, SAMPLE_TEMPERATURE, generator_at(self.seed, 5))

    def results(self, record: dict) -> dict:
        return {
            "val_bits_per_dim": round(record["val_bits_per_dim"], 4),
            "train_bits_per_dim": round(record["train_bits_per_dim"], 4),
            "gaussian_val_bits_per_dim": round(self._gaussian_bits(), 4),
        }

    @torch.no_grad()
    def _gaussian_bits(self) -> float:
        """Mean bits per dimension of the held-out images by the Gaussian alone."""
        gaussian, bits = self.gaussian, self.config.bits
        if isinstance(gaussian, LowRankGaussian):
            gaussian = GaussianPrior(gaussian.whitening(bits))
        x = self.validation.to(self.device, torch.float32) / 255.0
        return float(gaussian.bits_per_dim(x, bits, generator_at(0, 0)).mean())


def train(
    images: Tensor,
    validation: Tensor,
    out: str | Path,
    config: FlowConfig,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
    report: Callable[[dict], None] | None = None,
) -> Path:
    """Trains a flow by maximum likelihood and keeps the best prior by held-out bits per dim.

    Args:
        images: Training images, uint8 (N, C, H, W).
        validation: Held-out images, uint8 (M, C, H, W).
        out: Folder of the run: ``prior.safetensors`` with its card, ``log.jsonl``,
            ``samples/epoch-NNNN.png`` and ``checkpoint.safetensors``.
        config: Architecture.
        recipe: How to train.
        seed: Seed of the weights, the order and the noise.
        device: Device to train on.
        resume: Continue the run in ``out``; the result is the same as without the interruption.
        progress: Called with (step, steps, what) after each step.
        report: Called with the record of each epoch.

    Returns:
        Path of the kept prior.

    Raises:
        FlowmendError: If ``out`` already holds a run and ``resume`` is False, if the run to
            resume is another, or if no finite prior came out.
    """
    out = open_folder(out, resume)
    run = Run(out, config, recipe, images, validation, seed, device, progress)
    if resume:
        run.restore()
    return run.drive(CHECKPOINT_SECONDS, progress, report)


def finish(path: Path, validation: Tensor) -> dict:
    """Checks that the kept prior inverts, and writes the result into its card.

    Args:
        path: A prior that :func:`train` returned.
        validation: Held-out images, uint8 (M, C, H, W).

    Returns:
        The card, with ``round_trip_error``: the largest |decode(encode(x)) - x| over the
        held-out images, on the [0, 1] scale.
    """
    return add_to_card(
        path, lambda prior: {"round_trip_error": round_trip_error(prior, validation)}
    )
