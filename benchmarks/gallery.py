"""Photographs before and after, at their own resolution: docs/photographs.md and its pictures.

    python benchmarks/gallery.py --prior natural

Public-domain photographs that scikit-image ships (astronaut and rocket: NASA and SpaceX; cat:
Stefan van der Walt; coffee: Rachel Michetti, pikolo), damaged and restored as `flowmend restore`
does it untouched. No number is typed by hand.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from skimage import data

import flowmend as fm
from flowmend.chance import generator_at
from flowmend.device import default_precision
from flowmend.photographs import photograph_task, restore_photograph
from flowmend.provenance import provenance, told
from flowmend.report import Row, panel, save_panel
from flowmend.weights import find_weights, sha256_of

ROOT = Path(__file__).resolve().parent.parent
SIDE = 224


@dataclass(frozen=True)
class Scene:
    """A photograph and what is done to it.

    Args:
        title: What is done, in words.
        picture: Name in :mod:`skimage.data`.
        corner: Upper left corner of the part that is shown.
        task: A task.
        options: Its options when the picture is damaged.
        told: What the restoration is told instead, where it differs.
    """

    title: str
    picture: str
    corner: tuple[int, int]
    task: str
    options: dict = field(default_factory=dict)
    told: dict | None = None


SCENES = (
    Scene("noise, σ = 0.1", "astronaut", (20, 110), "denoise", {"sigma": 0.1}),
    Scene(
        "light counted, level unknown",
        "coffee",
        (60, 180),
        "denoise",
        {"noise": "poisson", "peak": 60},
        {"sigma": "auto"},
    ),
    Scene(
        "motion blur of 15 pixels, σ = 0.01",
        "rocket",
        (140, 260),
        "deblur",
        {"kernel": "motion:15:30", "sigma": 0.01},
    ),
    Scene(
        "blur, σ = 0.01", "chelsea", (30, 110), "deblur", {"kernel": "gaussian:1.6", "sigma": 0.01}
    ),
    Scene("80 % of the pixels lost", "chelsea", (30, 110), "inpaint", {"mask": "random:0.8"}),
    Scene("half the resolution", "astronaut", (20, 110), "upscale", {"scale": 2, "sigma": 0.0}),
    Scene("no colours", "coffee", (60, 180), "colorize"),
)


def show(scene: Scene, prior: fm.ContinuousPrior) -> tuple[Row, str]:
    """Damages, restores, and says it in pictures and in a command."""
    x = torch.from_numpy(getattr(data, scene.picture)()).permute(2, 0, 1)[None].float() / 255.0
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    options = scene.options
    damaged = options | ({"boundary": "valid"} if scene.task == "deblur" else {})
    task = fm.make_task(scene.task, tuple(x.shape[1:]), **damaged)
    y = task.measure(x, generator_at(0, 1))
    given = scene.told or options
    known = photograph_task(scene.task, tuple(y.shape[1:]), 3, **given)
    begun = time.perf_counter()
    found = restore_photograph(y, known, prior, precision=default_precision(torch.device("cpu")))
    seconds = time.perf_counter() - begun
    if scene.task == "deblur":
        top, left = ((n - 1) - n // 2 for n in task.operator.kernel.shape)
        x = x[..., top : top + y.shape[-2], left : left + y.shape[-1]]
    picture = y if y.shape[-2:] == x.shape[-2:] else known.picture(y)
    picture = picture.expand_as(x).clamp(0.0, 1.0)
    rows, columns = (slice(start, start + SIDE) for start in scene.corner)
    images = [image[0, :, rows, columns] for image in (picture, found.x, x)]
    captions = [
        f"{fm.psnr(picture, x)[0]:.2f} dB",
        f"{fm.psnr(found.x, x)[0]:.2f} dB / {fm.ssim(found.x, x)[0]:.3f}",
        f"{x.shape[-1]} x {x.shape[-2]} pixels, {seconds:.0f} s",
    ]
    words = " ".join(f"--{name} {value}" for name, value in given.items() if value)
    command = f"flowmend restore {scene.picture}.png --task {scene.task} {words} --out restored/"
    print(f"{scene.title}: {captions}", flush=True)
    return Row("", images, captions), " ".join(command.split())


def main() -> None:
    """Restores every scene and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    prior, made_with = fm.load(arguments.prior), provenance()
    page = [
        "# Photographs, before and after",
        "",
        "Written by `python benchmarks/gallery.py`; do not edit. One prior, "
        f"`{Path(arguments.prior).stem}`, for all of them; it has seen none of these pictures and "
        "none of these kinds of damage. Parts are shown at their own resolution; PSNR and SSIM "
        "are those of the whole pictures.",
    ]
    for index, scene in enumerate(SCENES):
        row, command = show(scene, prior)
        name = f"{index + 1}-{scene.task}.png"
        sheet = panel(["measured", "restored", "the truth"], [row], side=SIDE)
        save_panel(arguments.out / "photographs" / name, sheet)
        title = scene.title[0].upper() + scene.title[1:]
        page += ["", f"## {title}", "", f"![{title}](photographs/{name})", "", f"`{command}`"]
    page += [
        "",
        f"Prior sha256 {sha256_of(find_weights(arguments.prior))[:12]}. {told(made_with)}",
        "",
        "The photographs are those of scikit-image, in the public domain.",
    ]
    (arguments.out / "photographs.md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
