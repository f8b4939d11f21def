"""Our own methods behind :func:`flowmend.solver.solve`: fast MAP and the posterior."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .clipping import Limits, at_limits, before_clipping
from .continuous import ContinuousPrior
from .coordinates import Known, known_coordinates
from .errors import FlowmendError
from .guidance import LINEAR_NOISE, LOOSE, Guidance
from .guided import UNFINISHED, posterior, splitting
from .methods import Method
from .noise import Gaussian
from .operators import LinearOperator
from .patches import PatchPrior
from .pixels import on_byte_grid, quantisation_sigma
from .prior import FlowPrior, Prior
from .solution import Solution
from .whitened import DataTerm, Observe, Progress, Whitened, fast_map, variational

__all__ = ["Request", "infer", "turns_of"]

EVALUATIONS, DRAWS = 10, 16
"""Evaluations of a continuous flow's network for each draw, and draws to average at least."""
EVALUATIONS_OF_HOLES = 30
"""Evaluations by which pixels that are missing are filled from around them."""
EVALUATIONS_OF_EXACT, EXACT_NOISE = 4, (0.05, 0.01)
"""Evaluations where the network knows whole images and what is known is exact: one finds the rest,
the others, from the first of these levels to the last, mend it. Chosen on validation faces."""
PATCH_NOISE, LEAST_OF_HOLES = (0.2, 0.004), 0.02
"""First and last level of splitting with a flow of patches; the last where pixels are missing."""

WIDER = math.hypot(1.0, 0.3)
"""How far a noisy value scatters about a Gaussian's estimate, as a multiple of the noise: the
estimate is itself wrong by some of it. Chosen on validation faces."""


@dataclass(frozen=True)
class Request:
    """What is asked of a method; the arguments of :func:`flowmend.solver.solve`."""

    y: Tensor
    operator: LinearOperator
    method: Method
    sigma: float
    steps: int | None
    learning_rate: float | None
    precision: str
    memory: str
    data_term: DataTerm | None
    limits: Limits | None
    samples: int
    generator: torch.Generator
    progress: Progress | None
    observe: Observe | None

    @property
    def level(self) -> float:
        """The noise level; what lies below the rounding of 8 bits counts as rounding."""
        return max(self.sigma, quantisation_sigma())


def turns_of(prior: Prior, method: str) -> int:
    """How many turned copies of a picture a method asks a prior about, and averages.

    As many as :meth:`~flowmend.continuous.ContinuousPrior.with_turns` says; else ``splitting``
    asks a network of whole images that has learnt mirrored ones about both.
    """
    if not isinstance(prior, ContinuousPrior):
        return 1
    return prior.turns or (2 if prior.mirrors and method == "splitting" else 1)


def infer(request: Request, prior: Prior) -> Solution:
    """Solves with a coupling flow in whitened coordinates, with a continuous one by its denoiser.

    Raises:
        FlowmendError: If the prior cannot do what the method needs.
    """
    if isinstance(prior, ContinuousPrior | PatchPrior):
        return _guided(request, prior)
    if request.method.name == "splitting":
        raise FlowmendError("The method splitting needs the denoiser of a continuous flow.")
    if isinstance(prior, FlowPrior) and prior.gaussian is not None:
        return _whitened(request, prior)
    raise FlowmendError(
        f"The method {request.method.name} starts from a Gaussian fitted to the training images, "
        "and this prior holds none: use --method likelihood --start small."
    )


def _solution(
    request: Request,
    x: Tensor,
    instead: Tensor,
    trace: dict[str, Tensor],
    status: list[str],
    settings: dict[str, object],
    std: Tensor | None,
    samples: Tensor | None,
    mean_error: Tensor | None = None,
) -> Solution:
    x = torch.where(torch.isfinite(x), x, instead).clamp(0.0, 1.0)
    samples = None if samples is None else samples.clamp(0.0, 1.0)
    settings = settings | {"sigma": request.sigma, "precision": request.precision}
    name = request.method.name
    return Solution(x, None, trace, status, 0.0, name, settings, std, samples, mean_error)


def _exact(request: Request) -> Tensor:
    """Which measurements (B,) hold no noise at all: none is declared, nor are they 8-bit."""
    if request.sigma > 0 or request.data_term is not None:
        return torch.zeros(len(request.y), dtype=torch.bool)
    return ~on_byte_grid(request.y)


def _unclipped(request: Request, y: Tensor, linear: Callable[[], Tensor]) -> Tensor:
    """Measurements y (B, ...) as they were before noise was clipped, where it was.

    Args:
        request: The request.
        y: Its measurements, in the prior's precision.
        linear: Gives a first estimate of the images (B, C, H, W): that of a Gaussian.
    """
    if request.limits is None or request.data_term is not None or request.sigma == 0:
        return y
    if not any(bool(mask.any()) for mask in at_limits(y, request.limits)):
        return y
    with torch.no_grad():
        expected = request.operator.A(linear())
    return before_clipping(y, expected, WIDER * request.level, request.limits)


def _whitened(request: Request, prior: FlowPrior) -> Solution:
    gaussian = prior.gaussian.posterior(request.operator, request.level)
    y = request.y.to(prior.gaussian.mean)
    problem = Whitened(
        _unclipped(request, y, lambda: gaussian.mean(y)),
        request.operator,
        prior.at_precision(request.precision).with_memory(request.memory),
        gaussian,
        request.data_term or Gaussian(request.sigma).negative_log_likelihood,
        exact=_exact(request),
        generator=request.generator,
    )
    settings = {
        "steps": request.method.steps if request.steps is None else request.steps,
        "learning_rate": request.learning_rate or request.method.learning_rate,
    }
    options = settings | {"progress": request.progress, "observe": request.observe}
    if request.method.name == "fast-map":
        x, trace, status = fast_map(problem, **options)
        return _solution(request, x, problem.first, trace, status, settings, None, None)
    found = variational(problem, samples=request.samples, **options)
    return _solution(
        request,
        found.x,
        problem.first,
        found.trace,
        found.status,
        settings,
        found.std,
        found.samples,
        found.mean_error,
    )


def _guided(request: Request, prior: ContinuousPrior | PatchPrior) -> Solution:
    patches = isinstance(prior, PatchPrior)
    if patches and request.method.name != "splitting":
        raise FlowmendError(
            f"The method {request.method.name} needs a flow of whole pictures; this prior knows "
            "patches: use --method splitting."
        )
    if request.method.name not in ("posterior", "splitting"):
        raise FlowmendError(
            f"The method {request.method.name} needs a coupling flow; this prior is a continuous "
            "one: use --method splitting or posterior."
        )
    for name, value in (
        ("learning_rate", request.learning_rate),
        ("data_term", request.data_term),
    ):
        if value is not None:
            raise FlowmendError(f"With a continuous flow, {request.method.name} takes no {name}.")
    if prior.stationary is None:
        raise FlowmendError(
            "This continuous flow holds no stationary Gaussian, by which measurements guide it: "
            "train it again."
        )
    quick = prior.at_precision(request.precision)
    turns = turns_of(prior, request.method.name)
    quick = quick if patches else quick.with_turns(turns)
    covariance = prior.stationary.to(next(prior.parameters()))
    y = request.y.to(covariance.mean)
    guidance = Guidance(y, request.operator, request.level, covariance)
    rough = dataclasses.replace(guidance, tolerance=LOOSE)
    y = _unclipped(request, y, lambda: rough.linear(LINEAR_NOISE))
    plan = _plan(request, y, prior, covariance.mean)
    gaussian = None
    if plan.dense and not patches and prior.gaussian is not None:
        gaussian = prior.gaussian.posterior(request.operator, request.level)
    guidance = dataclasses.replace(guidance, y=y, known=plan.known, gaussian=gaussian)
    settings = {"steps": plan.steps, "turns": turns}
    instead = covariance.mean.expand(len(y), *covariance.shape)
    if request.method.name == "splitting":
        x = splitting(
            guidance,
            quick,
            evaluations=plan.steps,
            holes=plan.holes,
            noise=plan.noise,
            progress=request.progress,
            observe=request.observe,
        )
        finite = torch.isfinite(x).flatten(1).all(1).tolist()
        status = ["finished" if fine else UNFINISHED for fine in finite]
        return _solution(request, x, instead, {}, status, settings, None, None)
    found = posterior(
        guidance,
        quick,
        evaluations=plan.steps,
        draws=max(DRAWS, request.samples),
        generator=request.generator,
        progress=request.progress,
        observe=request.observe,
    )
    samples = found.samples[: request.samples]
    return _solution(
        request,
        found.x,
        instead,
        found.trace,
        found.status,
        settings,
        found.std,
        samples,
        found.mean_error,
    )


@dataclass(frozen=True)
class _Plan:
    """How a denoiser is to restore measurements.

    Args:
        steps: Evaluations of the network.
        known: What the measurements show of single coordinates, where the network can use it at
            once.
        holes: The same where the first evaluation fills what is missing and the others mend it.
        noise: First and last level of splitting; None takes its own.
        dense: Whether a Gaussian with a dense covariance helps, where there is one.
    """

    steps: int
    known: Known | None = None
    holes: Known | None = None
    noise: tuple[float, float] | None = None
    dense: bool = False


def _plan(request: Request, y: Tensor, prior: ContinuousPrior | PatchPrior, like: Tensor) -> _Plan:
    """How to restore measurements y (B, ...) that are no more clipped.

    A network of whole images knows what lies in a hole; one of crops hardly does, and one of
    patches only knows one noise level. They fill holes from around them, step by step.
    """
    known = known_coordinates(y, request.operator, request.level, like)
    draws = request.method.name == "posterior"

    def steps(usual: int) -> int:
        return usual if request.steps is None else request.steps

    if isinstance(prior, PatchPrior):
        if known is not None and known.even:
            return _Plan(1, known)
        if known is not None and known.holes:
            return _Plan(steps(EVALUATIONS_OF_HOLES), noise=(PATCH_NOISE[0], LEAST_OF_HOLES))
        return _Plan(steps(EVALUATIONS), noise=PATCH_NOISE)
    if known is None:
        return _Plan(steps(EVALUATIONS), dense=True)
    whole = prior.config.size is not None
    if known.holes and not whole:
        return _Plan(steps(EVALUATIONS if draws else EVALUATIONS_OF_HOLES), holes=known)
    if draws:
        return _Plan(steps(EVALUATIONS), known, dense=True)
    if whole and not known.even and request.level < EXACT_NOISE[1]:
        return _Plan(steps(EVALUATIONS_OF_EXACT), holes=known, noise=EXACT_NOISE)
    return _Plan(1, known)
