"""The posterior under a Gaussian prior and Gaussian noise: closed form, and a white coordinate."""

import copy
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["GaussianPosterior"]

CHUNK, STRIP = 256, 384


class _Measures(Protocol):
    def A(self, x: Tensor) -> Tensor: ...  # noqa: N802


def _symmetric_product(matrix: Tensor) -> Tensor:
    """``M M'`` by half of it, a strip at a time."""
    product = matrix.new_empty(len(matrix), len(matrix))
    for first in range(0, len(matrix), STRIP):
        last = first + STRIP
        strip = matrix[first:last] @ matrix[:last].T
        product[first:last, :last] = strip
        product[:last, first:last] = strip.T
    return product


class GaussianPosterior:
    """``p(x | y) = N(mean(y), L L')`` for ``x ~ N(m, C)`` and ``y = A x + sigma n``.

    With ``x = m + C^(1/2) u`` the precision of u is ``I + B B' / sigma^2`` for ``B' = A C^(1/2)``;
    its Cholesky factor R gives ``L = C^(1/2) R^-T``. So ``x = mean(y) + L w`` with white w is what
    the measurement and the Gaussian know, and leaves to an optimiser a well-scaled problem,
    whatever the operator. L does not depend on y: one factorisation serves any number of
    measurements.

    Args:
        mean: Mean image m, shape (C, H, W).
        root: Symmetric square root of the covariance, shape (D, D) with D = C*H*W.
        operator: Anything with ``A``.
        sigma: Standard deviation of the noise on the [0, 1] scale, above 0.
    """

    def __init__(self, mean: Tensor, root: Tensor, operator: _Measures, sigma: float) -> None:
        self.operator, self.shape = operator, tuple(mean.shape)
        self._mean = mean.detach().cpu().double()
        self._root = root.detach().cpu().double()
        images = self._root.reshape(-1, *self.shape).split(CHUNK)
        self._seen = torch.cat([operator.A(part).flatten(1) for part in images])  # B, (D, m)
        self._gram = _symmetric_product(self._seen)
        self._factorise(sigma)

    def _factorise(self, sigma: float) -> None:
        self.sigma = sigma
        precision = self._gram / sigma**2
        precision.diagonal().add_(1.0)
        self._factor = torch.linalg.cholesky(precision)
        self._quick: tuple[Tensor, Tensor] | None = None

    def at_noise(self, sigma: float) -> "GaussianPosterior":
        """The same for another noise level, at a fraction of the cost of a new one."""
        twin = copy.copy(self)
        twin._factorise(sigma)
        return twin

    def gain(self, residual: Tensor) -> Tensor:
        """``K r``, float64: what residuals r (B, ...) change in the mean (B, C, H, W)."""
        r = residual.detach().cpu().double().flatten(1)
        u = torch.cholesky_solve((r @ self._seen.T).T / self.sigma**2, self._factor)
        return (self._root @ u).T.reshape(-1, *self.shape)

    def mean(self, y: Tensor) -> Tensor:
        """The posterior mean of measurements (B, ...): images (B, C, H, W) like y."""
        expected = self.operator.A(self._mean[None])
        return (self._mean + self.gain(y.detach().cpu().double() - expected)).to(y)

    def colour(self, w: Tensor) -> Tensor:
        """``L w`` for white w (B, D): deviations from the mean (B, C, H, W), differentiable."""
        quick = self._quick
        if quick is None or quick[0].dtype != w.dtype or quick[0].device != w.device:
            with torch.inference_mode(False):
                self._quick = quick = (self._factor.T.contiguous().to(w), self._root.to(w))
        upper, root = quick
        u = torch.linalg.solve_triangular(upper, w.T, upper=True)
        return (root @ u).T.reshape(-1, *self.shape)

    def serves(self, operator: _Measures) -> bool:
        """Whether it was made for this operator, as it is now."""
        if operator is not self.operator:
            return False
        column = self._root[:1].reshape(1, *self.shape)
        return torch.equal(operator.A(column).flatten(1), self._seen[:1])
