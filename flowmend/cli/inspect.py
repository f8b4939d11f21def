"""``flowmend sample | score | info``: look at a prior."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..continuous import ContinuousPrior
from ..data import as_trained
from ..device import pick_device
from ..errors import FlowmendError
from ..files import find_pictures, read_picture, save_image
from ..flow import PRESETS, MultiscaleFlow, preset
from ..pixels import grid
from ..prior import FlowPrior
from ..report import mean_or_none, write_json
from ..weights import find_weights, load_prior, parameter_count, sha256_of
from . import options as o
from .console import tell, warn
from .progress import progress_bar

__all__ = ["info", "sample", "score"]

Weights = Annotated[str, typer.Argument(help="A shipped prior, weights file or training folder.")]


def sample(
    prior: Weights,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")],
    count: Annotated[int, typer.Option("-n", help="How many images.")] = 16,
    temperature: Annotated[float, typer.Option(help="Standard deviation of the latents.")] = 0.8,
    columns: Annotated[int, typer.Option(help="Images in a row.")] = 8,
    scale: Annotated[int, typer.Option(help="Enlargement.")] = 2,
    seed: o.Seed = 0,
    device: o.Device = "auto",
) -> None:
    """Draw images from a prior, to see what it has learned.

    Example: flowmend sample faces32 -n 32 --temperature 0.8 --out samples.png
    """
    if not 1 <= count <= 4096 or columns < 1 or not 1 <= scale <= 16:
        raise FlowmendError(
            "-n takes 1 to 4096 images, --scale 1 to 16, and --columns at least 1."
        )
    if not 0 <= temperature < 100:
        raise FlowmendError(f"--temperature must be a number of at least 0, not {temperature}.")
    weights = load_prior(prior, pick_device(device))
    images = weights.sample(count, temperature, torch.Generator().manual_seed(seed))
    save_image(out, grid(images.cpu(), min(columns, count), scale=scale))
    tell(f"{count} samples in '{out}'.")


def score(
    prior: Weights,
    images: Annotated[list[str], typer.Argument(help="Pictures or folders of them.")],
    seed: o.Seed = 0,
    device: o.Device = "auto",
    json: o.JsonFile = None,
) -> None:
    """Tell how likely a prior finds pictures: bits per dimension, less is likelier.

    Pictures are brought to the prior's size and bits as in training; of a prior for every size,
    their middles are scored. The value depends slightly on the seed of the dequantisation noise
    and, of a continuous prior, of the estimate of its log-determinant.

    Example: flowmend score faces32 photos/
    """
    target = pick_device(device)
    weights = load_prior(prior, target)
    paths = find_pictures(images)
    rows, failed = [], 0
    with progress_bar("scoring") as progress, torch.no_grad():
        for index, path in enumerate(paths):
            try:
                x = as_trained(read_picture(path), weights.config)
            except FlowmendError as error:
                problem = str(error)
                warn("skipped", problem if str(path) in problem else f"'{path}': {problem}")
                failed += 1
                continue
            noise = torch.Generator().manual_seed(seed * 1_000_003 + index)
            bits = weights.bits_per_dim(x[None].to(target), weights.config.bits, noise)
            rows.append({"input": str(path), "bits_per_dim": float(bits[0])})
            progress(index + 1, len(paths), "scoring")
    for row in rows:
        typer.echo(f"{row['bits_per_dim']:.4f}  {row['input']}")
    mean = mean_or_none([row["bits_per_dim"] for row in rows])
    if mean is not None:
        typer.echo(f"{mean:.4f}  mean of {len(rows)}, at {weights.config.bits} bits")
    if json is not None:
        write_json(json, {"prior": prior, "images": rows, "mean": mean, "seed": seed})
    if failed:
        raise typer.Exit(1)


def _round_trip(prior: FlowPrior | ContinuousPrior) -> float:
    """Largest |decode(encode(x)) - x| over 16 samples at temperature 0.8."""
    x = prior.sample(16, 0.8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        if isinstance(prior, ContinuousPrior):
            return float((prior.round_trip(x) - x).abs().max())
        return float((prior.decode(prior.encode(x)[0])[0] - x).abs().max())


def info(
    name: Annotated[str, typer.Argument(help=f"A prior, or a preset: {', '.join(PRESETS)}.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a prior or an architecture: parameters, card, how exactly it inverts.

    Example: flowmend info faces32
    """
    if name in PRESETS:
        with torch.device("meta"):
            flow = MultiscaleFlow(preset(name))
        facts = {
            "preset": name,
            "parameters": parameter_count(flow),
            "config": preset(name).to_dict(),
        }
    else:
        prior = load_prior(name)
        path = find_weights(name)
        facts = {
            "prior": name,
            "kind": "continuous" if isinstance(prior, ContinuousPrior) else "coupling",
            "parameters": parameter_count(prior),
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
            "gaussian": prior.gaussian is not None,
            "sample_round_trip_error": _round_trip(prior),
            "config": prior.config.to_dict(),
            "card": prior.card,
        }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for inner_key, inner_value in inner:
            label = f"{key}.{inner_key}" if inner_key else key
            text = f"{inner_value:,}" if key == "parameters" else str(inner_value)
            table.add_row(label, text)
    Console().print(table)
