"""A trained continuous flow as a prior: a density, a latent space and a denoiser in one network.

Source: Flow Matching for Generative Modeling (Lipman et al., 2023),
https://arxiv.org/abs/2210.02747
"""

import copy
import math

import torch
from torch import Tensor

from .errors import FlowmendError
from .flow import (
    EVALUATIONS,
    Centre,
    Chain,
    ChannelMix,
    ContinuousFlow,
    GaussianVelocity,
    VelocityConfig,
    VelocityNet,
    expanded,
    standard_normal_log_prob,
)
from .lowrank import LowRankGaussian
from .pixels import dequantise, path_time
from .prior import GaussianPrior, Prior
from .stationary import StationaryGaussian
from .turns import TURNS, turned, turned_back

__all__ = ["ContinuousPrior"]


class ContinuousPrior(Prior):
    """A density over images in [0, 1] by a continuous flow.

    Args:
        velocity: The network, on the range it sees.
        shape: Shape (C, H, W) of the images; None is that of the network's configuration.
        gaussian: A Gaussian fitted to the same images, the prior of the LMMSE baseline; one of
            low rank where they are large.
        card: Facts about the training, for people; of its recipe, whether images were mirrored
            counts (:attr:`mirrors`).
        evaluations: Evaluations of the network along a path between image and latent, a multiple
            of 4: fewer are faster, more are more exact.
        stationary: A Gaussian of any size fitted to the same images, which lets a measurement
            guide the network (see :mod:`flowmend.guidance`).

    Raises:
        FlowmendError: If the network does not know such images, the Gaussian knows others or is
            missing where the network needs it, or ``evaluations`` is not a positive multiple of 4.
    """

    def __init__(
        self,
        velocity: VelocityNet,
        shape: tuple[int, int, int] | None = None,
        gaussian: GaussianPrior | LowRankGaussian | None = None,
        card: dict | None = None,
        evaluations: int = EVALUATIONS,
        stationary: StationaryGaussian | None = None,
    ) -> None:
        super().__init__()
        shape = velocity.config.shape if shape is None else tuple(shape)
        velocity.config.check_shape(shape)
        if gaussian is not None and gaussian.shape != shape:
            raise FlowmendError(f"A Gaussian of {gaussian.shape} is no prior of {shape}.")
        if velocity.config.informed and velocity.gaussian is None:
            velocity.inform(_gaussian_velocity(gaussian))
        self.flow = ContinuousFlow(velocity, shape, velocity.config.sigma_data, evaluations)
        self.gaussian = gaussian
        self.stationary = None if stationary is None else stationary.at_size(*shape[1:])
        self.card = dict(card or {})
        self.turns: int | None = None
        """Copies that :meth:`denoise` averages; None is 1, unless a method knows better."""
        self.centre = Chain([Centre(), ChannelMix()])

    @property
    def velocity(self) -> VelocityNet:
        """The network."""
        return self.flow.velocity

    @property
    def config(self) -> VelocityConfig:
        """The architecture."""
        return self.velocity.config

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.flow.shape

    def at_shape(
        self, shape: tuple[int, int, int], evaluations: int | None = None
    ) -> "ContinuousPrior":
        """A prior of the same weights (shared, not copied) for images of another shape (C, H, W).

        It keeps the Gaussian only where the shape stays.

        Args:
            shape: Shape of the images.
            evaluations: Evaluations along a path; None keeps them.

        Raises:
            FlowmendError: If the network knows one size only, or cannot take such images.
        """
        gaussian = self.gaussian if tuple(shape) == self.shape else None
        evaluations = self.flow.evaluations if evaluations is None else evaluations
        twin = ContinuousPrior(
            self.velocity, shape, gaussian, self.card, evaluations, self.stationary
        )
        twin.turns = self.turns
        return twin.train(self.training)

    @property
    def mirrors(self) -> bool:
        """Whether it knows whole images and learnt mirrored ones as well."""
        recipe = self.card.get("recipe")
        flips = recipe.get("flip", False) if isinstance(recipe, dict) else False
        return self.config.size is not None and flips is True

    def with_turns(self, turns: int) -> "ContinuousPrior":
        """The same weights (shared), whose :meth:`denoise` averages turned and mirrored copies.

        A network that takes every size sees a picture anew from each side: the mean of its
        estimates errs less, for as many times the work.

        Args:
            turns: 1, 2 (mirrored left to right), 4 (upside down too) or 8 (on their sides too).

        Raises:
            FlowmendError: If it is none of these, or more than 2 and the network knows images of
                one size, which have a top.
        """
        if turns not in TURNS or (turns > 2 and self.config.size is not None):
            most = TURNS if self.config.size is None else TURNS[:2]
            raise FlowmendError(
                f"This prior averages {', '.join(map(str, most))} turned copies, not {turns}."
            )
        twin = self.at_shape(self.shape)
        twin.turns = turns
        return twin

    def at_precision(self, precision: str) -> "ContinuousPrior":
        """A copy whose U-Net computes in bfloat16, all else as it was.

        With ``"float32"`` the prior itself, as it is. In bfloat16 ``decode(encode(x))`` is far
        less exact: it is meant for :meth:`denoise` and :meth:`sample`.
        """
        super().at_precision(precision)
        if precision == "float32":
            return self
        kept = () if self.gaussian is None else (self.gaussian,)
        twin = copy.deepcopy(self, {id(module): module for module in kept})
        twin.velocity.network.to(torch.bfloat16)
        return twin

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Latents (B, D) and log-determinants (B,) of images x (B, C, H, W) in [0, 1].

        Args:
            x: Images.
            generator: Source of the random signs that estimate the log-determinant of more than
                64 values; None takes the same signs always. See
                :meth:`flowmend.flow.ContinuousFlow.encode`.
        """
        x, first = self.centre.encode(x)
        z, second = self.flow.encode(x, generator)
        return z, first + second

    def decode(self, z: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and log-determinants (B,) of latents (B, D); see :meth:`encode`."""
        x, first = self.flow.decode(z, generator)
        x, second = self.centre.decode(x)
        return x, first + second

    def to_network(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] as the network sees them: centred, colours mixed."""
        return self.centre.encode(x)[0]

    def from_network(self, u: Tensor) -> Tensor:
        """The inverse of :meth:`to_network`."""
        return self.centre.decode(u)[0]

    def round_trip(self, x: Tensor) -> Tensor:
        """``decode(encode(x))`` of images (B, C, H, W) in [0, 1], without the determinants."""
        return self.from_network(self.flow.to_data(self.flow.to_latent(self.to_network(x))))

    def log_prob(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Log-density, shape (B,), nats, of images x (B, C, H, W) in [0, 1].

        Of more than 64 values an estimate without bias; for ``generator`` see :meth:`encode`.
        """
        z, logdet = self.encode(x, generator)
        return standard_normal_log_prob(z) + logdet

    def bits_per_dim(
        self, x: Tensor, bits: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Code length, shape (B,), in bits per value; see :meth:`Prior.bits_per_dim`.

        ``generator`` is the source of the dequantisation noise, then of the random signs.
        """
        log_prob = self.log_prob(dequantise(x, bits, generator), generator)
        return bits - log_prob / (self.dimensions * math.log(2.0))

    @torch.no_grad()
    def sample(
        self,
        count: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws images (count, C, H, W), clamped to [0, 1]; temperature scales the latents."""
        z = self.latents(count, temperature, generator)
        return self.from_network(self.flow.to_data(z)).clamp(0.0, 1.0)

    def denoise(self, y: Tensor, sigma: Tensor | float) -> Tensor:
        """The mean of x given ``y = x + sigma n``, n ~ N(0, I), in one evaluation of the network,
        or one for each of :meth:`with_turns`.

        On the network's range the noise is ``s = 2 sigma``; ``t (2 y - 1)`` with ``t = 1 / (1 +
        s)`` is a point of the path, and from there the mean is ``x_t + (1 - t) v(x_t, t)``.

        Args:
            y: Noisy images (B, C, H, W) on the [0, 1] scale, not clamped; where the network takes
                every size, of any.
            sigma: Standard deviation of the noise on the [0, 1] scale, at least 0: one number,
                one for each image (B,), or (B, C, H, W) one for each of an image's colour
                coordinates (:func:`flowmend.cosines.mix_channels`), where infinity says that
                nothing is known of it.

        Returns:
            Estimates (B, C, H, W) on the [0, 1] scale, not clamped; y itself where sigma is 0.

        Raises:
            FlowmendError: If the images do not fit the network, or sigma is not such a number.
        """
        if y.ndim != 4 or not y.is_floating_point():
            raise FlowmendError("Noisy images must be a floating-point tensor (B, C, H, W).")
        self.config.check_shape(tuple(y.shape[1:]))
        sigma = torch.as_tensor(sigma, dtype=y.dtype, device=y.device)
        if sigma.shape not in ((), y.shape[:1], y.shape):
            raise FlowmendError(
                f"sigma must be one number, one for each of {len(y)} images, or one for each of "
                f"their values; got shape {tuple(sigma.shape)}."
            )
        if not bool((sigma >= 0).all()) or (sigma.ndim < 4 and bool(sigma.isinf().any())):
            raise FlowmendError("sigma must be finite and at least 0.")
        sigma = sigma.expand(len(y)) if sigma.ndim < 4 else sigma
        found = [
            turned_back(
                self._denoise(turned(y, way), turned(sigma, way) if sigma.ndim == 4 else sigma),
                way,
            )
            for way in range(self.turns or 1)
        ]
        return sum(found[1:], found[0]) / len(found) if len(found) > 1 else found[0]

    def _denoise(self, y: Tensor, sigma: Tensor) -> Tensor:
        """:meth:`denoise`, once, with sigma (B,) or (B, C, H, W)."""
        t = path_time(sigma)
        times = expanded(t)
        u = self.to_network(y)
        x_t = torch.where(times > 0.0, times * u, torch.zeros_like(u))
        estimate = x_t + (1.0 - times) * self.velocity(x_t, t)
        if t.ndim == 1:
            return torch.where(times < 1.0, self.from_network(estimate), y)
        return self.from_network(torch.where(times < 1.0, estimate, u))


def _gaussian_velocity(gaussian: GaussianPrior | LowRankGaussian | None) -> GaussianVelocity:
    """A Gaussian on [0, 1] as the velocity on the network's range."""
    if not isinstance(gaussian, GaussianPrior):
        raise FlowmendError("This network needs the Gaussian that it was trained with.")
    return GaussianVelocity.of_images(gaussian.mean.cpu(), gaussian.covariance().cpu())
