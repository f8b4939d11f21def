"""``flowmend demo``: the four tasks of the paper on bundled faces, in a minute."""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..device import default_precision, pick_device
from ..errors import FlowmendError
from ..faces import names, sample_faces
from ..files import save_image
from ..metrics import psnr, ssim
from ..pixels import round_to_bytes
from ..provenance import provenance
from ..report import Row, mean_or_none, panel, save_panel, write_json
from ..restoration import restore
from ..tasks import make_task
from ..weights import load_prior
from . import options as o
from .console import tell
from .progress import progress_bar

__all__ = ["demo"]

TASKS = ("denoise", "deblur", "inpaint", "colorize")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path(
        "flowmend-demo"
    ),
    prior: o.PriorName = "faces32-continuous",
    steps: Annotated[
        int | None, typer.Option(help="Steps a task. Default: the method's own.")
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
) -> None:
    """Restore eight bundled public-domain faces on the paper's four tasks, in half a minute.

    Writes OUT/report.png, a picture of every face and task, and OUT/results.json.

    Example: flowmend demo
    """
    if steps is not None and steps < 1:
        raise FlowmendError(f"--steps must be at least 1, not {steps}.")
    target = pick_device(device)
    precision = default_precision(target)
    begun = time.monotonic()
    weights = load_prior(prior, target)
    x = sample_faces()
    if tuple(x.shape[1:]) != weights.shape:
        raise FlowmendError(f"The sample faces are 3 x 32 x 32; this prior knows {weights.shape}.")
    table = Table(title=f"{len(x)} faces, one prior ({prior}) for all tasks")
    for head in ("task", "measured", "restored", "seconds"):
        table.add_column(head, justify="left" if head == "task" else "right")
    heads, columns, found = ["original"], [[(image, "") for image in x]], []
    with progress_bar("restoring") as progress:
        for index, name in enumerate(TASKS):
            task = make_task(name, weights.shape)
            y = round_to_bytes(task.measure(x, torch.Generator().manual_seed(seed)))

            def move(
                done: int, total: int, what: str, index: int = index, name: str = name
            ) -> None:
                progress(index * total + done, len(TASKS) * total, name)

            solution = restore(
                y.to(target),
                task,
                weights,
                steps=steps,
                precision=precision,
                generator=torch.Generator().manual_seed(seed),
                progress=move,
            )
            restored, picture = solution.x.cpu(), task.picture(y)
            before, after = psnr(picture, x), psnr(restored, x)
            likeness = [ssim(picture, x), ssim(restored, x)]
            heads += [name, "restored"]
            columns.append([(i, f"{p:.1f} dB") for i, p in zip(picture, before, strict=True)])
            columns.append([(i, f"{p:.1f} dB") for i, p in zip(restored, after, strict=True)])
            for face, image in zip(names(), restored, strict=True):
                save_image(out / name / f"{face}.png", image)
            entry = {
                "task": name,
                "input_psnr": mean_or_none(before),
                "input_ssim": mean_or_none(likeness[0]),
                "psnr": mean_or_none(after),
                "ssim": mean_or_none(likeness[1]),
                "steps": solution.settings.get("steps"),
                "seconds": solution.seconds,
            }
            found.append(entry)
            table.add_row(
                name,
                f"{entry['input_psnr']:.2f} dB / {entry['input_ssim']:.3f}",
                f"{entry['psnr']:.2f} dB / {entry['ssim']:.3f}",
                f"{entry['seconds']:.1f}",
            )
    rows = [
        Row(face, [c[i][0] for c in columns], [c[i][1] for c in columns])
        for i, face in enumerate(names())
    ]
    note = f"One prior ({prior}) for all four tasks, by {solution.method}."
    save_panel(out / "report.png", panel(heads, rows, note))
    write_json(
        out / "results.json",
        {
            "prior": prior,
            "method": solution.method,
            "seed": seed,
            "tasks": found,
            "seconds": time.monotonic() - begun,
            "made_with": provenance(target),
        },
    )
    Console().print(table)
    tell(
        f"Done in {time.monotonic() - begun:.0f} s. Look at '{out / 'report.png'}'; run "
        "'flowmend restore --help' for your own pictures."
    )
