"""What bfloat16 networks change in restored faces, and the time they save.

    python benchmarks/precision.py celeba/test

restores the paper's four tasks by every prior's default method in float32 and in bfloat16, each
batch in both before the next. Results go to benchmarks/results/precision.md and .json. No number
is typed by hand.
"""

import argparse
import time
from pathlib import Path

import torch

import flowmend as fm
from flowmend.data import load_folder
from flowmend.pixels import from_bytes, round_to_bytes
from flowmend.provenance import provenance, told
from flowmend.report import mean_or_none, write_json
from flowmend.weights import find_weights, sha256_of

TASKS = ("denoise", "deblur", "inpaint", "colorize")
PRECISIONS = ("float32", "bfloat16")
LARGEST = 0.02
"""Largest wanted change of the mean PSNR, dB."""
ROOT = Path(__file__).resolve().parent.parent


def run(name: str, folder: Path, images: int, seed: int) -> list[dict]:
    """A record for each task of one prior."""
    prior, records = fm.load(name), []
    x = from_bytes(load_folder(folder, prior.config)[0])[:images]
    for task_name in TASKS:
        task = fm.make_task(task_name, prior.shape)
        y = round_to_bytes(task.measure(x, torch.Generator().manual_seed(seed)))
        psnr: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        seconds = dict.fromkeys(PRECISIONS, 0.0)
        # the first solve pays for what is made once for the task
        for index, part in enumerate(
            (slice(0, 1), *(slice(i, i + 32) for i in range(0, len(x), 32)))
        ):
            for precision in PRECISIONS:
                generator = torch.Generator().manual_seed(seed)
                begun = time.perf_counter()
                found = fm.restore(y[part], task, prior, precision=precision, generator=generator)
                if index:
                    seconds[precision] += time.perf_counter() - begun
                    psnr[precision] += fm.psnr(found.x, x[part])
        record = {
            "prior": Path(name).stem,
            "prior_sha256": sha256_of(find_weights(name)),
            "method": found.method,
            "task": task_name,
            "images": len(x),
            "psnr": {precision: mean_or_none(values) for precision, values in psnr.items()},
            "seconds": seconds,
        }
        records.append(record)
        print(record, flush=True)
    return records


def page(values: dict) -> str:
    """The Markdown page."""
    records = values["records"]
    lines = [
        "# What bfloat16 changes",
        "",
        "Written by `python benchmarks/precision.py`; do not edit. Mean PSNR in dB of "
        f"{records[0]['images']} faces, 8-bit measurements, by the prior's default method; *time* "
        "is that in bfloat16 as a share of that in float32.",
        "",
        "| prior, method | task | float32 | bfloat16 | change | time |",
        "|---|---|---:|---:|---:|---:|",
    ]
    beyond = []
    for record in records:
        full, half = (record["psnr"][precision] for precision in PRECISIONS)
        name = f"{record['prior']}, {record['method']}"
        share = record["seconds"]["bfloat16"] / record["seconds"]["float32"]
        lines.append(
            f"| {name} | {record['task']} | {full:.3f} | {half:.3f} | {half - full:+.3f} | "
            f"{share:.2f} |"
        )
        if abs(half - full) > LARGEST:
            beyond.append(f"{name}, {record['task']}")
    lines += [
        "",
        f"Changed by more than {LARGEST} dB: {'; '.join(beyond) or 'nowhere'}.",
        "",
        told(values["made_with"]),
    ]
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    settings = (arguments.folder, arguments.images, arguments.seed)
    records = [record for name in arguments.priors for record in run(name, *settings)]
    values = {"seed": arguments.seed, "records": records, "made_with": provenance()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "precision.json", values)
    (arguments.out / "precision.md").write_text(page(values))


if __name__ == "__main__":
    main()
