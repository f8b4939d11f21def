"""The noise level of a measurement, from the measurement alone: ``--sigma auto``."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .clipping import Limits, at_limits, before_clipping
from .errors import FlowmendError
from .operators import LinearOperator
from .picture_sigma import picture_sigma
from .pixels import quantisation_sigma
from .prior import GaussianPrior

__all__ = ["estimate_sigma"]

CHUNK = 256
LARGEST_BLOCK = 1024
"""Most measurements that are decomposed together."""
WHITE_SHARE = 1.4
"""How many times its smallest eigenvalue is taken off a covariance; chosen on validation faces."""
ROUNDS = 6
"""How often the noise is found again once what was clipped is known better."""


@torch.no_grad()
def estimate_sigma(
    y: Tensor,
    operator: LinearOperator,
    gaussian: GaussianPrior | None,
    white: float = WHITE_SHARE,
    limits: Limits | None = None,
) -> Tensor:
    """Standard deviation of white Gaussian noise in measurements, of every image on its own.

    The maximum over sigma of the marginal likelihood, ``y ~ N(A mean, s A C' A' + sigma^2 I)``,
    with the contrast s of the image unknown as well. Noise shows in directions that the operator
    or the prior leave nearly empty, so any linear operator will do; the error grows as these get
    fewer (``benchmarks/results/sigma_auto.md`` has it for each task). The likelihood is that of
    blocks of at most :data:`LARGEST_BLOCK` neighbouring measurements, multiplied as if they were
    independent; one eigendecomposition of every block serves the batch. Measurements that no image
    can change (those that :class:`~flowmend.operators.Mask` hides) are left out. Where noise was
    clipped there is less of it: given limits, what it was is drawn from the same Gaussian and the
    noise level found again, a few times in turn (stochastic expectation maximisation).

    C' is the prior's covariance less ``white`` times its smallest eigenvalue: a fit on reduced
    bits adds as much to every direction, which images do not have and noise does.

    Sources: Bayesian interpolation (MacKay, 1992), https://doi.org/10.1162/neco.1992.4.3.415, for
    evidence maximisation; An overview of composite likelihood methods (Varin et al., 2011),
    https://www.jstor.org/stable/24309261, for the product of blocks.

    Args:
        y: Measurements (B, ...) of A x on the [0, 1] scale, without the operator's offset.
        operator: Anything with ``A``.
        gaussian: The Gaussian prior; None takes
            :func:`~flowmend.picture_sigma.picture_sigma`.
        white: How many times the smallest eigenvalue counts as absent from images.
        limits: Lowest and highest value that y can have, see :mod:`flowmend.clipping`; None for
            no limits.

    Returns:
        Shape (B,), at least the rounding of an 8-bit file, in y's precision.

    Raises:
        FlowmendError: If there is no Gaussian and the measurements are no picture, or the
            operator measures nothing.
    """
    if gaussian is None:
        return picture_sigma(y, operator, limits)
    size, shape = gaussian.dimensions, gaussian.shape
    root = gaussian.whitening.unwhitening.detach().cpu()
    taken = _apply(operator, root.reshape(size, *shape))  # C^(1/2) A', (D, m)
    rows = _apply(operator, torch.eye(size, dtype=root.dtype).reshape(size, *shape))  # A'
    lost = white * _smallest_variance(gaussian)
    seen = (rows != 0).any(0)
    if not bool(seen.any()):
        raise FlowmendError("The operator makes nothing of any image: there is no noise to find.")
    centre = operator.A(gaussian.mean.detach().cpu().double()[None])
    parts = []
    for block in filter(len, (block[seen[block]] for block in _blocks(tuple(y.shape[1:])))):
        inside, identity = taken[:, block].double(), rows[:, block].double()
        covariance = inside.T @ inside - lost * (identity.T @ identity)
        values, vectors = torch.linalg.eigh(covariance)
        parts.append(_Block(block, values.clamp_min(0.0), vectors))
    measured = y.detach().cpu().double()
    contrast, sigma = _likeliest(parts, measured - centre)
    if limits is not None and any(bool(mask.any()) for mask in at_limits(y, limits)):
        clipped, generator = y.detach().cpu(), torch.Generator().manual_seed(0)
        for _ in range(ROUNDS):
            chance = torch.rand(1, *y.shape[1:], generator=generator, dtype=torch.float64)
            mean, spread = _expected(parts, measured - centre, contrast, sigma)
            measured = before_clipping(clipped, centre + mean, spread, limits, chance)
            contrast, sigma = _likeliest(parts, measured - centre)
    return sigma.clamp_min(quantisation_sigma()).to(y)


@dataclass(frozen=True)
class _Block:
    """Measurements at flat indices, and the eigenvalues and eigenvectors of their covariance."""

    indices: Tensor
    values: Tensor
    vectors: Tensor


def _likeliest(blocks: list[_Block], residual: Tensor) -> tuple[Tensor, Tensor]:
    """Contrast and sigma, (B,) each, of measurements less their mean (B, ...)."""
    flat = residual.flatten(1)
    energies = [(flat[:, block.indices] @ block.vectors).square() for block in blocks]
    values = torch.cat([block.values for block in blocks])
    return _likeliest_sigma(values, torch.cat(energies, dim=1))


def _expected(
    blocks: list[_Block], residual: Tensor, contrast: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """What the Gaussian makes of measurements less their mean (B, ...), and how far noisy ones
    scatter about that, of the same shape."""
    flat = residual.flatten(1)
    mean, variance = torch.zeros_like(flat), torch.ones_like(flat)
    noise = sigma.square()[:, None]
    for block in blocks:
        signal = contrast[:, None] * block.values
        share = signal / (signal + noise)
        found = (flat[:, block.indices] @ block.vectors) * share
        mean[:, block.indices] = found @ block.vectors.T
        variance[:, block.indices] = noise + (share * noise) @ block.vectors.T.square()
    return mean.view_as(residual), variance.sqrt().view_as(residual)


def _apply(operator: LinearOperator, images: Tensor) -> Tensor:
    """A of many images (N, C, H, W), a few at a time: (N, m)."""
    return torch.cat([operator.A(part).flatten(1) for part in images.split(CHUNK)])


def _smallest_variance(gaussian: GaussianPrior, steps: int = 60) -> float:
    """The smallest eigenvalue of the covariance, by power iteration on its inverse root."""
    matrix = gaussian.whitening.matrix.detach().cpu()
    vector = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0)).to(matrix)
    for _ in range(steps):
        vector = matrix @ (vector / vector.norm())
    return float(vector.norm()) ** -2


def _blocks(shape: tuple[int, ...]) -> list[Tensor]:
    """Flat indices of measurements in blocks of equal size: tiles of a picture, runs of a list.

    The channels of a pixel stay together where a block can hold them.
    """
    waiting = [torch.arange(math.prod(shape)).reshape(shape)]
    done = []
    while waiting:
        block = waiting.pop()
        if block.numel() <= LARGEST_BLOCK:
            done.append(block.flatten())
            continue
        sides = block.shape[1:] if block.ndim > 2 and max(block.shape[1:]) > 1 else block.shape
        longest = max(range(len(sides)), key=lambda index: sides[index])
        waiting.extend(block.tensor_split(2, dim=longest + block.ndim - len(sides)))
    return done


def _likeliest_sigma(variances: Tensor, energies: Tensor) -> tuple[Tensor, Tensor]:
    """The s and sigma, (B,) each, that maximise the likelihood of independent normal values.

    Value k of image i has mean 0 and variance ``s_i variances[k] + sigma_i^2``. With the ratio
    ``rho = sigma^2 / s`` given, the best s is a mean; rho is found on a grid of steps of 7 percent
    and a parabola through the best three.

    Args:
        variances: Shape (n,).
        energies: Squares of the values, (B, n).
    """
    energies = energies.clamp_min(1e-30)
    scale = float(variances.max()) or 1.0
    grid = torch.linspace(math.log(1e-11 * scale), math.log(1e6 * scale), 600).double()
    spread = variances + grid.exp()[:, None]  # (R, n)
    contrast = energies @ spread.reciprocal().T / len(variances)  # (B, R)
    value = -0.5 * (contrast.log() + spread.log().mean(1))
    best = value.argmax(1, keepdim=True).clamp(1, len(grid) - 2)
    left, middle, right = (value.gather(1, best + step)[:, 0] for step in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    shift = torch.where(bend < 0, 0.5 * (left - right) / bend.clamp_max(-1e-300), 0.0)
    ratio = (grid[best[:, 0]] + shift.clamp(-1.0, 1.0) * (grid[1] - grid[0])).exp()
    contrast = (energies / (variances + ratio[:, None])).mean(1)
    return contrast, (contrast * ratio).sqrt()
