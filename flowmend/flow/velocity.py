"""The network of a continuous flow: the velocity of the straight path from noise to an image.

A point of the path is ``x_t = (1 - t) e + t x`` with ``e`` ~ N(0, I), ``x`` an image on the
network's range [-1, 1] and ``t`` in [0, 1]. The velocity is ``v(x_t, t) = E[x - e | x_t]``.

Source: Flow Matching for Generative Modeling (Lipman et al., 2023),
https://arxiv.org/abs/2210.02747
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FlowmendError

__all__ = ["SMALLEST", "VelocityConfig", "VelocityNet", "build_velocity", "preconditioning"]

SMALLEST = 4
"""Fewest pixels that a side of an image may have."""
FREQUENCIES, EMBEDDING = 16, 64


@dataclass(frozen=True)
class VelocityConfig:
    """The architecture of a velocity network; saved inside every weights file.

    Args:
        channels: Image channels.
        widths: Features at each level, finest first; the finest has half the image's resolution.
        blocks: Residual blocks at each level on the way down and again on the way up; the
            coarsest level has them once. Empty is 3, 2, 1, 1, ...
        size: None for images of every size, or (height, width) for one size only, of which the
            network then knows every place by a learned map.
        crop: Side in pixels of the square images that a prior for every size is trained on, and
            stands for until it is asked for another size.
        bits: Bits per channel of the training images.
        sigma_data: Standard deviation of images about their mean, on the range [-1, 1].

    Raises:
        FlowmendError: If a value makes no network; the message names it.
    """

    channels: int = 3
    widths: tuple[int, ...] = (64, 128, 192)
    blocks: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    crop: int = 64
    bits: int = 8
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        for field in ("widths", "blocks", "size"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, tuple(value))
        if not self.blocks:
            blocks = tuple(max(1, 3 - level) for level in range(len(self.widths)))
            object.__setattr__(self, "blocks", blocks)
        self._check()

    def _check(self) -> None:
        whole = {
            "channels": (1, 64, (self.channels,)),
            "widths": (1, 2**14, self.widths),
            "blocks": (1, 64, self.blocks),
            "size": (SMALLEST, 2**14, () if self.size is None else self.size),
            "crop": (SMALLEST, 2**14, (self.crop,)),
            "bits": (1, 8, (self.bits,)),
        }
        for name, (least, most, values) in whole.items():
            for value in values:
                if type(value) is not int or not least <= value <= most:
                    kind = "a whole number" if len(values) == 1 else "whole numbers"
                    self._refuse(f"'{name}' must be {kind} between {least} and {most}")
        if not 1 <= len(self.widths) <= 8:
            self._refuse("'widths' must name at least one level and at most 8")
        if len(self.blocks) != len(self.widths):
            self._refuse("'blocks' must have one entry for each level")
        if self.size is not None and len(self.size) != 2:
            self._refuse("'size' must be a height and a width, or nothing")
        if type(self.sigma_data) not in (int, float) or not 1e-3 <= self.sigma_data <= 1e3:
            self._refuse("'sigma_data' must be a number between 0.001 and 1000")

    @staticmethod
    def _refuse(reason: str) -> None:
        raise FlowmendError(f"This network cannot be built: {reason}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image, the crop's where every size will do."""
        return (self.channels, *(self.size or (self.crop, self.crop)))

    @property
    def dimensions(self) -> int:
        """Number of values D of an image of :attr:`shape`."""
        return math.prod(self.shape)

    @property
    def multiple(self) -> int:
        """What the sides of an image are padded to a multiple of, inside the network."""
        return 2 ** len(self.widths)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises :class:`FlowmendError` unless images of a shape (C, H, W) fit the network."""
        if self.size is not None and shape != self.shape:
            raise FlowmendError(
                f"This network knows images of shape {self.shape} (channels, height, width) "
                f"only; got {shape}."
            )
        if len(shape) != 3 or shape[0] != self.channels or min(shape[1:]) < SMALLEST:
            raise FlowmendError(
                f"This network takes images of {self.channels} channel(s) and at least {SMALLEST} "
                f"pixels a side; got {shape}."
            )

    def to_dict(self) -> dict:
        """The configuration as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "VelocityConfig":
        """The configuration from plain values; an unknown name raises :class:`FlowmendError`."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise FlowmendError(f"Unknown network setting: {', '.join(unknown)}.")
        return cls(**values)


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
        level = ((1.0 - t + 1e-3) / (t + 1e-3)).log()
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

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulation(time)[:, :, None, None].chunk(2, dim=1)
        inner = self.first(functional.silu(h)) * (1.0 + scale) + shift
        return h + self.second(functional.silu(inner))


class UNet(nn.Module):
    """From (B, C, H, W), sides a multiple of 2^levels, to the same; in its weights' precision."""

    def __init__(self, config: VelocityConfig) -> None:
        super().__init__()
        widths, blocks = config.widths, config.blocks
        self.first = nn.Conv2d(4 * config.channels, widths[0], 3, padding=1)
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

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        dtype = self.first.weight.dtype
        h, time = functional.pixel_unshuffle(x.to(dtype), 2), time.to(dtype)
        h = self.first(h.contiguous(memory_format=torch.channels_last))
        if self.position is not None:
            h = h + self.position
        skips = []
        for blocks, reduce in zip(self.down, self.reduce, strict=True):
            for block in blocks:
                h = block(h, time)
            skips.append(h)
            h = reduce(h)
        for block in self.middle:
            h = block(h, time)
        for blocks, enlarge in zip(reversed(self.up), reversed(self.enlarge), strict=True):
            h = enlarge(h) + skips.pop()
            for block in blocks:
                h = block(h, time)
        return functional.pixel_shuffle(self.last(functional.silu(h)), 2)


class VelocityNet(nn.Module):
    """The velocity ``v(x_t, t) = c_skip(t) x_t + c_out(t) F(c_in(t) x_t, t)``.

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

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity of images.

        Args:
            x_t: Points of the path (B, C, H, W), C and sides as :class:`VelocityConfig` says.
            t: Their times (B,), in [0, 1].

        Returns:
            Velocities (B, C, H, W), in x_t's precision.

        Raises:
            FlowmendError: If the images do not fit the configuration, or the times the images.
        """
        c_in, c_skip, c_out = self.factors(x_t, t)
        return c_skip * x_t + c_out * self.residual(c_in * x_t, t)

    def factors(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``c_in``, ``c_skip``, ``c_out`` (B, 1, 1, 1) for points (B, C, H, W) at times (B,)."""
        if t.shape != x_t.shape[:1]:
            raise FlowmendError(f"{len(x_t)} images need as many times; got {tuple(t.shape)}.")
        return preconditioning(t.to(x_t.dtype).view(-1, 1, 1, 1), self.config.sigma_data)

    def residual(self, u: Tensor, t: Tensor) -> Tensor:
        """The U-Net F for ``u = c_in x_t`` (B, C, H, W) and times (B,): (B, C, H, W)."""
        self.config.check_shape(tuple(u.shape[1:]))
        height, width = u.shape[2:]
        time = self.embedding(t.to(self.embedding.first.weight.dtype))
        out = self.network(_padded(u, self.config.multiple), time)
        return out[:, :, :height, :width].to(u.dtype).contiguous()


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
