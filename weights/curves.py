"""Draws how a network learnt: held-out loss and denoising against minutes, from its log.

python weights/curves.py LOG.jsonl OUT.png

Where several runs follow each other, their logs do too: epochs that begin again begin a run.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

TITLES = {
    "val_loss": "held-out loss",
    "val_psnr_25": "denoising at 25/255, dB",
    "learning_rate": "learning rate",
}


def main() -> None:
    """Reads the log, draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.log.read_text().splitlines()]
    minutes, total, starts = [], 0.0, []
    for record in records:
        if record["epoch"] == 1:
            starts.append(total)
        total += record["seconds"] / 60.0
        minutes.append(total)
    figure, axes = pyplot.subplots(1, len(TITLES), figsize=(12, 3.2), layout="constrained")
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        axis.plot(minutes, [record[name] for record in records], marker="o", markersize=3)
        for start in starts[1:]:
            axis.axvline(start, color="grey", linestyle=":")
        axis.set(title=title, xlabel="minutes")
        axis.grid(alpha=0.3)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
