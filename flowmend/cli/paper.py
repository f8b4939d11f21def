"""``flowmend paper``: the paper's evidence, measured again."""

import dataclasses
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..device import pick_device
from ..errors import FlowmendError
from ..paper import figures, lines
from ..paper.evidence import Evidence, gather
from ..paper.page import assemble
from ..paper.plan import ENTRIES, TASKS, Job
from ..paper.timing import measure_times
from ..provenance import provenance
from ..report import mean_or_none
from . import options as o
from .console import tell, warn
from .progress import progress_bar

__all__ = ["paper"]

FIGURES = tuple(f"figure{number}" for number in range(1, 7))
MEASURED = ("table1", "steps", "recipe", "ablation")
ITEMS = (*MEASURED, "table2", *FIGURES, "page", "all")
QUICK_IMAGES, QUICK_TUNING, QUICK_STEPS = 16, 4, 60
ABLATED = ("denoise", "inpaint")
"""Tasks of the ablation where the user names none."""


def _some(value: str | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    names = known if value is None else tuple(part.strip() for part in value.split(","))
    for name in names:
        if name not in known:
            raise FlowmendError(
                f"Unknown name '{name}' in {option}: choose from {', '.join(known)}."
            )
    return names


def _report(found: Iterable[tuple[Job, list[dict]]]) -> None:
    for job, rows in found:
        mean = mean_or_none([row["psnr"] for row in rows])
        value = "no finite PSNR" if mean is None else f"{mean:.2f} dB"
        weight = "" if job.weight is None else f", weight {job.weight:.4g}, {job.steps} steps"
        tell(
            f"{ENTRIES[job.entry].title}, {job.task}: {value} on {len(rows)} images{weight}"
            + (f" ({job.variant})" if job.variant else "")
        )


def _measure(
    item: str,
    evidence: Evidence,
    methods: tuple[str, ...],
    tasks: tuple[str, ...],
    ablated: tuple[str, ...],
) -> None:
    with progress_bar(item) as progress:
        if item == "table1":
            _report(evidence.table1(methods, tasks, progress))
        elif item == "steps":
            _report(evidence.proof(methods, tasks, progress))
        elif item == "recipe":
            _report(evidence.recipe(methods, tasks, progress))
        else:
            _report(evidence.ablation(ablated, progress))


def _times(out: Path, device: str, quick: bool) -> None:
    path = out / "table2.jsonl"
    if lines.read(path):
        tell(f"Table 2 is in '{path}' already: delete that file to time again.")
        return
    target = pick_device(device)
    with progress_bar("table2") as progress:
        rows = measure_times(device=target, quick=quick, progress=progress)
    made = provenance(target)
    lines.append(path, [made | row for row in rows])


def _draw(item: str, out: Path, evidence: Evidence, seed: int) -> None:
    number = int(item.removeprefix("figure"))
    path = out / f"{item}.png"
    if number == 1:
        figures.figure1(path, evidence.test.prior, seed)
    elif number == 2:
        figures.figure2(path, evidence.test.prior.config)
    else:
        figures.restorations(path, out, figures.FIGURE_TASKS[number])
    tell(f"Figure {number} is in '{path}'.")


def paper(
    item: Annotated[str, typer.Argument(help=f"What to make: {', '.join(ITEMS)}.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder of clean pictures, or one with 'test' and 'val' in it. Weights are "
            "chosen on other pictures than methods are compared on."
        ),
    ] = None,
    prior: Annotated[
        str, typer.Option(help="A shipped prior, weights file or training folder.")
    ] = "faces32",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the results; a run goes on there.")
    ] = Path("paper-results"),
    images: Annotated[int, typer.Option(help="How many images to compare on.")] = 192,
    quick: Annotated[
        bool, typer.Option(help=f"{QUICK_IMAGES} images and {QUICK_STEPS} steps, in minutes.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of every latent optimisation, the rate falling to zero; chosen on "
            "validation images where you give none."
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help=f"Only these tasks, comma between: {', '.join(TASKS)}.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help=f"Only these methods, comma between: {', '.join(ENTRIES)}.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="A second place for the results page, for example docs.")
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
) -> None:
    """Measure the paper's tables and figures again, corrected, and say which claims hold.

    table1 compares all methods on four tasks; steps repeats it on validation images with more
    steps, and recipe with the paper's own 1,500; ablation takes Eq. 7 apart; table2 times the
    architectures; page assembles tables, plots and verdicts from what was measured, and all does
    everything but recipe. Every image's result is a JSON line in --out; a run that was cut off
    goes on where it stopped.

    Example: flowmend paper all --data celeba --prior faces32 --out evidence --quick
    """
    if item not in ITEMS:
        raise FlowmendError(f"Unknown item '{item}': choose from {', '.join(ITEMS)}.")
    names = _some(methods, tuple(ENTRIES), "--methods")
    places = _some(tasks, TASKS, "--tasks")
    ablated = _some(tasks, TASKS, "--tasks") if tasks else ABLATED
    if quick:
        images, steps = min(images, QUICK_IMAGES), min(steps or QUICK_STEPS, QUICK_STEPS)
    if item == "all" and "bm3d" in names and find_spec("bm3d") is None:
        warn("left out", "The line bm3d needs its package: pip install 'flowmend[bm3d]'.")
        names = tuple(name for name in names if name != "bm3d")
    evidence = None
    if item not in ("table2", "page"):
        if data is None:
            raise FlowmendError(f"'{item}' needs pictures: give a folder with --data.")
        evidence = gather(data, prior, out, images, seed, steps, pick_device(device))
        if quick:
            evidence = dataclasses.replace(evidence, tuning=min(QUICK_TUNING, evidence.tuning))
    wanted = [item]
    if item == "all":
        wanted = ["table1", *([] if quick else ["steps"]), "ablation", "table2", *FIGURES]
    for part in wanted:
        if part in MEASURED:
            _measure(part, evidence, names, places, ablated)
        elif part == "table2":
            _times(out, device, quick)
        elif part in FIGURES:
            try:
                _draw(part, out, evidence, seed)
            except FlowmendError as error:
                if item != "all":
                    raise
                warn("left out", str(error))
    if item not in FIGURES:
        tell(f"The page is '{assemble(out, page)}'.")
