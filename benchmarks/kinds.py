"""Which kind of prior to train on a folder of one's own, in equal time.

    python benchmarks/kinds.py celeba/train celeba/val celeba/test

trains both kinds of ``flowmend train --size 32`` on the first pictures of a folder, one thread for
as many minutes each, and restores others by the default method of each. The coupling flow, which
knows no minutes, is given as many epochs as fit, by the pace of a first one that does not count.
Results go to benchmarks/results/kinds.md and .json. No number is typed by hand.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import flowmend as fm
from flowmend.data import load_folder
from flowmend.device import default_precision
from flowmend.files import find_pictures
from flowmend.pixels import from_bytes, round_to_bytes
from flowmend.provenance import provenance, told
from flowmend.report import mean_or_none, write_json
from flowmend.solver import default_method

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("denoise", "deblur", "inpaint", "colorize", "upscale", "sense")
SIZE = 32


def train(folder: Path, val: Path, out: Path, *options: object) -> float:
    """Seconds of ``flowmend train``."""
    command = [sys.executable, "-m", "flowmend", "train", folder, "--val", val, "--out", out]
    begun = time.perf_counter()
    subprocess.run([*map(str, command), *map(str, ("--size", SIZE, *options))], check=True)
    return time.perf_counter() - begun


def pace(run: Path) -> float:
    """Seconds of a run's last epoch."""
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])["seconds"]


def trained(
    pictures: list[Path], val: Path, minutes: float, place: Path
) -> dict[str, tuple[Path, float]]:
    """Folder and seconds of a run of each kind."""
    folder = place / "pictures"
    folder.mkdir()
    for path in pictures:
        (folder / path.name).symlink_to(path.resolve())
    train(folder, val, place / "first", "--epochs", 1)
    epochs = max(1, round(60.0 * minutes / pace(place / "first")))
    options = {
        "coupling": ("--epochs", epochs),
        "continuous": ("--kind", "continuous", "--minutes", minutes),
    }
    return {
        kind: (place / kind, train(folder, val, place / kind, *chosen))
        for kind, chosen in options.items()
    }


def restored(prior: fm.Prior, x: torch.Tensor) -> list[dict]:
    """Mean PSNR, dB, of 8-bit images by the default method and by the prior's own Gaussian."""
    precision, records = default_precision(torch.device("cpu")), []
    for name in TASKS:
        task = fm.make_task(name, prior.shape)
        y = task.measure(x, torch.Generator().manual_seed(0))
        y = round_to_bytes(y) if y.ndim == 4 else y  # numbers that are no picture stay as they are
        for method in ("lmmse", default_method(prior)):
            options = {} if method == "lmmse" else {"precision": precision}
            found = fm.restore(
                y,
                task,
                prior,
                method=method,
                generator=torch.Generator().manual_seed(1),
                **options,
            )
            psnr = mean_or_none(fm.psnr(round_to_bytes(found.x), x))
            records.append({"task": name, "method": method, "psnr": psnr})
            print(name, method, psnr, flush=True)
    return records


def page(values: dict) -> str:
    """The Markdown page."""
    kinds = values["kinds"]
    names = list(kinds)
    lines = [
        "# Which kind of prior to train",
        "",
        "Written by `python benchmarks/kinds.py`; do not edit. Both kinds learnt the same "
        f"{values['trained_on']} faces of {SIZE}x{SIZE} pixels, one thread, with "
        f"{values['minutes']:g} minutes for the epochs of each, and restored {values['images']} "
        "others by their default method: mean PSNR in dB, 8-bit measurements. *lmmse* is the "
        "closed form of the Gaussian that was fitted to the same faces.",
        "",
        f"| task | lmmse | {' | '.join(names)} |",
        "|---|---:" + "|---:" * len(names) + "|",
    ]
    for task in TASKS:
        cells = []
        for name in names:
            found = {r["method"]: r["psnr"] for r in kinds[name]["records"] if r["task"] == task}
            cells = cells or [f"{found['lmmse']:.2f}"]
            (value,) = (psnr for method, psnr in found.items() if method != "lmmse")
            cells.append(f"{value:.2f}")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    lines += [""]
    for name in names:
        kind = kinds[name]
        method = kind["records"][-1]["method"]
        lines.append(
            f"- {name}: `--kind {name}`, {kind['seconds'] / 60:.1f} minutes in all (other "
            f"work ran beside), {kind['epochs']} epochs, the best of which is kept; restored by "
            f"{method}."
        )
    return "\n".join([*lines, "", told(values["made_with"])]) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="clean pictures to train on")
    parser.add_argument("val", type=Path, help="held-out pictures")
    parser.add_argument("test", type=Path, help="pictures to restore")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    pictures = find_pictures([arguments.folder])[: arguments.pictures]
    kinds = {}
    with tempfile.TemporaryDirectory() as place:
        runs = trained(pictures, arguments.val, arguments.minutes, Path(place))
        for kind, (run, seconds) in runs.items():
            prior = fm.load(run)
            x = from_bytes(load_folder(arguments.test, prior.config)[0])[: arguments.images]
            epochs = len((run / "log.jsonl").read_text().splitlines())
            records = restored(prior, x)
            kinds[kind] = {"seconds": seconds, "epochs": epochs, "records": records}
    values = {
        "trained_on": len(pictures),
        "images": len(x),
        "minutes": arguments.minutes,
        "kinds": kinds,
        "made_with": provenance(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "kinds.json", values)
    (arguments.out / "kinds.md").write_text(page(values))
    print(page(values))


if __name__ == "__main__":
    main()
