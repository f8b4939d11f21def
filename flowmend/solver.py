"""Every method under one call."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from . import baselines
from .clipping import Limits
from .continuous import ContinuousPrior
from .errors import FlowmendError
from .inference import Request, infer
from .latent import Observe, minimise, start_latents
from .lowrank import LowRankGaussian
from .methods import Method, default_settings, find_method
from .operators import LinearOperator
from .patches import PatchPrior
from .prior import FlowPrior, GaussianPrior, Prior
from .solution import Solution
from .whitened import DataTerm

__all__ = ["default_method", "solve"]

Progress = Callable[[int, int, str], None]


def default_method(prior: Prior) -> str:
    """The method that suits a prior.

    ``splitting`` for a continuous flow or one of patches, ``fast-map`` for a coupling flow that
    holds a Gaussian, and for one without it the paper's, ``likelihood``.
    """
    if isinstance(prior, ContinuousPrior | PatchPrior):
        return "splitting"
    if isinstance(prior, FlowPrior) and prior.gaussian is not None:
        return "fast-map"
    return "likelihood"


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
    method: str | None = None,
    sigma: float = 0.0,
    weight: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    start: str | Tensor | None = None,
    cosine: bool | None = None,
    precision: str = "float32",
    memory: str = "autograd",
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
    data_term: DataTerm | None = None,
    samples: int = 8,
    limits: Limits | None = None,
) -> Solution:
    """Restores images from linear measurements y = A x + noise.

    Args:
        y: Measurements (B, ...), on the [0, 1] scale of the images.
        operator: The linear map A; an object with ``A`` (and ``A_dagger`` for ``pinv``), for
            example a deepinv physics.
        prior: What is known about the images.

    Keyword Args:
        method: A name of :data:`~flowmend.methods.METHODS`; None takes :func:`default_method`.
        sigma: Standard deviation of the noise on the [0, 1] scale; ``map``, ``lmmse``, ``bm3d``.
        weight: Weight of the regulariser: alpha, gamma or beta. None takes the method's.
        steps: Steps of the latent optimisation; None, here and below, takes
            :func:`~flowmend.methods.default_settings`.
        learning_rate: Adam's rate.
        start: ``zero``, ``small``, ``random``, ``lmmse``, or latents (B, D).
        cosine: Whether the rate falls to zero along a cosine.
        precision: ``"float32"`` or ``"bfloat16"`` for the coupling networks during the steps.
        memory: ``"autograd"`` or ``"reversible"``: recomputes activations from the output instead
            of keeping them, so that memory does not grow with the depth of the flow.
        generator: Source of the random start; None takes seed 0.
        progress: Called with (step, steps, what).
        observe: Called with (step, x) before each step of a latent optimisation: the images of
            the iterate, not clamped.
        data_term: From (A x, y) to the negative log-likelihood (B,) of y, nats, for ``fast-map``
            and ``posterior``; None is Gaussian noise of ``sigma``. ``sigma`` still scales their
            coordinates.
        samples: Draws to return, for ``posterior``.
        limits: Lowest and highest value that y can have, for ``fast-map``, ``posterior`` and
            ``splitting``: what lies there was noisier, and is taken for what it was before (see
            :func:`~flowmend.clipping.before_clipping`). None has no limits.

    Returns:
        The solution; image i of it never depends on measurement j.

    Raises:
        FlowmendError: If an argument is unknown or does not fit, or the method not the task.

    Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
    https://arxiv.org/abs/2110.13285
    """
    method = default_method(prior) if method is None else method
    chosen = find_method(method)
    _check(chosen, operator, prior, sigma)
    if isinstance(operator, LinearOperator):
        operator.check_measurements(y)
        if operator.shape != prior.shape:
            raise FlowmendError(
                f"The operator acts on images {operator.shape}, the prior knows {prior.shape}."
            )
    begun = time.monotonic()
    if chosen.whitened:
        for name, value in (("weight", weight), ("start", start), ("cosine", cosine)):
            if value is not None:
                raise FlowmendError(f"The method {method} takes no {name}: noise is its weight.")
        _check_search(
            1 if steps is None else steps, 1.0 if learning_rate is None else learning_rate
        )
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        request = Request(
            y,
            operator,
            chosen,
            sigma,
            steps,
            learning_rate,
            precision,
            memory,
            data_term,
            limits,
            samples,
            generator,
            progress,
            observe,
        )
        solution = infer(request, prior)
        solution.seconds = time.monotonic() - begun
        return solution
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
    settings = default_settings(method, start)
    given = {"steps": steps, "learning_rate": learning_rate, "weight": weight, "cosine": cosine}
    settings |= {name: value for name, value in given.items() if value is not None}
    settings |= {"sigma": sigma, "precision": precision}
    _check_search(settings["steps"], settings["learning_rate"])
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
        prior.at_precision(precision).with_memory(memory),
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


def _check_search(steps: int, learning_rate: float) -> None:
    if steps < 1:
        raise FlowmendError(f"The number of steps must be at least 1, not {steps}.")
    if not (0 < learning_rate < math.inf):
        raise FlowmendError("The learning rate must be a number above 0.")


def _closed_form(
    name: str, y: Tensor, operator: LinearOperator, prior: Prior, sigma: float
) -> Tensor:
    if name == "pinv":
        return baselines.pinv(y, operator)
    if name == "bm3d":
        return baselines.bm3d(y, sigma)
    gaussian = getattr(prior, "gaussian", prior)
    if not isinstance(gaussian, GaussianPrior | LowRankGaussian):
        raise FlowmendError(
            "The method lmmse needs a Gaussian fitted to the training images, and this prior "
            "holds none."
        )
    return baselines.lmmse(y, operator, gaussian, sigma)
