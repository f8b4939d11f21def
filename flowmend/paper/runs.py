"""Runs a :class:`~flowmend.paper.plan.Job` and keeps one JSON line an image."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FlowmendError
from ..files import save_image
from ..metrics import psnr, ssim
from ..pixels import floor_to_bytes, grid
from ..prior import FlowPrior
from ..provenance import provenance
from ..solver import solve
from ..tasks import Task, make_task
from . import lines
from .ablation import solve_variant
from .author import five_bit_errors
from .plan import BATCH, Job

__all__ = ["Bench", "measure", "measurements", "paper_task"]

SHOWN = 16
"""Images kept of every job of Table 1, for the figures."""
Progress = Callable[[int, int, str], None]


def paper_task(name: str, shape: tuple[int, int, int]) -> Task:
    """A task as the paper measures it: its deblurring sees a mid-grey border."""
    return make_task(name, shape, boundary="paper") if name == "deblur" else make_task(name, shape)


def measurements(task: Task, x: Tensor, seed: int) -> Tensor:
    """The paper's measurements: noise floored and clamped to 8 bits, all else exact.

    Args:
        task: From :func:`paper_task`.
        x: Images (B, C, H, W) in [0, 1].
        seed: Image i has a noise of its own, whatever the batch.
    """
    rows = []
    for index in range(len(x)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        rows.append(task.measure(x[index : index + 1], generator))
    y = torch.cat(rows)
    return floor_to_bytes(y) if task.name == "denoise" else y


def measure(restored: Tensor, x: Tensor) -> list[dict]:
    """PSNR and SSIM of every image, ours and the paper's; an infinite PSNR becomes null."""
    errors, similar = five_bit_errors(restored, x)
    values = zip(psnr(restored, x), ssim(restored, x), errors, similar, strict=True)
    return [
        {
            "psnr": p if math.isfinite(p) else None,
            "ssim": s,
            "mse_5bit": e,
            "ssim_5bit": s5,
        }
        for p, s, e, s5 in values
    ]


@dataclass
class Bench:
    """Images, prior and folder of results of one run.

    Args:
        x: Images (N, C, H, W) in [0, 1].
        names: Their file names.
        split: Name of the folder they come from.
        prior: The flow under test; holds the Gaussian of LMMSE.
        prior_name: Its name for the results.
        sha256: Of its weights file.
        out: Folder of the results.
        seed: Of noise and starts.
        precision: Of the coupling networks.
    """

    x: Tensor
    names: list[str]
    split: str
    prior: FlowPrior
    prior_name: str
    sha256: str
    out: Path
    seed: int = 0
    precision: str = "float32"
    made_with: dict = field(default_factory=provenance)

    def _file(self, job: Job) -> Path:
        return self.out / f"{job.item}.jsonl"

    def rows(self, job: Job) -> list[dict]:
        """The lines of a job that are there, in the order of the images."""
        wanted = {name: index for index, name in enumerate(self.names[: job.images])}
        found = {}
        for row in lines.read(self._file(job)):
            same = (row["split"], row["seed"], row["prior_sha256"]) == (
                self.split,
                self.seed,
                self.sha256,
            )
            if same and row["image"] in wanted and tuple(row["job"]) == job.key():
                found[row["image"]] = row
        return sorted(found.values(), key=lambda row: wanted[row["image"]])

    def run(self, job: Job, progress: Progress | None = None) -> list[dict]:
        """The lines of a job, measured where they are missing, batch by batch."""
        if job.images > len(self.x):
            raise FlowmendError(
                f"{job.images} images are asked for and the folder {self.split} holds "
                f"{len(self.x)}: ask for fewer with --images."
            )
        done = {row["image"] for row in self.rows(job)}
        task = paper_task(job.task, self.prior.shape)
        for first in range(0, job.images, BATCH):
            last = min(first + BATCH, job.images)
            if set(self.names[first:last]) <= done:
                continue
            rows = self._batch(job, task, first, last, progress)
            missing = [row for row in rows if row["image"] not in done]
            lines.append(self._file(job), missing)
        return self.rows(job)

    def _batch(
        self, job: Job, task: Task, first: int, last: int, progress: Progress | None
    ) -> list[dict]:
        x = self.x[first:last]
        y = measurements(task, self.x[:last], self.seed)[first:]
        curve: dict[int, list[float]] = {}
        every = max(1, job.steps // 12)

        def observe(step: int, now: Tensor) -> None:
            if step % every == 0:
                curve[step] = psnr(now.clamp(0.0, 1.0), x)

        begun = time.monotonic()
        status = ["finished"] * len(x)
        if job.method == "measurement":
            restored = task.picture(y)
        else:
            offset = task.offset
            y = y - (offset.to(y) if isinstance(offset, Tensor) else offset)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first)
            restored, status = self._solve(job, y, task, generator, observe, progress)
        seconds = (time.monotonic() - begun) / len(x)
        if job.item == "table1" and first == 0:
            self.keep(f"{job.task}-{job.entry}", restored)
            self.keep(f"{job.task}-target", x)
            self.keep(f"{job.task}-measurement", task.picture(measurements(task, x, self.seed)))
        rows = []
        for index, measured in enumerate(measure(restored, x)):
            row = {
                "item": job.item,
                "split": self.split,
                "image": self.names[first + index],
                "task": job.task,
                "method": job.entry,
                **measured,
                "seconds": seconds,
                "steps": job.steps,
                "weight": job.weight,
                "start": job.start,
                "variant": job.variant,
                "status": status[index],
                "seed": self.seed,
                "prior": self.prior_name,
                "prior_sha256": self.sha256,
                "precision": self.precision,
                "job": list(job.key()),
                **self.made_with,
            }
            if curve:
                row["psnr_at"] = {
                    str(step): round(values[index], 3) if math.isfinite(values[index]) else None
                    for step, values in curve.items()
                }
            rows.append(row)
        return rows

    def _solve(
        self,
        job: Job,
        y: Tensor,
        task: Task,
        generator: torch.Generator,
        observe: Callable[[int, Tensor], None],
        progress: Progress | None,
    ) -> tuple[Tensor, list[str]]:
        if job.item == "ablation":
            return solve_variant(job, y, task, self.prior, self.precision, generator, observe)
        settings = {}
        if job.steps:
            settings = {
                "weight": job.weight,
                "steps": job.steps,
                "start": job.start,
                "learning_rate": job.learning_rate,
                "cosine": job.cosine,
                "precision": self.precision,
                "generator": generator,
            }
        solution = solve(
            y,
            task.operator,
            self.prior,
            method=job.method,
            sigma=task.sigma,
            progress=progress,
            observe=observe,
            **settings,
        )
        return solution.x, solution.status

    def keep(self, name: str, images: Tensor) -> None:
        """Keeps the first images as a strip, for the figures."""
        strip = grid(images[:SHOWN].cpu(), SHOWN, gap=0)
        save_image(self.out / "strips" / f"{name}.png", strip)
