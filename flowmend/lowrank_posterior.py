"""The posterior of a Gaussian of low rank, and nearly white coordinates of it.

Conjugate gradients with A and its adjoint take the place of a factorisation, preconditioned by
what the Gaussian's directions are known to do.

Source, of the last of three kinds of coordinates: A Note on Efficient Conditional Simulation of
Gaussian Distributions (Doucet, 2010),
https://www.stats.ox.ac.uk/~doucet/doucet_simulationconditionalgaussian.pdf
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .coordinates import known_coordinates
from .cosines import cosine_matrix, mix_channels, unmix_channels
from .least_squares import HasAdjoint, conjugate_gradients
from .stationary import SMALLEST_VARIANCE, StationaryGaussian
from .thin_root import thin_root

__all__ = ["LowRankPosterior"]

PROBES = 16
"""Random signs that an operator is tried on, for each channel."""
STEPS, TOLERANCE = 200, 1e-4
"""Most iterations of conjugate gradients, and by how much they shrink a residual."""
DIAGONAL = 0.05
"""Largest relative departure of ``A'A`` from what is diagonal in the cosine transform."""
CHUNK = 64


class _LowRank(Protocol):
    """What is needed of :class:`~flowmend.lowrank.LowRankGaussian`."""

    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: StationaryGaussian


class _Gain:
    """``K = C A' (A C A' + sigma^2 I)^-1`` in one precision, on one device.

    Args:
        gaussian: Where C is from.
        operator: Where A is from.
        sigma: Standard deviation of the noise, above 0.
        tolerance: By how much conjugate gradients shrink a residual.
        like: Its precision and device are taken.
    """

    def __init__(
        self,
        gaussian: _LowRank,
        operator: HasAdjoint,
        sigma: float,
        tolerance: float,
        like: Tensor,
    ) -> None:
        self.operator, self.sigma, self.tolerance = operator, sigma, tolerance
        self.rest = gaussian.rest.to(like)
        self.variances, self.directions = (
            part.detach().to(like) for part in (gaussian.variances, gaussian.directions.flatten(1))
        )
        parts = gaussian.directions.detach().to(like).split(CHUNK)
        measured = torch.cat([operator.A(part) for part in parts])
        self.seen = measured.flatten(1)
        generator = torch.Generator().manual_seed(0)
        signs = _signs((PROBES, *measured.shape[1:]), generator).to(like)
        self.white = float((signs * self._by_rest(signs)).mean())
        inner = (self.seen @ self.seen.T).double()
        inner.diagonal().add_(self.white / self.variances.double())
        self.factor = torch.linalg.cholesky(inner)

    def _by_rest(self, v: Tensor) -> Tensor:
        """``(A S A' + sigma^2) v`` for v like measurements."""
        spread = self.rest.apply(self.operator.A_adjoint(v), lambda variance: variance)
        return self.operator.A(spread) + self.sigma**2 * v

    def system(self, v: Tensor) -> Tensor:
        """``(A C A' + sigma^2) v`` for v like measurements (B, ...)."""
        along = (v.flatten(1) @ self.seen.T) * self.variances
        return self._by_rest(v) + (along @ self.seen).view_as(v)

    def precondition(self, v: Tensor) -> Tensor:
        """The inverse of the system if the rest were white."""
        along = (v.flatten(1) @ self.seen.T).double()
        along = torch.cholesky_solve(along.T, self.factor).T.to(v)
        return (v - (along @ self.seen).view_as(v)) / self.white

    def _solve(self, v: Tensor) -> Tensor:
        """``(A C A' + sigma^2)^-1 v`` for v like measurements (B, ...)."""
        return conjugate_gradients(self.system, v, STEPS, self.tolerance, self.precondition)

    def _covariance(self, x: Tensor) -> Tensor:
        """``C x`` of images (B, C, H, W)."""
        along = (x.flatten(1) @ self.directions.T) * self.variances
        return self.rest.apply(x, lambda v: v) + (along @ self.directions).view_as(x)

    @torch.no_grad()
    def apply(self, residual: Tensor) -> Tensor:
        """``K r`` of residuals (B, ...): images (B, C, H, W)."""
        return self._covariance(self.operator.A_adjoint(self._solve(residual)))

    @torch.no_grad()
    def adjoint(self, x: Tensor) -> Tensor:
        """``K' x`` of images (B, C, H, W): like measurements (B, ...)."""
        return self._solve(self.operator.A(self._covariance(x)))


class LowRankPosterior:
    """``p(x | y) = N(mean(y), P)`` for x of a Gaussian of low rank and ``y = A x + sigma n``.

    The mean is exact up to the tolerance of conjugate gradients. ``L`` of :meth:`colour` is an
    approximate root of P, which leaves an optimiser a well-scaled problem. If ``A'A`` is diagonal
    in the cosine transform, as it is for noise and lost colours, ``L L' = P``. Where pixels are
    missing L takes S for diagonal in the pixels. Else ``L = C^(1/2) - K A (C^(1/2) - s I)``, K
    being the gain and s the noise as a share of what A makes of white images: draws of the prior,
    moved by what their own measurement would tell, with the image's coordinates for the noise's.
    It costs a linear system for each use.

    Args:
        gaussian: A :class:`~flowmend.lowrank.LowRankGaussian`.
        operator: Anything with ``A`` and ``A_adjoint``.
        sigma: Standard deviation of the noise on the [0, 1] scale, above 0.
        tolerance: An image's system is solved when its residual has shrunk by this factor.
    """

    def __init__(
        self,
        gaussian: _LowRank,
        operator: HasAdjoint,
        sigma: float,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.operator, self.sigma, self.shape = operator, sigma, tuple(gaussian.mean.shape)
        self._gaussian, self._tolerance = gaussian, tolerance
        self._mean = gaussian.mean.detach().cpu().double()
        self._gain = self._gain_like(self._mean)
        self._coordinates = self._prepare()
        self._quick: _Coordinates | None = None

    def _gain_like(self, like: Tensor) -> _Gain:
        return _Gain(self._gaussian, self.operator, self.sigma, self._tolerance, like)

    def serves(self, operator: HasAdjoint, sigma: float) -> bool:
        """Whether it was made for this operator, as it is now, and this noise."""
        if operator is not self.operator or sigma != self.sigma:
            return False
        first = self._gain.directions[:1].view(1, *self.shape)
        return torch.equal(operator.A(first).flatten(1), self._gain.seen[:1])

    def gain(self, residual: Tensor) -> Tensor:
        """``K r``, float64: what residuals r (B, ...) change in the mean (B, C, H, W)."""
        return self._gain.apply(residual.detach().cpu().double())

    def mean(self, y: Tensor) -> Tensor:
        """The posterior mean of measurements (B, ...): images (B, C, H, W) like y."""
        expected = self.operator.A(self._mean[None])
        return (self._mean + self.gain(y.detach().cpu().double() - expected)).to(y)

    def colour(self, w: Tensor) -> Tensor:
        """``L w`` for white w (B, D): deviations from the mean (B, C, H, W), differentiable."""
        quick = self._quick
        if quick is None or quick.along.dtype != w.dtype or quick.along.device != w.device:
            with torch.inference_mode(False):
                gain = None if self._coordinates.gain is None else self._gain_like(w.detach())
                self._quick = quick = self._coordinates.like(w.detach(), gain)
        return quick.image(w, self.shape)

    def _prepare(self) -> "_Coordinates":
        """L as the kind of operator wants it, in float64."""
        zero = self.operator.A(torch.zeros_like(self._mean)[None])
        known = known_coordinates(zero, self.operator, self.sigma, self._mean)
        generator = torch.Generator().manual_seed(0)
        rest, directions = self._gain.rest, self._gain.directions.view(-1, *self.shape)
        variances, precision = self._gain.variances, _inverse(rest.spectrum)
        if known is not None and known.holes:
            basis = cosine_matrix(self.shape[0])
            alone = torch.einsum("dc,hwce,de->dhw", basis, precision, basis).mean((1, 2))
            shrunk = 1.0 / (1.0 + known.precision / alone.view(1, -1, 1, 1))
            moved = unmix_channels(shrunk * mix_channels(directions))
            inner = self._gain.factor / self._gain.white**0.5
            return _Coordinates.of(rest, inner, moved, shrunk=shrunk.sqrt())
        gram = _cosine_gram(self.operator, self._mean, generator)
        if gram is not None:
            narrowed = _inverse(precision + gram / self.sigma**2)
            told = _by_frequency(directions, precision - precision @ narrowed @ precision)
            inner = directions.flatten(1) @ told.flatten(1).T
            inner = torch.linalg.cholesky(0.5 * (inner + inner.T) + torch.diag(1.0 / variances))
            moved = _by_frequency(directions, narrowed @ precision)
            small = StationaryGaussian(torch.zeros_like(self._mean), narrowed)
            return _Coordinates.of(small, inner, moved)
        white = self.operator.A(_signs((PROBES, *self.shape), generator).double())
        noise = self.sigma / float(white.square().mean().sqrt())
        inner = torch.diag(variances.rsqrt())
        return _Coordinates.of(rest, inner, directions, noise=noise, gain=self._gain)


@dataclass(frozen=True)
class _Coordinates:
    """What L is made of.

    Args:
        rest: Its root comes first, after ``I + along' diag(widening) along``.
        along: Images (R, D).
        widening: Factors (R,).
        shrunk: What every colour coordinate is multiplied with, where pixels are missing.
        noise: The noise, as a share of what A makes of white images.
        gain: The gain, where L takes out what a measurement would tell.
    """

    rest: StationaryGaussian
    along: Tensor
    widening: Tensor
    shrunk: Tensor | None
    noise: float | None
    gain: _Gain | None

    @classmethod
    def of(
        cls,
        rest: StationaryGaussian,
        factor: Tensor,
        moved: Tensor,
        shrunk: Tensor | None = None,
        noise: float | None = None,
        gain: _Gain | None = None,
    ) -> "_Coordinates":
        """Such that ``L L' = S + V (F F')^-1 V'`` before the last two have their say.

        Args:
            rest: S, or what is S once it is shrunk.
            factor: Lower triangle F (R, R).
            moved: V', images (R, C, H, W).
            shrunk: As above.
            noise: As above.
            gain: As above.
        """
        wide = torch.linalg.solve_triangular(
            factor.T, torch.eye(len(factor)).to(factor), upper=True
        )
        wide = (wide.T @ moved.flatten(1)).view_as(moved)
        if shrunk is not None:
            wide = unmix_channels(mix_channels(wide) / shrunk)
        wide = rest.apply(wide, torch.rsqrt).flatten(1)
        along, roots = thin_root(wide)
        return cls(rest, along, 1.0 / (1.0 + roots), shrunk, noise, gain)

    def like(self, like: Tensor, gain: _Gain | None) -> "_Coordinates":
        """The same in the precision and on the device of a tensor, with a gain of that kind."""
        shrunk = None if self.shrunk is None else self.shrunk.to(like)
        along, widening = self.along.to(like), self.widening.to(like)
        return _Coordinates(self.rest.to(like), along, widening, shrunk, self.noise, gain)

    def image(self, w: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """``L w`` for w (B, D): images (B, C, H, W)."""
        wide = w + ((w @ self.along.T) * self.widening) @ self.along
        x = self.rest.apply(wide.view(-1, *shape), torch.sqrt)
        if self.shrunk is not None:
            return unmix_channels(self.shrunk * mix_channels(x))
        if self.gain is None:
            return x
        return x - _Explained.apply(x - self.noise * w.view_as(x), self.gain)


class _Explained(torch.autograd.Function):
    """``K A x``: what a measurement of deviations x (B, C, H, W) would tell of them."""

    @staticmethod
    def forward(context: FunctionCtx, x: Tensor, gain: _Gain) -> Tensor:
        context.gain = gain
        return gain.apply(gain.operator.A(x))

    @staticmethod
    def backward(context: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        gain = context.gain
        return gain.operator.A_adjoint(gain.adjoint(gradient)), None


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random signs."""
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1.0


def _inverse(matrices: Tensor) -> Tensor:
    """Inverses (..., C, C) of symmetric matrices, no eigenvalue below the smallest variance."""
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors / values.clamp_min(SMALLEST_VARIANCE)[..., None, :]) @ vectors.mT


def _by_frequency(x: Tensor, matrices: Tensor) -> Tensor:
    """Images (R, C, H, W), the channels of each frequency multiplied with one of (H, W, C, C)."""
    rows, columns = (cosine_matrix(side) for side in x.shape[2:])
    values = torch.einsum("hwcd,bdhw->bchw", matrices, rows @ x @ columns.T)
    return rows.T @ values @ columns


def _cosine_gram(operator: HasAdjoint, like: Tensor, generator: torch.Generator) -> Tensor | None:
    """The matrices (H, W, C, C) that ``A'A`` has between channels at each frequency, float64.

    Estimated from random signs, which is exact where there is nothing else; None where there is.
    """
    channels, height, width = like.shape
    rows, columns = cosine_matrix(height), cosine_matrix(width)
    gram = torch.zeros(height, width, channels, channels).to(like)
    x = like.new_zeros(channels, PROBES, *like.shape)
    for channel in range(channels):
        signs = _signs((PROBES, height, width), generator).to(like)
        x[channel, :, channel] = rows.T @ signs @ columns
        answer = rows @ operator.A_adjoint(operator.A(x[channel])) @ columns.T
        gram[..., channel] = (answer * signs[:, None]).mean(0).permute(1, 2, 0)
    gram = 0.5 * (gram + gram.mT)
    x = x.flatten(0, 1)
    answer = operator.A_adjoint(operator.A(x))
    if float((answer - _by_frequency(x, gram)).norm()) > DIAGONAL * float(answer.norm()):
        return None
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * values.clamp_min(0.0)[..., None, :]) @ vectors.mT
