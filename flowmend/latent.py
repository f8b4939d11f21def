"""Optimisation in the latent space: min over z of an objective of x = F^-1(z), by Adam."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import FlowmendError
from .objective import Objective
from .operators import LinearOperator
from .prior import Prior

__all__ = ["STARTS", "minimise", "start_latents"]

Progress = Callable[[int, int, str], None]
Observe = Callable[[int, Tensor], None]
STARTS = {"zero": 0.0, "small": 0.1, "random": 1.0}
"""Standard deviation of each named start: GlowIP's, the paper's and CSGM's."""


def start_latents(
    start: str | Tensor, count: int, prior: Prior, generator: torch.Generator | None
) -> Tensor:
    """The first iterate, latents (count, D).

    Args:
        start: ``zero``, ``small`` (N(0, 0.1^2 I), the paper's), ``random`` (N(0, I)), or latents.
        count: Number of images.
        prior: Gives size, device and precision.
        generator: Source of the noise; None takes seed 0.

    Raises:
        FlowmendError: If the name is unknown or the latents have another shape.
    """
    if isinstance(start, Tensor):
        if start.shape != (count, prior.dimensions):
            raise FlowmendError(
                f"Start latents must have shape {(count, prior.dimensions)}, not "
                f"{tuple(start.shape)}."
            )
        return start.detach().clone()
    if start not in STARTS:
        raise FlowmendError(f"Unknown start '{start}': choose from {', '.join(STARTS)}, lmmse.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return prior.latents(count, STARTS[start], generator)


def minimise(
    objective: Objective,
    y: Tensor,
    operator: LinearOperator,
    prior: Prior,
    z: Tensor,
    *,
    steps: int,
    learning_rate: float,
    cosine: bool = False,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor], list[str]]:
    """Adam (beta 0.9, 0.999) on every image's objective, images independent of each other.

    An image whose objective or gradient stops being finite is taken back to its best iterate and
    left there; the others go on.

    Args:
        objective: What to minimise.
        y: Measurements (B, ...).
        operator: Anything with ``A``.
        prior: Gives decode.
        z: First iterate (B, D); not changed.
        steps: Number of steps, at least 1.
        learning_rate: Adam's.
        cosine: Whether it falls to zero along a cosine; the paper keeps it constant.
        progress: Called with (step, steps, what).
        observe: Called with (step, x) before each step: the images (B, C, H, W) of the iterate
            that so many steps have made, not clamped to [0, 1].

    Returns:
        Last iterate (B, D), best iterate (B, D), the trace (see
        :class:`~flowmend.solution.Solution`) and the status of every image.
    """
    z = z.detach().clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=learning_rate)
    best, best_value = z.detach().clone(), z.new_full((len(z),), math.inf)
    stopped: list[int | None] = [None] * len(z)
    active = torch.ones(len(z), dtype=torch.bool, device=z.device)
    trace: dict[str, list[Tensor]] = {"objective": [], "data": [], "regulariser": []}
    for step in range(steps):
        if cosine:
            factor = 0.5 * (1.0 + math.cos(math.pi * step / steps))
            adam.param_groups[0]["lr"] = learning_rate * factor
        with torch.enable_grad():
            x, logdet = prior.decode(z)
            measured = operator.A(x)
            if measured.shape != y.shape:
                raise FlowmendError(
                    f"Measurements of shape {tuple(y.shape[1:])} do not fit: this operator makes "
                    f"{tuple(measured.shape[1:])} of images {prior.shape}."
                )
            data, penalty = objective.terms(z, logdet, measured - y)
            value = data + penalty
            (gradient,) = torch.autograd.grad(value.sum(), z)
        if observe is not None:
            observe(step, x.detach())
        with torch.no_grad():
            sound = torch.isfinite(value) & torch.isfinite(gradient).all(1)
            for index in torch.nonzero(active & ~sound).flatten().tolist():
                stopped[index] = step
            active = active & sound
            better = active & (value < best_value)
            best_value = torch.where(better, value, best_value)
            best = torch.where(better[:, None], z, best)
            for name, term in (("objective", value), ("data", data), ("regulariser", penalty)):
                trace[name].append(term.detach())
            z.grad = torch.where(active[:, None], gradient, torch.zeros_like(gradient))
        adam.step()
        if not bool(active.all()):
            with torch.no_grad():
                z.copy_(torch.where(active[:, None], z, best))
        if progress is not None:
            progress(step + 1, steps, "")
    status = [
        "finished" if step is None else f"not finite at step {step}: the best iterate is kept"
        for step in stopped
    ]
    return z.detach(), best, {name: torch.stack(terms) for name, terms in trace.items()}, status
