"""The multi-scale flow of the paper's Fig. 2, and the configurations it comes in."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import FlowmendError
from .bijection import Bijection, Chain
from .coupling import AffineCoupling
from .layers import ActNorm, InvertibleConv1x1, Squeeze

__all__ = ["PRESETS", "FlowConfig", "MultiscaleFlow", "build_flow", "preset"]


@dataclass(frozen=True)
class FlowConfig:
    """The architecture of a flow; saved inside every weights file.

    Args:
        height: Image height, divisible by 2 to the number of scales.
        width: Image width, likewise.
        channels: Image channels.
        bits: Bits per channel of the training images.
        steps: Flow steps at each scale, finest first; its length is the number of scales L.
        split: For each scale, whether half of its channels leave as latents at its end.
        hidden: Hidden channels of the coupling networks, one number, or one for each scale.
        depth: Convolutions in a coupling network.
        permutation: ``"swap"`` or ``"conv1x1"`` (the invertible convolutions of Glow).
        scale: ``"sigmoid"`` or ``"bounded"``, see :class:`~flowmend.flow.coupling.AffineCoupling`.
        positional: Whether coupling networks know where on the image they are.
        whiten: Whether the images of the training set are whitened before the first step.
        patches: Whether the images are patches of larger pictures, and not whole ones.

    Raises:
        FlowmendError: If a value makes no flow; the message names it.
    """

    height: int = 32
    width: int = 32
    channels: int = 3
    bits: int = 5
    steps: tuple[int, ...] = (2, 2, 2, 4, 4)
    split: tuple[bool, ...] = (False, False, True, True, False)
    hidden: int | tuple[int, ...] = 512
    depth: int = 2
    permutation: str = "swap"
    scale: str = "sigmoid"
    positional: bool = False
    whiten: bool = False
    patches: bool = False

    def __post_init__(self) -> None:
        for field in ("steps", "split"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not isinstance(self.hidden, int):
            object.__setattr__(self, "hidden", tuple(self.hidden))
        self._check()

    def _check(self) -> None:
        scales = len(self.steps)
        whole = {
            "height": (1, 2**16, (self.height,)),
            "width": (1, 2**16, (self.width,)),
            "channels": (1, 64, (self.channels,)),
            "bits": (1, 8, (self.bits,)),
            "depth": (2, 16, (self.depth,)),
            "hidden": (1, 2**16, self.widths),
            "steps": (0, 256, self.steps),
        }
        for name, (least, most, values) in whole.items():
            for value in values:
                if type(value) is not int or not least <= value <= most:
                    kind = "whole numbers" if name in ("hidden", "steps") else "a whole number"
                    self._refuse(f"'{name}' must be {kind} between {least} and {most}")
        if not 1 <= scales <= 16:
            self._refuse("'steps' must name at least one scale and at most 16")
        if len(self.split) != scales:
            self._refuse("'split' must have one entry for each scale")
        if self.split[-1]:
            self._refuse("the last scale cannot be split")
        if len(self.widths) != scales:
            self._refuse("'hidden' must be one number, or one for each scale")
        factor = 2**scales
        if self.height % factor or self.width % factor:
            self._refuse(
                f"height and width must be positive multiples of {factor} (2 to the number of "
                f"scales), not {self.height} and {self.width}"
            )
        if self.permutation not in ("swap", "conv1x1"):
            self._refuse(f"'permutation' must be swap or conv1x1, not {self.permutation}")
        if type(self.patches) is not bool or (self.patches and self.height != self.width):
            self._refuse("'patches' must be true or false, and patches are squares")
        if self.scale not in ("sigmoid", "bounded"):
            self._refuse(f"'scale' must be sigmoid or bounded, not {self.scale}")

    @staticmethod
    def _refuse(reason: str) -> None:
        raise FlowmendError(f"This flow cannot be built: {reason}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Hidden channels at each scale."""
        if isinstance(self.hidden, int):
            return (self.hidden,) * len(self.steps)
        return self.hidden

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        return self.channels, self.height, self.width

    @property
    def crop(self) -> int:
        """Side of the patches, in pixels."""
        return self.height

    @property
    def dimensions(self) -> int:
        """Number of values D of an image, and of a latent."""
        return self.channels * self.height * self.width

    def unflatten(self, z: Tensor) -> list[Tensor | None]:
        """Splits a flat latent (B, D) into what leaves at each scale; None where nothing does."""
        channels, height, width = self.shape
        parts: list[Tensor | None] = []
        start = 0
        for last, split in enumerate(self.split, start=1 - len(self.split)):
            channels, height, width = channels * 4, height // 2, width // 2
            if not split and last != 0:
                parts.append(None)
                continue
            channels = channels // 2 if split else channels
            size = channels * height * width
            parts.append(z[:, start : start + size].reshape(-1, channels, height, width))
            start += size
        return parts

    def to_dict(self) -> dict:
        """The configuration as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "FlowConfig":
        """The configuration from plain values; an unknown name raises :class:`FlowmendError`."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise FlowmendError(f"Unknown flow setting: {', '.join(unknown)}.")
        return cls(**values)


PRESETS: dict[str, FlowConfig] = {
    "paper": FlowConfig(),
    "glow": FlowConfig(steps=(4, 4, 6), split=(False, False, False), permutation="conv1x1"),
    "whitened": FlowConfig(
        steps=(8, 6, 4),
        split=(False, False, False),
        hidden=(128, 160, 96),
        depth=3,
        permutation="conv1x1",
        scale="bounded",
        positional=True,
        whiten=True,
    ),
}
"""Named configurations: ``paper`` (Fig. 2; 32,736,864 parameters), ``glow`` (the other line of
Table 2; 33,780,096) and ``whitened`` (ours, the default of ``flowmend train``)."""


def preset(name: str, **changes: object) -> FlowConfig:
    """Returns a named configuration, with changes; an unknown name raises FlowmendError."""
    if name not in PRESETS:
        raise FlowmendError(f"Unknown preset '{name}': choose from {', '.join(PRESETS)}.")
    return dataclasses.replace(PRESETS[name], **changes)


class MultiscaleFlow(Bijection):
    """Squeeze, flow steps, split; once for each scale.

    A flow step is an actnorm and a coupling, with an invertible 1x1 convolution between them in
    the Glow configuration. Which half changes alternates from step to step, across scales.

    ``encode`` maps images (B, C, H, W) to flat latents (B, D), finest scale first; ``decode``
    is its inverse. Latents are standard normal under the model, without a learned prior.

    Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
    https://arxiv.org/abs/2110.13285, Fig. 2.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = nn.ModuleList()
        channels, height, width = config.shape
        count = 0
        for steps, split, hidden in zip(config.steps, config.split, config.widths, strict=True):
            channels, height, width = channels * 4, height // 2, width // 2
            layers: list[Bijection] = [Squeeze()]
            for _ in range(steps):
                layers.append(ActNorm(channels))
                if config.permutation == "conv1x1":
                    layers.append(InvertibleConv1x1(channels))
                layers.append(
                    AffineCoupling(
                        channels,
                        height,
                        width,
                        swap=count % 2 == 1,
                        hidden=hidden,
                        depth=config.depth,
                        scale=config.scale,
                        positional=config.positional,
                    )
                )
                count += 1
            self.scales.append(Chain(layers))
            channels = channels // 2 if split else channels

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        latents = []
        for scale, split in zip(self.scales, self.config.split, strict=True):
            x, logdet = scale.encode(x)
            total = total + logdet
            if split:
                x, latent = x.chunk(2, dim=1)
                latents.append(latent.flatten(1))
        return torch.cat([*latents, x.flatten(1)], dim=1), total

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[0])
        h: Tensor | None = None
        for scale, part in zip(
            reversed(self.scales), reversed(self.config.unflatten(z)), strict=True
        ):
            parts = [tensor for tensor in (h, part) if tensor is not None]
            h, logdet = scale.decode(torch.cat(parts, dim=1))
            total = total + logdet
        return h, total

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        latents = []
        for scale, split in zip(self.scales, self.config.split, strict=True):
            x = scale.initialise(x)
            if split:
                x, latent = x.chunk(2, dim=1)
                latents.append(latent.flatten(1))
        return torch.cat([*latents, x.flatten(1)], dim=1)


def build_flow(config: FlowConfig, seed: int = 0) -> MultiscaleFlow:
    """Builds a flow whose random initial weights come from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiscaleFlow(config)
