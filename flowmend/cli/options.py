"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ..methods import METHODS
from ..operators import BOUNDARIES
from ..tasks import TASKS
from ..weights import shipped_priors

__all__ = [
    "Boundary",
    "Device",
    "Inputs",
    "JsonFile",
    "Kernel",
    "MaskOption",
    "MethodName",
    "PriorName",
    "Scale",
    "Seed",
    "Sigma",
    "TaskName",
]

_TASKS = "\n\n".join(f"[bold]{spec.name}[/]: {spec.title}." for spec in TASKS.values())
_METHODS = "\n\n".join(f"[bold]{method.name}[/]: {method.title}." for method in METHODS.values())

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Pictures, .npy arrays or folders of them."),
]
TaskName = Annotated[str, typer.Option("--task", "-t", help=f"What was done to it.\n\n{_TASKS}")]
Sigma = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation of the noise on the [0, 1] scale (25.5 grey levels are 0.1). "
        "Default: 0.1 for denoise, 0 otherwise."
    ),
]
Kernel = Annotated[
    str | None,
    typer.Option(help="deblur: box:SIDE, gaussian:SIGMA, or a picture or .npy. Default: box:3."),
]
Boundary = Annotated[
    str | None,
    typer.Option(
        help=f"deblur: what lies beyond the image: {', '.join(BOUNDARIES)}. Default: reflect."
    ),
]
MaskOption = Annotated[
    str | None,
    typer.Option(
        "--mask",
        help="inpaint: a picture, white where the image is known, or center:FRACTION for a hole "
        "in the middle. Default: center:0.4.",
    ),
]
Scale = Annotated[int | None, typer.Option(help="upscale: the factor. Default: 2.")]
MethodName = Annotated[str, typer.Option("--method", "-m", help=f"How to restore.\n\n{_METHODS}")]
PriorName = Annotated[
    str,
    typer.Option(
        "--prior",
        "-p",
        help=f"A shipped prior ({', '.join(shipped_priors())}), a weights file, or the folder of "
        "a training run.",
    ),
]
Seed = Annotated[
    int, typer.Option(help="Seed of everything random.", min=0, max=2**31 - 1, show_default=True)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the results here too.")]
