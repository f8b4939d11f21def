"""What it costs to take a file's clipped noise for Gaussian, and what is won back.

    python benchmarks/clipping.py celeba/test --prior faces32 --images 64
    python benchmarks/clipping.py natural/test/cbsd68 --prior natural --images 17

restores pictures from measurements that were not clipped (arrays), from 8-bit files as they are,
and from the same files with the limits of a file known, which is what `flowmend restore` does;
noise also by BM3D. Results go to benchmarks/results/clipping.md and .json, each case in place of
that of the same prior. No number is typed by hand.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch

import flowmend as fm
from flowmend.data import load_folder
from flowmend.device import default_precision
from flowmend.files import find_pictures, read_image
from flowmend.pixels import from_bytes, round_to_bytes
from flowmend.provenance import provenance, told
from flowmend.report import mean_or_none, write_json
from flowmend.weights import find_weights, sha256_of

CASES: dict[str, tuple[str, dict]] = {
    "denoise σ = 0.05": ("denoise", {"sigma": 0.05}),
    "denoise σ = 0.1": ("denoise", {"sigma": 0.1}),
    "denoise σ = 0.2": ("denoise", {"sigma": 0.2}),
    "denoise σ = 0.3": ("denoise", {"sigma": 0.3}),
    "deblur gaussian:1.5, σ = 0.05": ("deblur", {"kernel": "gaussian:1.5", "sigma": 0.05}),
    "inpaint center:0.4, σ = 0.1": ("inpaint", {"sigma": 0.1}),
    "demosaic σ = 0.05": ("demosaic", {"sigma": 0.05}),
}
WAYS = ("array", "file", "file as it is", "bm3d, file as it is")
ROOT = Path(__file__).resolve().parent.parent


def restored(
    way: str, task: fm.tasks.Task, prior: fm.Prior, y: torch.Tensor, seed: int
) -> torch.Tensor | None:
    """Images from measurements in one way; None where it does not fit the task."""
    file = round_to_bytes(y)
    settings = {
        "precision": default_precision(torch.device("cpu")),
        "generator": torch.Generator().manual_seed(seed),
    }
    if way == "array":
        return fm.restore(y, task, prior, **settings).x
    if way == "file":
        return fm.restore(file, task, prior, **settings).x
    if way == "file as it is":
        plain = file - task.offset
        return fm.solve(plain, task.operator, prior, sigma=task.sigma, **settings).x
    if task.name != "denoise":
        return None
    return fm.solve(file, task.operator, prior, method="bm3d", sigma=task.sigma).x


def run(name: str, pictures: list[torch.Tensor], cases: list[str], seed: int) -> Iterator[dict]:
    """A record for each case of one prior: mean PSNR of every way; pictures (B, C, H, W)."""
    prior = fm.load(name)
    for title in cases:
        task_name, options = CASES[title]
        values: dict[str, list[float]] = {}
        clipped = []
        for index, x in enumerate(pictures):
            local = prior if prior.shape == x.shape[1:] else prior.at_shape(tuple(x.shape[1:]))
            task = fm.make_task(task_name, local.shape, **options)
            y = task.measure(x, torch.Generator().manual_seed(seed * 1_000_003 + index))
            clipped.append(float(((y <= 0) | (y >= 1)).float().mean()))
            for way in WAYS:
                found = restored(way, task, local, y, seed)
                if found is not None:
                    values.setdefault(way, []).extend(fm.psnr(found, x))
        record = {
            "case": title,
            "prior": Path(name).stem,
            "prior_sha256": sha256_of(find_weights(name)),
            "images": len(values["file"]),
            "clipped": sum(clipped) / len(clipped),
            "psnr": {way: mean_or_none(found) for way, found in values.items()},
            "made_with": provenance(),
        }
        print(json.dumps(record, ensure_ascii=False), flush=True)
        yield record


def page(all_records: list[dict]) -> str:
    """The Markdown page."""
    lines = [
        "# What clipped noise costs, and what is won back",
        "",
        "Written by `python benchmarks/clipping.py`; do not edit. Mean PSNR in dB. A file holds "
        "nothing beyond black and white, so noise there is cut off. *array*: measurements that "
        "were not clipped. *file*: 8-bit measurements, as `flowmend restore` takes them. *as it "
        "is*: the same without knowing that they were clipped. *clipped*: share of the values at "
        "a limit.",
    ]
    for name in dict.fromkeys(record["prior"] for record in all_records):
        records = [record for record in all_records if record["prior"] == name]
        lines += [
            "",
            f"## {name}, {records[0]['images']} pictures (sha256 "
            f"{records[0]['prior_sha256'][:12]})",
            "",
            "| | clipped | " + " | ".join(WAYS) + " | file, gain |",
            "|---" * (len(WAYS) + 3) + "|",
        ]
        for record in records:
            psnr = record["psnr"]
            cells = ["-" if psnr.get(way) is None else f"{psnr[way]:.2f}" for way in WAYS]
            gain = psnr["file"] - psnr["file as it is"]
            share = f"{100 * record['clipped']:.0f} %"
            lines.append(f"| {record['case']} | {share} | {' | '.join(cells)} | {gain:+.2f} |")
        for made in dict.fromkeys(told(record["made_with"]) for record in records):
            lines += ["", made]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prior", default="faces32")
    parser.add_argument("--images", type=int, default=64, help="spread evenly over the folder")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    config = fm.load(arguments.prior).config
    if getattr(config, "size", True) is None:
        paths = find_pictures([arguments.folder])
        paths = paths[:: max(1, len(paths) // arguments.images)][: arguments.images]
        pictures = [read_image(path)[None] for path in paths]
    else:
        faces = from_bytes(load_folder(arguments.folder, config)[0])
        faces = faces[:: max(1, len(faces) // arguments.images)][: arguments.images]
        pictures = list(faces.split(32))
    path = arguments.out / "clipping.json"
    records = json.loads(path.read_text()) if path.is_file() else []
    arguments.out.mkdir(parents=True, exist_ok=True)
    for record in run(arguments.prior, pictures, arguments.cases, arguments.seed):
        place = (record["prior"], record["case"])
        records = [r for r in records if (r["prior"], r["case"]) != place] + [record]
        write_json(path, records)
        (arguments.out / "clipping.md").write_text(page(records))


if __name__ == "__main__":
    main()
