"""Posterior samples from a denoiser of every noise level: the solver of continuous flows.

A continuous flow gives ``D(x_s, s)``, the mean of x given ``x_s = x + s n``, in one evaluation. To
know the measurement too, the image is taken to be Gaussian around D with the covariance ``S`` that
noise of level s leaves of a stationary Gaussian prior: then

    E[x | x_s, y] = D + S A' (A S A' + sigma^2 I)^-1 (y - A D),

one linear system, solved by conjugate gradients with A and its adjoint alone. At the largest noise
D is the mean image and this is the LMMSE solution; towards none it is the flow's own. For a
Gaussian prior it is exact at every level. Where the measurement shows single coordinates of the
image (:mod:`flowmend.coordinates`) the network itself gives ``E[x | x_s, y]``, for every prior.

Noise is taken away along a falling sequence of levels, once for each sample, from a draw of the
Gaussian's own posterior; no gradient passes through the network.

Sources: Flower: A Flow-Matching Solver for Inverse Problems (Pourya et al., 2026),
https://arxiv.org/abs/2509.26287; Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song
et al., 2023), https://openreview.net/forum?id=9_gsMA8MRKQ; of the levels: Elucidating the Design
Space of Diffusion-Based Generative Models (Karras et al., 2022), https://arxiv.org/abs/2206.00364
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .coordinates import Known
from .gaussian import GaussianPosterior
from .least_squares import HasAdjoint, conjugate_gradients
from .linear_operator import LinearOperator
from .lowrank_posterior import LowRankPosterior
from .solution import Posterior
from .stationary import StationaryGaussian

__all__ = [
    "UNFINISHED",
    "Denoiser",
    "Guidance",
    "levels",
    "posterior",
    "sample_posterior",
    "shared_noise",
    "splitting",
]

Progress = Callable[[int, int, str], None]
Observe = Callable[[int, Tensor], None]
Normal = Callable[[Tensor], Tensor]
MOST_NOISE, LEAST_NOISE = 1.0, 0.004
"""Levels between which noise is taken away, on the [0, 1] scale: at the first only the coarsest
structure of an image is left, and the last is the rounding of 8 bits."""
LINEAR_NOISE = 0.3
"""Limit to the Gaussian's standard deviations where splitting starts."""
LOOSE = 1e-2
"""Tolerance of the systems of splitting: each begins at an estimate that the next one mends."""
UNFINISHED = "not finite: no image was found"
DOUBT, DOUBTS = 2.0, 32
"""The first level of splitting as a multiple of the error that a dense Gaussian expects of where
it starts, found from so many draws. Chosen on validation faces."""
RISE, MOST_RISE = 150.0, 0.5
"""The same where the stationary one expects it: a multiple of its square, and the largest level.
What a blur leaves is larger than what a mosaic leaves, and less like noise. Chosen on training
photographs."""
CORNER = 128
"""Largest side in pixels of the images on which that error is found."""
HOLES_NOISE = (0.14, 0.01)
"""First and last level after a network has filled missing pixels at once, not well; likewise."""
CHURN = 0.5
"""Share of the noise that is drawn anew at each level, for the sake of the draws' mean."""
TRUST = 2.0
"""How many times a level's variance is left after denoising: more follows the data faster. Chosen,
like the levels, on training photographs."""
CURVE = 5.0
"""Exponent of the levels: 1 spaces them evenly, more puts more of them at low noise."""


class Denoiser(Protocol):
    """What the solver needs of a prior."""

    def denoise(self, y: Tensor, sigma: Tensor | float) -> Tensor: ...


def levels(evaluations: int, most: float = MOST_NOISE, least: float = LEAST_NOISE) -> list[float]:
    """A falling sequence of noise levels, one for each evaluation of the network."""
    if evaluations < 2:
        return [most] * evaluations
    ends = most ** (1.0 / CURVE), least ** (1.0 / CURVE)
    shares = [k / (evaluations - 1) for k in range(evaluations)]
    return [(ends[0] + share * (ends[1] - ends[0])) ** CURVE for share in shares]


@dataclass
class Guidance:
    """A measurement, ready to be made part of what the network says.

    Args:
        y: Measurements (B, ...).
        operator: Anything with ``A`` and ``A_adjoint``.
        sigma: Standard deviation of its noise on the [0, 1] scale, above 0.
        covariance: A stationary Gaussian of the images' size.
        known: What y shows of single coordinates; then no system need be solved.
        gaussian: The posterior of a Gaussian that knows these images better than the stationary
            one; draws begin there.
        steps: Most iterations of conjugate gradients.
        tolerance: An image's system is solved when its residual has shrunk by this factor; those
            of splitting by :data:`LOOSE` at most.
    """

    y: Tensor
    operator: HasAdjoint
    sigma: float
    covariance: StationaryGaussian
    known: Known | None = None
    gaussian: GaussianPosterior | LowRankPosterior | None = None
    steps: int = 60
    tolerance: float = 1e-3

    def mean(self, prior: Denoiser, x: Tensor, level: float) -> Tensor:
        """``E[x0 | x0 + level n = x, y]``, images (B, C, H, W).

        It is exact where single coordinates are known.
        """
        if self.known is not None:
            return self.known.mean_with(prior, x, level)
        estimate = prior.denoise(x, level)
        return estimate + self._gain(
            self.y - self.operator.A(estimate), lambda v: self.covariance.remaining(v, level)
        )

    def draw(self, normal: Normal) -> Tensor:
        """Images (B, C, H, W) from the posterior under a Gaussian alone.

        Under the stationary one it is a draw from the prior, moved by what its own measurement
        lacks to y (Matheron's rule).

        Args:
            normal: Draws standard normal noise of a tensor's shape.
        """
        if self.gaussian is not None:
            mean = self.gaussian.mean(self.y)
            return mean + self.gaussian.colour(normal(mean.flatten(1)))
        mean = self.covariance.mean.expand(len(self.y), *self.covariance.shape)
        lack = self.y - self.operator.A(mean)
        return mean + self._deviation(lack, normal, math.inf)

    def _deviation(self, lack: Tensor, normal: Normal, most: float) -> Tensor:
        """A draw (B, C, H, W) about the mean of the stationary Gaussian (Matheron's rule).

        Args:
            lack: What the measurements (B, ...) have beyond those of the mean.
            normal: As :meth:`draw`.
            most: As :meth:`linear`.
        """
        gaussian = self.covariance
        like = gaussian.mean.expand(len(lack), *gaussian.shape)
        x = gaussian.apply(normal(like), lambda v: (v / (v / most**2 + 1.0)).sqrt())
        lack = lack - self.operator.A(x) - self.sigma * normal(lack)
        return x + self._gain(lack, lambda v: gaussian.remaining(v, most))

    def linear(self, most: float = math.inf) -> Tensor:
        """The posterior mean under a Gaussian alone, images (B, C, H, W).

        Args:
            most: Standard deviation, on the [0, 1] scale, that no frequency of the stationary
                Gaussian exceeds by far. Those of the lowest do by orders of magnitude, and cost
                conjugate gradients many iterations for what the measurement settles anyway.
        """
        if self.gaussian is not None:
            return self.gaussian.mean(self.y)
        mean = self.covariance.mean.expand(len(self.y), *self.covariance.shape)
        lack = self.y - self.operator.A(mean)
        return mean + self._gain(lack, lambda v: self.covariance.remaining(v, most))

    def first_level(self) -> float:
        """The noise level at which splitting starts, from how far from the truth that is."""
        generator = torch.Generator().manual_seed(0)
        if self.gaussian is None:
            level = RISE * self._linear_error(generator) ** 2
            return min(max(level, 2.0 * LEAST_NOISE), MOST_RISE)
        draws = torch.randn(DOUBTS, self.covariance.mean.numel(), generator=generator)
        spread = self.gaussian.colour(draws.to(self.y)).square().mean().sqrt()
        return min(max(DOUBT * float(spread), 2.0 * LEAST_NOISE), MOST_NOISE)

    def _linear_error(self, generator: torch.Generator) -> float:
        """Root mean square of what :meth:`linear` gets wrong, of one draw from what it assumes.

        Of a large picture a corner is enough, and says the same of the whole and of its parts.
        """
        corner = self._corner()
        nothing = torch.zeros_like(corner.operator.A(corner.covariance.mean[None]))
        found = corner._deviation(nothing, shared_noise(generator), LINEAR_NOISE)
        return float(found.square().mean().sqrt())

    def _corner(self) -> "Guidance":
        """The same on a corner of the images, where they are large and the operator has parts."""
        operator, shape = self.operator, self.covariance.shape
        if not isinstance(operator, LinearOperator) or max(shape[1:]) <= CORNER:
            return self
        side = CORNER // operator.grain * operator.grain
        height, width = (min(side, length) for length in shape[1:])
        window = operator.window(slice(0, height), slice(0, width))
        if window is None:
            return self
        return dataclasses.replace(
            self, operator=window.operator, covariance=self.covariance.at_size(height, width)
        )

    def corrected(self, x: Tensor, variance: float) -> Tensor:
        """The mean given the measurements of images that are x (B, C, H, W) up to white noise."""
        lack = self.y - self.operator.A(x)
        return x + self._gain(lack, lambda v: variance * v, max(LOOSE, self.tolerance))

    def _gain(
        self,
        residual: Tensor,
        spread: Callable[[Tensor], Tensor],
        tolerance: float | None = None,
    ) -> Tensor:
        """``S A' (A S A' + sigma^2 I)^-1 r``, S given by what it makes of images."""

        def back(v: Tensor) -> Tensor:
            return spread(self.operator.A_adjoint(v))

        def matrix(v: Tensor) -> Tensor:
            return self.operator.A(back(v)) + self.sigma**2 * v

        tolerance = self.tolerance if tolerance is None else tolerance
        return back(conjugate_gradients(matrix, residual, self.steps, tolerance))


def shared_noise(generator: torch.Generator) -> Normal:
    """Draws noise for the first of a batch and gives it to all, so that none depends on others."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn((1, *like.shape[1:]), generator=generator).to(like).expand_as(like)

    return normal


@torch.no_grad()
def sample_posterior(
    guidance: Guidance,
    prior: Denoiser,
    *,
    draws: int = 1,
    evaluations: int,
    churn: float,
    normal: Normal,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Tensor:
    """Images drawn from p(x | y), some for each measurement: (N, B, C, H, W), not clamped.

    All draws go from level to level together: what a prior prepares for a level serves them all.

    Args:
        guidance: The measurements.
        prior: Gives ``denoise``.
        draws: How many N of each image.
        evaluations: Evaluations of the network for each draw, one for each level.
        churn: Share of the noise that is drawn anew at each level: 0 follows the flow's own path,
            1 forgets where it came from and ends nearer to the mean.
        normal: Draws standard normal noise of a tensor's shape, as :func:`shared_noise`.
        progress: Called with (evaluation, evaluations, what), all draws counted.
        observe: Called with (level, mean) after each level, the levels numbered from 0: the mean
            (B, C, H, W) of the draws' estimates.
    """
    path = levels(evaluations)
    states = []
    for _ in range(draws):
        first = guidance.draw(normal)
        states.append(first + path[0] * normal(first))
    for index, level in enumerate(path):
        total = torch.zeros_like(states[0])
        for draw, x in enumerate(states):
            mean = states[draw] = guidance.mean(prior, x, level)
            if progress is not None:
                progress(index * draws + draw + 1, evaluations * draws, "")
            total = total + mean
            if index + 1 < evaluations:
                noise = (x - mean) / level
                if churn > 0:
                    noise = math.sqrt(1.0 - churn**2) * noise + churn * normal(x)
                states[draw] = mean + path[index + 1] * noise
        if observe is not None:
            observe(index, total / draws)
    return torch.stack(states)


@torch.no_grad()
def splitting(
    guidance: Guidance,
    prior: Denoiser,
    *,
    evaluations: int = 10,
    holes: Known | None = None,
    noise: tuple[float, float] | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Tensor:
    """One estimate of every image (B, C, H, W), not clamped, without any draw.

    Half-quadratic splitting: from the Gaussian's own posterior mean, the denoiser and the data in
    turn at falling noise levels. What the denoiser leaves counts as white, of :data:`TRUST` times
    the variance that was taken away: the Gaussian knows what is wrong with an image nobody has
    restored, but not with this one. It comes to rest at the most probable image for noise of
    variance ``sigma^2 / TRUST``. Where single coordinates are known the estimate is the
    posterior mean, in one evaluation of the network.

    Sources: From Learning Models of Natural Image Patches to Whole Image Restoration (Zoran and
    Weiss, 2011), https://doi.org/10.1109/ICCV.2011.6126278; Plug-and-Play Image Restoration with
    Deep Denoiser Prior (Zhang et al., 2021), https://arxiv.org/abs/2008.13751

    Args:
        guidance: The measurements.
        prior: Gives ``denoise``.
        evaluations: Evaluations of the network, one for each level.
        holes: Where values are missing, what y shows of the others. The first evaluation then
            fills them, and takes the place of the Gaussian's mean.
        noise: First and last level on the [0, 1] scale; None begins at
            :meth:`Guidance.first_level` and ends at the rounding of 8 bits, or, with holes, takes
            :data:`HOLES_NOISE`.
        progress: Called with (evaluation, evaluations, what).
        observe: Called with (level, estimate) after each level, the levels numbered from 0.
    """
    known = holes if guidance.known is None else guidance.known
    if known is None:
        most, least = noise or (guidance.first_level(), LEAST_NOISE)
        path, x = levels(evaluations, most, least), guidance.linear(LINEAR_NOISE)
    else:
        rest = 0 if guidance.known is not None else evaluations - 1
        path, x = [0.0, *levels(rest, *(noise or HOLES_NOISE))], guidance.y
    for index, level in enumerate(path):
        if index == 0 and known is not None:
            x = known.mean(prior)
        else:
            x = guidance.corrected(prior.denoise(x, level), TRUST * level**2)
        if progress is not None:
            progress(index + 1, len(path), "")
        if observe is not None:
            observe(index, x)
    return x


def posterior(
    guidance: Guidance,
    prior: Denoiser,
    *,
    evaluations: int = 10,
    churn: float | None = None,
    draws: int = 16,
    generator: torch.Generator,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Posterior:
    """Mean and standard deviation of several draws of every image.

    Args:
        guidance: The measurements.
        prior: Gives ``denoise``.
        evaluations: Evaluations of the network for each draw.
        churn: As :func:`sample_posterior`; None takes 0.5, and 0 where single coordinates are
            known: there the mean needs no draws, and those of the flow's own path scatter as they
            should.
        draws: Draws of each image, at least 2.
        generator: Source of the noise.
        progress: As :func:`sample_posterior`.
        observe: As :func:`sample_posterior`.

    Returns:
        Mean, standard deviation (of a pixel over the draws, n - 1), the draws, and how exact their
        number makes the mean. Where single coordinates are known the mean is the network's own, in
        one evaluation, and not that of the draws.
    """
    if churn is None:
        churn = CHURN if guidance.known is None else 0.0
    samples = sample_posterior(
        guidance,
        prior,
        draws=draws,
        evaluations=evaluations,
        churn=churn,
        normal=shared_noise(generator),
        progress=progress,
        observe=observe,
    )
    mean, std = samples.mean(0), samples.std(0)
    error = std.square().flatten(1).mean(1).div(draws).sqrt()
    if guidance.known is not None:
        error = torch.zeros_like(error)
        with torch.no_grad():
            mean = guidance.known.mean(prior)
    finite = torch.isfinite(mean).flatten(1).all(1).tolist()
    status = ["finished" if fine else UNFINISHED for fine in finite]
    return Posterior(mean, std, samples, error, {}, status)
