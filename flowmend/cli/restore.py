"""``flowmend restore``: damaged pictures in, restored pictures out."""

import math
from pathlib import Path
from typing import Annotated

import typer

from ..album import restore_photographs, usual_prior
from ..batch import restore_items, results, save_report
from ..continuous import ContinuousPrior
from ..device import default_precision, pick_device
from ..errors import FlowmendError
from ..files import read_image, writing
from ..inference import turns_of
from ..items import Item, find_items
from ..latent import STARTS
from ..methods import Method, default_settings, find_method
from ..patches import PatchPrior
from ..photographs import TILE
from ..prior import FlowPrior
from ..provenance import provenance
from ..report import write_json
from ..solver import default_method
from ..tasks import TASKS, make_task, task_noise
from ..weights import load_prior
from . import options as o
from .console import tell, warn
from .made import check_folders, differences
from .progress import progress_bar

__all__ = ["restore"]

SMALLEST_TILE = 128


def _check_options(
    method: Method, steps: int | None, weight: float | None, start: str | None
) -> None:
    """Refuses options that mean nothing to a method before any work is done."""
    if steps is not None and method.objective is None and not method.whitened:
        raise FlowmendError(f"The method {method.name} is a closed form: it takes no --steps.")
    for name, value in (("weight", weight), ("start", start)):
        if value is not None and method.objective is None:
            kind = "" if method.whitened else "is a closed form: it "
            raise FlowmendError(
                f"The method {method.name} {kind}takes no --{name}; for the paper's solver add "
                "--method likelihood."
            )


def _measurements(items: list[Item]) -> int | None:
    """How many values the first readable vector holds."""
    for item in items:
        if item.input.suffix.lower() == ".npy":
            try:
                values = read_image(item.input)
            except FlowmendError:
                continue
            if values.ndim == 1:
                return len(values)
    return None


def restore(
    inputs: o.Inputs,
    task: o.TaskName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the restored pictures.")],
    sigma: o.Sigma = None,
    kernel: o.Kernel = None,
    boundary: o.Boundary = None,
    mask: o.MaskOption = None,
    scale: o.Scale = None,
    measurements: o.Measurements = None,
    noise: o.NoiseName = None,
    peak: o.Peak = None,
    share: o.Share = None,
    pattern: o.Pattern = None,
    prior: Annotated[
        str | None,
        typer.Option(
            "--prior",
            "-p",
            help=f"{o.PRIORS} Default: faces32-continuous for images of 32 x 32 pixels, faces32 "
            "for sense and where the method needs a coupling flow; natural for others.",
        ),
    ] = None,
    method: o.MethodName = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps. Default: the method's own (fast-map 20, posterior 40, the paper's "
            "methods 1500). A method of the paper takes longer strides where it has fewer."
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the regulariser (alpha, gamma or beta) on the [0, 1] scale. Default: "
            "the paper's for the task."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="First iterate: small (the paper's), zero, random, or lmmse, the closed-form "
            "solution of the Gaussian prior. Default: the method's own. Not for fast-map and "
            "posterior, which start from lmmse always."
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="posterior: draws to write for each picture.", min=0)
    ] = 8,
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16 during the steps; default: what suits the device."),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            help="autograd, or reversible: memory that does not grow with the flow's depth, for "
            "somewhat more time."
        ),
    ] = "autograd",
    seed: o.Seed = 0,
    device: o.Device = "auto",
    reference: Annotated[
        Path | None,
        typer.Option(help="The truth: a picture, or a folder of pictures of the same names."),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Largest side, in pixels, of the parts that a large picture is restored in, with "
            f"a prior that takes every size. Default: {TILE}; less needs less memory."
        ),
    ] = None,
    turns: Annotated[
        int | None,
        typer.Option(
            help="Average so many turned and mirrored copies (1, 2, 4 or 8): a little better, as "
            "many times slower. Continuous priors only. Default: 2 for splitting with a prior of "
            "one size, else 1."
        ),
    ] = None,
    json: o.JsonFile = None,
) -> None:
    """Restore damaged pictures.

    OUT receives a PNG of the same name for every input, and report.png: input, restored and
    reference side by side. With --method posterior it receives a folder of that name too, with
    the standard deviation of every pixel (std.npy; std.png, where white is 0.2) and draws. A file
    that cannot be used is reported and the others are restored; the exit code is then 1.

    Example: flowmend restore noisy/ --task denoise --sigma 0.1 --out clean/
    """
    if method is not None:
        find_method(method)
    if steps is not None and steps < 1:
        raise FlowmendError(f"--steps must be at least 1, not {steps}.")
    if start is not None and start not in (*STARTS, "lmmse"):
        raise FlowmendError(f"Unknown start '{start}': choose from {', '.join(STARTS)}, lmmse.")
    target = pick_device(device)
    precision = precision or default_precision(target)
    if precision not in ("float32", "bfloat16"):
        raise FlowmendError(f"Unknown precision '{precision}': choose float32 or bfloat16.")
    if memory not in ("autograd", "reversible"):
        raise FlowmendError(f"Unknown memory '{memory}': choose autograd or reversible.")
    check_folders(inputs)
    items = find_items(inputs, out, reference)
    if any(item.output == out / "report.png" for item in items):
        raise FlowmendError("An input called report.png would lie under the report: rename it.")
    described: dict[str, object] = {
        "sigma": sigma,
        "kernel": kernel,
        "boundary": boundary,
        "mask": mask,
        "scale": scale,
        "measurements": measurements,
        "noise": noise,
        "peak": peak,
        "share": share,
        "pattern": pattern,
    }
    level = task_noise(task, **described)
    for folder, difference in differences(items, task, level, described):
        warn(str(folder), difference)
    prior = usual_prior(items, task, described, method) if prior is None else prior
    weights = load_prior(prior, target)
    if isinstance(weights, FlowPrior) and weights.config.patches:
        weights = PatchPrior(weights)
    if turns is not None:
        if not isinstance(weights, ContinuousPrior):
            raise FlowmendError("--turns belongs to continuous priors.")
        weights = weights.with_turns(turns)
    method = default_method(weights) if method is None else method
    chosen = find_method(method)
    _check_options(chosen, steps, weight, start)
    if measurements is None and task == "sense":
        described["measurements"] = _measurements(items)
    any_size = isinstance(weights, PatchPrior) or (
        isinstance(weights, ContinuousPrior) and weights.config.size is None
    )
    if tile is not None and not any_size:
        raise FlowmendError("--tile belongs to priors that take every size.")
    if tile is not None and tile < SMALLEST_TILE:
        raise FlowmendError(f"--tile must be at least {SMALLEST_TILE} pixels, not {tile}.")
    work = None if any_size else make_task(task, weights.shape, **described)
    spec = TASKS[task]
    settings: dict[str, object] = {"steps": steps or chosen.steps}
    if chosen.objective is not None:
        settings = default_settings(method, start)
        settings |= spec.presets.get(method, {})
        given = {"steps": steps, "weight": weight}
        settings |= {name: value for name, value in given.items() if value is not None}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    seconds = math.nan
    try:
        with progress_bar("restoring") as progress:
            common = {
                "weight": weight,
                "steps": steps,
                "start": start,
                "precision": precision,
                "memory": memory,
                "seed": seed,
                "samples": samples,
                "device": target,
                "progress": progress,
            }
            if any_size:
                seconds = restore_photographs(
                    items, task, weights, method, options=described, tile=tile or TILE, **common
                )
            else:
                seconds = restore_items(items, work, weights, method, **common)
    finally:
        counts = [item.steps for item in items if item.steps is not None]
        taken = max(counts, default=settings.get("steps", 0))
        values = {
            "task": task,
            "method": method,
            "prior": prior,
            "steps": taken,
            "seconds": seconds,
            **results(items),
            "start": settings.get("start"),
            "weight": settings.get("weight"),
            "sigma": None if level is None else level.sigma,
            "noise": "gaussian" if level is None else level.name,
            "peak": peak,
            "share": share,
            "seed": seed,
            "precision": precision,
            "turns": turns_of(weights, method),
            "tile": (tile or TILE) if any_size else None,
            "made_with": provenance(target),
        }
        if any(item.restored is not None for item in items):
            note = f"{task}, {method}, prior {prior}"
            if taken:
                note += f", {taken} step" + ("" if taken == 1 else "s")
            try:
                save_report(out / "report.png", items, note)
            finally:
                if json is not None:
                    write_json(json, values)
        elif json is not None:
            write_json(json, values)
    _tell(items, values, out)


def _tell(items: list[Item], values: dict, out: Path) -> None:
    for item in items:
        if not item.fine:
            warn(str(item.input), item.record()["status"])
    asked = values["tile"]
    for item in items:
        if item.tile is not None and item.tile < asked:
            tell(
                f"'{item.input}' was restored in parts of at most {item.tile} pixels: larger ones "
                "did not fit the memory."
            )
    done = sum(item.restored is not None for item in items)
    mean = values["mean"]
    text = f"{done} of {len(items)} restored in {values['seconds']:.1f} s into '{out}'"
    if mean["psnr"] is not None:
        before = mean["input_psnr"]
        text += f"; mean PSNR {mean['psnr']:.2f} dB"
        text += f" (input {before:.2f})" if before is not None else ""
        text += f", SSIM {mean['ssim']:.3f}" if mean["ssim"] is not None else ""
    tell(f"{text}.")
    if not all(item.fine for item in items):
        raise typer.Exit(1)
