"""What a Gaussian prior makes of a point of the path, in closed form."""

import torch
from torch import Tensor, nn

from ..cosines import mix_channels
from ..errors import FlowmendError
from ..pixels import centre

__all__ = ["GaussianVelocity"]

KEPT = 2
"""Factorisations that are kept."""
PATIENCE = 12
"""Factorisations for even times after which the eigenvectors are worth their time."""


class GaussianVelocity(nn.Module):
    """``E[x - e | x_T]`` for ``x ~ N(m, C)``, ``e ~ N(0, I)`` and ``x_T = T x + (1 - T) e``.

    T is diagonal, a time for every value. With ``M = T C T + (1 - T)^2``, the covariance of x_T,
    the velocity is ``m + (C T - (1 - T)) M^-1 (x_T - T m)``: it holds what every pixel tells of
    every other, which a network of small kernels finds hard to learn. It has no parameters;
    copies share it.

    Args:
        mean: Mean m (C, H, W), on the network's range.
        covariance: Covariance C (D, D) with D = C*H*W, positive definite.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.mean, self.covariance = mean.detach().double(), covariance.detach().double()
        self._basis: tuple[Tensor, Tensor] | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._factorised = 0

    @classmethod
    def of_images(cls, mean: Tensor, covariance: Tensor) -> "GaussianVelocity":
        """From mean (C, H, W) and covariance (D, D) of images on the [0, 1] scale."""
        for _ in range(2):
            mixed = mix_channels(covariance.double().reshape(-1, *mean.shape))
            covariance = 2.0 * mixed.reshape(covariance.shape).T
        return cls(mix_channels(centre(mean.double()[None]))[0], covariance)

    def __deepcopy__(self, memo: dict) -> "GaussianVelocity":
        return self

    def basis(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (D,) and eigenvectors (D, D) of the covariance, found once."""
        if self._basis is None:
            with torch.inference_mode(False), torch.no_grad():
                self._basis = tuple(torch.linalg.eigh(self.covariance))
        return self._basis

    def gain(self, times: Tensor) -> Tensor:
        """``(C T - (1 - T)) M^-1``, (D, D), float64, for times (C, H, W) of every value."""
        t = times.double().flatten()
        left = self.covariance * t
        left.diagonal().sub_(1.0 - t)
        return torch.cholesky_solve(left.T, self._factor(t)).T

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocities (B, C, H, W) of points (B, C, H, W) at times (B,) or (B, C, H, W).

        Raises:
            FlowmendError: If the points have another shape than the mean.
        """
        if x_t.shape[1:] != self.mean.shape:
            raise FlowmendError(f"The Gaussian knows images of shape {tuple(self.mean.shape)}.")
        if t.ndim == 1:
            distinct = t.detach().double().cpu().unique()
            new = sum(self._find(time.expand(len(self.covariance))) is None for time in distinct)
            if self._basis is not None or new + self._factorised > PATIENCE:
                return self._even(x_t, t)
            self._factorised += new
            t = t.view(-1, 1, 1, 1).expand(x_t.shape)
        if bool((t == t[:1]).all()):
            return self._alike(x_t, t[0])
        rows = [self._alike(x_t[i : i + 1], t[i]) for i in range(len(x_t))]
        return torch.cat(rows)

    def _even(self, x_t: Tensor, t: Tensor) -> Tensor:
        """By the eigenvectors, each image at one time of its own."""
        values, vectors = (part.to(x_t) for part in self.basis())
        t = t.to(x_t)[:, None]
        shares = (t * values - (1.0 - t)) / (t.square() * values + (1.0 - t).square())
        seen = (x_t.flatten(1) - t * self.mean.to(x_t).flatten()) @ vectors
        return ((seen * shares) @ vectors.T).view_as(x_t) + self.mean.to(x_t)

    def _alike(self, x_t: Tensor, times: Tensor) -> Tensor:
        """By a factorisation, all images at the same times (C, H, W)."""
        t = times.detach().double().cpu().flatten()
        seen = x_t.double().cpu().flatten(1) - t * self.mean.flatten()
        solved = torch.cholesky_solve(seen.T, self._factor(t)).T
        velocity = (solved * t) @ self.covariance - (1.0 - t) * solved
        return (velocity.view(x_t.shape) + self.mean).to(x_t)

    def _factor(self, t: Tensor) -> Tensor:
        """The Cholesky factor of ``M`` for times (D,); the last ones are kept."""
        factor = self._find(t)
        if factor is not None:
            return factor
        with torch.inference_mode(False), torch.no_grad():
            matrix = t[:, None] * self.covariance * t
            matrix.diagonal().add_((1.0 - t).square())
            factor = torch.linalg.cholesky(matrix)
        self._kept = [(t.clone(), factor), *self._kept][:KEPT]
        return factor

    def _find(self, t: Tensor) -> Tensor | None:
        """A factor that was kept."""
        return next((factor for times, factor in self._kept if torch.equal(times, t)), None)
