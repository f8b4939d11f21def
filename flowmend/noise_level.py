"""The noise level of grey pictures and mosaics, as the denoiser of a continuous flow knows it.

To what looks at patches and differences (:mod:`flowmend.picture_sigma`) the texture of a picture
of one channel looks like noise; not to a network that has learnt pictures. Its denoiser D(y, s),
the mean of x given ``y = x + s n``, has the score of the density of y, ``(D - y) / s^2``, and that
density solves the heat equation: the level at which y is likeliest is where

    |y - D(y, s)|^2 = s^2 (n - div D(y, s)),

n the number of values. On average this holds of every pixel, so those that may have been clipped
can be left out. The divergence is found from one random change of y.

Sources: Tweedie's Formula and Selection Bias (Efron, 2011),
https://doi.org/10.1198/jasa.2011.tm11181; of the divergence: Monte-Carlo SURE (Ramani, Blu and
Unser, 2008), https://doi.org/10.1109/TIP.2008.2001404
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .clipping import Limits, at_limits
from .continuous import ContinuousPrior
from .coordinates import known_coordinates
from .operators import Bayer, Grey, Identity, LinearOperator, OfGrey
from .pixels import quantisation_sigma
from .prior import GaussianPrior, Prior
from .sigma import estimate_sigma
from .solver import solve

__all__ = ["likeliest_level", "noise_level"]

SIDE, SMALLEST = 128, 32
"""Side of the part of a picture that is looked at, and the smallest that tells enough."""
WHOLE = 0.5
"""Least share of it that was not clipped."""
FALL = 0.8
"""Ratio of one level that is tried to the one before."""
CHANGE, LEAST_CHANGE = 0.2, 1e-3
"""Size of the random change, as a share of the level, and at least."""
ROOM = 2.0
"""Standard deviations of the noise by which what counts keeps away from the limits."""
FEWEST = 0.25
"""Least share of the values that count."""
STEPS, ROUNDS, SETTLED, CAUTION = 6, 4, 0.9, 2.0
"""Evaluations that the colours of a mosaic take, how often they are found again once the noise is
known better, the ratio of two levels from which on that is needless, and as of how many times the
noise they are found: of less they would take some of it along. Chosen on training photographs."""


def noise_level(
    y: Tensor,
    operator: LinearOperator,
    prior: Prior,
    gaussian: GaussianPrior | None,
    limits: Limits | None = None,
) -> Tensor:
    """Standard deviation of white Gaussian noise in measurements, of every image on its own.

    That of :func:`~flowmend.sigma.estimate_sigma`; where this has no Gaussian to go by, and y are
    grey pictures or mosaics, what a continuous flow of every size knows of them corrects it. The
    flow looks at the calmest part that is hardly clipped; of a mosaic the colours, as the first
    estimate lets it see them, are taken off.

    Args:
        y: Measurements (B, ...) of A x on the [0, 1] scale, without the operator's offset.
        operator: Anything with ``A``.
        prior: What is known of the images.
        gaussian: Its Gaussian, if there is one of their size.
        limits: Lowest and highest value that y can have; None for no limits.

    Returns:
        Shape (B,), at least the rounding of an 8-bit file, in y's precision.

    Raises:
        FlowmendError: As :func:`~flowmend.sigma.estimate_sigma`.
    """
    first = estimate_sigma(y, operator, gaussian, limits=limits)
    of_grey = isinstance(operator, OfGrey) and isinstance(operator.inner, Identity)
    if gaussian is not None or not (of_grey or isinstance(operator, Grey | Bayer)):
        return first
    if not isinstance(prior, ContinuousPrior) or prior.config.size is not None:
        return first
    found = []
    for index, level in enumerate(first.tolist()):
        cut = slice(index, index + 1)
        part = _calmest(y[cut], operator, _of_images(limits, y, cut))
        found.append(level if part is None else _corrected(part, prior.with_turns(1), level))
    return torch.tensor(found).to(first)


def likeliest_level(
    y: Tensor,
    denoise: Callable[[Tensor, float], Tensor],
    first: float,
    room: Callable[[Tensor], Tensor] | None = None,
) -> float | None:
    """The level of noise, from a first one down, at which a picture is likeliest.

    Args:
        y: The picture (1, ...).
        denoise: From pictures and a level to the means of what they were without noise.
        first: The level to begin with, on the [0, 1] scale.
        room: From a picture without noise to how far its values keep from being clipped; None
            where nothing is.

    Returns:
        The first level itself where more noise were likelier; None where too little of the picture
        keeps away from the limits; at least the rounding of an 8-bit file.
    """
    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, y.shape, generator=generator).to(y) - 1.0
    level, before = first, None
    while level > quantisation_sigma():
        clean = denoise(y, level)
        change = max(CHANGE * level, LEAST_CHANGE)
        moved = signs * (denoise(y + change * signs, level) - clean) / change
        counts = torch.ones_like(y) if room is None else (room(clean) > ROOM * level).to(y)
        if float(counts.mean()) < FEWEST:
            return None
        energy = float(((y - clean).square() * counts).sum())
        free = float(((1.0 - moved) * counts).sum())
        # by how much the logarithm of the level falls short of what it leads to
        lack = 0.5 * math.log(max(energy, 1e-12) / max(free, 1e-12)) - math.log(level)
        if lack >= 0.0:
            if before is None:
                return first
            share = before[1] / (before[1] - lack)
            return before[0] * (level / before[0]) ** share
        level, before = FALL * level, (level, lack)
    return quantisation_sigma()


@dataclass(frozen=True)
class _Part:
    """A part of a picture: its measurements (1, 1, h, w), their operator and their limits."""

    y: Tensor
    operator: LinearOperator
    limits: Limits | None


def _of_images(limits: Limits | None, y: Tensor, cut: slice) -> Limits | None:
    """The limits of some of the images y (B, ...), of their shape."""
    if limits is None:
        return None
    low, high = (torch.as_tensor(limit).to(y).expand(y.shape)[cut] for limit in limits)
    return low, high


def _calmest(y: Tensor, operator: LinearOperator, limits: Limits | None) -> _Part | None:
    """The part of a picture (1, 1, H, W) whose finest differences are least."""
    grain = operator.grain
    side = min(SIDE, *y.shape[2:]) // grain * grain
    if side < SMALLEST:
        return None
    step = max(grain, side // 2 // grain * grain)
    # the pixels of a mosaic that see one colour are two apart
    apart = 2 if isinstance(operator, Bayer) else 1
    best, least = None, math.inf
    clipped = torch.zeros_like(y) if limits is None else sum(at_limits(y, limits)).to(y)
    for top in range(0, y.shape[2] - side + 1, step):
        for left in range(0, y.shape[3] - side + 1, step):
            rows, columns = slice(top, top + side), slice(left, left + side)
            part, out = y[..., rows, columns], clipped[..., rows, columns]
            if float(out.mean()) > 1.0 - WHOLE:
                continue
            difference = part[..., apart:, :] - part[..., :-apart, :]
            difference = difference[..., apart:] - difference[..., :-apart]
            whole = out[..., apart:, :] + out[..., :-apart, :]
            whole = (whole[..., apart:] + whole[..., :-apart] == 0.0).to(y)
            if not bool(whole.any()):
                continue
            energy = float((difference.square() * whole).sum() / whole.sum())
            if energy < least:
                best, least = (rows, columns), energy
    window = None if best is None else operator.window(*best)
    if window is None:
        return None
    place = (..., window.rows, window.columns)
    inside = None if limits is None else tuple(limit[place] for limit in limits)
    return _Part(y[place], window.operator, inside)


@torch.no_grad()
def _corrected(part: _Part, prior: ContinuousPrior, first: float) -> float:
    """The noise level of a part, given a first estimate."""
    y, shape = part.y, part.operator.shape
    local, operator = prior.at_shape(shape), Grey(shape)
    mosaic = isinstance(part.operator, Bayer)
    colours, level = torch.zeros_like(y), first

    def denoise(grey: Tensor, level: float) -> Tensor:
        known = known_coordinates(grey, operator, level, y.new_zeros(shape))
        return operator.A(known.mean(local))

    def room(grey: Tensor) -> Tensor:
        low, high = part.limits
        return torch.minimum(grey + colours - low, high - grey - colours)

    limited = None if part.limits is None else room
    for _ in range(ROUNDS if mosaic else 1):
        if mosaic:
            sigma = min(first, CAUTION * level)
            x = solve(y, part.operator, local, method="splitting", sigma=sigma, steps=STEPS).x
            colours = part.operator.A(x - x.mean(1, keepdim=True))
        found = likeliest_level(y - colours, denoise, level, limited)
        if found is None or found > SETTLED * level:
            return level if found is None else found
        level = found
    return level
