"""``flowmend train --kind continuous``: a continuous flow from a folder of photographs."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from ..continuous import ContinuousPrior
from ..data import hold_out, load_folder, load_photographs
from ..errors import FlowmendError
from ..flow import VelocityConfig
from ..flowmatching import finish, match
from ..recipes import MatchingRecipe
from ..training import LARGEST_GAUSSIAN
from ..weights import load_prior
from .console import tell
from .folders import read_folders
from .progress import progress_bar

__all__ = ["train_continuous"]

ZOOM = 3
"""How many times as many pixels a side pictures have of which a part is shown."""
UNLIMITED = 10**6
"""Epochs where only the minutes count."""
CROPS = {
    "batch": 16,
    "mixed": 0.15,
    "focused": 0.8,
    "relative": True,
}
"""How photographs are learnt: mostly as pictures with a little noise all over."""
WHOLE = {"mixed": 0.8, "focused": 0.5, "sure": 0.85, "common": 0.55, "relative": True}
"""How images of one size are learnt: restored in every way, the flow being one way of several."""


def _larger(folder: Path, val: Path | None, config: VelocityConfig, seed: int) -> Tensor:
    """The training pictures in more pixels, of which parts are shown."""
    with progress_bar("reading pictures") as progress:
        images, _ = load_folder(folder, config, progress, ZOOM)
    return images if val is not None else hold_out(images, seed)[0]


def train_continuous(
    folder: Path,
    out: Path,
    val: Path | None,
    architecture: dict,
    wanted: dict,
    seed: int,
    device: torch.device,
    resume: bool,
    init: str | None = None,
) -> None:
    """Trains a continuous flow and says what comes of it.

    Args:
        folder: Folder of pictures.
        out: Folder of the run.
        val: Folder of held-out pictures, or None.
        architecture: Settings of :class:`VelocityConfig` that were given.
        wanted: Settings of :class:`MatchingRecipe` that were given.
        seed: Seed.
        device: Device to train on.
        resume: Whether to continue the run in ``out``.
        init: Name or path of the prior whose weights training begins with, or None.

    Raises:
        FlowmendError: If settings make no sense, or the training says so.
    """
    if architecture.get("size") and architecture.get("crop"):
        raise FlowmendError(
            "--size makes a prior for one size, --crop one for every size: give one of them."
        )
    config = VelocityConfig(**architecture)
    if "informed" not in architecture and config.size and config.dimensions <= LARGEST_GAUSSIAN:
        config = dataclasses.replace(config, informed=True)
    if config.informed and config.dimensions > LARGEST_GAUSSIAN:
        raise FlowmendError(
            f"--informed needs a Gaussian, which is fitted to images of at most "
            f"{LARGEST_GAUSSIAN} values."
        )
    first = None if init is None else load_prior(init)
    if first is not None and not isinstance(first, ContinuousPrior):
        raise FlowmendError(f"--init needs a continuous prior, and '{init}' holds another.")
    if wanted.get("minutes") and "epochs" not in wanted:
        wanted = wanted | {"epochs": UNLIMITED}
    wanted = {"muon": True} | wanted
    recipe = MatchingRecipe(**((WHOLE if config.size else CROPS) | wanted))
    load = load_folder if config.size else load_photographs
    moved = recipe.jitter or recipe.affine
    larger = _larger(folder, val, config, seed) if moved and config.size else None
    images, validation = read_folders(
        lambda path, progress: load(path, config, progress), folder, val, seed
    )
    trained = f"images of {config.shape}" if config.size else f"crops of {config.crop} pixels"
    limit = f"{recipe.minutes:g} minutes" if recipe.minutes else f"{recipe.epochs} epochs"
    tell(
        f"{len(images)} training and {len(validation)} held-out pictures; a continuous flow on "
        f"{trained}, {limit}, {recipe.precision} on {device}.",
    )

    def report(record: dict) -> None:
        tell(
            f"epoch {record['epoch']:>4}  train {record['train_loss']:.4f}  held out "
            f"{record['val_loss']:.4f}  denoising {record['val_psnr_25']:.2f} dB  "
            f"{record['seconds']:.0f} s"
            + (f"  {record['skipped_steps']} skipped" if record["skipped_steps"] else ""),
        )

    with progress_bar("training") as progress:
        path = match(
            images,
            validation,
            out,
            config,
            recipe,
            seed=seed,
            device=device,
            resume=resume,
            progress=progress,
            report=report,
            first=first,
            larger=larger,
        )
    card = finish(path, validation)
    tell(
        f"Kept epoch {card['epoch']}: held-out loss {card['val_loss']:.4f}, "
        f"{card['val_bits_per_dim']:.3f} bits/dim, denoising at 25/255 {card['val_psnr_25']:.2f} "
        f"dB, largest round-trip error {card['round_trip_error']:.1e}. The prior is '{path}'.",
    )
