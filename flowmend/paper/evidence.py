"""Chooses every weight on validation images, then measures Table 1, its proof and the ablation."""

import dataclasses
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
    ENTRIES,
    PROOF_IMAGES,
    STEPS,
    TUNING_IMAGES,
    Entry,
    Job,
    grid_of,
)
from .runs import Bench, Progress

__all__ = ["Evidence", "gather"]


def _read(paths: list[Path], root: Path, prior: FlowPrior) -> tuple[torch.Tensor, list[str]]:
    channels, height, width = prior.shape
    images = [resize_and_crop(read_picture(path), height, width, channels) for path in paths]
    return round_to_bytes(torch.stack(images)), [
        path.relative_to(root).as_posix() for path in paths
    ]


@dataclass
class Evidence:
    """The two benches of one run: where weights are chosen, and where methods are compared.

    Args:
        test: Bench of the images that methods are compared on.
        val: Bench of the images that settings are chosen on; none of them is among the others.
        images: How many images of ``test`` count.
        tuning: How many images of ``val`` settings are chosen on.
        steps: Steps of every latent optimisation.
    """

    test: Bench
    val: Bench
    images: int
    tuning: int = TUNING_IMAGES
    steps: int = STEPS

    def _tuning(self, entry: Entry, task: str) -> list[Job]:
        return [
            Job.of("tune", entry, task, self.tuning, weight=weight, steps=self.steps)
            for weight in grid_of(entry, task)
        ]

    def weight(self, entry: Entry, task: str, progress: Progress | None = None) -> float | None:
        """The weight of the grid with the best mean PSNR on the validation images."""
        jobs = self._tuning(entry, task)
        if not jobs:
            return None
        found = [(mean_or_none([r["psnr"] for r in self.val.run(j, progress)]), j) for j in jobs]
        return max(found, key=lambda pair: pair[0])[1].weight

    def job(self, name: str, task: str, progress: Progress | None = None) -> Job:
        """The job of Table 1 of a line and a task, its weight chosen."""
        entry = ENTRIES[name]
        weight = self.weight(entry, task, progress)
        return Job.of("table1", entry, task, self.images, weight=weight, steps=self.steps)

    def table1(
        self, names: tuple[str, ...], tasks: tuple[str, ...], progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """Measures lines of Table 1; yields each job and its rows."""
        for name in names:
            for task in tasks:
                if task in ENTRIES[name].tasks:
                    job = self.job(name, task, progress)
                    yield job, self.test.run(job, progress)

    def proof(
        self, names: tuple[str, ...], tasks: tuple[str, ...], progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """The same jobs on validation images with as many steps and with twice as many."""
        count = min(PROOF_IMAGES, len(self.val.x))
        for name in names:
            for task in tasks:
                if task not in ENTRIES[name].tasks or ENTRIES[name].start is None:
                    continue
                job = dataclasses.replace(
                    self.job(name, task, progress), item="steps", images=count
                )
                for steps in (job.steps, 2 * job.steps):
                    changed = dataclasses.replace(job, steps=steps)
                    yield changed, self.val.run(changed, progress)

    def recipe(
        self, names: tuple[str, ...], tasks: tuple[str, ...], progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """The paper's own schedule, 1,500 steps of one rate, on validation images."""
        count = min(PROOF_IMAGES, len(self.val.x))
        for name in names:
            for task in tasks:
                if task not in ENTRIES[name].tasks or ENTRIES[name].start in (None, "lmmse"):
                    continue
                rate = 1.5e-3 if name == "map" else 5e-3
                job = dataclasses.replace(
                    self.job(name, task, progress),
                    item="steps",
                    images=count,
                    steps=1500,
                    learning_rate=rate,
                    cosine=False,
                    variant="the paper's schedule",
                )
                yield job, self.val.run(job, progress)

    def ablation(
        self, tasks: tuple[str, ...], progress: Progress | None = None
    ) -> Iterator[tuple[Job, list[dict]]]:
        """Every variant of Eq. 7 on the validation images its weight was chosen on."""
        for task in tasks:
            reference = dataclasses.replace(self.job("eq7", task, progress), images=self.tuning)
            for job in ablation_jobs(reference):
                yield job, self.val.run(job, progress)


def gather(
    data: str | Path,
    prior: str,
    out: str | Path,
    images: int,
    seed: int = 0,
    steps: int = STEPS,
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
        steps: Steps of every latent optimisation.
        device: Where the networks compute.

    Raises:
        FlowmendError: If there are too few pictures, or a file cannot be used.
    """
    data, out = Path(data), Path(out)
    if not data.is_dir():
        raise FlowmendError(f"'{data}' is not a folder.")
    if images < 1 or steps < 4:
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
