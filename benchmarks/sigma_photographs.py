"""How well ``--sigma auto`` finds the noise of photographs, and what its errors cost.

    python benchmarks/sigma_photographs.py bsds/test/cbsd68

measures pictures (every fourth from the third on, their middles: the thresholds were chosen on
those from the first on) with noise of known level, 8-bit, and lets `noise_level` find it, as
`restore` does, and what it builds upon; denoises and demosaics them at the levels found and at the
true one; and does the first with noisy pictures that went through a JPEG file. Results go to
benchmarks/results/sigma_photographs.md and .json. No number is typed by hand.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import flowmend as fm
from flowmend.data import load_photographs, middle_crop
from flowmend.noise_level import noise_level
from flowmend.picture_sigma import differences_sigma, picture_sigma
from flowmend.pixels import from_bytes, round_to_bytes, to_bytes
from flowmend.provenance import provenance, told
from flowmend.report import mean_or_none, write_json
from flowmend.weights import find_weights, sha256_of

LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
TASKS: dict[str, tuple[str, dict]] = {
    "denoise": ("denoise", {}),
    "deblur gaussian:1.5": ("deblur", {"kernel": "gaussian:1.5"}),
    "inpaint random:0.5": ("inpaint", {"mask": "random:0.5"}),
    "colorize": ("colorize", {}),
    "demosaic": ("demosaic", {}),
    "upscale x2": ("upscale", {"scale": 2}),
}
QUALITIES = (95, 85, 70)
KINDS = ("used", "picture", "differences")
RESTORED = {"denoise": "denoised", "demosaic": "demosaiced"}
ROOT = Path(__file__).resolve().parent.parent


def jpeg(y: Tensor, quality: int) -> Tensor:
    """A picture (1, 3, H, W) as a JPEG file with halved colours gives it back."""
    levels = to_bytes(y)[0].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    read = np.array(Image.open(file).convert("RGB"))
    return from_bytes(torch.from_numpy(read).permute(2, 0, 1)[None])


def estimates(task: fm.tasks.Task, y: Tensor, prior: fm.Prior) -> dict[str, float]:
    """What every estimate says of one measurement."""
    moved, operator, limits = y - task.offset_like(y), task.operator, task.limits(y)
    return {
        "used": float(noise_level(moved, operator, prior, None, limits)),
        "picture": float(picture_sigma(moved, operator, limits)),
        "differences": float(differences_sigma(moved, operator, limits)),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and 90 % quantile."""
    found = torch.tensor(values, dtype=torch.float64)
    return {"median": float(found.quantile(0.5)), "q90": float(found.quantile(0.9))}


def found_levels(pictures: list[Tensor], prior: fm.Prior, seed: int) -> list[dict]:
    """A record for every task and level: errors, or at level 0 the estimates themselves."""
    records = []
    for title, (name, options) in TASKS.items():
        for sigma in (0, *LEVELS):
            values: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for x in pictures:
                task = fm.make_task(name, tuple(x.shape[1:]), sigma=sigma, **options)
                y = round_to_bytes(task.measure(x, torch.Generator().manual_seed(seed)))
                for kind, found in estimates(task, y, prior).items():
                    values[kind].append(abs(found / sigma - 1.0) if sigma else found)
            record = {"task": title, "sigma": sigma}
            records.append(record | {kind: spread(values[kind]) for kind in KINDS})
            print(records[-1], flush=True)
    return records


def restored(pictures: list[Tensor], prior: fm.Prior, seed: int) -> list[dict]:
    """Mean PSNR of restored pictures for every level: at the true one, and at those found."""
    records = []
    for name, sigma in ((name, sigma) for name in RESTORED for sigma in LEVELS):
        values: dict[str, list[float]] = {kind: [] for kind in ("known", *KINDS)}
        for x in pictures:
            shape = tuple(x.shape[1:])
            task = fm.make_task(name, shape, sigma=sigma)
            y = round_to_bytes(task.measure(x, torch.Generator().manual_seed(seed)))
            for kind, level in ({"known": sigma} | estimates(task, y, prior)).items():
                found = fm.restore(y, task.with_sigma(level), prior.at_shape(shape))
                values[kind] += fm.psnr(found.x, x)
        means = {kind: mean_or_none(values[kind]) for kind in values}
        records.append({"task": name, "sigma": sigma} | means)
        print(records[-1], flush=True)
    return records


def after_jpeg(pictures: list[Tensor], prior: fm.Prior, seed: int) -> list[dict]:
    """For every quality and level, what was found as a share of what was added."""
    records = []
    for quality in QUALITIES:
        for sigma in (0.03, 0.08):
            values: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for x in pictures:
                task = fm.make_task("denoise", tuple(x.shape[1:]), sigma=sigma)
                y = jpeg(task.measure(x, torch.Generator().manual_seed(seed)), quality)
                for kind, found in estimates(task, y, prior).items():
                    values[kind].append(found / sigma)
            record = {"quality": quality, "sigma": sigma}
            records.append(record | {kind: spread(values[kind])["median"] for kind in KINDS})
            print(records[-1], flush=True)
    return records


def page(values: dict) -> str:
    """The Markdown page."""
    heads = ["task", *(f"σ = {level}" for level in LEVELS), "σ = 0"]
    lines = [
        "# How well `--sigma auto` finds the noise of photographs",
        "",
        "Written by `python benchmarks/sigma_photographs.py`; do not edit. "
        f"{values['pictures']} pictures of `{values['folder']}`, their middles of at most "
        f"{values['side']} pixels a side, 8-bit measurements with Gaussian noise of standard "
        "deviation σ on the [0, 1] scale. A cell is the median / 90 % quantile over the pictures "
        "of |estimate / σ − 1|, in percent; the last column that of the estimate itself where "
        "there is no noise.",
    ]
    titles = {
        "used": f"`noise_level`: what is used, with `{values['prior']}`, of grey and mosaics",
        "picture": "`picture_sigma`, by the covariance of patches or by calm parts: what it "
        "corrects there, and takes elsewhere",
        "differences": "`differences_sigma`, by the finest differences: what that falls back to",
    }
    for kind, title in titles.items():
        lines += ["", f"## {title}", "", "| " + " | ".join(heads) + " |", "|---" * 8 + "|"]
        for name in TASKS:
            cells = {r["sigma"]: r[kind] for r in values["levels"] if r["task"] == name}
            row = [f"{100 * cells[s]['median']:.1f} / {100 * cells[s]['q90']:.1f}" for s in LEVELS]
            row.append(f"{cells[0]['median']:.4f} / {cells[0]['q90']:.4f}")
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    for name, done in RESTORED.items():
        lines += [
            "",
            f"## What the errors cost: {done} by `{values['prior']}`, mean PSNR in dB",
            "",
            "| σ | known | found | by patches or calm parts | by differences |",
            "|---|---:|---:|---:|---:|",
        ]
        for record in (record for record in values["restored"] if record["task"] == name):
            known = record["known"]
            cells = [f"{known:.2f}"]
            cells += [f"{record[kind]:.2f} ({record[kind] - known:+.2f})" for kind in KINDS]
            lines.append(f"| {record['sigma']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Noisy pictures from a JPEG file with halved colours: what is found of the σ that was "
        "added before, median",
        "",
        "| quality | σ | found | by patches or calm parts | by differences |",
        "|---|---|---:|---:|---:|",
    ]
    for record in values["jpeg"]:
        cells = " | ".join(f"{record[kind]:.2f}" for kind in KINDS)
        lines.append(f"| {record['quality']} | {record['sigma']} | {cells} |")
    lines += ["", told(values["made_with"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--first", type=int, default=2)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--denoise-side", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    prior = fm.load(arguments.prior)
    images = load_photographs(arguments.folder, prior.config)[0][
        arguments.first :: arguments.every
    ]

    def middles(side: int) -> list[Tensor]:
        return [
            from_bytes(middle_crop(image, min(side, image.shape[1]), min(side, image.shape[2])))[
                None
            ]
            for image in images
        ]

    pictures = middles(arguments.side)
    folder = arguments.folder.absolute()
    values = {
        "folder": f"{folder.parent.name}/{folder.name}",
        "pictures": len(pictures),
        "side": arguments.side,
        "seed": arguments.seed,
        "prior": Path(arguments.prior).stem,
        "prior_sha256": sha256_of(find_weights(arguments.prior)),
        "levels": found_levels(pictures, prior, arguments.seed),
        "restored": restored(middles(arguments.denoise_side), prior, arguments.seed),
        "jpeg": after_jpeg(pictures, prior, arguments.seed),
        "made_with": provenance(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "sigma_photographs.json", values)
    (arguments.out / "sigma_photographs.md").write_text(page(values))


if __name__ == "__main__":
    main()
