"""Assembles the results page, tables and plots from the JSON lines; measures nothing."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import FlowmendError
from ..files import atomic_path, writing
from . import lines
from .plan import BATCH, ENTRIES, PROOF_IMAGES, SETTLED, STEP_GRID
from .tables import (
    Cell,
    ablation_table,
    cells,
    curves,
    longer,
    number,
    plot_curves,
    table1,
    took_all_steps,
    write_csv,
)
from .timing import table2
from .verdict import verdicts

__all__ = ["assemble"]

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
    "figure, 2 · printed − 48.13. *Weight* (on the [0, 1] scale), *rate* (of Adam at the first "
    "step, falling to zero along a cosine) and *steps*: chosen on validation images. *More "
    f"steps*: what the next number of the grid changes on {PROOF_IMAGES} validation images. "
    "*Best step*: the best mean PSNR along the way and its step, picked with the truth in hand, "
    "so by an oracle. Denoising: σ = 25.5/255, floored and clamped to 8 bits. Deblurring: 3x3 "
    "mean, mid-grey border. "
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
                    f"| {cell.task} | {cell.steps} | {number(cell.mean('psnr'))} | "
                    f"{number(cell.mean('ssim'), 3)} | {best[0]:.2f} at {best[1]} |"
                )
        out.append("")
    return [*out, _made(rows), ""]


def _settled(found: list[Cell], proof: list[Cell]) -> str:
    """Where the number of steps decides, and where it was not tried."""
    kinds: dict[str, list[str]] = {"all": [], "untried": [], "moving": [], "settled": []}
    for cell in found:
        if not cell.steps:
            continue
        more = longer(cell, proof)
        if took_all_steps(cell):
            kind = "all"
        elif more is None:
            kind = "untried"
        else:
            kind = "moving" if more[1] > SETTLED else "settled"
        kinds[kind].append(f"{ENTRIES[cell.entry].title} ({cell.task})")
    parts = []
    if kinds["moving"]:
        parts.append(
            f"**Not converged.** More steps gain more than {SETTLED} dB for "
            f"{', '.join(kinds['moving'])}: read these rows as what so many steps give."
        )
    if kinds["untried"]:
        parts.append(f"More steps were not tried for {', '.join(kinds['untried'])}.")
    if kinds["settled"]:
        parts.append(
            f"More steps gain no more than {SETTLED} dB for {', '.join(kinds['settled'])}."
        )
    if kinds["all"]:
        parts.append(
            f"{', '.join(kinds['all'])}: the paper's {STEP_GRID[-1]} steps, or a third of them "
            "from LMMSE."
        )
    return " ".join(parts)


def _chosen(tuned: list[Cell]) -> list[str]:
    """The grid of every weight and rate, with the PSNR that chose it."""
    out = [
        "### How weights and rates were chosen",
        "",
        "Mean PSNR in dB on validation images for each weight of the grid; then, at the best "
        "weight, for each rate.",
        "",
        "| method | task | steps | weight: PSNR | rate: PSNR |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in tuned:
        groups.setdefault((cell.entry, cell.task, cell.steps), []).append(cell)
    for (entry, task, steps), group in groups.items():
        tried = {cell.job.learning_rate for cell in group}
        first = next((rate for rate in ENTRIES[entry].rates if rate in tried), max(tried))
        weights = [cell for cell in group if cell.job.learning_rate == first]
        if not weights:
            continue
        best = max(weights, key=lambda cell: cell.mean("psnr") or 0.0)
        rates = [cell for cell in group if cell.weight == best.weight]
        texts = [
            ", ".join(f"{value:.4g}: {number(cell.mean('psnr'))}" for value, cell in pairs)
            for pairs in (
                [(cell.weight, cell) for cell in sorted(weights, key=lambda c: c.weight)],
                [(cell.job.learning_rate, cell) for cell in rates],
            )
        ]
        out.append(f"| {ENTRIES[entry].title} | {task} | {steps} | {' | '.join(texts)} |")
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
