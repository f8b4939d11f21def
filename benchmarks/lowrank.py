"""What a Gaussian of low rank, which images of any size can have, lacks to a dense one.

    python benchmarks/lowrank.py celeba/train celeba/test --prior faces32 --images 64

fits both to the same faces of 32 x 32 pixels (the prior's own is the dense one) and restores held
out ones from 8-bit measurements by methods that start from them. Results go to
benchmarks/results/lowrank.md and .json. No number is typed by hand.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch

import flowmend as fm
from flowmend.data import load_folder
from flowmend.device import default_precision
from flowmend.lowrank import LowRankGaussian
from flowmend.pixels import from_bytes, round_to_bytes
from flowmend.provenance import provenance, told
from flowmend.report import mean_or_none, write_json
from flowmend.weights import find_weights, sha256_of

CASES: dict[str, tuple[str, dict]] = {
    "denoise σ = 0.1": ("denoise", {}),
    "inpaint centre": ("inpaint", {}),
    "inpaint random:0.7": ("inpaint", {"mask": "random:0.7"}),
    "colorize": ("colorize", {}),
    "deblur box 3": ("deblur", {}),
    "deblur box 3, σ = 0.01": ("deblur", {"sigma": 0.01}),
    "upscale by 2": ("upscale", {}),
    "sense 25 %": ("sense", {}),
}
METHODS = ("lmmse", "fast-map", "posterior")
BATCH = 32
ROOT = Path(__file__).resolve().parent.parent


def run(
    name: str, levels: torch.Tensor, faces: torch.Tensor, cases: list[str], seed: int
) -> Iterator[dict]:
    """A record for each case: mean PSNR of every method by both Gaussians."""
    dense = fm.load(name)
    low = fm.FlowPrior(dense.flow, dense.gaussian).eval()
    low.gaussian = LowRankGaussian.fit(levels, seed=seed)  # the flow keeps what whitens for it
    for title in cases:
        task_name, options = CASES[title]
        task = fm.make_task(task_name, dense.shape, **options)
        values: dict[str, list[float]] = {}
        for index, x in enumerate(faces.split(BATCH)):
            y = task.measure(x, torch.Generator().manual_seed(seed * 1_000_003 + index))
            y = round_to_bytes(y) if y.ndim == 4 else y
            for kind, prior in (("dense", dense), ("low rank", low)):
                for method in METHODS:
                    found = fm.restore(
                        y,
                        task,
                        prior,
                        method=method,
                        precision=default_precision(torch.device("cpu")),
                        generator=torch.Generator().manual_seed(seed),
                    )
                    values.setdefault(f"{method}, {kind}", []).extend(fm.psnr(found.x, x))
        record = {
            "case": title,
            "prior": Path(name).stem,
            "prior_sha256": sha256_of(find_weights(name)),
            "directions": len(low.gaussian.variances),
            "images": len(faces),
            "psnr": {way: mean_or_none(found) for way, found in values.items()},
            "made_with": provenance(),
        }
        print(json.dumps(record, ensure_ascii=False), flush=True)
        yield record


def page(records: list[dict]) -> str:
    """The Markdown page."""
    first = records[0]
    ways = [f"{method}, {kind}" for method in METHODS for kind in ("dense", "low rank")]
    lines = [
        "# A Gaussian of low rank and a dense one",
        "",
        "Written by `python benchmarks/lowrank.py`; do not edit. Mean PSNR in dB of "
        f"{first['images']} faces that were not trained on, from 8-bit measurements, by "
        f"{first['prior']} (sha256 {first['prior_sha256'][:12]}). Both Gaussians are fitted to "
        f"the same faces; that of low rank has {first['directions']} directions and a stationary "
        "rest, and is what images of more than 4,096 values get.",
        "",
        "| | " + " | ".join(ways) + " |",
        "|---" * (len(ways) + 1) + "|",
    ]
    for record in records:
        cells = [f"{record['psnr'][way]:.2f}" for way in ways]
        lines.append(f"| {record['case']} | {' | '.join(cells)} |")
    for made in dict.fromkeys(told(record["made_with"]) for record in records):
        lines += ["", made]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prior", default="faces32")
    parser.add_argument("--images", type=int, default=64, help="spread evenly over the folder")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    config = fm.load(arguments.prior).config
    levels, _ = load_folder(arguments.train, config)
    faces = from_bytes(load_folder(arguments.folder, config)[0])
    faces = faces[:: max(1, len(faces) // arguments.images)][: arguments.images]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "lowrank.json"
    records = json.loads(path.read_text()) if path.is_file() else []
    for record in run(arguments.prior, levels, faces, arguments.cases, arguments.seed):
        records = [r for r in records if r["case"] != record["case"]] + [record]
        write_json(path, records)
        (arguments.out / "lowrank.md").write_text(page(records))


if __name__ == "__main__":
    main()
