"""What every training run shares: a folder, a state that resumes exactly, and the best prior."""

import dataclasses
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from .chance import generator_at
from .checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from .errors import FlowmendError
from .files import atomic_path, save_image, writing
from .flow import Bijection, FlowConfig, VelocityConfig
from .lowrank import LowRankGaussian
from .pixels import grid
from .prior import GaussianPrior, Prior
from .provenance import provenance
from .recipes import Recipe
from .weights import save_prior

__all__ = ["LARGEST_GAUSSIAN", "Progress", "TrainingRun"]

Progress = Callable[[int, int, str], None]
LARGEST_GAUSSIAN = 4096
"""Images of more values than this get a Gaussian of low rank."""


class TrainingRun(ABC):
    """A training run: its folder, its state, and how they are saved and restored.

    A subclass builds a prior with a ``flow``, hands it to :meth:`_begin`, and says what the loss
    of a batch is, what is measured on held-out images, and what its card tells.

    Args:
        out: Folder of the run.
        config: Architecture.
        recipe: How to train.
        images: Training images, uint8.
        validation: Held-out images, uint8.
        seed: Seed of the weights, the order and the noise.
        device: Device to train on.
        items: What an epoch goes through once: indices of images, or of parts of them.
    """

    metric: ClassVar[str]
    """What is minimised: ``train_METRIC`` and ``val_METRIC`` in records; ``unit`` in words."""
    unit: ClassVar[str]

    def __init__(
        self,
        out: Path,
        config: FlowConfig | VelocityConfig,
        recipe: Recipe,
        images: Sequence[Tensor] | Tensor,
        validation: Sequence[Tensor] | Tensor,
        seed: int,
        device: str | torch.device,
        items: int,
    ) -> None:
        self.out, self.config, self.recipe, self.seed = out, config, recipe, seed
        self.images, self.validation, self.items = images, validation, items
        self.device = torch.device(device)
        self.made_with = provenance(self.device)
        self.batch = min(recipe.batch, items)
        self.steps_per_epoch = items // self.batch
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step, self.skipped, self.best = 0, 0, math.inf
        self.loss_sum, self.taken = 0.0, 0
        self.seconds = 0.0

    def _begin(self, prior: Prior) -> None:
        """Sets up the optimiser and the average of a prior's weights."""
        self.prior = prior
        self._averages = self.recipe.average(prior.flow)
        self.optimiser = self.recipe.optimiser(prior, self.device)

    def _fit_gaussian(
        self, progress: Progress | None, dense: bool
    ) -> GaussianPrior | LowRankGaussian:
        """The Gaussian of the training images, all of one shape, on the run's device."""
        if progress is not None:
            progress(0, self.steps, "fitting a Gaussian")
        if dense:
            gaussian = GaussianPrior.fit(self.images, self.config.bits, self.recipe.flip)
        else:
            gaussian = LowRankGaussian.fit(self.images, self.recipe.flip, seed=self.seed)
        return gaussian.to(self.device)

    def _autocast(self) -> torch.autocast:
        """The precision of the recipe, as a context."""
        half = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    @abstractmethod
    def kept(self, card: dict | None = None) -> Prior:
        """The prior to keep, with its card."""

    @abstractmethod
    def loss(self, chosen: Tensor, noise: torch.Generator) -> Tensor:
        """The loss, a scalar, of a batch of items; ``noise`` is the source of all its chances."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Held-out measures of the prior to keep, ``val_METRIC`` among them."""

    @abstractmethod
    def samples(self) -> Tensor:
        """A few images (N, C, H, W) in [0, 1] of the prior to keep, the same noise each time."""

    @abstractmethod
    def results(self, record: dict) -> dict:
        """What a card says of the measures of an epoch's record."""

    @property
    def flow(self) -> Bijection:
        """The flow to keep: the average of the weights where the recipe has one."""
        return self._averages.module if self._averages is not None else self.prior.flow

    @property
    def horizon(self) -> float:
        """Number of steps of the whole run, as far as it is known by now."""
        return self.steps

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.step >= self.steps

    def fingerprint(self) -> dict:
        """What must be the same for a run to be resumed."""
        return {
            "config": self.config.to_dict(),
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "images": len(self.images),
            "pixel_sum": sum(int(image.sum(dtype=torch.int64)) for image in self.images),
        }

    def state(self) -> dict:
        """The numbers that a resumed run goes on with."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "loss_sum": self.loss_sum,
            "taken": self.taken,
            "best": self.best if math.isfinite(self.best) else None,
        }

    def load_state(self, state: dict) -> None:
        """Takes over what :meth:`state` gave."""
        self.step, self.skipped = state["step"], state["skipped"]
        self.loss_sum, self.taken = state["loss_sum"], state["taken"]
        self.best = math.inf if state["best"] is None else state["best"]

    def save(self) -> None:
        """Writes the whole state, so that :meth:`restore` continues exactly."""
        write_checkpoint(
            self.out / CHECKPOINT,
            {"flow": self.prior.flow, "average": self._averages},
            self.optimiser,
            {"state": self.state(), "run": self.fingerprint()},
        )

    def restore(self) -> None:
        """Continues from the folder's checkpoint; FlowmendError if there is none of this run."""
        values = read_checkpoint(
            self.out / CHECKPOINT,
            {"flow": self.prior.flow, "average": self._averages},
            self.optimiser,
        )
        here = json.loads(json.dumps(self.fingerprint()))
        differing = [key for key, value in here.items() if values["run"].get(key) != value]
        if differing:
            raise FlowmendError(
                f"'{self.out}' holds a run with other settings ({', '.join(differing)}): repeat "
                "the command it was started with, or train into another folder."
            )
        self.load_state(values["state"])

    def advance(self) -> None:
        """One step on one batch; a step that is not finite changes nothing and is counted."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0:
            self.loss_sum, self.taken = 0.0, 0
        order = torch.randperm(self.items, generator=generator_at(self.seed, 3, epoch))
        chosen = order[position * self.batch : (position + 1) * self.batch]
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.horizon)
        loss = self.loss(chosen, generator_at(self.seed, 4, self.step))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            self.prior.parameters(), self.recipe.clip or math.inf
        )
        value = float(loss.detach())
        if math.isfinite(value) and bool(torch.isfinite(norm)):
            self.optimiser.step()
            if self._averages is not None:
                self._averages.update_parameters(self.prior.flow)
            self.loss_sum += value
            self.taken += 1
        else:
            self.skipped += 1
        self.step += 1

    def finish_epoch(self, seconds: float) -> dict:
        """Measures the held-out images, keeps the best prior so far, draws samples."""
        epoch = -(-self.step // self.steps_per_epoch)
        if self.skipped == self.step:
            raise FlowmendError(
                f"None of the first {self.step} steps gave finite gradients: lower the learning "
                "rate."
            )
        record = {
            "epoch": epoch,
            f"train_{self.metric}": self.loss_sum / max(1, self.taken),
            **self.measure(),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "skipped_steps": self.skipped,
            "seconds": round(seconds, 2),
        }
        value = record[f"val_{self.metric}"]
        if math.isfinite(value) and value < self.best:
            self.best = value
            save_prior(self.out / "prior.safetensors", self.kept(self.card(record)))
        sheet = grid(self.samples().cpu(), 8)
        save_image(self.out / "samples" / f"epoch-{epoch:04d}.png", sheet)
        self._log(record)
        return record

    def _log(self, record: dict) -> None:
        """Appends a line to log.jsonl, dropping lines of epochs that a resumed run repeats."""
        path = self.out / "log.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        lines = [line for line in lines if json.loads(line)["epoch"] < record["epoch"]]
        with writing(path), atomic_path(path) as temporary:
            temporary.write_text("\n".join([*lines, json.dumps(record)]) + "\n")

    def card(self, record: dict) -> dict:
        """What a prior's card says about its training."""
        return {
            "name": self.out.name,
            "parameters": sum(p.numel() for p in self.prior.parameters()),
            "bits": self.config.bits,
            **self.results(record),
            "epoch": record["epoch"],
            "training_images": len(self.images),
            "validation_images": len(self.validation),
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "skipped_steps": record["skipped_steps"],
            "made_with": self.made_with,
        }

    def drive(
        self,
        every: float,
        progress: Progress | None = None,
        report: Callable[[dict], None] | None = None,
    ) -> Path:
        """Takes all the steps that are left, with a checkpoint every so many seconds.

        Returns the path of the kept prior; if none was finite, raises FlowmendError.
        """
        begun = saved = before = time.monotonic()
        while not self.done:
            self.advance()
            now = time.monotonic()
            self.seconds, before = self.seconds + now - before, now
            ended = self.done or self.step % self.steps_per_epoch == 0
            if ended:
                record = self.finish_epoch(time.monotonic() - begun)
                begun = time.monotonic()
                if report is not None:
                    report(record)
            if ended or time.monotonic() - saved > every:
                self.save()
                saved = time.monotonic()
            if progress is not None:
                told = f"epoch {-(-self.step // self.steps_per_epoch)}"
                progress(self.step, round(self.horizon), told)
        if not math.isfinite(self.best):
            raise FlowmendError(
                f"Training never gave finite {self.unit} ({self.skipped} of {self.step} steps "
                "were skipped): lower the learning rate."
            )
        return self.out / "prior.safetensors"
