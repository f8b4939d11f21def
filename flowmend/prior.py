"""What is known about clean images before any measurement: a density p(x) with a latent space."""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from .covariance import fit_covariance
from .errors import FlowmendError
from .flow import (
    Bijection,
    Centre,
    Chain,
    Conditioner,
    FlowConfig,
    MultiscaleFlow,
    Whitening,
    standard_normal_log_prob,
)
from .flow.reversible import reversible_decode, reversible_encode
from .gaussian import GaussianPosterior
from .lowrank import LowRankGaussian
from .lowrank_whitening import LowRankWhitening
from .pixels import dequantise

__all__ = ["FlowPrior", "GaussianPrior", "Prior"]


class Prior(Bijection):
    """A density over images x (B, C, H, W) in [0, 1] through a bijection to latents z (B, D).

    Latents are standard normal: ``log p(x) = log N(z; 0, I) + logdet`` with ``z, logdet =
    encode(x)`` (Eq. 3), or, from the other end, ``log p(x) = log N(z; 0, I) - logdet`` with
    ``x, logdet = decode(z)`` (Eq. 6).
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""

    @property
    def dimensions(self) -> int:
        """Number of values D of an image and of a latent."""
        return math.prod(self.shape)

    def at_precision(self, precision: str) -> "Prior":
        """The same prior with its networks in ``"float32"`` or ``"bfloat16"``.

        Raises:
            FlowmendError: If the precision is unknown.
        """
        if precision not in ("float32", "bfloat16"):
            raise FlowmendError(f"Unknown precision '{precision}': choose float32 or bfloat16.")
        return self

    def with_memory(self, memory: str) -> "Prior":
        """The same prior, whose gradients keep all they need (``"autograd"``) or, slower, compute
        it again from the result (``"reversible"``), with memory that does not grow with depth.

        Raises:
            FlowmendError: If the name is unknown.
        """
        if memory not in ("autograd", "reversible"):
            raise FlowmendError(f"Unknown memory '{memory}': choose autograd or reversible.")
        return self

    def check_images(self, x: Tensor) -> None:
        """Raises :class:`FlowmendError` unless x is a finite float tensor (B, C, H, W)."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise FlowmendError(
                f"This prior knows images of shape {self.shape} (channels, height, width); "
                f"got {tuple(x.shape[1:])}."
            )
        if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
            raise FlowmendError("Images must be finite floating-point values in [0, 1].")

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density, shape (B,), nats, of images x (B, C, H, W) in [0, 1]."""
        z, logdet = self.encode(x)
        return standard_normal_log_prob(z) + logdet

    def bits_per_dim(
        self, x: Tensor, bits: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Code length, shape (B,), in bits per value, of images reduced to ``bits`` bits.

        Estimated from one draw of the dequantisation noise; ``generator`` None takes the centre
        of every cell, which is a little too good.
        """
        log_prob = self.log_prob(dequantise(x, bits, generator))
        return bits - log_prob / (self.dimensions * math.log(2.0))

    def latents(
        self,
        count: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws latents (count, D) from N(0, temperature^2 I), on the prior's device."""
        like = next(self._tensors())
        device = like.device if generator is None else generator.device
        z = torch.randn(count, self.dimensions, generator=generator, device=device)
        return temperature * z.to(like)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws images (count, C, H, W), clamped to [0, 1]; temperature scales the latents."""
        return self.decode(self.latents(count, temperature, generator))[0].clamp(0.0, 1.0)

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.parameters()
        yield from self.buffers()


class GaussianPrior(Prior):
    """A normal distribution N(mean, C), the prior for which everything has a closed form.

    Args:
        whitening: The map to white images, which holds mean and covariance. By that of a Gaussian
            of low rank only ``encode``, ``decode`` and what follows from them are known here.
    """

    def __init__(self, whitening: Whitening | LowRankWhitening) -> None:
        super().__init__()
        self.whitening = whitening
        self._posterior: GaussianPosterior | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.whitening.mean.shape)

    @property
    def mean(self) -> Tensor:
        """Mean image (C, H, W)."""
        return self.whitening.mean

    def as_stored(self) -> "GaussianPrior":
        """The same as a weights file gives it back: its whitening matrix rounded to float16."""
        matrix = self.whitening.matrix
        return GaussianPrior(Whitening(self.mean, matrix.to(torch.float16).to(matrix.dtype)))

    def covariance(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Covariance C, shape (D, D)."""
        root = self.whitening.unwhitening.to(dtype)
        return root @ root

    @torch.no_grad()
    def posterior(self, operator: object, sigma: float) -> GaussianPosterior:
        """What is known of x from y = A x + sigma n, in closed form; the last one is kept.

        Args:
            operator: Anything with ``A``.
            sigma: Standard deviation of the noise on the [0, 1] scale, above 0.
        """
        kept = self._posterior
        if kept is None or not kept.serves(operator):
            root = self.whitening.unwhitening
            kept = GaussianPosterior(self.mean, root, operator, sigma)
        elif kept.sigma != sigma:
            kept = kept.at_noise(sigma)
        self._posterior = kept
        return kept

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, logdet = self.whitening.encode(x)
        return z.flatten(1), logdet

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.whitening.decode(z.reshape(-1, *self.shape))

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> "GaussianPrior":
        """Builds the prior from a mean (C, H, W) and a positive definite covariance (D, D)."""
        values, vectors = torch.linalg.eigh(covariance.double())
        if not bool(torch.isfinite(values).all()) or values[0] <= 0:
            raise FlowmendError("A covariance must be finite and positive definite.")
        matrix = (vectors * values.rsqrt()) @ vectors.T
        return cls(Whitening(mean, (0.5 * (matrix + matrix.T)).to(mean.dtype)))

    @classmethod
    def fit(
        cls,
        images: Tensor,
        bits: int = 5,
        flip: bool = True,
        smoothing: float | None = None,
        shrinkage: float | None = None,
    ) -> "GaussianPrior":
        """Fits mean and covariance to uint8 images (N, C, H, W).

        The sample covariance of a few thousand images fits them too closely. A share ``smoothing``
        of it is replaced by that of the same images shifted by one pixel, a share ``shrinkage`` of
        the result by a multiple of the identity, and the variance of the dequantisation noise is
        added. A share left None is the one of a short list under which a tenth of the images,
        held out, is likeliest.

        Args:
            images: Training images, uint8.
            bits: Bits per channel of the flow that stands on this prior.
            flip: Whether mirrored images count too.
            smoothing: Weight of the shifted images, in [0, 1].
            shrinkage: Weight of the identity, in [0, 1].
        """
        mean, covariance = fit_covariance(images, bits, flip, smoothing, shrinkage)
        return cls.from_covariance(mean.float(), covariance)


class FlowPrior(Prior):
    """A trained normalizing flow as a density over images in [0, 1].

    Args:
        flow: The flow, on the range the network sees.
        gaussian: A Gaussian fitted to the same images: the flow's first layer where its
            configuration says ``whiten``, and the prior of the LMMSE baseline. One of low rank
            where they are large.
        card: Facts about the training, for people.

    Raises:
        FlowmendError: If the flow wants whitened images and there is no Gaussian.
    """

    def __init__(
        self,
        flow: MultiscaleFlow,
        gaussian: GaussianPrior | LowRankGaussian | None = None,
        card: dict | None = None,
    ) -> None:
        super().__init__()
        self.gaussian = gaussian
        self.card = dict(card or {})
        self.memory = "autograd"
        self.chain = Chain([self._first(flow.config), flow])

    def _first(self, config: FlowConfig) -> Bijection:
        """The fixed map before the flow."""
        if not config.whiten:
            return Centre()
        if self.gaussian is None:
            raise FlowmendError("A flow on whitened images needs the Gaussian that whitens them.")
        if isinstance(self.gaussian, LowRankGaussian):
            return self.gaussian.whitening(config.bits)
        return self.gaussian.whitening

    @property
    def flow(self) -> MultiscaleFlow:
        """The flow proper, without the map from [0, 1]."""
        return self.chain.layers[1]

    @property
    def config(self) -> FlowConfig:
        """The architecture."""
        return self.flow.config

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.shape

    def at_precision(self, precision: str) -> "FlowPrior":
        """A copy whose coupling networks compute in bfloat16, all else as it was.

        With ``"float32"`` the prior itself, as it is.
        """
        super().at_precision(precision)
        if precision == "float32":
            return self
        kept = [*self.chain.layers[0].modules()]
        kept += [] if self.gaussian is None else self.gaussian.modules()
        twin = copy.deepcopy(self, {id(module): module for module in kept})
        for module in twin.modules():
            if isinstance(module, Conditioner):
                module.to(torch.bfloat16)
        return twin

    def with_memory(self, memory: str) -> "FlowPrior":
        """A prior of the same weights (shared, not copied) whose gradients keep all they need
        (``"autograd"``) or compute it again from the result (``"reversible"``).

        The prior itself where it already does so. See :mod:`flowmend.flow.reversible`.
        """
        super().with_memory(memory)
        if memory == self.memory:
            return self
        twin = FlowPrior(self.flow, self.gaussian, self.card)
        twin.memory, twin.training = memory, self.training
        return twin

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.memory == "autograd":
            return self.chain.encode(x)
        first, flow = self.chain.layers
        h, logdet = first.encode(x)
        z, rest = reversible_encode(flow, h)
        return z, logdet + rest

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.memory == "autograd":
            return self.chain.decode(z)
        first, flow = self.chain.layers  # the first is linear: its gradient keeps nothing
        h, logdet = reversible_decode(flow, z)
        x, rest = first.decode(h)
        return x, logdet + rest

    def initialise(self, x: Tensor) -> Tensor:
        return self.chain.initialise(x)
