"""The paper's four tasks on a folder of faces: every method, PSNR and SSIM, seconds per image.

    python benchmarks/four_tasks.py run celeba/test --prior faces32 --out benchmarks/results
    python benchmarks/four_tasks.py render benchmarks/results

``run`` adds a JSON line for each task and method and skips those it finds there; ``render`` writes
docs/defaults.md and the table of README.md from the lines. No number is typed by hand.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import flowmend as fm
from flowmend.data import load_folder
from flowmend.device import default_precision
from flowmend.pixels import from_bytes, round_to_bytes
from flowmend.provenance import provenance
from flowmend.report import mean_or_none
from flowmend.weights import find_weights, sha256_of

TASKS = ("denoise", "deblur", "inpaint", "colorize")
METHODS = (
    "measurement",
    "pinv",
    "lmmse",
    "bm3d",
    "csgm",
    "glowip",
    "map small",
    "likelihood small",
    "map lmmse",
    "likelihood lmmse",
    "fast-map",
    "posterior",
    "splitting",
)
"""Names of methods; a second word is the start, where it is not the method's own."""
SHOWN = ("faces32", "faces32-continuous")
"""Priors of README.md's table, the one that needs no name first."""
ROOT = Path(__file__).resolve().parent.parent


def measure(task: fm.tasks.Task, x: torch.Tensor, seed: int) -> torch.Tensor:
    """Measurements as 8-bit files hold them, with the noise of `flowmend degrade`."""
    rows = []
    for index in range(len(x)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        rows.append(task.measure(x[index : index + 1], generator))
    return round_to_bytes(torch.cat(rows))


def run_one(
    method: str,
    task: fm.tasks.Task,
    prior: fm.FlowPrior,
    x: torch.Tensor,
    steps: int,
    seed: int,
    precision: str,
) -> dict | None:
    """One method on one task; None where it does not fit."""
    y = measure(task, x, seed)
    begun = time.monotonic()
    if method == "measurement":
        restored, taken = task.picture(y), 0
    else:
        name, _, start = method.partition(" ")
        latent = fm.METHODS[name].objective is not None
        parts = []
        for index, part in enumerate(y.split(32)):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            try:
                solution = fm.restore(
                    part,
                    task,
                    prior,
                    name,
                    steps=steps if latent else None,
                    start=start or None,
                    precision=precision,
                    generator=generator,
                )
            except fm.FlowmendError as error:
                print(f"{task.name:9} {method:11} refused: {error}", file=sys.stderr)
                return None
            if not solution.finished:
                print(f"{task.name} {method}: {solution.status}", file=sys.stderr)
            parts.append(solution.x)
        restored, taken = torch.cat(parts), steps if latent else fm.METHODS[name].steps
    seconds = time.monotonic() - begun
    psnr, ssim = fm.psnr(restored, x), fm.ssim(restored, x)
    mean = mean_or_none(psnr)
    known = [value for value in psnr if math.isfinite(value)]
    spread = math.sqrt(sum((v - mean) ** 2 for v in known) / max(1, len(known) - 1))
    return {
        "psnr": mean,
        "psnr_standard_error": spread / math.sqrt(len(known)),
        "ssim": mean_or_none(ssim),
        "seconds_per_image": seconds / len(x),
        "steps": taken,
    }


def run(arguments: argparse.Namespace) -> None:
    """Fills the results file."""
    prior = fm.load(arguments.prior)
    sha256 = sha256_of(find_weights(arguments.prior))
    images, _ = load_folder(arguments.folder, prior.config)
    x = from_bytes(images)[: arguments.images]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "four_tasks.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    names = ("folder", "images", "prior", "wanted_steps", "seed", "task", "method")
    done = {tuple(json.loads(line)[name] for name in names) for line in lines}
    precision = default_precision(torch.device("cpu"))
    for method in arguments.methods:
        for name in arguments.tasks:
            place = (Path(arguments.folder).name, len(x), Path(arguments.prior).stem)
            key = (*place, arguments.steps, arguments.seed, name, method)
            if key in done:
                continue
            task = fm.make_task(name, prior.shape)
            found = run_one(method, task, prior, x, arguments.steps, arguments.seed, precision)
            if found is None:
                continue
            record = dict(zip(names, key, strict=True)) | found
            record |= {"prior_sha256": sha256, "precision": precision, "made_with": provenance()}
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{name:9} {method:11} {found['psnr']:.2f} dB {found['ssim']:.3f}", flush=True)


def cell(record: dict) -> str:
    """PSNR, its standard error where every image has a finite one, and SSIM."""
    error = record["psnr_standard_error"]
    spread = f" ± {error:.2f}" if math.isfinite(error) else ""
    return f"{record['psnr']:.2f}{spread} / {record['ssim']:.3f}"


def table(records: list[dict], methods: Sequence[str] = METHODS) -> str:
    """A Markdown table of one run: methods by tasks."""
    cells = {(record["method"], record["task"]): record for record in records}
    lines = ["| method | " + " | ".join(TASKS) + " |", "|---" * (len(TASKS) + 1) + "|"]
    for method in methods:
        row = []
        for task in TASKS:
            record = cells.get((method, task))
            row.append("-" if record is None else cell(record))
        if any(text != "-" for text in row):
            lines.append(f"| {method} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def render(arguments: argparse.Namespace) -> None:
    """Writes docs/defaults.md and the table of README.md from the results file."""
    lines = (arguments.folder / "four_tasks.jsonl").read_text().splitlines()
    groups: dict[tuple, list[dict]] = {}
    for record in map(json.loads, lines):
        key = tuple(record[n] for n in ("folder", "images", "prior", "wanted_steps", "seed"))
        groups.setdefault(key, []).append(record)
    page = [
        "# What `flowmend restore` gives as it stands",
        "",
        "Written by `python benchmarks/four_tasks.py render benchmarks/results` from the JSON "
        "lines in `benchmarks/results`; do not edit. True PSNR in dB ± standard error / SSIM, "
        "per image on 8 bits, then averaged. Measurements are 8-bit. *measurement* is doing "
        "nothing; a second word in a method's name is its start. An image whose PSNR is infinite "
        "(a grey face is its own measurement in colorize) is left out of the mean.",
    ]
    for (folder, images, prior, steps, seed), records in groups.items():
        made = records[-1]["made_with"]
        runs: dict[str, dict[str, None]] = {}
        for record in records:
            place = f"{record['made_with']['commit']}, prior {record['prior_sha256'][:12]}"
            runs.setdefault(record["made_with"]["command"], {})[place] = None
        commands = [
            f"`{command}` (commit {'; '.join(places)})" for command, places in runs.items()
        ]
        title = f"{prior} on {images} faces of `{folder}`"
        if any(record["steps"] == steps for record in records):
            title += f", {steps} steps"
        page += [
            "",
            f"## {title}",
            "",
            table(records),
            "",
            f"Seed {seed}, torch {made['torch']}, {made['device']}, "
            f"{records[-1]['precision']} coupling networks. {'; '.join(commands)}.",
        ]
    (ROOT / "docs" / "defaults.md").write_text("\n".join(page) + "\n")
    shown = next(key for key in groups if key[2] == SHOWN[0])
    records = list(groups[shown])
    for key, others in groups.items():
        if key[2] in SHOWN[1:] and key[:2] == shown[:2]:
            named = f"{{}} ({key[2]})"
            records += [other | {"method": named.format(other["method"])} for other in others]
    extra = tuple(dict.fromkeys(r["method"] for r in records if r["method"] not in METHODS))
    text = (
        f"PSNR in dB ± standard error / SSIM on {shown[1]} test faces of CelebA at 32x32, prior "
        f"`{shown[2]}` where none is named; {shown[3]} steps of Eq. 7 and MAP, 20 of fast-map, 40 "
        f"of posterior with `{shown[2]}`:\n\n{table(records, (*METHODS, *extra))}"
    )
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split("<!-- results -->")
    after = rest.split("<!-- /results -->")[1]
    readme.write_text(f"{before}<!-- results -->\n{text}\n<!-- /results -->{after}")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    runner.add_argument("folder", type=Path)
    runner.add_argument("--prior", default="faces32")
    runner.add_argument("--images", type=int, default=192)
    runner.add_argument("--steps", type=int, default=1500)
    runner.add_argument("--seed", type=int, default=0)
    runner.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    runner.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    runner.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    runner.set_defaults(action=run)
    renderer = commands.add_parser("render")
    renderer.add_argument("folder", type=Path, nargs="?", default=ROOT / "benchmarks" / "results")
    renderer.set_defaults(action=render)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
