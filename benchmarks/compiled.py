"""What torch.compile would save in the calls that restoring repeats, and what it costs first.

    python benchmarks/compiled.py celeba/test

times decode and log-density with its gradient (a step of fast MAP takes two) of the coupling
flows, and one evaluation of the network of continuous ones, on a batch of faces, plain and
compiled in turn. Results go to benchmarks/results/compiled.md and .json. No number is typed by
hand.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import flowmend as fm
from flowmend.continuous import ContinuousPrior
from flowmend.data import load_folder
from flowmend.device import default_precision
from flowmend.pixels import from_bytes
from flowmend.provenance import provenance, told
from flowmend.report import write_json
from flowmend.weights import find_weights, sha256_of

SIGMA = 0.1
"""Noise that a continuous flow takes off, on the [0, 1] scale."""
ROOT = Path(__file__).resolve().parent.parent
Call = Callable[[Tensor], Tensor]


def calls(prior: fm.Prior, x: Tensor) -> dict[str, tuple[Call, Tensor, bool]]:
    """What is timed: a function, its argument, and whether its gradient is meant."""
    if isinstance(prior, ContinuousPrior):
        return {"denoise": (lambda images: prior.denoise(images, SIGMA), x, False)}
    with torch.no_grad():
        z = prior.encode(x)[0]
    return {
        "decode": (lambda latents: prior.decode(latents)[0], z, False),
        "log_prob, gradient": (lambda images: prior.log_prob(images).sum(), x, True),
    }


def value(call: Call, argument: Tensor, gradient: bool) -> Tensor:
    """The function's value, or its gradient."""
    if not gradient:
        with torch.no_grad():
            return call(argument)
    argument = argument.clone().requires_grad_(True)
    return torch.autograd.grad(call(argument), argument)[0]


def run(name: str, folder: Path, images: int, precision: str, times: int) -> list[dict]:
    """A record for each function of one prior."""
    loaded, records = fm.load(name), []
    x = from_bytes(load_folder(folder, loaded.config)[0])[:images]
    prior = loaded.at_precision(precision)
    for what, (call, argument, gradient) in calls(prior, x).items():
        torch.compiler.reset()
        quick = torch.compile(call, dynamic=False)
        plain = value(call, argument, gradient)
        begun = time.perf_counter()
        found = value(quick, argument, gradient)
        first = time.perf_counter() - begun
        seconds: dict[str, list[float]] = {"plain": [], "compiled": []}
        for _ in range(times):
            for kind, function in (("plain", call), ("compiled", quick)):
                begun = time.perf_counter()
                value(function, argument, gradient)
                seconds[kind].append(time.perf_counter() - begun)
        record = {
            "prior": Path(name).stem,
            "prior_sha256": sha256_of(find_weights(name)),
            "call": what,
            "images": len(x),
            "precision": precision,
            "first_seconds": first,
            "seconds": {kind: median(values) for kind, values in seconds.items()},
            "difference": float((found - plain).norm() / plain.norm()),
        }
        records.append(record)
        print(record, flush=True)
    return records


def page(values: dict) -> str:
    """The Markdown page."""
    records = values["records"]
    lines = [
        "# What torch.compile would save",
        "",
        "Written by `python benchmarks/compiled.py`; do not edit. Calls on "
        f"{records[0]['images']} faces in {records[0]['precision']}, plain and compiled in turn, "
        "medians; *time* is that of a compiled call as a share of a plain one, *calls to repay* "
        "how many it takes until compiling has been worth its time, *change* the relative norm of "
        "the difference.",
        "",
        "| prior | call | time | compiling, plain calls | calls to repay | change |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for record in records:
        plain, quick = record["seconds"]["plain"], record["seconds"]["compiled"]
        saved = plain - quick
        repay = f"{math.ceil(record['first_seconds'] / saved):,}" if saved > 0 else "never"
        lines.append(
            f"| {record['prior']} | {record['call']} | {quick / plain:.2f} | "
            f"{record['first_seconds'] / plain:,.0f} | {repay} | {record['difference']:.0e} |"
        )
    return "\n".join([*lines, "", told(values["made_with"])]) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--priors",
        nargs="+",
        default=[
            str(ROOT / "weights" / "paper32.safetensors"),
            "faces32",
            "faces32-continuous",
        ],
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--times", type=int, default=11)
    parser.add_argument("--precision", default=default_precision(torch.device("cpu")))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    settings = (arguments.folder, arguments.images, arguments.precision, arguments.times)
    records = [record for name in arguments.priors for record in run(name, *settings)]
    values = {"records": records, "made_with": provenance()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "compiled.json", values)
    (arguments.out / "compiled.md").write_text(page(values))


if __name__ == "__main__":
    main()
