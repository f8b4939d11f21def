"""Whether the posterior knows how wrong it is: share of true pixels inside its intervals.

    python benchmarks/calibration.py celeba/test --prior faces32 --images 32

restores noisy and holed faces by the method `posterior` and counts how many true pixels lie inside
the 50, 80 and 95 % intervals, mean ± quantile times std. Results go to
benchmarks/results/calibration-PRIOR.md, .json and .png. No number is typed by hand.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from scipy.stats import norm
from scipy.stats import t as student

import flowmend as fm
from flowmend.continuous import ContinuousPrior
from flowmend.data import load_folder
from flowmend.device import default_precision
from flowmend.inference import DRAWS
from flowmend.pixels import from_bytes, quantisation_sigma
from flowmend.provenance import provenance
from flowmend.weights import find_weights, sha256_of

SHARES = (0.5, 0.8, 0.95)
CURVE = tuple(k / 20 for k in range(1, 20))
TASKS: dict[str, tuple[str, dict]] = {
    "denoise σ = 0.1": ("denoise", {"sigma": 0.1}),
    "inpaint center:0.4": ("inpaint", {"mask": "center:0.4"}),
    "colorize": ("colorize", {}),
    "deblur box:3, σ = 0.01": ("deblur", {"kernel": "box:3", "sigma": 0.01}),
    "upscale x2": ("upscale", {"scale": 2}),
}
ROOT = Path(__file__).resolve().parent.parent


def quantile(share: float, samples: int | None) -> float:
    """Half the width of a central interval in standard deviations.

    Of a mean and a standard deviation that come from a few draws it is Student's, and wider by
    the error of the mean.
    """
    if samples is None:
        return float(norm.ppf(0.5 + share / 2))
    return float(student.ppf(0.5 + share / 2, samples - 1)) * (1 + 1 / samples) ** 0.5


def measure(
    title: str, prior: fm.Prior, x: torch.Tensor, samples: int, seed: int, precision: str
) -> dict:
    """Restores one task and counts; inpainting counts the pixels of the hole only."""
    name, options = TASKS[title]
    task = fm.make_task(name, prior.shape, **options)
    y = task.measure(x, torch.Generator().manual_seed(seed))
    begun = time.monotonic()
    parts = [
        fm.restore(
            part,
            task,
            prior,
            "posterior",
            samples=samples,
            precision=precision,
            generator=torch.Generator().manual_seed(seed),
        )
        for part in y.split(32)
    ]
    seconds = time.monotonic() - begun
    mean = torch.cat([part.x for part in parts])
    # the truth is itself rounded to 8 bits
    std = torch.cat([part.std for part in parts]).square().add(quantisation_sigma() ** 2).sqrt()
    off = ((mean - x).abs() / std).double()
    if name == "inpaint":
        off = off[(task.operator.mask == 0).expand_as(off)]
    draws = max(DRAWS, samples) if isinstance(prior, ContinuousPrior) else None
    psnr = fm.psnr(mean, x)
    return {
        "task": title,
        "psnr": sum(psnr) / len(psnr),
        "std": float(std.mean()),
        "error": float((mean - x).square().mean().sqrt()),
        "inside": {str(s): float((off < quantile(s, draws)).double().mean()) for s in SHARES},
        "curve": {str(s): float((off < quantile(s, draws)).double().mean()) for s in CURVE},
        "seconds_per_image": seconds / len(x),
    }


def page(values: dict, picture: str) -> str:
    """The Markdown page."""
    made = values["made_with"]
    lines = [
        "# Whether the posterior knows how wrong it is",
        "",
        f"Written by `python benchmarks/calibration.py`; do not edit. {values['images']} faces of "
        f"`{values['folder']}`, prior `{values['prior']}`, method `posterior`: how many true "
        "pixels lie inside its central 50, 80 and 95 % intervals; of inpainting, pixels of the "
        "hole. *std* is the mean standard deviation it states, *error* the root mean square "
        "error it makes.",
        "",
        "| task | 50 % | 80 % | 95 % | std | error | PSNR, dB | s / image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in values["records"]:
        inside = " | ".join(f"{100 * record['inside'][str(s)]:.1f} %" for s in SHARES)
        lines.append(
            f"| {record['task']} | {inside} | {record['std']:.4f} | {record['error']:.4f} | "
            f"{record['psnr']:.2f} | {record['seconds_per_image']:.2f} |"
        )
    lines += [
        "",
        f"![stated against true share]({picture})",
        "",
        f"Seed {values['seed']}, {values['samples']} draws, prior sha256 "
        f"{values['prior_sha256'][:12]}, commit {made['commit']}, torch {made['torch']}, "
        f"{made['device']}, {values['precision']} networks. `{made['command']}`",
    ]
    return "\n".join(lines) + "\n"


def plot(path: Path, records: list[dict]) -> None:
    """Stated share against the share of true pixels inside."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for record in records:
        curve = record["curve"]
        axes.plot([float(s) for s in curve], list(curve.values()), label=record["task"])
    axes.set(xlabel="stated share", ylabel="share of true pixels inside", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parses the command line, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prior", default="faces32")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    prior = fm.load(arguments.prior)
    images, _ = load_folder(arguments.folder, prior.config)
    x = from_bytes(images)[: arguments.images]
    precision = default_precision(torch.device("cpu"))
    records = []
    for title in arguments.tasks:
        records.append(measure(title, prior, x, arguments.samples, arguments.seed, precision))
        print(title, records[-1]["inside"], f"{records[-1]['psnr']:.2f} dB", flush=True)
    values = {
        "folder": arguments.folder.name,
        "images": len(x),
        "prior": Path(arguments.prior).stem,
        "prior_sha256": sha256_of(find_weights(arguments.prior)),
        "samples": arguments.samples,
        "seed": arguments.seed,
        "precision": precision,
        "records": records,
        "made_with": provenance(),
    }
    stem = f"calibration-{values['prior']}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{stem}.json").write_text(json.dumps(values, indent=1) + "\n")
    plot(arguments.out / f"{stem}.png", records)
    (arguments.out / f"{stem}.md").write_text(page(values, f"{stem}.png"))


if __name__ == "__main__":
    main()
