"""Assembles the results page, tables and plots from the JSON lines; measures nothing."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import FlowmendError
from ..files import atomic_path, writing
from . import lines
from .plan import BATCH, ENTRIES
from .tables import Cell, ablation_table, cells, curves, doubled, plot_curves, table1, write_csv
from .timing import table2
from .verdict import verdicts

__all__ = ["assemble"]

SETTLED = 0.02
"""Largest change in PSNR, in dB, that counts as none."""
PICTURES = {
    "figure1": "Samples at growing temperature; a column keeps its direction, σ = 0 is the zero "
    "latent",
    "figure2": "The architecture",
    "figure3": "Denoising",
    "figure4": "Deblurring",
    "figure5": "Inpainting",
    "figure6": "Colourisation",
}

EXPLANATION = (
    "PSNR and SSIM are of 8-bit images, one value an image, mean ± standard error; an image "
    "restored without any error has no finite PSNR and is left out of its mean. *Eq. 7 against "
    "it*: mean difference in PSNR of Eq. 7 over the method on the same images ± half a 95 % "
    "interval, paired t test. *The author's protocol*: 5-bit levels, squared error pooled over "
    f"batches of {BATCH}, as in the paper's code. *Which is*: the true PSNR behind the printed "
    "figure, 2 · printed − 48.13. *Weight*: chosen on validation images, on the [0, 1] scale. "
    "*Twice the steps*: what they change on validation images. *Best step*: the best mean PSNR "
    "along the way and its step, picked with the truth in hand, so by an oracle. Denoising: "
    "σ = 25.5/255, floored and clamped to 8 bits. Deblurring: 3x3 mean, mid-grey border. "
    "Inpainting: the 13x13 centre. Colourisation: mean of the channels. The last three are "
    "without noise."
)


def _write(path: Path, text: str) -> None:
    with writing(path), atomic_path(path) as temporary:
        temporary.write_text(text)


def _made(rows: Sequence[dict]) -> str:
    """Where rows come from: commit, machine, versions, seed and commands, each once."""
    names = ("commit", "device", "torch", "python", "seed", "precision", "prior_sha256", "command")
    parts = []
    for name in names:
        values = list(dict.fromkeys(str(row[name])[:120] for row in rows if name in row))
        if values and name == "command":
            parts.append("commands " + ", ".join(f"`{value}`" for value in values))
        elif values:
            short = [value[:12] for value in values] if name == "prior_sha256" else values
            parts.append(f"{name.replace('_', ' ')} {', '.join(short)}")
    return "Made with: " + "; ".join(parts) + "."


def _wall(found: Sequence[Cell]) -> str:
    """Time all images of a table took, as their lines add it up."""
    seconds = sum(row["seconds"] for cell in found for row in cell.rows)
    return f"{seconds / 60:.0f} minutes"


def _table1(found: list[Cell], proof: list[Cell]) -> list[str]:
    rows = [row for cell in found for row in cell.rows]
    counts = sorted({len(cell.rows) for cell in found})
    images = " or ".join(str(count) for count in counts)
    recipe = [cell for cell in proof if cell.variant]
    out = [
        "## Table 1",
        "",
        f"{images} test images, prior `{rows[0]['prior']}`. {EXPLANATION}",
        "",
        table1(found, proof),
        _settled(found, proof),
        "",
        f"All methods on all images: {_wall(found)} of one process.",
        "",
        "![PSNR against step](steps.png)",
        "",
    ]
    if recipe:
        out += [
            "The paper's own schedule, 1,500 steps of one rate, on validation images, and ours:",
            "",
            "| method | task | steps | PSNR, dB | SSIM | best step (oracle) |",
            "|---|---|---|---|---|---|",
        ]
        chosen = {(cell.entry, cell.task) for cell in recipe}
        for cell in proof:
            if (cell.entry, cell.task) in chosen:
                best = max(((r, s) for s, r in curves(cell).items()), default=(0.0, 0))
                out.append(
                    f"| {ENTRIES[cell.entry].title}{', ' + cell.variant if cell.variant else ''} "
                    f"| {cell.task} | {cell.steps} | {cell.mean('psnr'):.2f} | "
                    f"{cell.mean('ssim'):.3f} | {best[0]:.2f} at {best[1]} |"
                )
        out.append("")
    return [*out, _made(rows), ""]


def _settled(found: list[Cell], proof: list[Cell]) -> str:
    """Where the number of steps decides, and where it was not tried."""
    iterated = [cell for cell in found if cell.steps]
    changes = [(cell, doubled(cell, proof)) for cell in iterated]
    names = {
        wanted: [f"{ENTRIES[cell.entry].title} ({cell.task})" for cell, c in changes if wanted(c)]
        for wanted in (_unknown, _moving)
    }
    parts = []
    if names[_moving]:
        parts.append(
            f"**Not converged.** Twice the steps change more than {SETTLED} dB for "
            f"{', '.join(names[_moving])}: read these rows as what so many steps give."
        )
    if names[_unknown]:
        parts.append(f"Twice the steps were not tried for {', '.join(names[_unknown])}.")
    if iterated and not parts:
        parts.append(f"Twice the steps change no row by more than {SETTLED} dB.")
    return " ".join(parts)


def _unknown(change: float | None) -> bool:
    return change is None


def _moving(change: float | None) -> bool:
    return change is not None and abs(change) > SETTLED


def _chosen(tuned: list[Cell]) -> list[str]:
    """The grid of every weight, with the PSNR that chose it."""
    out = [
        "### How the weights were chosen",
        "",
        "Mean PSNR in dB on validation images for each weight of the grid; the best is taken.",
        "",
        "| method | task | weight: PSNR |",
        "|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in tuned:
        groups.setdefault((cell.entry, cell.task), []).append(cell)
    for (entry, task), group in groups.items():
        text = ", ".join(f"{c.weight:.4g}: {c.mean('psnr'):.2f}" for c in group)
        out.append(f"| {ENTRIES[entry].title} | {task} | {text} |")
    return [*out, ""]


def assemble(out: Path, page: Path | None = None) -> Path:
    """Writes results.md, the tables and the plot from the lines in a folder.

    Args:
        out: Folder of the results.
        page: A second place for the page; its pictures are linked from there.

    Returns:
        The page.

    Raises:
        FlowmendError: If the folder holds no results.
    """
    read = {name: lines.read(out / f"{name}.jsonl") for name in ("table1", "tune", "steps")}
    found, tuned, proof = (cells(read[name]) for name in ("table1", "tune", "steps"))
    ablated = cells(lines.read(out / "ablation.jsonl"))
    times = lines.read(out / "table2.jsonl")
    if not (found or times or ablated):
        raise FlowmendError(f"There are no results in '{out}': measure something first.")
    text = [
        "# Results: the paper's evidence, measured again",
        "",
        "Written by `flowmend paper page` from the JSON lines beside the pictures; do not edit.",
        "",
        "## Verdict",
        "",
        "| the paper's claim | where | verdict | what decides it |",
        "|---|---|---|---|",
    ]
    for claim in verdicts(found, ablated, times):
        text.append(f"| {claim.text} | {claim.where} | **{claim.verdict}** | {claim.because} |")
    text.append("")
    if found:
        text += ["These are verdicts on the number of steps that Table 1 took.", ""]
        text += [_settled(found, proof), ""]
        section = _table1(found, proof)
        _write(out / "table1.md", "\n".join(section))
        write_csv(out / "table1.csv", found)
        plot_curves(out / "steps.png", found)
        text += section
    if tuned:
        text += _chosen(tuned)
    if times:
        section = ["## Table 2", "", table2(times), "", _made(times), ""]
        _write(out / "table2.md", "\n".join(section))
        text += section
    if ablated:
        counts = sorted({len(cell.rows) for cell in ablated})
        section = [
            "## Ablation",
            "",
            f"Eq. 7 on {' or '.join(map(str, counts))} validation images, one thing changed at a "
            "time; the change is in dB on the same images ± half a 95 % interval.",
            "",
            ablation_table(ablated),
            "",
            _made([row for cell in ablated for row in cell.rows]),
            "",
        ]
        _write(out / "ablation.md", "\n".join(section))
        write_csv(out / "ablation.csv", ablated)
        text += section
    shown = [name for name in PICTURES if (out / f"{name}.png").is_file()]
    if shown:
        text += ["## Figures", ""]
    for name in shown:
        text += [f"**{name.capitalize()}.** {PICTURES[name]}.", "", f"![{name}]({name}.png)", ""]
    whole = "\n".join(text)
    _write(out / "results.md", whole)
    if page is not None:
        link = Path(os.path.relpath(out, page.parent)).as_posix()
        _write(page, whole.replace("](", f"]({link}/"))
    return page or out / "results.md"
