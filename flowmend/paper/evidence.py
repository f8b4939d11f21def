"""Chooses every setting on validation images; measures Table 1, its proof and the ablation."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..device import default_precision
from ..errors import FlowmendError
from ..files import find_pictures, read_picture, resize_and_crop
from ..pixels import round_to_bytes
from ..prior import FlowPrior
from ..report import mean_or_none
from ..weights import find_weights, load_prior, sha256_of
from .ablation import ablation_jobs
from .plan import (
    EARLY_STEPS,
    ENTRIES,
    NOISY,
    PROOF_IMAGES,
    SETTLED,
    TUNING_IMAGES,
    TUNING_STEPS,
    Entry,
    Job,
    grid_of,
    step_grid,
)
from .runs import Bench, Progress

__all__ = ["Evidence", "gather"]


def _read(paths: list[Path], root: Path, prior: FlowPrior) -> tuple[torch.Tensor, list[str]]:
    channels, height, width = prior.shape
    images = [resize_and_crop(read_picture(path), height, width, channels) for path in paths]
    return round_to_bytes(torch.stack(images)), [
        path.relative_to(root).as_posix() for path in paths
    ]


def _mean(rows: list[dict]) -> float:
    """Mean PSNR; every image restored without any error makes it infinite."""
    mean = mean_or_none([row["psnr"] for row in rows])
    return math.inf if mean is None else mean


def _gains(before: list[dict], after: list[dict]) -> bool:
    return _mean(after) > _mean(before) + SETTLED


@dataclass
class Evidence:
    """The two benches of one run: where settings are chosen, and where methods are compared.

    Args:
        test: Bench of the images that methods are compared on.
        val: Bench of the images that settings are chosen on; none of them is among the others.
        images: How many images of ``test`` count.
        tuning: How many images of ``val`` weights and rates are chosen on.
        steps: Steps of every latent optimisation; None chooses each number.
    """

    test: Bench
    val: Bench
    images: int
    tuning: int = TUNING_IMAGES
    steps: int | None = None

    def _best(self, jobs: list[Job], progress: Progress | None) -> Job:
        return max(jobs, key=lambda job: _mean(self.val.run(job, progress)))

    def tuned(self, entry: Entry, task: str, progress: Progress | None = None) -> Job:
        """The job with the best mean PSNR on the validation images.

        First the weight is chosen at the first rate of the line, then the rate at that weight; of
        noisy measurements for two numbers of steps, and the better is taken.
        """
        counts = (self.steps or TUNING_STEPS,)
        if self.steps is None and task in NOISY:
            counts = (EARLY_STEPS, TUNING_STEPS)
        found = []
        for steps in counts:
            job = Job.of("tune", entry, task, self.tuning, steps=steps)
            if entry.start is None:
                return job
            weights = [dataclasses.replace(job, weight=weight) for weight in grid_of(entry, task)]
            best = self._best(weights, progress)
            rates = [dataclasses.replace(best, learning_rate=rate) for rate in entry.rates]
            found.append(self._best(rates, progress))
        return self._best(found, progress)

    def _trials(self, name: str, task: str, progress: Progress | None) -> list[Job]:
        """The jobs that the number of steps is chosen from, and the proof consists of."""
        entry = ENTRIES[name]
        best = self.tuned(entry, task, progress)
        if self.steps is None:
            counts = [round(n * entry.share) for n in step_grid(task)]
            if len(counts) > 1:
                counts = [best.steps, *(n for n in counts if n > best.steps)]
        else:
            counts = [best.steps, 2 * best.steps]
        images = min(PROOF_IMAGES, len(self.val.x))
        best = dataclasses.replace(best, item="steps", images=images)
        return [dataclasses.replace(best, steps=n) for n in counts]

    def settled(
        self, name: str, task: str, progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """Trials on validation images with ever more steps, until more gain nothing."""
        trials = self._trials(name, task, progress)
        before = None
        for job in trials if len(trials) > 1 else ():
            rows = self.val.run(job, progress)
            yield job, rows
            if before is not None and not _gains(before, rows):
                return
            before = rows

    def job(self, name: str, task: str, progress: Progress | None = None) -> Job:
        """The job of Table 1 of a line and a task, its settings chosen."""
        best = self.tuned(ENTRIES[name], task, progress)
        if best.steps and self.steps is None:
            best = self._trials(name, task, progress)[0]
            before = None
            for job, rows in self.settled(name, task, progress):
                if before is None or _gains(before, rows):
                    best = job
                before = rows
        return dataclasses.replace(best, item="table1", images=self.images)

    def _lines(
        self, names: tuple[str, ...], tasks: tuple[str, ...], iterated: bool = True
    ) -> Iterator[tuple[str, str]]:
        """The lines and tasks that belong together; only latent optimisations if so wished."""
        for name in names:
            for task in tasks:
                entry = ENTRIES[name]
                if task in entry.tasks and not (iterated and entry.start is None):
                    yield name, task

    def table1(
        self, names: tuple[str, ...], tasks: tuple[str, ...], progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """Measures lines of Table 1; yields each job and its rows."""
        for name, task in self._lines(names, tasks, iterated=False):
            job = self.job(name, task, progress)
            yield job, self.test.run(job, progress)

    def proof(
        self, names: tuple[str, ...], tasks: tuple[str, ...], progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """The same jobs on validation images with ever more steps."""
        for name, task in self._lines(names, tasks):
            yield from self.settled(name, task, progress)

    def recipe(
        self, names: tuple[str, ...], tasks: tuple[str, ...], progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """The paper's own schedule, 1,500 steps of one rate, on validation images."""
        for name, task in self._lines(names, tasks):
            if ENTRIES[name].start == "lmmse":
                continue
            job = dataclasses.replace(
                self._trials(name, task, progress)[0],
                steps=1500,
                learning_rate=1.5e-3 if name == "map" else 5e-3,
                cosine=False,
                variant="the paper's schedule",
            )
            yield job, self.val.run(job, progress)

    def ablation(
        self, tasks: tuple[str, ...], progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """Every variant of Eq. 7 on the validation images its settings were chosen on."""
        for task in tasks:
            for job in ablation_jobs(self.tuned(ENTRIES["eq7"], task, progress)):
                yield job, self.val.run(job, progress)


def gather(
    data: str | Path,
    prior: str,
    out: str | Path,
    images: int,
    seed: int = 0,
    steps: int | None = None,
    device: str | torch.device = "cpu",
) -> Evidence:
    """Reads images and prior.

    Args:
        data: A folder of clean pictures, or one that holds the folders ``test`` and ``val``. Of a
            single folder the first pictures are compared on and those after them chosen on.
        prior: A shipped prior, weights file or training folder.
        out: Folder of the results.
        images: How many images to compare on.
        seed: Of noise and starts.
        steps: Steps of every latent optimisation; None chooses each number.
        device: Where the networks compute.

    Raises:
        FlowmendError: If there are too few pictures, or a file cannot be used.
    """
    data, out = Path(data), Path(out)
    if not data.is_dir():
        raise FlowmendError(f"'{data}' is not a folder.")
    if images < 1 or (steps is not None and steps < 4):
        raise FlowmendError("--images must be at least 1 and --steps at least 4.")
    split = (data / "test").is_dir() and (data / "val").is_dir()
    if split:
        test_paths = find_pictures([data / "test"])
        val_paths = find_pictures([data / "val"])
    else:
        found = find_pictures([data])
        test_paths, val_paths = found[:images], found[images:]
    if len(test_paths) < images:
        raise FlowmendError(
            f"{images} images are asked for and there are {len(test_paths)}: lower --images."
        )
    if len(val_paths) < 2:
        raise FlowmendError(
            f"'{data}' holds {len(test_paths)} pictures for the comparison and none to choose the "
            "weights on: lower --images, or give a folder that holds 'test' and 'val'."
        )
    loaded = load_prior(prior, device)
    if loaded.gaussian is None:
        raise FlowmendError(f"The prior '{prior}' holds no Gaussian, which LMMSE needs.")
    digest = sha256_of(find_weights(prior))
    benches = []
    for paths, root, name in (
        (test_paths[:images], data / "test" if split else data, "test" if split else data.name),
        (
            val_paths[:PROOF_IMAGES],
            data / "val" if split else data,
            "val" if split else f"{data.name} (after the compared)",
        ),
    ):
        x, names = _read(paths, root, loaded)
        precision = default_precision(torch.device(device))
        bench = Bench(
            x.to(device), names, name, loaded, Path(prior).stem, digest, out, seed, precision
        )
        benches.append(bench)
    tuning = min(TUNING_IMAGES, len(val_paths), max(2, images))
    return Evidence(*benches, images=images, tuning=tuning, steps=steps)
