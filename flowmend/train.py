"""Maximum likelihood on a folder of images (Eq. 3): resumable, never writing a bad weight."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .checkpoint import read_checkpoint, write_checkpoint
from .errors import FlowmendError
from .files import atomic_path, save_image, writing
from .flow import FlowConfig, MultiscaleFlow, build_flow
from .pixels import dequantise, grid
from .prior import FlowPrior, GaussianPrior
from .provenance import provenance
from .recipes import RECIPES, Recipe
from .weights import load_prior, save_prior

__all__ = ["RECIPES", "Recipe", "Run", "finish", "round_trip_error", "train"]

Progress = Callable[[int, int, str], None]
SAMPLES, SAMPLE_TEMPERATURE = 64, 0.8
LARGEST_GAUSSIAN = 4096
"""Images of more values than this get no Gaussian unless their flow whitens them."""
LARGEST_WHITENED = 12288
"""Images of more values than this are not whitened: the matrix would not fit in memory."""
CHECKPOINT_SECONDS = 300.0


def _generator(seed: int, *place: int) -> torch.Generator:
    """A generator that depends on the seed and a place in the run, so that resuming is exact."""
    value = seed
    for number in place:
        value = (value * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(value)


def _parameter_groups(prior: FlowPrior, weight_decay: float) -> list[dict]:
    """Parameters for AdamW: only the convolutions of the coupling networks decay."""
    networks = [module.weight for module in prior.modules() if isinstance(module, nn.Conv2d)]
    decayed = {id(weight) for weight in networks}
    others = [weight for weight in prior.parameters() if id(weight) not in decayed]
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
    generator = _generator(seed, 0)
    total = 0.0
    for part in images.split(batch):
        x = part.to(device, torch.float32) / 255.0
        total += float(prior.bits_per_dim(x, prior.config.bits, generator).double().sum())
    return total / len(images)


class Run:
    """A training run: its folder, its state, and how they are saved and restored."""

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
        self.out, self.config, self.recipe, self.seed = out, config, recipe, seed
        self.images, self.validation = images, validation
        self.device = torch.device(device)
        self.made_with = provenance(self.device)
        self.batch = min(recipe.batch, len(images))
        self.steps_per_epoch = len(images) // self.batch
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step, self.skipped, self.best = 0, 0, math.inf
        self.loss_sum, self.taken = 0.0, 0
        self.gaussian: GaussianPrior | None = None
        if config.whiten and config.dimensions > LARGEST_WHITENED:
            raise FlowmendError(
                f"Images of {config.dimensions:,} values are too large to whiten (at most "
                f"{LARGEST_WHITENED:,}): train smaller ones, or choose the preset glow."
            )
        if config.dimensions <= LARGEST_GAUSSIAN or config.whiten:
            if progress is not None:
                progress(0, self.steps, "fitting a Gaussian")
            self.gaussian = GaussianPrior.fit(images, config.bits, recipe.flip).to(self.device)
        flow = build_flow(config, seed)
        self.prior = FlowPrior(flow, self.gaussian).to(self.device)
        self._averages: AveragedModel | None = None
        first = images[torch.randperm(len(images), generator=_generator(seed, 1))[:256]]
        start = dequantise(first.float() / 255.0, config.bits, _generator(seed, 2))
        self.prior.initialise(start.to(self.device))
        if recipe.averaging:
            self._averages = AveragedModel(
                self.prior.flow, multi_avg_fn=_moving_average(recipe.averaging)
            )
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(self.prior, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            fused=self.device.type in ("cpu", "cuda"),
        )

    @property
    def flow(self) -> MultiscaleFlow:
        """The flow to keep: the average of the weights where the recipe has one."""
        return self._averages.module if self._averages is not None else self.prior.flow

    def kept(self, card: dict | None = None) -> FlowPrior:
        """The prior to keep, with its card."""
        return FlowPrior(self.flow, self.gaussian, card)

    def fingerprint(self) -> dict:
        """What must be the same for a run to be resumed."""
        return {
            "config": self.config.to_dict(),
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "images": len(self.images),
            "pixel_sum": int(self.images.sum(dtype=torch.int64)),
        }

    def save(self) -> None:
        """Writes the whole state, so that :meth:`restore` continues exactly."""
        state = {"step": self.step, "skipped": self.skipped}
        state |= {"loss_sum": self.loss_sum, "taken": self.taken}
        state["best"] = self.best if math.isfinite(self.best) else None
        write_checkpoint(
            self.out / "checkpoint.safetensors",
            {"flow": self.prior.flow, "average": self._averages},
            self.optimiser,
            {"state": state, "run": self.fingerprint()},
        )

    def restore(self) -> None:
        """Continues from the folder's checkpoint.

        Raises:
            FlowmendError: If there is none, or it belongs to another run.
        """
        values = read_checkpoint(
            self.out / "checkpoint.safetensors",
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
        state = values["state"]
        self.step, self.skipped = state["step"], state["skipped"]
        self.loss_sum, self.taken = state["loss_sum"], state["taken"]
        self.best = math.inf if state["best"] is None else state["best"]

    def advance(self) -> None:
        """One step on one batch; a step that is not finite changes nothing and is counted."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0:
            self.loss_sum, self.taken = 0.0, 0
        order = torch.randperm(len(self.images), generator=_generator(self.seed, 3, epoch))
        noise = _generator(self.seed, 4, self.step)
        chosen = order[position * self.batch : (position + 1) * self.batch]
        levels = self.images[chosen]
        if self.recipe.flip:
            mirrored = torch.rand(len(levels), 1, 1, 1, generator=noise) < 0.5
            levels = torch.where(mirrored, levels.flip(-1), levels)
        x = dequantise(levels.float() / 255.0, self.config.bits, noise).to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.steps)
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            log_prob = self.prior.log_prob(x)
        loss = -log_prob.mean() / (self.config.dimensions * math.log(2.0))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            self.prior.parameters(), self.recipe.clip or math.inf
        )
        value = self.config.bits + float(loss.detach())
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
        epoch = self.step // self.steps_per_epoch
        if self.skipped == self.step:
            raise FlowmendError(
                f"None of the first {self.step} steps gave finite gradients: lower the learning "
                "rate."
            )
        bits = held_out_bits(self.kept(), self.validation)
        record = {
            "epoch": epoch,
            "train_bits_per_dim": self.loss_sum / max(1, self.taken),
            "val_bits_per_dim": bits,
            "learning_rate": self.recipe.rate(self.step - 1, self.steps),
            "skipped_steps": self.skipped,
            "seconds": round(seconds, 2),
        }
        if math.isfinite(bits) and bits < self.best:
            self.best = bits
            save_prior(self.out / "prior.safetensors", self.kept(self.card(record)))
        samples = self.kept().sample(SAMPLES, SAMPLE_TEMPERATURE, _generator(self.seed, 5))
        save_image(self.out / "samples" / f"epoch-{epoch:04d}.png", grid(samples.cpu(), 8))
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
            "val_bits_per_dim": round(record["val_bits_per_dim"], 4),
            "train_bits_per_dim": round(record["train_bits_per_dim"], 4),
            "gaussian_val_bits_per_dim": None
            if self.gaussian is None
            else round(self._gaussian_bits(), 4),
            "epoch": record["epoch"],
            "training_images": len(self.images),
            "validation_images": len(self.validation),
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "skipped_steps": record["skipped_steps"],
            "made_with": self.made_with,
        }

    def _gaussian_bits(self) -> float:
        x = self.validation.to(self.device, torch.float32) / 255.0
        bits = self.gaussian.bits_per_dim(x, self.config.bits, _generator(0, 0))
        return float(bits.mean())


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
    out = Path(out)
    if not resume and (out / "checkpoint.safetensors").exists():
        raise FlowmendError(
            f"'{out}' already holds a training run: add --resume to continue it, or choose "
            "another folder."
        )
    if not resume:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
    run = Run(out, config, recipe, images, validation, seed, device, progress)
    if resume:
        run.restore()
    begun = saved = time.monotonic()
    while run.step < run.steps:
        run.advance()
        if run.step % run.steps_per_epoch == 0:
            record = run.finish_epoch(time.monotonic() - begun)
            begun = time.monotonic()
            if report is not None:
                report(record)
        if run.step % run.steps_per_epoch == 0 or time.monotonic() - saved > CHECKPOINT_SECONDS:
            run.save()
            saved = time.monotonic()
        if progress is not None:
            progress(run.step, run.steps, f"epoch {-(-run.step // run.steps_per_epoch)}")
    if not math.isfinite(run.best):
        raise FlowmendError(
            f"Training never gave finite bits per dim ({run.skipped} of {run.steps} steps were "
            "skipped): lower the learning rate."
        )
    return out / "prior.safetensors"


def finish(path: Path, validation: Tensor) -> dict:
    """Checks that the kept prior inverts, and writes the result into its card.

    Args:
        path: A prior that :func:`train` returned.
        validation: Held-out images, uint8 (M, C, H, W).

    Returns:
        The card, with ``round_trip_error``: the largest |decode(encode(x)) - x| over the
        held-out images, on the [0, 1] scale.
    """
    prior = load_prior(path)
    prior.card["round_trip_error"] = round_trip_error(prior, validation)
    save_prior(path, prior)
    return prior.card
