"""How well ``--sigma auto`` finds the noise level: every task, five levels, on a folder of faces.

    python benchmarks/sigma_auto.py celeba/test

writes benchmarks/results/sigma_auto.md and sigma_auto.json. No number is typed by hand. The share
that `flowmend.sigma` takes off the prior was chosen on celeba/val: `--white 1.0`, `1.2`, ...
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import flowmend as fm
from flowmend.data import load_folder
from flowmend.picture_sigma import picture_sigma
from flowmend.pixels import from_bytes, quantisation_sigma, round_to_bytes
from flowmend.provenance import provenance
from flowmend.sigma import WHITE_SHARE, estimate_sigma
from flowmend.weights import find_weights, sha256_of

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3)
TASKS: dict[str, tuple[str, dict]] = {
    "denoise": ("denoise", {}),
    "deblur box:3": ("deblur", {"kernel": "box:3"}),
    "deblur gaussian:1.5": ("deblur", {"kernel": "gaussian:1.5"}),
    "inpaint center:0.4": ("inpaint", {"mask": "center:0.4"}),
    "inpaint random:0.5": ("inpaint", {"mask": "random:0.5"}),
    "colorize": ("colorize", {}),
    "upscale x2": ("upscale", {"scale": 2}),
    "sense 25%": ("sense", {"measurements": "25%"}),
}
ESTIMATES = {
    "gaussian": "`estimate_sigma` with the prior's Gaussian, exact measurements (`.npy`)",
    "8 bits": "The same, 8-bit measurements (PNG): noise is clipped at black and white, and taken "
    "for what it was before",
    "8 bits as they are": "The same measurements, without the limits of a file: less noise is "
    "found than the σ that was added",
    "picture": "`picture_sigma`, for priors without such a Gaussian, 8-bit measurements",
}
ROOT = Path(__file__).resolve().parent.parent


def estimates(task: fm.tasks.Task, prior: fm.FlowPrior, y: torch.Tensor, white: float) -> dict:
    """Every estimate of the noise level of measurements, (B,) each, and CPU time of the first."""
    begun = time.process_time()
    exact = estimate_sigma(y - task.offset, task.operator, prior.gaussian, white)
    found = {"gaussian": exact}
    seconds = time.process_time() - begun
    if y.ndim == 4:
        file = round_to_bytes(y) - task.offset
        limits = task.limits(y)
        settings = (file, task.operator, prior.gaussian, white)
        found["8 bits"] = estimate_sigma(*settings, limits=limits)
        found["8 bits as they are"] = estimate_sigma(*settings)
        found["picture"] = picture_sigma(file, task.operator, limits)
    return {"found": found, "cpu_seconds": seconds}


def errors(found: torch.Tensor, sigma: float) -> dict[str, float]:
    """Median and 90 % quantile of |found / sigma - 1|, and the median of found / sigma - 1."""
    error = found.double() / sigma - 1.0
    return {
        "median": float(error.abs().quantile(0.5)),
        "q90": float(error.abs().quantile(0.9)),
        "bias": float(error.quantile(0.5)),
    }


def run(prior: fm.FlowPrior, x: torch.Tensor, seed: int, white: float) -> list[dict]:
    """A record for every task and level; level 0 holds quantiles of the estimate itself."""
    records = []
    for title, (name, options) in TASKS.items():
        for sigma in (0.0, *LEVELS):
            task = fm.make_task(name, prior.shape, sigma=sigma, **options)
            y = task.measure(x, torch.Generator().manual_seed(seed))
            made = estimates(task, prior, y, white)
            record = {"task": title, "sigma": sigma, "cpu_seconds": made["cpu_seconds"]}
            for kind, found in made["found"].items():
                if sigma > 0:
                    record[kind] = errors(found, sigma)
                else:
                    quantiles = found.double().quantile(torch.tensor([0.5, 0.9]).double())
                    record[kind] = dict(zip(("median", "q90"), quantiles.tolist(), strict=True))
            records.append(record)
            print(title, sigma, {kind: record[kind]["median"] for kind in made["found"]})
    return records


def table(records: list[dict], kind: str) -> list[str]:
    """A Markdown table: tasks by levels, median / 90 % error in percent."""
    heads = ["task", *(f"σ = {level}" for level in LEVELS), "σ = 0"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for title in TASKS:
        cells = {
            record["sigma"]: record.get(kind) for record in records if record["task"] == title
        }
        if cells[0.0] is None:
            continue
        row = [f"{100 * cells[s]['median']:.1f} / {100 * cells[s]['q90']:.1f}" for s in LEVELS]
        row.append(f"{cells[0.0]['median']:.4f} / {cells[0.0]['q90']:.4f}")
        lines.append(f"| {title} | " + " | ".join(row) + " |")
    return lines


def page(values: dict) -> str:
    """The Markdown page."""
    made, records = values["made_with"], values["records"]
    seconds = [record["cpu_seconds"] for record in records]
    lines = [
        "# How well `--sigma auto` finds the noise level",
        "",
        f"Written by `python benchmarks/sigma_auto.py`; do not edit. {values['images']} faces of "
        f"`{values['folder']}`, prior `{values['prior']}`, Gaussian noise of standard deviation σ "
        "on the [0, 1] scale. A cell is the median / 90 % quantile over the faces of "
        "|estimate / σ − 1|, in percent; the last column is the median / 90 % quantile of the "
        "estimate itself where there is no noise (rounding to 8 bits is "
        f"{quantisation_sigma():.4f}).",
    ]
    for kind, title in ESTIMATES.items():
        lines += ["", f"## {title}", "", *table(records, kind)]
    lines += [
        "",
        f"A batch takes {min(seconds):.1f} to {max(seconds):.1f} s of CPU time, median "
        f"{statistics.median(seconds):.1f} s, nearly all of it once for the operator. Seed "
        f"{values['seed']}, prior sha256 {values['prior_sha256'][:12]}, commit {made['commit']}, "
        f"torch {made['torch']}, {made['device']}. `{made['command']}`",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prior", default="faces32")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--white", type=float, default=WHITE_SHARE)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    prior = fm.load(arguments.prior)
    images, _ = load_folder(arguments.folder, prior.config)
    x = from_bytes(images)[: arguments.images]
    records = run(prior, x, arguments.seed, arguments.white)
    folder = Path(arguments.folder).resolve()
    values = {
        "folder": f"{folder.parent.name}/{folder.name}",
        "images": len(x),
        "prior": Path(arguments.prior).stem,
        "prior_sha256": sha256_of(find_weights(arguments.prior)),
        "seed": arguments.seed,
        "white": arguments.white,
        "records": records,
        "made_with": provenance(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sigma_auto.json").write_text(json.dumps(values, indent=2) + "\n")
    (arguments.out / "sigma_auto.md").write_text(page(values))


if __name__ == "__main__":
    main()
