"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ..methods import METHODS
from ..noise import AUTO, NOISES
from ..operators import BOUNDARIES, PATTERNS
from ..tasks import TASKS
from ..weights import shipped_priors

__all__ = [
    "PRIORS",
    "Boundary",
    "Device",
    "Inputs",
    "JsonFile",
    "Kernel",
    "MaskOption",
    "Measurements",
    "MethodName",
    "NoiseName",
    "Pattern",
    "Peak",
    "PriorName",
    "Scale",
    "Seed",
    "Share",
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
    str | None,
    typer.Option(
        metavar=f"NUMBER|{AUTO}|FILE",
        help="Standard deviation of Gaussian noise on the [0, 1] scale (25.5 grey levels are "
        f"0.1), {AUTO}: found from each measurement, or a picture or .npy with that of every "
        "pixel. Default: 0.1 for denoise, 0 otherwise.",
    ),
]
NoiseName = Annotated[
    str | None,
    typer.Option("--noise", help=f"Kind of noise: {', '.join(NOISES)}. Default: gaussian."),
]
Peak = Annotated[
    float | None,
    typer.Option(help="poisson: expected count of light in a white pixel. Default: 30."),
]
Share = Annotated[
    float | None,
    typer.Option(
        help="salt-pepper: share of the pixels that became black or white. Default: 0.1."
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(help=f"demosaic: colours of the sensor: {', '.join(PATTERNS)}. Default: rggb."),
]
Kernel = Annotated[
    str | None,
    typer.Option(
        help="deblur: box:SIDE, gaussian:SIGMA, motion:LENGTH:ANGLE (pixels, degrees), or a "
        "picture or .npy. Default: box:3. upscale: likewise, or bicubic: what was seen of the "
        "large picture before pixels were left out. Default: the mean of a block."
    ),
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
        help="inpaint: a picture, white where the image is known, center:FRACTION for a hole "
        "in the middle, or random:SHARE for missing pixels. Default: center:0.4.",
    ),
]
Measurements = Annotated[
    str | None,
    typer.Option(
        metavar="COUNT|SHARE",
        help="sense: how many, such as 768, or 0.25 or 25% of the image's values. Default: a "
        "quarter, or what the measurements hold.",
    ),
]
Scale = Annotated[int | None, typer.Option(help="upscale: the factor. Default: 2.")]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        help="How to restore. Default: fast-map where the prior is a flow that holds a Gaussian, "
        f"as the shipped one does; else likelihood.\n\n{_METHODS}",
    ),
]
PRIORS = (
    f"A shipped prior ({', '.join(shipped_priors())}), a weights file, or the folder of a "
    "training run."
)
PriorName = Annotated[str, typer.Option("--prior", "-p", help=PRIORS)]
Seed = Annotated[
    int, typer.Option(help="Seed of everything random.", min=0, max=2**31 - 1, show_default=True)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the results here too.")]
