"""The network of a continuous flow: the velocity of the straight path from noise to an image.

A point of the path is ``x_t = (1 - t) e + t x`` with ``e`` ~ N(0, I), ``x`` an image on the
network's range and ``t`` in [0, 1]. The velocity is ``v(x_t, t) = E[x - e | x_t]``.

Every value of an image may have a time of its own. Where all are equal this is the flow; where
some values are known (time 1) and others are not (time 0) the same network knows the distribution
of the latter given the former, as exactly as it knows images.

Sources: Flow Matching for Generative Modeling (Lipman et al., 2023),
https://arxiv.org/abs/2210.02747; of a time for each value: Diffusion Forcing: Next-token
Prediction Meets Full-Sequence Diffusion (Chen et al., 2024), https://arxiv.org/abs/2407.01392
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FlowmendError
from .informed import GaussianVelocity
from .velocity_config import VelocityConfig

__all__ = ["Drop", "VelocityNet", "build_velocity", "expanded", "preconditioning"]

Drop = Callable[[Tensor], Tensor]
"""From features to the same with some of them left out, in training."""

FREQUENCIES, EMBEDDING = 16, 64


def preconditioning(t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of ``v = c_skip x_t + c_out F(c_in x_t, t)``, in t's precision.

    For images x ~ N(0, s^2 I) the best velocity is linear, ``c_skip x_t``; the error of that
    prediction has standard deviation ``c_out``, and ``x_t`` has ``1 / c_in``. So F sees and
    predicts values of size 1 at every t.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al.,
    2022), https://arxiv.org/abs/2206.00364, whose reasoning this carries over to the velocity.

    Args:
        t: Times in [0, 1], of any shape.
        sigma_data: Standard deviation s of the images on the range [-1, 1].

    Returns:
        ``c_in``, ``c_skip`` and ``c_out``, each of t's shape.
    """
    variance = sigma_data**2
    c_in = (t.square() * variance + (1.0 - t).square()).rsqrt()
    return c_in, (t * variance - (1.0 - t)) * c_in.square(), sigma_data * c_in


class TimeEmbedding(nn.Module):
    """Times (B,) as 64 values (B, E): waves of ``log((1 - t) / t)``, kept finite; two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2 * FREQUENCIES, EMBEDDING)
        self.second = nn.Linear(EMBEDDING, EMBEDDING)

    def forward(self, t: Tensor) -> Tensor:
        level = _log_level(t)
        steps = torch.linspace(-2.0, 2.0, FREQUENCIES, device=t.device, dtype=t.dtype)
        waves = level[:, None] * steps.exp2()
        h = self.first(torch.cat([waves.sin(), waves.cos()], dim=1))
        return functional.silu(self.second(functional.silu(h)))


class ResidualBlock(nn.Module):
    """``h + conv(silu(a conv(silu(h)) + b))``; scale a and shift b come from the time.

    The second convolution is zero at the start: a fresh block changes nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(EMBEDDING, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, time: Tensor, drop: Drop | None = None) -> Tensor:
        scale, shift = self.modulation(time)[:, :, None, None].chunk(2, dim=1)
        inner = self.first(functional.silu(h)) * (1.0 + scale) + shift
        inner = functional.silu(inner)
        return h + self.second(inner if drop is None else drop(inner))


class UNet(nn.Module):
    """From images, two maps of their times and, if informed, what a Gaussian makes of them
    (B, 3C or 4C, H, W), sides a multiple of 2^levels, to (B, C, H, W); in its weights' precision.
    """

    def __init__(self, config: VelocityConfig) -> None:
        super().__init__()
        widths, blocks = config.widths, config.blocks
        seen = (4 if config.informed else 3) * config.channels
        self.first = nn.Conv2d(4 * seen, widths[0], 3, padding=1)
        self.position = None
        if config.size is not None:
            height, width = (-(-side // config.multiple) * config.multiple for side in config.size)
            self.position = nn.Parameter(torch.zeros(1, widths[0], height // 2, width // 2))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.reduce, self.enlarge = nn.ModuleList(), nn.ModuleList()
        for fine, coarse, count in zip(widths, widths[1:], blocks, strict=False):
            self.down.append(nn.ModuleList(ResidualBlock(fine) for _ in range(count)))
            self.up.append(nn.ModuleList(ResidualBlock(fine) for _ in range(count)))
            self.reduce.append(nn.Conv2d(fine, coarse, 2, stride=2))
            self.enlarge.append(nn.ConvTranspose2d(coarse, fine, 2, stride=2))
        self.middle = nn.ModuleList(ResidualBlock(widths[-1]) for _ in range(blocks[-1]))
        self.last = nn.Conv2d(widths[0], 4 * config.channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, time: Tensor, drop: Drop | None = None) -> Tensor:
        dtype = self.first.weight.dtype
        h, time = functional.pixel_unshuffle(x.to(dtype), 2), time.to(dtype)
        h = self.first(h.contiguous(memory_format=torch.channels_last))
        if self.position is not None:
            h = h + self.position
        # at the finest level, where what is nearly known is told exactly, nothing is left out
        skips, drops = [], [None] + [drop] * len(self.down)
        for blocks, reduce, left_out in zip(self.down, self.reduce, drops, strict=False):
            for block in blocks:
                h = block(h, time, left_out)
            skips.append(h)
            h = reduce(h)
        for block in self.middle:
            h = block(h, time, drops[-1])
        for blocks, enlarge, left_out in zip(
            reversed(self.up), reversed(self.enlarge), reversed(drops[:-1]), strict=True
        ):
            h = enlarge(h) + skips.pop()
            for block in blocks:
                h = block(h, time, left_out)
        return functional.pixel_shuffle(self.last(functional.silu(h)), 2)


class VelocityNet(nn.Module):
    """The velocity ``v(x_t, t) = c_skip(t) x_t + c_out(t) F(c_in(t) x_t, t)``.

    An informed network sees the F of a Gaussian too and adds a share of it to its own.

    F is a U-Net without normalisation layers: image i never depends on image j. Sides that do not
    fit it are padded by reflection inside and cropped after. The factors are computed in x_t's
    precision whatever that of the U-Net.

    Args:
        config: The architecture.
    """

    def __init__(self, config: VelocityConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TimeEmbedding()
        self.network = UNet(config)
        self.share = nn.Parameter(torch.ones(())) if config.informed else None
        self.gaussian: GaussianVelocity | None = None

    def inform(self, gaussian: GaussianVelocity) -> None:
        """Gives an informed network the Gaussian that it was, or is to be, trained with."""
        self.gaussian = gaussian

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity of images.

        Args:
            x_t: Points of the path (B, C, H, W), C and sides as :class:`VelocityConfig` says.
            t: Their times in [0, 1]: (B,), or (B, C, H, W) for a time of every value. What x_t
                holds at time 0 is noise, and makes no difference to the others.

        Returns:
            Velocities (B, C, H, W), in x_t's precision.

        Raises:
            FlowmendError: If the images do not fit the configuration, or the times the images.
        """
        c_in, c_skip, c_out = self.factors(x_t, t)
        return c_skip * x_t + c_out * self.residual(c_in * x_t, t)

    def factors(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``c_in``, ``c_skip``, ``c_out`` for points (B, C, H, W) at times t, to multiply with.

        Each is (B, 1, 1, 1), or (B, C, H, W) where every value has its time.
        """
        if t.shape not in (x_t.shape[:1], x_t.shape):
            raise FlowmendError(
                f"{len(x_t)} images need as many times, or one for every value; got "
                f"{tuple(t.shape)}."
            )
        return preconditioning(expanded(t.to(x_t.dtype)), self.config.sigma_data)

    def residual(
        self,
        u: Tensor,
        t: Tensor,
        linear: Tensor | None = None,
        drop: Drop | None = None,
    ) -> Tensor:
        """F for ``u = c_in x_t`` (B, C, H, W) and times t: (B, C, H, W).

        Args:
            u: Scaled points.
            t: Their times.
            linear: The Gaussian's velocities (B, C, H, W) where they are known already.
            drop: What leaves out features of the coarser levels, in training.
        """
        self.config.check_shape(tuple(u.shape[1:]))
        height, width = u.shape[2:]
        precise, t = t, t.to(self.embedding.first.weight.dtype)
        time = self.embedding(t.flatten(1).mean(1) if t.ndim > 1 else t)
        times = expanded(t).expand(u.shape)
        seen = torch.where(times > 0.0, u, torch.zeros_like(u)).to(t.dtype)
        seen = torch.cat([seen, *_level_maps(times, self.config.sigma_data)], dim=1)
        if self.config.informed:
            hint = self._hint(u, precise, linear)
            seen = torch.cat([seen, hint.to(t.dtype)], dim=1)
        out = self.network(_padded(seen, self.config.multiple), time, drop)
        out = out[:, :, :height, :width].to(u.dtype).contiguous()
        return out + self.share * hint if self.config.informed else out

    def _hint(self, u: Tensor, t: Tensor, linear: Tensor | None) -> Tensor:
        """The F of the Gaussian (B, C, H, W); 0 where a value is known."""
        c_in, c_skip, c_out = self.factors(u, t)
        x_t = u / c_in
        if linear is None:
            if self.gaussian is None:
                raise FlowmendError("An informed network needs its Gaussian.")
            linear = self.gaussian(x_t, t)
        known = expanded(t) >= 1.0
        return torch.where(known, torch.zeros_like(u), (linear - c_skip * x_t) / c_out)


def expanded(t: Tensor) -> Tensor:
    """Times as they are multiplied with images: (B, 1, 1, 1) or (B, C, H, W)."""
    return t.view(-1, 1, 1, 1) if t.ndim == 1 else t


def _level_maps(t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """Two maps of size about 1 that say how noisy a value is: its angle and its log-level."""
    angle = torch.atan2(1.0 - t, sigma_data * t) * (4.0 / math.pi) - 1.0
    return angle, 0.25 * _log_level(t)


def _log_level(t: Tensor) -> Tensor:
    """``log((1 - t) / t)``, kept finite."""
    return ((1.0 - t + 1e-3) / (t + 1e-3)).log()


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Reflects images (B, C, H, W) beyond their lower right until both sides are a multiple."""
    for dim in (2, 3):
        size = x.shape[dim]
        if size % multiple:
            index = torch.arange(-(-size // multiple) * multiple, device=x.device)
            index = index % (2 * size - 2)
            x = x.index_select(dim, torch.minimum(index, 2 * size - 2 - index))
    return x


def build_velocity(config: VelocityConfig, seed: int = 0) -> VelocityNet:
    """Builds a network whose random initial weights come from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VelocityNet(config)
