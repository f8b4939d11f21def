"""``flowmend paper``: the paper's evidence, measured again."""

from pathlib import Path
from typing import Annotated

import typer

from ..device import pick_device
from ..errors import FlowmendError
from ..paper.evidence import gather
from ..paper.plan import ENTRIES, STEPS, TASKS
from ..report import mean_or_none
from . import options as o
from .console import tell
from .progress import progress_bar

__all__ = ["paper"]

ITEMS = ("table1", "steps", "recipe")


def _some(value: str | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    names = known if value is None else tuple(part.strip() for part in value.split(","))
    for name in names:
        if name not in known:
            raise FlowmendError(
                f"Unknown name '{name}' in {option}: choose from {', '.join(known)}."
            )
    return names


def paper(
    item: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(ITEMS)}.")],
    data: Annotated[
        Path | None, typer.Option(help="Clean pictures, or test/ and val/ of them.")
    ] = None,
    prior: Annotated[str, typer.Option(help="The prior.")] = "faces32",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path(
        "paper"
    ),
    images: Annotated[int, typer.Option(help="How many images.")] = 192,
    steps: Annotated[int, typer.Option(help="Steps of every latent optimisation.")] = STEPS,
    tasks: Annotated[str | None, typer.Option(help="Some tasks only, comma between.")] = None,
    methods: Annotated[str | None, typer.Option(help="Some methods only, comma between.")] = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
) -> None:
    """Measure."""
    evidence = gather(data, prior, out, images, seed, steps, pick_device(device))
    names, places = _some(methods, tuple(ENTRIES), "--methods"), _some(tasks, TASKS, "--tasks")
    run = {"table1": evidence.table1, "steps": evidence.proof, "recipe": evidence.recipe}[item]
    with progress_bar(item) as progress:
        for job, rows in run(names, places, progress):
            p = mean_or_none([row["psnr"] for row in rows])
            tell(
                f"{job.entry:12} {job.task:9} w={job.weight} {job.steps} {p:.2f} dB n={len(rows)}"
            )
