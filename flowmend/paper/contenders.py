"""The flows that Table 2 compares: two of this package, and the Glow of another library."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import FlowmendError
from ..flow import (
    Conditioner,
    FlowConfig,
    InvertibleConv1x1,
    build_flow,
    preset,
    standard_normal_log_prob,
)

__all__ = ["CONTENDERS", "Contender", "NormflowsGlow", "OurFlow", "Timed", "build_contender"]

SEED = 0


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Args:
        name: Its name, unique in the table.
        config: The architecture.
        cached: Whether the inverse of an invertible 1x1 convolution with frozen weights is kept;
            the paper's code computes it in every decode.
        library: ``"flowmend"``, or ``"normflows"`` for that library's own Glow of the same scales,
            steps, splits and hidden channels.

    Raises:
        FlowmendError: If the library is unknown, or is to build what it does not have.
    """

    name: str
    config: FlowConfig
    cached: bool = True
    library: str = "flowmend"

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise FlowmendError(
                f"Unknown library '{self.library}': choose from {', '.join(LIBRARIES)}."
            )
        if self.library == "normflows" and self.config.permutation != "conv1x1":
            raise FlowmendError("normflows has no swap: give it a configuration with conv1x1.")


class Timed(Protocol):
    """A flow as it is timed: latents are flat (B, D), images (B, C, H, W)."""

    network: nn.Module

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents; the log-determinant is computed too."""

    def loss(self, x: Tensor) -> Tensor:
        """Mean negative log-likelihood, nats per image."""


class OurFlow:
    """A flow of this package."""

    def __init__(self, contender: Contender) -> None:
        self.network = build_flow(contender.config, SEED)
        for module in self.network.modules():
            if isinstance(module, Conditioner):
                module.last.reset_parameters()
            if isinstance(module, InvertibleConv1x1):
                module.cached = contender.cached

    def decode(self, z: Tensor) -> Tensor:
        return self.network.decode(z)[0]

    def loss(self, x: Tensor) -> Tensor:
        z, logdet = self.network.encode(x)
        return -(standard_normal_log_prob(z) + logdet).mean()


class NormflowsGlow:
    """The Glow of normflows at that library's defaults.

    Same squeeze, scales, steps, hidden channels and splits. Its networks have three convolutions
    (3x3, 1x1, 3x3), all of them padded, without actnorms or a gain; the matrices are LU-factored
    and both factors are inverted in float64 in every decode; the same half changes in every step.

    Source: normflows: A PyTorch Package for Normalizing Flows (Stimper et al., 2023),
    https://github.com/VincentStimper/normalizing-flows
    """

    def __init__(self, contender: Contender) -> None:
        import normflows  # optional, and slow to import

        self.config = config = contender.config
        channels, height, width = config.shape
        shapes = []
        for split in config.split:
            channels, height, width = channels * 4, height // 2, width // 2
            shapes.append((channels, height, width))
            channels = channels // 2 if split else channels
        levels, bases, merges = [[]], [shapes[-1]], []
        for steps, split, hidden, shape in reversed(
            list(zip(config.steps, config.split, config.widths, shapes, strict=True))
        ):
            if split:
                levels.append([])
                bases.append((shape[0] // 2, *shape[1:]))
                merges.append(normflows.flows.Merge())
            for _ in range(steps):
                levels[-1].append(normflows.flows.GlowBlock(shape[0], hidden, init_zeros=False))
            levels[-1].append(normflows.flows.Squeeze())
        self.network = normflows.MultiscaleFlow(
            [normflows.distributions.DiagGaussian(base, trainable=False) for base in bases],
            levels,
            merges,
            class_cond=False,
        )

    def decode(self, z: Tensor) -> Tensor:
        parts = [part for part in self.config.unflatten(z) if part is not None]
        return self.network.forward_and_log_det(parts[::-1])[0]

    def loss(self, x: Tensor) -> Tensor:
        return self.network.forward_kld(x)


LIBRARIES: dict[str, Callable[[Contender], Timed]] = {
    "flowmend": OurFlow,
    "normflows": NormflowsGlow,
}


CONTENDERS = (
    Contender("paper", preset("paper")),
    Contender("glow", preset("glow"), cached=False),
    Contender("glow, inverse cached", preset("glow")),
    Contender("glow (normflows)", preset("glow"), library="normflows"),
)
"""The two lines of the paper's table, its rival with the inverse kept, and a maintained library's.
In a training step, which inverts nothing, the second and third run the same code: how far they are
apart there is the uncertainty of the comparison."""


def build_contender(contender: Contender, device: torch.device) -> Timed:
    """The contender with random weights, frozen; no last layer is zero."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # normflows calls a deprecated LU
        torch.manual_seed(SEED)
        timed = LIBRARIES[contender.library](contender)
    timed.network.to(device).requires_grad_(False)
    return timed
