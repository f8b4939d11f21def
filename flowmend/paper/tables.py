"""Table 1 and the ablation as Markdown, CSV and a plot, from JSON lines alone."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FlowmendError
from ..files import atomic_path, writing
from ..report import mean_or_none
from .author import pooled_psnr
from .plan import ENTRIES, PRINTED, STEP_GRID, TASKS, Job, true_psnr

__all__ = [
    "Cell",
    "ablation_table",
    "cells",
    "curves",
    "longer",
    "number",
    "paired",
    "plot_curves",
    "table1",
    "took_all_steps",
    "write_csv",
]


COLUMNS = (
    "task",
    "method",
    "variant",
    "images",
    "psnr",
    "psnr_standard_error",
    "ssim",
    "ssim_standard_error",
    "psnr_author_protocol",
    "ssim_author_protocol",
    "weight",
    "rate",
    "steps",
    "seconds_per_image",
)
"""Columns of the CSV files."""


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Args:
        job: What was measured.
        rows: The lines, one an image.
    """

    job: Job
    rows: tuple[dict, ...]

    @property
    def task(self) -> str:
        """The task."""
        return self.job.task

    @property
    def entry(self) -> str:
        """Name of the line."""
        return self.job.entry

    @property
    def variant(self) -> str:
        """What the ablation changes."""
        return self.job.variant

    @property
    def steps(self) -> int:
        """Steps taken; 0 for closed forms."""
        return self.job.steps

    @property
    def weight(self) -> float | None:
        """Weight of the regulariser."""
        return self.job.weight

    def values(self, name: str) -> list[float]:
        """The finite values of one measure, in the order of the images."""
        return [row[name] for row in self.rows if row[name] is not None]

    def mean(self, name: str) -> float | None:
        """Mean over the images of a measure; None where no image has a finite value."""
        return mean_or_none(self.values(name))

    def error(self, name: str) -> float:
        """Standard error of that mean."""
        values = self.values(name)
        if len(values) < 2:
            return 0.0
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return math.sqrt(variance / len(values))

    @property
    def author_psnr(self) -> float:
        """True PSNR in dB in the author's protocol."""
        return pooled_psnr([row["mse_5bit"] for row in self.rows])


def number(value: float | None, digits: int = 2) -> str:
    """A figure of a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def cells(rows: Sequence[dict]) -> list[Cell]:
    """Groups lines by job, in the order of the table."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((*row["job"], row["prior_sha256"], row["split"]), []).append(row)
    found = []
    for group in groups.values():
        rows_of_job = tuple(sorted(group, key=lambda row: row["image"]))
        found.append(Cell(Job.from_key(group[0]["job"], len(group)), rows_of_job))
    order = list(ENTRIES)
    return sorted(found, key=lambda cell: (TASKS.index(cell.task), order.index(cell.entry)))


def paired(one: Cell, other: Cell) -> tuple[float, float, float] | None:
    """Mean difference in PSNR of two methods on the same images, half its 95 % interval, p.

    Source of the test: The Probable Error of a Mean (Student, 1908),
    https://doi.org/10.1093/biomet/6.1.1

    Returns:
        None where fewer than two images have both values, or all differences are equal.
    """
    from scipy.stats import ttest_1samp

    values = {row["image"]: row["psnr"] for row in other.rows}
    pairs = [(row["psnr"], values.get(row["image"])) for row in one.rows]
    steps = [a - b for a, b in pairs if a is not None and b is not None]
    if len(steps) < 2 or max(steps) == min(steps):
        return None
    test = ttest_1samp(steps, 0.0)
    low, high = test.confidence_interval(0.95)
    return float(low + high) / 2.0, float(high - low) / 2.0, float(test.pvalue)


def curves(cell: Cell) -> dict[int, float]:
    """Mean PSNR in dB of the iterates of a latent optimisation, by step."""
    steps: dict[int, list[float]] = {}
    for row in cell.rows:
        for step, value in row.get("psnr_at", {}).items():
            if value is not None:
                steps.setdefault(int(step), []).append(value)
    found = {step: sum(values) / len(values) for step, values in sorted(steps.items())}
    last = cell.mean("psnr")
    if found and last is not None:
        found[cell.steps] = last
    return found


def longer(cell: Cell, proof: Sequence[Cell]) -> tuple[int, float] | None:
    """The next larger number of steps tried on validation images, and what it changes, in dB.

    Settings are the same and both are measured on the same images. None for closed forms and
    where it was not measured.
    """
    same = {
        other.steps: other.mean("psnr")
        for other in proof
        if dataclasses.replace(other.job, steps=0)
        == dataclasses.replace(cell.job, item="steps", steps=0, images=other.job.images)
    }
    more = [steps for steps in same if steps > cell.steps]
    if not more or same.get(cell.steps) is None or same[min(more)] is None:
        return None
    return min(more), same[min(more)] - same[cell.steps]


def took_all_steps(cell: Cell) -> bool:
    """Whether a line took the paper's number of steps, or its share of it."""
    return cell.steps >= round(STEP_GRID[-1] * ENTRIES[cell.entry].share)


def _table1_row(cell: Cell, ours: Cell | None, proof: Sequence[Cell]) -> list[str]:
    test = paired(ours, cell) if ours is not None and cell is not ours else None
    against = "-"
    if test is not None:
        p = "p < 0.001" if test[2] < 0.001 else f"p = {test[2]:.3f}"
        against = f"{test[0]:+.2f} ± {test[1]:.2f}, {p}"
    printed = PRINTED.get((cell.entry, cell.task))
    path = curves(cell)
    best = max(path, key=path.get) if path else None
    oracle = "-"
    if best is not None:
        oracle = "the last" if best == cell.steps else f"{path[best]:.2f} at {best}"
    more = longer(cell, proof)
    return [
        ENTRIES[cell.entry].title,
        f"{number(cell.mean('psnr'))} ± {cell.error('psnr'):.2f}",
        f"{number(cell.mean('ssim'), 3)} ± {cell.error('ssim'):.3f}",
        against,
        f"{cell.author_psnr:.2f} / {number(cell.mean('ssim_5bit'), 3)}",
        "-" if printed is None else f"{printed[0]:.2f} / {printed[1]:.3f}",
        "-" if printed is None else f"{true_psnr(printed[0]):.2f}",
        "-" if cell.weight is None else f"{cell.weight:.4g}",
        f"{cell.job.learning_rate:g}" if cell.steps else "-",
        str(cell.steps or "-"),
        "-" if more is None else f"{more[1]:+.2f} at {more[0]}",
        oracle,
        number(cell.mean("seconds"), 3),
    ]


def table1(found: Sequence[Cell], proof: Sequence[Cell]) -> str:
    """Table 1, one Markdown table a task."""
    lines = []
    for task in TASKS:
        here = [cell for cell in found if cell.task == task]
        if not here:
            continue
        ours = next((cell for cell in here if cell.entry == "eq7"), None)
        lines += [
            f"### {task}",
            "",
            "| method | PSNR, dB | SSIM | Eq. 7 against it, dB | author's protocol: PSNR / SSIM "
            "| the paper printed | which is | weight | rate | steps | more steps, dB | best step "
            "(oracle) | s / image |",
            "|---" * 13 + "|",
        ]
        for cell in here:
            lines.append("| " + " | ".join(_table1_row(cell, ours, proof)) + " |")
        lines.append("")
    return "\n".join(lines)


def ablation_table(found: Sequence[Cell]) -> str:
    """The ablation: variants by tasks, and what each changes."""
    tasks = [task for task in TASKS if any(cell.task == task for cell in found)]
    by = {(cell.variant, cell.task): cell for cell in found}
    names = list(dict.fromkeys(cell.variant for cell in found))
    heads = " | ".join(f"{task}: PSNR, dB | change | best step (oracle)" for task in tasks)
    lines = [f"| variant | {heads} |", "|---" * (1 + 3 * len(tasks)) + "|"]
    for name in names:
        parts = []
        for task in tasks:
            cell, reference = by.get((name, task)), by.get((names[0], task))
            if cell is None:
                parts.append("- | - | -")
                continue
            test = None if cell is reference or reference is None else paired(cell, reference)
            path = curves(cell)
            best = max(path, key=path.get)
            change = "-" if test is None else f"{test[0]:+.2f} ± {test[1]:.2f}"
            mean = number(cell.mean("psnr"))
            parts.append(f"{mean} | {change} | {path[best]:.2f} at {best}")
        lines.append(f"| {name} | " + " | ".join(parts) + " |")
    return "\n".join(lines)


def write_csv(path: Path, found: Sequence[Cell]) -> None:
    """One line a method, variant and task, for spreadsheets."""
    with writing(path), atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for cell in found:
            numbers = (
                *(f(m) for m in ("psnr", "ssim") for f in (cell.mean, cell.error)),
                cell.author_psnr,
                cell.mean("ssim_5bit"),
            )
            writer.writerow(
                [cell.task, cell.entry, cell.variant, len(cell.rows)]
                + [number(value, 4) for value in numbers]
                + [cell.weight, cell.job.learning_rate, cell.steps]
                + [number(cell.mean("seconds"), 5)]
            )


def plot_curves(path: Path, found: Sequence[Cell]) -> None:
    """PSNR against step of every latent optimisation, closed forms as level lines.

    Raises:
        FlowmendError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FlowmendError("The plots need matplotlib: pip install 'flowmend[paper]'.") from error
    tasks = [task for task in TASKS if any(cell.task == task for cell in found)]
    figure = Figure(figsize=(3.6 * len(tasks), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    colours = {name: f"C{index}" for index, name in enumerate(ENTRIES)}
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for cell in found:
            if cell.task != task:
                continue
            title, colour = ENTRIES[cell.entry].title, colours[cell.entry]
            path_ = curves(cell)
            if path_:
                axes.plot(list(path_), list(path_.values()), color=colour, label=title)
                best = max(path_, key=path_.get)
                axes.plot(best, path_[best], "o", color=colour, markersize=4)
            else:
                level = cell.mean("psnr")
                axes.axhline(
                    math.nan if level is None else level, color=colour, linestyle=":", label=title
                )
        axes.set(title=task, xlabel="step")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR, dB")
    handles = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8
    )
    with writing(path), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
