"""Flow matching on a folder of images: the training of a continuous flow.

Source: Flow Matching for Generative Modeling (Lipman et al., 2023),
https://arxiv.org/abs/2210.02747
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .chance import (
    dropped,
    generator_at,
    grey_only,
    mirrored,
    random_affine,
    random_crop,
    random_parts,
    time_maps,
)
from .checkpoint import open_folder
from .continuous import ContinuousPrior
from .covariance import cross_fitted
from .errors import FlowmendError
from .flow import GaussianVelocity, VelocityConfig, build_velocity
from .growth import forgotten, grow
from .hints import HintBank
from .lowrank import LowRankGaussian
from .matching_loss import (
    held_out_loss,
    held_out_psnr,
    likelihood_and_inverse,
    matching_loss,
)
from .pixels import dequantise, from_bytes
from .prior import GaussianPrior
from .recipes import MatchingRecipe
from .stationary import StationaryGaussian
from .training import LARGEST_GAUSSIAN, Progress, TrainingRun
from .weights import add_to_card

__all__ = ["MatchingRun", "finish", "match"]

HELD_OUT = 512
"""Crops that are held out."""
CROPS = 4096
"""Crops that the stationary Gaussian is fitted to."""
CHECKPOINT_SECONDS = 300.0
LEAST_LOSS = 1e-3
"""Added to a loss whose logarithm is minimised: what lies far below it hardly counts, such as a
hole of one pixel that was guessed well."""
SAMPLE_EVALUATIONS, SAMPLE_PIXELS = 32, 2**16


class MatchingRun(TrainingRun):
    """A run that matches the velocity of a continuous flow.

    A network of one size is trained on whole images of it; one for every size on crops. An epoch
    then takes as many crops of an image as would cover it, each at a random place.

    Args:
        out: Folder of the run.
        config: Architecture.
        recipe: How to train.
        images: Training images uint8: (N, C, H, W), or (C, H, W) each, of different sizes.
        validation: Held-out images, likewise.
        seed: Seed of the weights, the order, the crops and the noise.
        device: Device to train on.
        progress: Called when something slow begins.
        first: A prior whose weights training begins with; see :func:`match`.
        larger: The training images in more pixels, for a recipe with jitter or affine; see
            :func:`match`.
    """

    metric, unit = "loss", "held-out losses"

    def __init__(
        self,
        out: Path,
        config: VelocityConfig,
        recipe: MatchingRecipe,
        images: Sequence[Tensor] | Tensor,
        validation: Sequence[Tensor] | Tensor,
        seed: int,
        device: str | torch.device,
        progress: Progress | None = None,
        first: ContinuousPrior | None = None,
        larger: Tensor | None = None,
    ) -> None:
        for image in (*images, *validation):
            channels, height, width = image.shape
            fits = height >= config.crop and width >= config.crop
            if channels != config.channels or (config.size is None and not fits):
                raise FlowmendError(
                    f"Training images must have {config.channels} channel(s) and sides of at "
                    f"least {config.crop} pixels, the side of a crop; got {tuple(image.shape)}."
                )
            if config.size is not None and (height, width) != config.size:
                raise FlowmendError(f"Training images must have shape {config.shape}.")
        self.whole = config.size is not None
        self.larger = self._check_larger(config, recipe, images, larger)
        if self.whole:
            images, validation = torch.stack([*images]), torch.stack([*validation])
        crops = [1 if self.whole else x[0].numel() // config.crop**2 for x in images]
        self.owner = torch.arange(len(images)).repeat_interleave(torch.tensor(crops))
        super().__init__(out, config, recipe, images, validation, seed, device, len(self.owner))
        self.gaussian: GaussianPrior | LowRankGaussian | None = None
        if self.whole:
            dense = config.dimensions <= LARGEST_GAUSSIAN
            self.gaussian = self._fit_gaussian(progress, dense).as_stored()
        self.held = validation if self.whole else self._held_out_crops()
        self.stationary = self._fit_stationary()
        velocity = build_velocity(config, seed)
        if first is not None:
            # other fresh weights than those that a run of the same seed began with
            grow(velocity, forgotten(first.velocity, recipe.forget, seed + 1))
        elif recipe.forget:
            raise FlowmendError("There is nothing to forget without a prior to begin with.")
        prior = ContinuousPrior(velocity, None, self.gaussian, stationary=self.stationary)
        self.shares = recipe.mixed, recipe.focused, recipe.sure, recipe.common
        self.bank = None
        if config.informed:
            gaussians = self._gaussians(progress) or [velocity.gaussian]
            self.bank = HintBank(gaussians, seed, *self.shares)
        self._begin(prior.to(self.device))

    def _check_larger(
        self,
        config: VelocityConfig,
        recipe: MatchingRecipe,
        images: Sequence[Tensor],
        larger: Tensor | None,
    ) -> Tensor | None:
        """The larger training images if the recipe wants them."""
        if not recipe.jitter and not recipe.affine:
            return None
        if recipe.affine and config.channels == 1:
            raise FlowmendError("Affine is for pictures with colours, where only grey is known.")
        name = "Jitter" if recipe.jitter else "Affine"
        if not self.whole:
            why = ": crops have it already" if recipe.jitter else ""
            raise FlowmendError(f"{name} is for images of one size{why}.")
        if larger is None or len(larger) != len(images):
            raise FlowmendError(f"{name} needs every training image in more pixels, too.")
        return larger

    def _gaussians(self, progress: Progress | None) -> list[GaussianVelocity]:
        """The Gaussian without each fold of the images; none where there are too few."""
        bits, flip, folds = self.config.bits, self.recipe.flip, self.recipe.folds
        found: list[GaussianVelocity] = []
        if folds < 2 or len(self.images) < 2 * folds:
            return found
        for mean, covariance in cross_fitted(self.images, bits, flip, folds):
            found.append(GaussianVelocity.of_images(mean, covariance))
            if progress is not None:
                progress(0, self.steps, f"fitting Gaussian {len(found)} of {folds}")
        return found

    def _fit_stationary(self) -> StationaryGaussian:
        """The stationary Gaussian of the training images, or of crops of them."""
        if self.whole:
            parts = [from_bytes(part) for part in self.images.split(512)]
            return StationaryGaussian.fit([p for part in parts for p in (part, part.flip(-1))])
        generator, count = generator_at(self.seed, 7), max(2, min(CROPS, len(self.owner)))
        owners = self.owner[torch.randint(len(self.owner), (count,), generator=generator)]
        crops = [random_crop(self.images[i], self.config.crop, generator) for i in owners.tolist()]
        return StationaryGaussian.fit(from_bytes(torch.stack(crops)).split(512))

    def _held_out_crops(self) -> Tensor:
        """Crops uint8 of the held-out images, in turn, at random places that the seed fixes."""
        generator, side = generator_at(self.seed, 6), self.config.crop
        crops = sum(image[0].numel() // side**2 for image in self.validation)
        wanted = min(HELD_OUT, max(crops, len(self.validation)))
        owners = [self.validation[index % len(self.validation)] for index in range(wanted)]
        return torch.stack([random_crop(image, side, generator) for image in owners])

    @property
    def horizon(self) -> float:
        """Number of steps of the whole run; with a time limit, what the pace so far gives."""
        return min(self.steps, self.step / self._time_used) if self._time_used else self.steps

    @property
    def done(self) -> bool:
        return super().done or self._time_used >= 1.0

    @property
    def _time_used(self) -> float:
        """Share of the time limit that is over; 0 without one."""
        return self.seconds / (60.0 * self.recipe.minutes) if self.recipe.minutes else 0.0

    def state(self) -> dict:
        seconds = {"seconds": self.seconds} if self.recipe.minutes else {}
        return super().state() | seconds

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        self.seconds = state.get("seconds", 0.0)

    def kept(self, card: dict | None = None) -> ContinuousPrior:
        return ContinuousPrior(
            self.flow.velocity, None, self.gaussian, card, stationary=self.stationary
        )

    def loss(self, chosen: Tensor, noise: torch.Generator) -> Tensor:
        """Mean :func:`matching_loss` of a batch, each image, or crop of one, at its own time."""
        owners = self.owner[chosen]
        if self.bank is None:
            t, hints = time_maps((len(owners), *self.config.shape), noise, *self.shares), None
        else:
            t, hints = self.bank.draw(owners, self.step, noise)
        levels = self._shown(owners, t, noise)
        x = self.prior.to_network(dequantise(from_bytes(levels), self.config.bits, noise))
        start = torch.randn(x.shape, generator=noise).to(self.device)
        x, t = x.to(self.device), t.to(self.device)
        share = self.recipe.dropout
        drop = (lambda h: dropped(h, share, noise)) if share else None
        with self._autocast():
            loss = matching_loss(self.prior.velocity, x, t, start, hints, drop)
        if self.recipe.relative:
            loss = (loss + LEAST_LOSS).log()
        return loss.mean()

    def _shown(self, owners: Tensor, t: Tensor, noise: torch.Generator) -> Tensor:
        """The images uint8 (B, C, H, W) that a step sees, at times (B, C, H, W)."""
        recipe, size, side = self.recipe, self.config.size, self.config.crop
        if self.larger is not None:
            larger = self.larger[owners]
            levels = random_parts(larger, size, recipe.jitter, noise)
            grey = grey_only(t)
            if recipe.affine and grey.any():
                levels[grey] = random_affine(larger[grey], size, recipe.affine, noise)
        elif self.whole:
            levels = self.images[owners]
        else:
            images = [self.images[index] for index in owners.tolist()]
            levels = torch.stack([random_crop(image, side, noise) for image in images])
        return mirrored(levels, noise) if recipe.flip else levels

    def measure(self) -> dict[str, float]:
        prior = self.kept()
        return {
            "val_loss": held_out_loss(prior, self.held),
            "val_psnr_25": held_out_psnr(prior, self.held),
        }

    def samples(self) -> Tensor:
        prior = self.kept().at_precision(self.recipe.precision)
        prior = prior.at_shape(prior.shape, SAMPLE_EVALUATIONS)
        pixels = self.config.dimensions // self.config.channels
        count = min(64, max(4, SAMPLE_PIXELS // pixels))
        return prior.sample(count, generator=generator_at(self.seed, 5))

    def results(self, record: dict) -> dict:
        return {
            key: round(record[key], 5) for key in ("val_loss", "train_loss", "val_psnr_25")
        } | {"held_out": len(self.held)}


def match(
    images: Sequence[Tensor] | Tensor,
    validation: Sequence[Tensor] | Tensor,
    out: str | Path,
    config: VelocityConfig,
    recipe: MatchingRecipe,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
    report: Callable[[dict], None] | None = None,
    first: ContinuousPrior | None = None,
    larger: Tensor | None = None,
) -> Path:
    """Trains a continuous flow by flow matching and keeps the best prior by held-out loss.

    Args:
        images: Training images uint8: (N, C, H, W) of the configuration's size, or, for a
            network for every size, (C, H, W) each, none smaller than a crop.
        validation: Held-out images, likewise.
        out: Folder of the run; see :func:`flowmend.train.train`.
        config: Architecture.
        recipe: How to train.
        seed: Seed of the weights, the order and the noise.
        device: Device to train on.
        resume: Continue the run in ``out``; without a time limit the result is the same as
            without the interruption.
        progress: Called with (step, steps, what) after each step.
        report: Called with the record of each epoch.
        first: A prior whose weights training begins with, of the same architecture or a smaller
            one: see :func:`flowmend.growth.grow`.
        larger: The same training images uint8 (N, C, kH, kW) in k times as many pixels a side,
            for a recipe with jitter or affine.

    Returns:
        Path of the kept prior.

    Raises:
        FlowmendError: If images do not fit, if ``out`` already holds a run and ``resume`` is
            False, if the run to resume is another, or if no finite prior came out.
    """
    out = open_folder(out, resume)
    run = MatchingRun(
        out, config, recipe, images, validation, seed, device, progress, first, larger
    )
    if resume:
        run.restore()
    return run.drive(CHECKPOINT_SECONDS, progress, report)


def finish(path: Path, validation: Sequence[Tensor] | Tensor, seed: int = 0) -> dict:
    """Measures :func:`likelihood_and_inverse` of the kept prior, and writes it into its card.

    Args:
        path: A prior that :func:`match` returned.
        validation: Held-out images.
        seed: Seed.

    Returns:
        The card.
    """
    return add_to_card(path, lambda prior: likelihood_and_inverse(prior, validation, seed))
