"""``flowmend train``: a prior from a folder of clean images."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..data import load_folder, load_photographs, random_patches
from ..device import default_precision, pick_device
from ..errors import FlowmendError
from ..flow import PRESETS, preset
from ..train import RECIPES, finish
from ..train import train as train_prior
from . import options as o
from .console import tell
from .folders import read_folders
from .matching import train_continuous
from .progress import progress_bar

__all__ = ["train"]

KINDS = ("coupling", "continuous")
PATCHES, HELD_OUT_PATCHES = 2**17, 2**12
"""Patches that a flow of patches is trained on, and that are held out."""
PATCH_BATCH = 512


def _given(**options: object) -> dict:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def _refuse(kind: str, **options: object) -> None:
    """Raises :class:`FlowmendError` if an option that only another kind has was given."""
    for name in _given(**options):
        raise FlowmendError(f"--{name} is an option of --kind {kind} only.")


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
    kind: Annotated[
        str,
        typer.Option(
            help="coupling (a normalizing flow, the paper's kind) or continuous (a velocity "
            "trained by flow matching: slower to invert, and a denoiser at every noise level)."
        ),
    ] = "coupling",
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
    crop: Annotated[
        int | None,
        typer.Option(
            help="Side of the crops to train on; the prior then takes images of every size. "
            "continuous: 96 by default, unless --size is given. coupling: patches, of 8 pixels, "
            "say."
        ),
    ] = None,
    channels: Annotated[int | None, typer.Option(help="3 for colour, 1 for grey.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits per channel to train on.")] = None,
    hidden: Annotated[
        str | None, typer.Option(help="Hidden channels: one number, or one a scale (64,64,96).")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            help="Flow steps at each scale, finest first (8,6,4); continuous: residual blocks."
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Convolutions in a coupling network.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="continuous: stop after so many minutes, the learning rate falling to zero by "
            "then; without --epochs nothing else ends the training."
        ),
    ] = None,
    informed: Annotated[
        bool | None,
        typer.Option(
            help="continuous with --size: whether the network sees what a Gaussian fitted to the "
            "pictures makes of a measurement. Default: where that Gaussian is small enough."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="continuous: begin with the weights of this prior, of the same architecture or "
            "a smaller one: what --hidden and --steps add learns on top of it."
        ),
    ] = None,
    jitter: Annotated[
        float | None,
        typer.Option(
            help="continuous with --size: the largest share of a picture that is cut off, at "
            "random, each time it is shown."
        ),
    ] = None,
    affine: Annotated[
        float | None,
        typer.Option(
            help="continuous with --size: how far a picture of which only the grey is known is "
            "turned (radians), scaled and moved, at random, each time it is shown (0.15, say), "
            "so that colours are not learnt by heart."
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="continuous: the share of the network's coarser features that is left out at "
            "random, so that a long training does not learn the pictures by heart (0.15, say)."
        ),
    ] = None,
    forget: Annotated[
        float | None,
        typer.Option(
            help="continuous with --init: how far its weights are moved towards fresh ones first "
            "(0.5, say), where that prior knows its pictures by heart."
        ),
    ] = None,
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

    A coupling prior with --crop learns patches of photographs, and restores pictures of every size
    by the likelihood of their patches.

    A continuous prior learns from crops of photographs of any sizes, at their own resolution, and
    then works at every size; with --size it learns whole images of that size.

    Example: flowmend train photos/ --out my-prior --size 32 --epochs 40

    Example: flowmend train photos/ --out my-denoiser --kind continuous --minutes 60
    """
    if kind not in KINDS:
        raise FlowmendError(f"Unknown kind '{kind}': choose from {', '.join(KINDS)}.")
    if channels is not None and channels not in (1, 3):
        raise FlowmendError(f"'channels' must be 1 or 3, not {channels}.")
    target = pick_device(device)
    wanted = _given(
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        precision=precision or default_precision(target),
    )
    if kind == "continuous":
        other = None if architecture == "whitened" else architecture
        _refuse("coupling", preset=other, depth=depth, recipe=recipe)
        shape = _given(
            channels=channels,
            bits=bits,
            crop=crop,
            size=None if size is None else (size, size),
            widths=None if hidden is None else _parse(hidden, "hidden"),
            informed=informed,
            blocks=None if steps is None else _parse(steps, "steps"),
        )
        wanted |= _given(
            minutes=minutes, jitter=jitter, affine=affine, dropout=dropout, forget=forget
        )
        train_continuous(folder, out, val, shape, wanted, seed, target, resume, init)
        return
    _refuse(
        "continuous",
        minutes=minutes,
        informed=informed,
        init=init,
        jitter=jitter,
        affine=affine,
        dropout=dropout,
        forget=forget,
    )
    changes: dict = {"channels": channels, "bits": bits, "depth": depth}
    if size is not None and crop is not None:
        raise FlowmendError(
            "--size makes a prior for one size, --crop one for every size: give one of them."
        )
    if size is not None:
        changes |= {"height": size, "width": size}
    if crop is not None:
        changes |= {"height": crop, "width": crop, "patches": True}
    if steps is not None:
        changes["steps"] = _parse(steps, "steps")
        changes["split"] = (False,) * len(changes["steps"])
    if hidden is not None:
        widths = _parse(hidden, "hidden")
        changes["hidden"] = widths[0] if len(widths) == 1 else widths
    config = preset(architecture, **_given(**changes))
    name = recipe or ("paper" if architecture == "paper" else "strong")
    if name not in RECIPES:
        raise FlowmendError(f"Unknown recipe '{name}': choose from {', '.join(RECIPES)}.")
    wanted = {"batch": PATCH_BATCH} | wanted if config.patches else wanted
    how = dataclasses.replace(RECIPES[name], **wanted)
    load = load_photographs if config.patches else load_folder
    images, validation = read_folders(
        lambda path, progress: load(path, config, progress), folder, val, seed
    )
    if config.patches:
        images = random_patches(images, crop, PATCHES, seed)
        validation = random_patches(validation, crop, HELD_OUT_PATCHES, seed)
    kind = "patches" if config.patches else "pictures"
    tell(
        f"{len(images)} training and {len(validation)} held-out {kind}; preset {architecture}, "
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
