"""``flowmend train``: a prior from a folder of clean images."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..data import hold_out, load_folder
from ..device import default_precision, pick_device
from ..errors import FlowmendError
from ..flow import PRESETS, preset
from ..train import RECIPES, finish
from ..train import train as train_prior
from . import options as o
from .console import tell, warn
from .progress import progress_bar

__all__ = ["train"]


def _parse(text: str, what: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise FlowmendError(
            f"--{what} must be whole numbers with commas, not '{text}'."
        ) from error


def train(
    folder: Annotated[Path, typer.Argument(help="Folder of clean pictures, any depth.")],
    out: Annotated[Path, typer.Option(help="Folder for the prior and its training log.")],
    val: Annotated[
        Path | None,
        typer.Option(help="Folder of held-out pictures; default: a twentieth of FOLDER."),
    ] = None,
    architecture: Annotated[
        str, typer.Option("--preset", help=f"Architecture: {', '.join(PRESETS)}.")
    ] = "whitened",
    recipe: Annotated[
        str | None,
        typer.Option(
            help="How to train: strong (schedule, averaged weights, flips, clipping) or paper "
            "(Adam 1e-4, 100 epochs, as published). Default: paper for the paper preset."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run exactly.")
    ] = False,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    channels: Annotated[int | None, typer.Option(help="3 for colour, 1 for grey.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits per channel to train on.")] = None,
    hidden: Annotated[
        str | None, typer.Option(help="Hidden channels: one number, or one a scale (64,64,96).")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Flow steps at each scale, finest first (8,6,4).")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Convolutions in a coupling network.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; default: what the device is good at.")
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
) -> None:
    """Train a prior on a folder of clean images.

    OUT receives prior.safetensors (the best so far, by bits per dimension on held-out images) with
    its card prior.json, log.jsonl (a line an epoch), samples/ and the checkpoint for --resume.
    Pass the folder to the other commands: flowmend restore ... --prior OUT.

    Example: flowmend train photos/ --out my-prior --size 32 --epochs 40
    """
    changes: dict = {"channels": channels, "bits": bits, "depth": depth}
    if size is not None:
        changes |= {"height": size, "width": size}
    if steps is not None:
        changes["steps"] = _parse(steps, "steps")
        changes["split"] = (False,) * len(changes["steps"])
    if hidden is not None:
        widths = _parse(hidden, "hidden")
        changes["hidden"] = widths[0] if len(widths) == 1 else widths
    if channels is not None and channels not in (1, 3):
        raise FlowmendError(f"'channels' must be 1 or 3, not {channels}.")
    config = preset(architecture, **{k: v for k, v in changes.items() if v is not None})
    name = recipe or ("paper" if architecture == "paper" else "strong")
    if name not in RECIPES:
        raise FlowmendError(f"Unknown recipe '{name}': choose from {', '.join(RECIPES)}.")
    target = pick_device(device)
    wanted = {
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "precision": precision or default_precision(target),
    }
    how = dataclasses.replace(RECIPES[name], **{k: v for k, v in wanted.items() if v is not None})
    with progress_bar("reading pictures") as progress:
        images, problems = load_folder(folder, config, progress)
        if val is not None:
            validation, more = load_folder(val, config, progress)
            problems += more
        else:
            images, validation = hold_out(images, seed)
    for problem in problems:
        warn("skipped", problem)
    tell(
        f"{len(images)} training and {len(validation)} held-out pictures; preset {architecture}, "
        f"recipe {name}, {how.epochs} epochs, {how.precision} on {target}.",
    )

    def report(record: dict) -> None:
        tell(
            f"epoch {record['epoch']:>4}  train {record['train_bits_per_dim']:.4f}  held out "
            f"{record['val_bits_per_dim']:.4f} bits/dim  {record['seconds']:.0f} s"
            + (f"  {record['skipped_steps']} skipped" if record["skipped_steps"] else ""),
        )

    with progress_bar("training") as progress:
        path = train_prior(
            images,
            validation,
            out,
            config,
            how,
            seed=seed,
            device=target,
            resume=resume,
            progress=progress,
            report=report,
        )
    card = finish(path, validation)
    tell(
        f"Kept epoch {card['epoch']}: {card['val_bits_per_dim']:.4f} bits/dim held out, largest "
        f"round-trip error {card['round_trip_error']:.1e}. The prior is '{path}'.",
    )
