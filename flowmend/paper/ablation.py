"""What each part of Eq. 7 is worth: norm, Jacobian, weight, start, and the space of the search."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..baselines import lmmse
from ..latent import Observe, minimise, start_latents
from ..objective import Objective, map_estimate
from ..prior import FlowPrior
from ..tasks import Task
from .plan import ENTRIES, Job

__all__ = ["FAMILIES", "VARIANTS", "ablation_jobs", "solve_variant"]

REFERENCE = "Eq. 7"
PIXELS = "in pixel space, start LMMSE"
PIXEL_RATE = 3e-3
"""Adam's first rate in pixel space, on the [0, 1] scale."""
FACTORS = (0.1, 0.3, 3.0, 10.0)
"""What the weight is multiplied by: two decades around the chosen one."""


@dataclass(frozen=True)
class Variant:
    """One change to Eq. 7.

    Args:
        name: What changes, for readers.
        objective: From the chosen alpha and the task's noise to the objective.
        start: Start of the search.
    """

    name: str
    objective: Callable[[float, float], Objective]
    start: str = "small"


def _eq7(factor: float = 1.0) -> Callable[[float, float], Objective]:
    return lambda alpha, sigma: Objective("l1", "likelihood", factor * alpha)


def _without_jacobian(factor: float = 1.0) -> Callable[[float, float], Objective]:
    # -log p_Z is half the squared norm, up to a constant.
    return lambda alpha, sigma: Objective("l1", "latent", factor * alpha / 2)


def _gaussian(alpha: float, sigma: float, factor: float = 1.0) -> Objective:
    """The 2-norm at the weight that Gaussian noise asks for; of noiseless tasks, alpha^2.

    alpha is the mean error a Laplace density of that scale allows, so that its square weighs
    about as much against a squared error.
    """
    if sigma > 0:
        return map_estimate(sigma, factor)
    return Objective("l2", "likelihood", factor * alpha**2)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(REFERENCE, _eq7()),
        Variant("2-norm", _gaussian),
        *(
            Variant(f"2-norm, {factor:g} times its weight", partial(_gaussian, factor=factor))
            for factor in FACTORS
        ),
        Variant("without the Jacobian", _without_jacobian()),
        *(
            Variant(f"without the Jacobian, {factor:g} times alpha", _without_jacobian(factor))
            for factor in FACTORS
        ),
        *(Variant(f"{factor:g} times alpha", _eq7(factor)) for factor in FACTORS),
        Variant("start zero", _eq7(), "zero"),
        Variant("start N(0, 1)", _eq7(), "random"),
        Variant("start LMMSE", _eq7(), "lmmse"),
        Variant("2-norm, start LMMSE", _gaussian, "lmmse"),
        Variant(PIXELS, _eq7(), "lmmse"),
        Variant("2-norm, " + PIXELS, _gaussian, "lmmse"),
    )
}
"""The lines of the ablation, by name."""
FAMILIES: dict[str, tuple[str, ...]] = {
    "Eq. 7": (REFERENCE, *(f"{factor:g} times alpha" for factor in FACTORS)),
    "2-norm": ("2-norm", *(f"2-norm, {factor:g} times its weight" for factor in FACTORS)),
    "without the Jacobian": (
        "without the Jacobian",
        *(f"without the Jacobian, {factor:g} times alpha" for factor in FACTORS),
    ),
}
"""Lines that differ in their weight only: objectives are compared at the best weight of each."""


def ablation_jobs(reference: Job) -> list[Job]:
    """The jobs of one task, from the job whose settings were chosen for ``eq7``."""
    jobs = []
    for variant in VARIANTS.values():
        rate = (
            ENTRIES["eq7-lmmse"].rates[0] if variant.start == "lmmse" else reference.learning_rate
        )
        jobs.append(
            dataclasses.replace(
                reference,
                item="ablation",
                start=variant.start,
                learning_rate=rate,
                variant=variant.name,
            )
        )
    return jobs


class _PixelSpace:
    """Lets the optimiser move the pixels themselves: its variable is the image, flat."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def decode(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return v.view(-1, *self.shape), v.new_zeros(len(v))


@dataclass(frozen=True)
class _PixelObjective:
    """The same objective of an image, whose likelihood takes one encoding and no decoding."""

    objective: Objective
    prior: FlowPrior

    def terms(self, v: Tensor, logdet: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        z, encoded = self.prior.encode(v.view(-1, *self.prior.shape))
        return self.objective.terms(z, -encoded, residual)


def solve_variant(
    job: Job,
    y: Tensor,
    task: Task,
    prior: FlowPrior,
    precision: str,
    generator: torch.Generator,
    observe: Observe,
) -> tuple[Tensor, list[str]]:
    """Solves one line of the ablation.

    Args:
        job: From :func:`ablation_jobs`.
        y: Measurements (B, ...), the task's offset taken off.
        task: The task.
        prior: The flow, with a Gaussian.
        precision: Of the coupling networks.
        generator: Of the start.
        observe: Sees every iterate.

    Returns:
        Images (B, C, H, W) in [0, 1] and a status for each.
    """
    variant = VARIANTS[job.variant]
    objective = variant.objective(job.weight, task.sigma)
    quick = prior.at_precision(precision)
    settings = {"steps": job.steps, "cosine": job.cosine, "observe": observe}
    if variant.name.endswith(PIXELS):
        first = lmmse(y, task.operator, prior.gaussian, task.sigma).flatten(1)
        v, _, _, status = minimise(
            _PixelObjective(objective, quick),
            y,
            task.operator,
            _PixelSpace(prior.shape),
            first,
            learning_rate=PIXEL_RATE,
            **settings,
        )
        return v.view(-1, *prior.shape).clamp(0.0, 1.0), status
    if variant.start == "lmmse":
        with torch.no_grad():
            first = prior.encode(lmmse(y, task.operator, prior.gaussian, task.sigma))[0]
    else:
        first = start_latents(variant.start, len(y), prior, generator)
    z, _, _, status = minimise(
        objective, y, task.operator, quick, first, learning_rate=job.learning_rate, **settings
    )
    with torch.no_grad():
        return prior.decode(z)[0].clamp(0.0, 1.0), status
