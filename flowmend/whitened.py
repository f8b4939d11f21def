"""Fast MAP and a variational posterior, in the coordinates that the Gaussian posterior whitens.

Images are searched as ``x = m + L w`` (:class:`~flowmend.gaussian.GaussianPosterior`): the start
``w = 0`` is the LMMSE solution, every direction has unit scale whatever the operator, and what the
measurement fixes cannot drift. For large images L is nearly that
(:class:`~flowmend.lowrank_posterior.LowRankPosterior`). Only the encoder of the flow is used,
``-log p(x)`` and its gradient; the weight of the data is that of the noise, so there is nothing to
tune.

A flow is trained on dequantised images (levels plus uniform noise) and finds the same images
without that noise implausible. So the flow always sees ``x + d`` with fresh dequantisation noise
d, in pairs of opposite sign, as in training: the expectation bounds the probability of the levels.

Source of the search in pixels: PatchNR: Learning from Very Few Images by Patch Normalizing Flow
Regularization (Altekrueger et al., 2023), https://arxiv.org/abs/2205.12021; of the bound: Flow++
(Ho et al., 2019), https://arxiv.org/abs/1902.00275.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .gaussian import GaussianPosterior
from .lowrank_posterior import LowRankPosterior
from .operators import LinearOperator
from .prior import FlowPrior
from .solution import Posterior

__all__ = ["Whitened", "fast_map", "variational"]

Progress = Callable[[int, int, str], None]
Observe = Callable[[int, Tensor], None]
DataTerm = Callable[[Tensor, Tensor], Tensor]
BETAS, EPSILON = (0.9, 0.99), 1e-3
"""Of Adam; gradients are nats per standard deviation, and below the last they count as none."""
PATIENCE = 8
"""Steps without a lower objective after which an image has settled."""
MEMORY = 0.8
"""Share of the past in the running mean of an objective that is drawn anew at each step."""
FIRST_SPREAD = 0.7
"""First standard deviation of the variational posterior, as a share of the Gaussian one."""
DRAWS = 64
"""Draws that the standard deviation of every pixel is computed from."""


@dataclass
class Whitened:
    """One batch in whitened coordinates.

    Args:
        y: Measurements (B, ...).
        operator: Anything with ``A``.
        prior: The flow; its ``gaussian`` is the one that ``posterior`` was made of.
        posterior: The Gaussian posterior of the operator and the noise.
        data_term: From (A x, y) to the negative log-likelihood (B,) of y, nats.
        exact: Which measurements (B,) hold no noise, not even the rounding of 8 bits, so that the
            result must agree with them.
        generator: Source of the dequantisation noise.
    """

    y: Tensor
    operator: LinearOperator
    prior: FlowPrior
    posterior: GaussianPosterior | LowRankPosterior
    data_term: DataTerm
    exact: Tensor
    generator: torch.Generator
    first: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.posterior.mean(self.y)

    @property
    def dimensions(self) -> int:
        """Number of values D of an image."""
        return self.prior.dimensions

    def image(self, w: Tensor) -> Tensor:
        """Images (B, C, H, W) of coordinates (B, D), not clamped."""
        return self.first + self.posterior.colour(w)

    def normal(self) -> Tensor:
        """Standard normal noise (1, D), the same for all images: none depends on others."""
        noise = torch.randn(1, self.dimensions, generator=self.generator)
        return noise.to(self.first)

    def dither(self) -> Tensor:
        """Dequantisation noise (1, C, H, W) of mean zero; the same for all images."""
        noise = torch.rand(1, *self.prior.shape, generator=self.generator).to(self.first)
        return (noise - 0.5) / 2**self.prior.config.bits

    def energy(self, w: Tensor, dither: Tensor) -> Tensor:
        """``-log p(y | x) - log p(x + dither)``, shape (B,), nats, up to a constant."""
        x = self.image(w)
        return self.data_term(self.operator.A(x), self.y) - self.prior.log_prob(x + dither)

    @torch.no_grad()
    def consistent(self, x: Tensor) -> Tensor:
        """Takes out of x what contradicts an exact measurement, by the Gaussian's gain."""
        if not bool(self.exact.any()):
            return x
        kept = x + self.posterior.gain(self.y - self.operator.A(x)).to(x)
        return torch.where(self.exact.to(x.device).view(-1, 1, 1, 1), kept, x)


class _Descent:
    """Adam along a cosine on tensors (B, ...), each image with a stop of its own.

    PyTorch's optimiser knows no image that has stopped while others move, and the first one of a
    process takes a second to import the compiler: longer than all the rest of a small batch.

    Source: Adam: A Method for Stochastic Optimization (Kingma and Ba, 2015),
    https://arxiv.org/abs/1412.6980
    """

    def __init__(self, variables: list[Tensor], steps: int, rate: float) -> None:
        self.variables = [v.requires_grad_(True) for v in variables]
        self.moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in self.variables]
        self.steps, self.rate = steps, rate
        count = len(variables[0])
        self.lowest = variables[0].new_full((count,), math.inf).detach()
        self.since = torch.zeros(count, dtype=torch.long, device=self.lowest.device)
        self.active = torch.ones(count, dtype=torch.bool, device=self.lowest.device)
        self.mean = self.lowest.clone()
        self.status = ["finished"] * count
        self.trace: list[Tensor] = []

    @torch.no_grad()
    def take(self, step: int, value: Tensor, gradients: list[Tensor]) -> bool:
        """One step; returns whether any image still moves.

        Args:
            step: Number of the step.
            value: Objective (B,), perhaps noisy.
            gradients: One of each variable.
        """
        self.trace.append(value.detach())
        sound = torch.isfinite(value)
        for gradient in gradients:
            sound = sound & torch.isfinite(gradient).flatten(1).all(1)
        for index in torch.nonzero(self.active & ~sound).flatten().tolist():
            self.status[index] = f"not finite at step {step}: what it had before is kept"
        self.active = self.active & sound
        self.mean = value if step == 0 else self.mean.lerp(value, 1.0 - MEMORY)
        lower = self.active & (self.mean < self.lowest)
        self.lowest = torch.where(lower, self.mean, self.lowest)
        self.since = torch.where(lower, 0, self.since + 1)
        still = self.active & (self.since >= PATIENCE)
        for index in torch.nonzero(still).flatten().tolist():
            self.status[index] = f"settled at step {step}"
        self.active = self.active & ~still
        rate = self.rate * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        for variable, gradient, moments in zip(
            self.variables, gradients, self.moments, strict=True
        ):
            move = self._move(gradient, *moments, step + 1)
            rows = self.active.reshape(-1, *[1] * (move.ndim - 1))
            variable.sub_(torch.where(rows, rate * move, torch.zeros_like(move)))
        return bool(self.active.any())

    @staticmethod
    def _move(gradient: Tensor, first: Tensor, second: Tensor, count: int) -> Tensor:
        """The gradient's running mean over its running root mean square, both updated here."""
        first.lerp_(gradient, 1.0 - BETAS[0])
        second.lerp_(gradient.square(), 1.0 - BETAS[1])
        mean, square = (m / (1.0 - b**count) for m, b in zip((first, second), BETAS, strict=True))
        return mean / (square.sqrt() + EPSILON)


def fast_map(
    problem: Whitened,
    *,
    steps: int = 20,
    learning_rate: float = 0.05,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> tuple[Tensor, dict[str, Tensor], list[str]]:
    """The most probable image: min over w of the energy, from the LMMSE solution.

    Args:
        problem: The batch.
        steps: Most steps; an image stops when its objective has not fallen for 8 of them.
        learning_rate: Adam's first rate, in units of the Gaussian posterior's standard deviation.
        progress: Called with (step, steps, what).
        observe: Called with (step, x) before each step: images (B, C, H, W), not clamped.

    Returns:
        Images (B, C, H, W), not clamped; the trace (``"objective"``, (steps, B)); the status of
        every image: "finished", "settled at step k" or why it stopped.
    """
    w = torch.zeros(len(problem.y), problem.dimensions).to(problem.first)
    descent = _Descent([w], steps, learning_rate)
    for step in range(steps):
        if observe is not None:
            with torch.no_grad():
                observe(step, problem.image(w))
        dither = problem.dither()
        value, gradient = 0.0, 0.0
        for sign in (1.0, -1.0):
            with torch.enable_grad():
                energy = problem.energy(w, sign * dither)
                (part,) = torch.autograd.grad(energy.sum(), w)
            value, gradient = value + 0.5 * energy.detach(), gradient + 0.5 * part
        going = descent.take(step, value, [gradient])
        if progress is not None:
            progress(step + 1, steps, "")
        if not going:
            break
    x = problem.consistent(problem.image(w.detach()))
    return x, {"objective": torch.stack(descent.trace)}, descent.status


def variational(
    problem: Whitened,
    *,
    steps: int = 40,
    learning_rate: float = 0.05,
    samples: int = 8,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Posterior:
    """The normal distribution ``w ~ N(mean, diag(spread^2))`` closest to the posterior.

    It maximises the evidence lower bound by reparametrised draws in pairs of opposite sign. Where
    :func:`fast_map` asks the flow at the single most probable image, which is smoother than any
    real one, this asks it at draws as rough as real images: its mean estimates the posterior
    mean, which has the least squared error.

    Args:
        problem: The batch.
        steps: Most steps, of two evaluations each.
        learning_rate: As :func:`fast_map`.
        samples: Number of draws to return.
        progress: Called with (step, steps, what).
        observe: Called with (step, x) before each step: the images of the mean.

    Returns:
        Mean, standard deviation of every pixel and draws. Its trace is the negative evidence
        lower bound, nats up to a constant, estimated from two draws at each step.

    Source: Auto-Encoding Variational Bayes (Kingma and Welling, 2014),
    https://arxiv.org/abs/1312.6114
    """
    count = len(problem.y)
    w = torch.zeros(count, problem.dimensions).to(problem.first)
    log_spread = torch.full_like(w, math.log(FIRST_SPREAD))
    descent = _Descent([w, log_spread], steps, learning_rate)
    for step in range(steps):
        if observe is not None:
            with torch.no_grad():
                observe(step, problem.image(w))
        draw, dither = problem.normal(), problem.dither()
        value, gradients = 0.0, [0.0, 0.0]
        for sign in (1.0, -1.0):
            with torch.enable_grad():
                energy = problem.energy(w + sign * draw * log_spread.exp(), sign * dither)
                bound = energy - log_spread.sum(1)
                parts = torch.autograd.grad(bound.sum(), [w, log_spread])
            value = value + 0.5 * bound.detach()
            gradients = [g + 0.5 * part for g, part in zip(gradients, parts, strict=True)]
        going = descent.take(step, value, gradients)
        if progress is not None:
            progress(step + 1, steps, "")
        if not going:
            break
    with torch.no_grad():
        w, spread = w.detach(), log_spread.detach().exp()
        mean = problem.consistent(problem.image(w))
        kept, square = [], torch.zeros_like(mean)
        for index in range(max(DRAWS, samples)):
            deviation = problem.posterior.colour(problem.normal() * spread)
            square = square + deviation.square()
            if index < samples:
                kept.append(mean + deviation)
        std = (square / max(DRAWS, samples)).sqrt()
    stacked = torch.stack(kept) if kept else mean.new_zeros(0, *mean.shape)
    trace = {"objective": torch.stack(descent.trace)}
    # the mean is a parameter of the distribution, and takes no draws
    return Posterior(mean, std, stacked, mean.new_zeros(count), trace, descent.status)
