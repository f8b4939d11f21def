"""Every method under one call: the paper's, its rivals', and the baselines it lacks."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import baselines
from .errors import FlowmendError
from .latent import Observe, minimise, start_latents
from .objective import Objective, latent_norm, likelihood, map_estimate
from .operators import LinearOperator
from .prior import Prior
from .solution import Solution

__all__ = ["METHODS", "Method", "default_settings", "find_method", "solve"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Method:
    """A line of the table of methods.

    Args:
        name: Its name on the command line.
        title: What it is, in a sentence.
        start: Named start of the latent optimisation; None for a closed form.
        objective: From (weight, sigma) to the objective; None for a closed form.
        weight: Default weight of the regulariser, on the [0, 1] scale.
        learning_rate: Adam's default rate.
        steps: Default number of steps; 0 for a closed form.
        needs_noise: Whether it only works with a noise level above 0.
        only_denoises: Whether it only fits the identity operator.
    """

    name: str
    title: str
    start: str | None = None
    objective: Callable[[float, float], Objective] | None = None
    weight: float = 0.0
    learning_rate: float = 5e-3
    steps: int = 0
    needs_noise: bool = False
    only_denoises: bool = False


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "likelihood",
            "the paper's solver, Eq. 7: 1-norm and the likelihood of the image",
            start="small",
            objective=lambda weight, sigma: likelihood(weight),
            weight=0.01,
            steps=1500,
        ),
        Method(
            "csgm",
            "Eq. 1 from a random start: 2-norm and the norm of the latent (Bora et al., 2017)",
            start="random",
            objective=lambda weight, sigma: latent_norm(weight),
            weight=0.0025,
            steps=1500,
        ),
        Method(
            "glowip",
            "Eq. 1 from the zero latent (Asim et al., 2020)",
            start="zero",
            objective=lambda weight, sigma: latent_norm(weight),
            steps=1500,
        ),
        Method(
            "map",
            "Eq. 2: Gaussian noise and the likelihood of the image (Whang et al., 2021)",
            start="small",
            objective=lambda weight, sigma: map_estimate(sigma, weight),
            weight=0.5,
            learning_rate=1.5e-3,
            steps=1500,
            needs_noise=True,
        ),
        Method("pinv", "the pseudo-inverse, no prior at all"),
        Method("lmmse", "the posterior mean under a Gaussian prior, closed form"),
        Method(
            "bm3d",
            "BM3D, the classical denoiser (Dabov et al., 2007)",
            needs_noise=True,
            only_denoises=True,
        ),
    )
}
"""Named methods; weights are on the [0, 1] scale (see :mod:`flowmend.objective`)."""


def find_method(name: str) -> Method:
    """A method by name; an unknown one raises :class:`FlowmendError`."""
    if name not in METHODS:
        raise FlowmendError(f"Unknown method '{name}': choose from {', '.join(METHODS)}.")
    return METHODS[name]


LMMSE_START: dict[str, object] = {
    "start": "lmmse",
    "steps": 100,
    "learning_rate": 3e-3,
    "cosine": True,
}
"""How a latent optimisation goes on from the closed-form solution of the Gaussian prior."""


def default_settings(
    method: str, prior: Prior, start: str | Tensor | None = None
) -> dict[str, object]:
    """Start, steps, learning rate, cosine and weight of a method where the user gives none.

    They are the paper's, except that ``likelihood`` and ``map`` start at the LMMSE solution and
    take 100 short steps where the prior holds a Gaussian. Near the zero latent, where the paper
    starts, a good flow finds images far likelier than any face, all of them smooth, and the
    gradient does not lead out again; ``start="small"`` takes the paper's settings all the same.

    Args:
        method: A name of :data:`METHODS`, not a closed form.
        prior: The prior.
        start: The start the user asks for.
    """
    chosen = find_method(method)
    settings: dict[str, object] = {
        "start": chosen.start,
        "steps": chosen.steps,
        "learning_rate": chosen.learning_rate,
        "cosine": False,
        "weight": chosen.weight,
    }
    has_gaussian = getattr(prior, "gaussian", None) is not None
    if start is None and has_gaussian and chosen.name in ("likelihood", "map"):
        start = "lmmse"
    if isinstance(start, str) and start == "lmmse":
        settings |= LMMSE_START
    elif start is not None:
        settings["start"] = start
    return settings


def _check(method: Method, operator: LinearOperator, prior: Prior, sigma: float) -> None:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise FlowmendError(f"The noise level sigma must be a number of at least 0, not {sigma}.")
    if method.needs_noise and sigma == 0:
        raise FlowmendError(
            f"The method {method.name} needs a noise level above 0: give sigma, or use another "
            "method for noiseless measurements."
        )
    if method.only_denoises:
        probe = torch.rand(1, *prior.shape, generator=torch.Generator().manual_seed(0))
        measured = operator.A(probe)
        if measured.shape != probe.shape or not torch.equal(measured, probe):
            raise FlowmendError(f"The method {method.name} only denoises: it fits no other task.")


def solve(
    y: Tensor,
    operator: LinearOperator,
    prior: Prior,
    *,
    method: str = "likelihood",
    sigma: float = 0.0,
    weight: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    start: str | Tensor | None = None,
    cosine: bool | None = None,
    precision: str = "float32",
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Solution:
    """Restores images from linear measurements y = A x + noise.

    Args:
        y: Measurements (B, ...), on the [0, 1] scale of the images.
        operator: The linear map A; an object with ``A`` (and ``A_dagger`` for ``pinv``), for
            example a deepinv physics.
        prior: What is known about the images.

    Keyword Args:
        method: A name of :data:`METHODS`.
        sigma: Standard deviation of the noise on the [0, 1] scale; ``map``, ``lmmse``, ``bm3d``.
        weight: Weight of the regulariser: alpha, gamma or beta. None takes the method's.
        steps: Steps of the latent optimisation; None, here and below, takes
            :func:`default_settings`.
        learning_rate: Adam's rate.
        start: ``zero``, ``small``, ``random``, ``lmmse``, or latents (B, D).
        cosine: Whether the rate falls to zero along a cosine.
        precision: ``"float32"`` or ``"bfloat16"`` for the coupling networks during the steps.
        generator: Source of the random start; None takes seed 0.
        progress: Called with (step, steps, what).
        observe: Called with (step, x) before each step of a latent optimisation: the images of
            the iterate, not clamped.

    Returns:
        The solution; image i of it never depends on measurement j.

    Raises:
        FlowmendError: If an argument is unknown or does not fit, or the method not the task.

    Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
    https://arxiv.org/abs/2110.13285
    """
    chosen = find_method(method)
    _check(chosen, operator, prior, sigma)
    if isinstance(operator, LinearOperator):
        operator.check_measurements(y)
        if operator.shape != prior.shape:
            raise FlowmendError(
                f"The operator acts on images {operator.shape}, the prior knows {prior.shape}."
            )
    begun = time.monotonic()
    if chosen.objective is None:
        if steps is not None or start is not None or weight is not None:
            raise FlowmendError(
                f"The method {method} is a closed form: it takes no steps, start or weight."
            )
        x = _closed_form(chosen.name, y, operator, prior, sigma)
        bad = ~torch.isfinite(x).flatten(1).all(1)
        status = ["not finite" if flag else "finished" for flag in bad.tolist()]
        x = torch.nan_to_num(x).clamp(0.0, 1.0)
        seconds = time.monotonic() - begun
        return Solution(x, None, {}, status, seconds, method, {"sigma": sigma})
    settings = default_settings(method, prior, start)
    given = {"steps": steps, "learning_rate": learning_rate, "weight": weight, "cosine": cosine}
    settings |= {name: value for name, value in given.items() if value is not None}
    settings |= {"sigma": sigma, "precision": precision}
    if settings["steps"] < 1:
        raise FlowmendError(f"The number of steps must be at least 1, not {steps}.")
    if not (0 < settings["learning_rate"] < math.inf):
        raise FlowmendError("The learning rate must be a number above 0.")
    objective = chosen.objective(settings["weight"], sigma)
    if isinstance(settings["start"], str) and settings["start"] == "lmmse":
        with torch.no_grad():
            first = prior.encode(_closed_form("lmmse", y, operator, prior, sigma))[0]
    else:
        first = start_latents(settings["start"], len(y), prior, generator)
    z, best, trace, status = minimise(
        objective,
        y,
        operator,
        prior.at_precision(precision),
        first,
        steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        cosine=settings["cosine"],
        progress=progress,
        observe=observe,
    )
    with torch.no_grad():
        x = prior.decode(z)[0]
        bad = ~torch.isfinite(x).flatten(1).all(1)
        if bool(bad.any()):
            z = torch.where(bad[:, None], best, z)
            x = torch.where(bad[:, None, None, None], prior.decode(z)[0], x)
    for index in torch.nonzero(bad).flatten().tolist():
        if status[index] == "finished":
            status[index] = "not finite after the last step: the best iterate is kept"
    x = torch.nan_to_num(x).clamp(0.0, 1.0)
    if isinstance(start, Tensor):
        settings["start"] = "given latents"
    return Solution(x, z, trace, status, time.monotonic() - begun, method, settings)


def _closed_form(
    name: str, y: Tensor, operator: LinearOperator, prior: Prior, sigma: float
) -> Tensor:
    if name == "pinv":
        return baselines.pinv(y, operator)
    if name == "bm3d":
        return baselines.bm3d(y, sigma)
    gaussian = getattr(prior, "gaussian", prior)
    if not isinstance(gaussian, baselines.GaussianPrior):
        raise FlowmendError(
            "The method lmmse needs a Gaussian fitted to the training images, and this prior "
            "holds none."
        )
    return baselines.lmmse(y, operator, gaussian, sigma)
