"""Posterior samples from a denoiser of every noise level: the solver of continuous flows.

Noise is taken away along a falling sequence of levels, at each of which the measurement is made
part of what the denoiser says (:mod:`flowmend.guidance`): once for each sample, from a draw of the
Gaussian's own posterior, or once for an estimate without draws. No gradient passes through the
network.

Source, of the levels: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et
al., 2022), https://arxiv.org/abs/2206.00364
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .coordinates import Known
from .guidance import (
    LEAST_NOISE,
    LINEAR_NOISE,
    MOST_NOISE,
    Denoiser,
    Guidance,
    Normal,
    shared_noise,
)
from .solution import Posterior

__all__ = ["UNFINISHED", "levels", "posterior", "sample_posterior", "splitting"]

Progress = Callable[[int, int, str], None]
Observe = Callable[[int, Tensor], None]
UNFINISHED = "not finite: no image was found"
HOLES_NOISE = (0.14, 0.01)
"""First and last level after a network has filled missing pixels at once, not well; likewise."""
CHURN = 0.5
"""Share of the noise that is drawn anew at each level, for the sake of the draws' mean."""
TRUST = 2.0
"""How many times a level's variance is left after denoising: more follows the data faster. Chosen,
like the levels, on training photographs."""
CURVE = 5.0
"""Exponent of the levels: 1 spaces them evenly, more puts more of them at low noise."""


def levels(evaluations: int, most: float = MOST_NOISE, least: float = LEAST_NOISE) -> list[float]:
    """A falling sequence of noise levels, one for each evaluation of the network."""
    if evaluations < 2:
        return [most] * evaluations
    ends = most ** (1.0 / CURVE), least ** (1.0 / CURVE)
    shares = [k / (evaluations - 1) for k in range(evaluations)]
    return [(ends[0] + share * (ends[1] - ends[0])) ** CURVE for share in shares]


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
