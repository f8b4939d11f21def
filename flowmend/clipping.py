"""Measurements that a file has clipped to black and white, and what they were before.

Noise that leads beyond black or white is lost in a file: what is kept lies nearer to mid-grey than
the image, and a method that knows Gaussian noise darkens white and lightens black. Where a value
lies at a limit the noisy one lay at it or beyond, so its mean given a first estimate of the image
is that of a normal distribution cut off there; with it the others are Gaussian again.

Source, of the model: Estimation of Relationships for Limited Dependent Variables (Tobin, 1958),
https://doi.org/10.2307/1907382
"""

import math

import torch
from torch import Tensor

__all__ = ["Limits", "at_limits", "before_clipping", "clipped_moments", "mean_before"]

Limits = tuple[Tensor | float, Tensor | float]
"""Lowest and highest value of a measurement, of a shape that fits it; infinite for no limit."""
NEWTON, FARTHEST = 8, 3.0
"""Steps towards a mean before clipping, and by how many standard deviations of the
noise it may have moved."""


def at_limits(y: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """Which values lie at the lower and at the upper limit, two masks of y's shape.

    An image of which a value lies beyond them was not clipped: all of its are False.

    Args:
        y: Measurements (B, ...).
        limits: Their limits.
    """
    low, high = (torch.as_tensor(limit).to(y) for limit in limits)
    beyond = ((y < low) | (y > high)).flatten(1).any(1).view(-1, *[1] * (y.ndim - 1))
    return (y == low) & ~beyond, (y == high) & ~beyond


@torch.no_grad()
def before_clipping(
    y: Tensor,
    expected: Tensor,
    spread: Tensor | float,
    limits: Limits,
    chance: Tensor | None = None,
) -> Tensor:
    """Measurements before they were clipped, given what is expected without noise.

    Args:
        y: Measurements (B, ...), clipped to the limits.
        expected: A x of an estimate of the images, of y's shape.
        spread: Standard deviation of noisy values about it, above 0; it fits y.
        limits: The limits.
        chance: Uniform numbers in (0, 1) that fit y, for a draw; None for the mean.

    Returns:
        Measurements of y's shape; values between the limits are as they were.
    """
    low, high = (torch.as_tensor(limit).to(y) for limit in limits)
    below, above = at_limits(y, limits)
    lower = expected - spread * _beyond((low - expected) / spread, chance)
    upper = expected + spread * _beyond((expected - high) / spread, chance)
    return torch.where(below, lower, torch.where(above, upper, y))


def _beyond(a: Tensor, chance: Tensor | None) -> Tensor:
    """``-n`` of a standard normal n that is known to be at most a: its mean, or a draw."""
    if chance is not None:
        tiny = torch.finfo(a.dtype).tiny
        return -torch.special.ndtri((chance * torch.special.ndtr(a)).clamp_min(tiny))
    density = -0.5 * a.square() - 0.5 * math.log(2.0 * math.pi)
    return (density - torch.special.log_ndtr(a)).exp()


def mean_before(low: Tensor, high: Tensor) -> Tensor:
    """Mean of a normal value of variance 1 whose mean is 0 once it is clipped to limits.

    Args:
        low: Lower limits, of any shape, in standard deviations from the mean after clipping.
        high: Upper limits, likewise.

    Returns:
        Means before clipping, of that shape, by Newton's method; at most 3 from those after it.
    """
    shift = torch.zeros_like(low)
    for _ in range(NEWTON):
        mean, _, slope = clipped_moments(low, high, shift)
        shift = (shift - mean / slope.clamp_min(0.1)).clamp(-FARTHEST, FARTHEST)
    return shift


def clipped_moments(low: Tensor, high: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of ``n + shift`` clipped to limits, n standard normal.

    Args:
        low: Lower limits, of any shape.
        high: Upper limits, likewise.
        shift: Means before clipping, likewise.

    Returns:
        Means, variances, and the chances of lying between the limits: how fast a mean follows
        its shift.
    """
    a, b = (low - shift).clamp(-30.0, 30.0), (high - shift).clamp(-30.0, 30.0)
    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    at_low, at_high = ((-0.5 * c.square()).exp() / math.sqrt(2.0 * math.pi) for c in (a, b))
    between = 1.0 - below - above
    mean = a * below + b * above + at_low - at_high
    square = a.square() * below + b.square() * above + between + a * at_low - b * at_high
    return mean + shift, square - mean.square(), between
