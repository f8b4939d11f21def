"""What is measured: tasks, methods, the grids their weights come from, the paper's figures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "BATCH",
    "EARLY_STEPS",
    "ENTRIES",
    "NOISY",
    "PRINTED",
    "SETTLED",
    "STEP_GRID",
    "TASKS",
    "TUNING_IMAGES",
    "TUNING_STEPS",
    "Entry",
    "Job",
    "grid_of",
    "step_grid",
    "true_psnr",
]

TASKS = ("denoise", "deblur", "inpaint", "colorize")
NOISY = ("denoise",)
"""Those whose measurements are noisy."""
BATCH = 32
"""Images solved, and pooled in the author's protocol, together."""
STEP_GRID = (300, 600, 1500)
"""Steps a latent optimisation of Table 1 may take; the paper takes the last, at one rate."""
SETTLED = 0.02
"""Largest gain in PSNR, in dB, that does not count as one."""
TUNING_STEPS = 300
"""Steps at which weights and rates are chosen."""
EARLY_STEPS = 150
"""A second number, for noisy measurements: who stops early fits less of the noise."""
TUNING_IMAGES = 16
"""Images of the validation folder on which weights and rates are chosen."""
PROOF_IMAGES = 32
"""Images of the validation folder on which the number of steps is chosen."""


@dataclass(frozen=True)
class Entry:
    """A line of Table 1.

    Args:
        name: Its name in tables and files.
        title: Its name for readers.
        method: A name of :data:`flowmend.methods.METHODS`, or "measurement" for doing nothing.
        start: Start of the latent optimisation; None for closed forms.
        tasks: The tasks it fits.
        grid: Weights to choose from, on the [0, 1] scale; empty where it has none.
        rates: Adam's rates at the first step to choose from, the one that weights are chosen at
            first; a rate falls to zero along a cosine.
        share: Steps taken, as a share of the others'.
    """

    name: str
    title: str
    method: str
    start: str | None = None
    tasks: tuple[str, ...] = TASKS
    grid: tuple[float, ...] = ()
    rates: tuple[float, ...] = (0.1, 0.04)
    share: float = 1.0


NORM_GRID = (0.0, 0.0025, 0.01, 0.025, 0.05)
LIKELIHOOD_GRID = (0.001, 0.003, 0.01, 0.025, 0.05, 0.1)
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("measurement", "do nothing", "measurement"),
        Entry("pinv", "pseudo-inverse", "pinv"),
        Entry("lmmse", "LMMSE (Gaussian prior)", "lmmse"),
        Entry("bm3d", "BM3D", "bm3d", tasks=("denoise",)),
        Entry("csgm", "CSGM", "csgm", "random", grid=NORM_GRID),
        Entry("glowip", "GlowIP", "glowip", "zero", grid=NORM_GRID),
        Entry("map", "MAP", "map", "small", tasks=("denoise",), grid=(0.1, 0.25, 0.5, 1.0)),
        Entry("eq7", "Eq. 7 (the paper's)", "likelihood", "small", grid=LIKELIHOOD_GRID),
        Entry(
            "eq7-lmmse",
            "Eq. 7 from LMMSE",
            "likelihood",
            "lmmse",
            grid=LIKELIHOOD_GRID,
            rates=(0.003, 0.01),
            share=1 / 3,
        ),
    )
}
"""The lines of Table 1, in its order."""


def grid_of(entry: Entry, task: str) -> tuple[float, ...]:
    """The weights one line may take on one task.

    Colourisation compares one grey image where the paper compares three equal copies, which
    scales every weight by a third.
    """
    if task == "colorize":
        return tuple(weight / 3.0 for weight in entry.grid)
    return entry.grid


def step_grid(task: str) -> tuple[int, ...]:
    """The numbers of steps a line may take on one task, the others' share of it aside.

    Deblurring without noise goes on gaining as long as one looks: it takes the paper's number.
    """
    return STEP_GRID[-1:] if task == "deblur" else STEP_GRID


@dataclass(frozen=True)
class Job:
    """One method with one setting on one task and a number of images.

    Args:
        item: The part of the evidence it belongs to: table1, tune, steps or ablation.
        task: The task.
        entry: Name of the line.
        method: As :class:`Entry`.
        start: As :class:`Entry`.
        images: How many images, the folder's first.
        weight: Weight of the regulariser; None for closed forms.
        steps: Steps of the latent optimisation; 0 for closed forms.
        learning_rate: Adam's first rate, falling along a cosine.
        cosine: False keeps the rate constant, as the paper.
        variant: What the ablation changes.
    """

    item: str
    task: str
    entry: str
    method: str
    start: str | None
    images: int
    weight: float | None = None
    steps: int = 0
    learning_rate: float = 0.0
    cosine: bool = True
    variant: str = ""

    @classmethod
    def of(cls, item: str, entry: Entry, task: str, images: int, **changes: object) -> "Job":
        """The job of a line of the table; ``steps`` is multiplied by the line's share."""
        steps = round(changes.pop("steps", TUNING_STEPS) * entry.share)
        changes["steps"] = 0 if entry.start is None else steps
        changes.setdefault("learning_rate", 0.0 if entry.start is None else entry.rates[0])
        return cls(item, task, entry.name, entry.method, entry.start, images, **changes)

    def key(self) -> tuple:
        """What tells this job's lines from others', the number of images left out."""
        values = dataclasses.asdict(self)
        del values["images"]
        return tuple(values.values())

    @classmethod
    def from_key(cls, key: Sequence, images: int) -> "Job":
        """The job that a line of a results file belongs to."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "images"]
        return cls(images=images, **dict(zip(names, key, strict=True)))


PRINTED: dict[tuple[str, str], tuple[float, float]] = {
    ("csgm", "denoise"): (37.41, 0.897),
    ("csgm", "deblur"): (37.17, 0.883),
    ("csgm", "inpaint"): (36.39, 0.839),
    ("csgm", "colorize"): (34.71, 0.897),
    ("glowip", "denoise"): (37.21, 0.894),
    ("glowip", "deblur"): (35.82, 0.867),
    ("glowip", "inpaint"): (37.81, 0.903),
    ("glowip", "colorize"): (35.79, 0.937),
    ("map", "denoise"): (37.35, 0.898),
    ("bm3d", "denoise"): (37.65, 0.905),
    ("eq7", "denoise"): (37.72, 0.918),
    ("eq7", "deblur"): (39.72, 0.963),
    ("eq7", "inpaint"): (37.97, 0.913),
    ("eq7", "colorize"): (35.72, 0.940),
}
"""Table 1 as the paper prints it: "PSNR" and SSIM of each (line, task)."""


def true_psnr(printed: float) -> float:
    """The PSNR in dB behind a figure the paper prints.

    The paper's code takes the square root of the error twice: it prints
    ``20 log10(255 / MSE^(1/4))`` where the PSNR is ``20 log10(255 / MSE^(1/2))``, twice that less
    ``20 log10(255) = 48.13``.
    """
    return 2.0 * printed - 48.1308
