"""A continuous flow: the bijection that a velocity makes by carrying points along its paths.

The path of a point solves ``dx/dt = v(x, t)``, from a latent at t = 0 to an image at t = 1, and
the log-density along it falls by the trace of dv/dx (the instantaneous change of variables).

Source: Neural Ordinary Differential Equations (Chen et al., 2018),
https://arxiv.org/abs/1806.07366; the estimate of the trace: FFJORD: Free-form Continuous Dynamics
for Scalable Reversible Generative Models (Grathwohl et al., 2019),
https://arxiv.org/abs/1810.01367
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from ..errors import FlowmendError
from .bijection import Bijection
from .velocity import preconditioning

__all__ = ["EVALUATIONS", "EXACT_DIMENSIONS", "ContinuousFlow"]

EVALUATIONS = 60
"""Evaluations of the velocity along a path."""
EXACT_DIMENSIONS = 64
"""Up to this many values the trace is exact; above it is estimated with one random vector."""
FINEST_ANGLES = (0.005, 0.02)
"""Noise angles from the image's end and from the latent's, in radians, within which steps are
even; beyond, they grow with the distance from that end."""
Rate = Callable[[Tensor], Tensor]


class ContinuousFlow(Bijection):
    """Images (B, C, H, W) on the network's range to flat latents (B, D), along a velocity's paths.

    The linear part of the velocity is solved exactly, the rest by Runge-Kutta steps of order 4 on
    a fixed grid. With ``u = c_in x_t``, the noise angle ``a = atan((1 - t) / (s t))`` from 0 at
    the image to pi/2 at the latent, and the residual F of :func:`preconditioning`, the path is
    ``du/da = -F(u, t)``. Steps are even in y with ``dy/da`` as ``1 / (a + a0) + 1 / (pi/2 - a +
    a1)``: fine at both ends, because directions along which images vary by much less or much more
    than s change there. The inverse takes the same steps backwards, so ``decode(encode(x))`` is x
    up to the error of the steps, which falls with the fourth power of their number: with 60
    evaluations below 0.002 of the largest |x| for Gaussians as varied as photographs, whose
    standard deviations along their axes lie between 0.002 and 20 (``tests/test_continuous.py``).

    Args:
        velocity: ``velocity(x_t, t)`` of points (B, C, H, W) at times (B,), both in [0, 1] x R.
        shape: Shape (C, H, W) of the images.
        sigma_data: Standard deviation s of the images, on the network's range.
        evaluations: Evaluations of the velocity along a path: a multiple of 4.

    Raises:
        FlowmendError: If ``evaluations`` is not a positive multiple of 4.
    """

    def __init__(
        self,
        velocity: nn.Module,
        shape: tuple[int, int, int],
        sigma_data: float = 0.5,
        evaluations: int = EVALUATIONS,
    ) -> None:
        super().__init__()
        if type(evaluations) is not int or evaluations < 4 or evaluations % 4:
            raise FlowmendError(
                f"A path takes a positive multiple of 4 evaluations, not {evaluations}."
            )
        self.velocity = velocity
        self.shape, self.sigma_data, self.evaluations = tuple(shape), sigma_data, evaluations

    @property
    def dimensions(self) -> int:
        """Number of values D of an image and of a latent."""
        return math.prod(self.shape)

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Latents (B, D) and log-determinants (B,) of images (B, C, H, W).

        Args:
            x: Images on the network's range.
            generator: Source of the random signs (Rademacher) that estimate the trace of more
                than 64 values, drawn once and kept along the path, for each image anew. None
                takes the same fixed signs for every image: always the same answer.
        """
        u, logdet = self._carry(x / self.sigma_data, False, self._probe(x, generator))
        return u.flatten(1), logdet - self.dimensions * math.log(self.sigma_data)

    def decode(self, z: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and log-determinants (B,) of latents (B, D); see :meth:`encode`."""
        u = z.reshape(-1, *self.shape)
        u, logdet = self._carry(u, True, self._probe(u, generator))
        return self.sigma_data * u, logdet + self.dimensions * math.log(self.sigma_data)

    def to_latent(self, x: Tensor) -> Tensor:
        """The latents (B, D) of :meth:`encode` alone, which cost a third to a half."""
        return self._carry(x / self.sigma_data, False, None)[0].flatten(1)

    def to_data(self, z: Tensor) -> Tensor:
        """The images (B, C, H, W) of :meth:`decode` alone, likewise."""
        return self.sigma_data * self._carry(z.reshape(-1, *self.shape), True, None)[0]

    def _probe(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Directions (K, B or 1, C, H, W) whose quadratic forms sum to the trace."""
        if self.dimensions <= EXACT_DIMENSIONS:
            eye = torch.eye(self.dimensions, dtype=like.dtype, device=like.device)
            return eye.view(-1, 1, *self.shape)
        count = len(like)
        if generator is None:
            generator, count = torch.Generator().manual_seed(0), 1
        signs = torch.randint(
            0, 2, (1, count, *self.shape), generator=generator, device=generator.device
        )
        return (2 * signs - 1).to(like)

    def _carry(self, u: Tensor, to_data: bool, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        """Takes scaled points u along the grid; without a probe the log-determinant is 0."""
        steps = self.evaluations // 4
        size = (-1.0 if to_data else 1.0) / steps
        logdet = u.new_zeros(len(u))
        for step in range(steps):
            y = 1.0 + step * size if to_data else step * size
            slopes: list[tuple[Tensor, Tensor]] = []
            for offset in (0.0, 0.5, 0.5, 1.0):
                point = u + offset * size * slopes[-1][0] if slopes else u
                angle, speed = _angle(y + offset * size)
                slopes.append(self._slope(point, angle, speed, probe))
            first, second, third, fourth = slopes
            mean = [
                (a + 2.0 * b + 2.0 * c + d) / 6.0
                for a, b, c, d in zip(first, second, third, fourth, strict=True)
            ]
            u, logdet = u + size * mean[0], logdet + size * mean[1]
        return u, logdet

    def _slope(
        self, u: Tensor, angle: float, speed: float, probe: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """du/dy (B, C, H, W) and the trace (B,) of its Jacobian, estimated with the probe."""
        t = math.cos(angle) / (math.cos(angle) + self.sigma_data * math.sin(angle))
        times = u.new_full((len(u),), t)
        c_in, c_skip, c_out = preconditioning(times[0], self.sigma_data)

        def rate(u: Tensor) -> Tensor:
            x = u / c_in
            return (-speed / c_out) * (self.velocity(x, times) - c_skip * x)

        if probe is None:
            return rate(u), u.new_zeros(len(u))
        return _with_trace(rate, u, probe)


def _angle(y: float) -> tuple[float, float]:
    """The noise angle a at a place y of the grid, 0 at images and 1 at latents, and da/dy."""
    near, far = FINEST_ANGLES
    end = math.pi / 2 + far
    growth = math.log((math.pi / 2 + near) * end / (near * far))
    ratio = near / end * math.exp(growth * y)
    angle = min(max((ratio * end - near) / (1.0 + ratio), 0.0), math.pi / 2)
    return angle, growth / (1.0 / (angle + near) + 1.0 / (end - angle))


def _with_trace(rate: Rate, u: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """``rate(u)`` and, for each image, the sum of ``e . (J e)`` over the probe's directions e."""
    value, pull = vjp(rate, u)

    def form(direction: Tensor) -> Tensor:
        return (direction * pull(direction.expand_as(u).contiguous())[0]).flatten(1).sum(1)

    if len(probe) == 1:
        return value, form(probe[0])
    return value, vmap(form)(probe).sum(0)
