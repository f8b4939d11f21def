"""Fast MAP against the paper's recipe, with the same weights, on the paper's four tasks.

    python benchmarks/race.py celeba/test --prior weights/paper32.safetensors

One batch of faces, 8-bit measurements, both methods with their defaults: the recipe is 1,500 steps
of Eq. 7 from a small start, fast MAP starts at the LMMSE solution. Fast MAP runs before and after
the recipe, and once more, on a batch whose operator has been seen: the Gaussian posterior, which
takes longer than the steps, is then at hand. The clock stops while PSNR is computed. Results go to
benchmarks/results/race.json and .md.
"""

import argparse
import time
from pathlib import Path

import torch

import flowmend as fm
from flowmend.data import load_folder
from flowmend.device import default_precision
from flowmend.pixels import from_bytes, round_to_bytes
from flowmend.provenance import provenance, told
from flowmend.report import mean_or_none, write_json
from flowmend.solver import solve
from flowmend.weights import find_weights, sha256_of

TASKS = ("denoise", "deblur", "inpaint", "colorize")
SHARE = 0.01
"""Largest wanted time of fast MAP to the recipe's PSNR, as a share of the recipe's time."""
EVERY = 100
ROOT = Path(__file__).resolve().parent.parent


class Watch:
    """PSNR against seconds, the time it takes itself left out."""

    def __init__(self, x: torch.Tensor, every: int) -> None:
        self.x, self.every = x, every
        self.points: list[tuple[int, float, float]] = []
        self.own = 0.0
        self.begun = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the beginning, own ones left out."""
        return time.perf_counter() - self.begun - self.own

    def __call__(self, step: int, x: torch.Tensor) -> None:
        now = time.perf_counter()
        if step % self.every == 0:
            self.points.append(
                (step, now - self.begun - self.own, mean_or_none(fm.psnr(x, self.x)))
            )
        self.own += time.perf_counter() - now


def run(
    method: str, task: fm.tasks.Task, prior: fm.Prior, x: torch.Tensor, **options: object
) -> dict:
    """One method on one batch: final PSNR and seconds, and both along the way."""
    y = round_to_bytes(task.measure(x, torch.Generator().manual_seed(0)))
    watch = Watch(x, EVERY if method == "likelihood" else 1)
    solution = solve(y, task.operator, prior, method=method, observe=watch, **options)
    seconds = watch.seconds()
    psnr = mean_or_none(fm.psnr(solution.x, x))
    return {"psnr": psnr, "seconds": seconds, "points": [*watch.points, (-1, seconds, psnr)]}


def reached(found: dict, psnr: float) -> float | None:
    """Seconds until a PSNR was reached; None if it never was."""
    return next((seconds for _, seconds, value in found["points"] if value >= psnr), None)


def race(name: str, prior: fm.Prior, x: torch.Tensor, steps: int | None, precision: str) -> dict:
    """Fast MAP twice, the recipe, fast MAP on a fresh prior again."""
    task = fm.make_task(name, prior.shape)
    options = {"sigma": task.sigma, "precision": precision}
    first = run("fast-map", task, prior, x, **options)
    later = [run("fast-map", task, prior, x, **options)]
    recipe = run("likelihood", task, prior, x, steps=steps, **options)
    later.append(run("fast-map", task, prior, x, **options))
    times = [reached(found, recipe["psnr"]) for found in (first, *later)]
    return {
        "task": name,
        "recipe": recipe,
        "first": first,
        "later": later,
        "start_psnr": first["points"][0][2],
        "reached_first": times[0],
        "reached_later": None if None in times[1:] else sum(times[1:]) / 2,
    }


def page(result: dict) -> str:
    """The results in Markdown."""
    lines = [
        "# Fast MAP against the paper's recipe",
        "",
        "Written by `benchmarks/race.py`; do not edit. Mean PSNR in dB of "
        f"{result['images']} faces of `{result['folder']}`, prior `{result['prior']}` for both, "
        f"{result['precision']} coupling networks. *First batch* includes the factorisation of "
        "the Gaussian posterior, which later batches of the same task reuse.",
        "",
        "| task | recipe | LMMSE start | fast MAP | reaches the recipe: first batch | later "
        "batches | share of the recipe's time |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        whole = row["recipe"]["seconds"]
        cells = [f"{row['recipe']['psnr']:.2f} in {whole:.0f} s", f"{row['start_psnr']:.2f}"]
        last = row["later"][-1]
        cells.append(f"{last['psnr']:.2f} in {last['seconds']:.1f} s")
        for seconds in (row["reached_first"], row["reached_later"]):
            cells.append("never" if seconds is None else f"{seconds:.2f} s")
        shares = [row["reached_first"], row["reached_later"]]
        cells.append(" / ".join("-" if s is None else f"1/{whole / s:.0f}" for s in shares))
        lines.append(f"| {row['task']} | {' | '.join(cells)} |")
    good = {
        batches: ", ".join(
            row["task"]
            for row in result["rows"]
            if (row[f"reached_{batches}"] or 1e9) <= SHARE * row["recipe"]["seconds"]
        )
        for batches in ("first", "later")
    }
    at_once = [row["task"] for row in result["rows"] if row["start_psnr"] >= row["recipe"]["psnr"]]
    lines += [
        "",
        f"In at most 1/{1 / SHARE:.0f} of the time, first batches: {good['first'] or 'none'}; "
        f"later batches: {good['later'] or 'none'}. "
        "Where the LMMSE start alone is as good as the recipe: "
        f"{', '.join(at_once) or 'nowhere'}.",
    ]
    return "\n".join([*lines, "", told(result["made_with"])]) + "\n"


def main() -> None:
    """Races and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prior", default=str(ROOT / "weights" / "paper32.safetensors"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, help="of the recipe; default: the paper's")
    parser.add_argument("--precision", default=default_precision(torch.device("cpu")))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    prior = fm.load(arguments.prior)
    x = from_bytes(load_folder(arguments.folder, prior.config)[0])[: arguments.images]
    rows = []
    for name in TASKS:
        rows.append(race(name, prior, x, arguments.steps, arguments.precision))
        print(f"{name}: {rows[-1]['reached_first']} s, {rows[-1]['reached_later']} s", flush=True)
    result = {
        "folder": arguments.folder.name,
        "images": len(x),
        "prior": Path(arguments.prior).stem,
        "prior_sha256": sha256_of(find_weights(arguments.prior)),
        "precision": arguments.precision,
        "rows": rows,
        "made_with": provenance(),
    }
    write_json(arguments.out / "race.json", result)
    (arguments.out / "race.md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
