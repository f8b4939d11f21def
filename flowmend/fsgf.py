"""The network of the paper's own code, FSGF, described in the terms of ours.

What is stored of it is read from the released code: five scales, and one tensor for each of ours,
under other names. Squeeze, actnorm, coupling networks, their even (s) and odd (t) outputs, the
range [-1, 1] and the order of a flat latent agree, so the same latent gives the same image. One
thing differs: its first step changes the first half of the channels, given the second, ours the
second, given the first. As halves alternate from step to step, a step that changes nothing, put
first, brings them in line.

Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
https://arxiv.org/abs/2110.13285, and its code, https://github.com/jarchv/solverip
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import FlowmendError
from .flow import FlowConfig, MultiscaleFlow

__all__ = [
    "LARGEST_REPEATS",
    "SIZES",
    "Slot",
    "architecture",
    "check_architecture",
    "empty_flow",
    "expected_shapes",
    "identity_step",
    "is_identity_step",
    "place_steps",
    "with_leading_step",
]

SIZES = (32, 64, 128)
"""Image sides that five scales bring to the 4x4, 2x2 and 1x1 maps which tell a size apart."""
SCALES = 5
LARGEST_REPEATS = 128
OPEN = 100.0
"""An ``s`` at which ``sigmoid(s + 2)`` is 1 in every precision."""

TENSORS = {
    "norm.bias": (0, "shift"),
    "norm.log_s": (0, "log_scale"),
    "layer.NN.conv1.weight": (1, "network.first.weight"),
    "layer.NN.conv1.bias": (1, "network.first.bias"),
    "layer.NN.norm1.bias": (1, "network.norms.0.shift"),
    "layer.NN.norm1.log_s": (1, "network.norms.0.log_scale"),
    "layer.NN.conv2.weight": (1, "network.last.weight"),
    "layer.NN.conv2.bias": (1, "network.last.bias"),
    "layer.NN.log_s": (1, "network.log_gain"),
}
"""The author's name of every tensor of a step; ours, and whether the actnorm (0) or the coupling
(1) holds it."""


class Slot(NamedTuple):
    """A step of the author's network, and the step of ours that it holds, if any."""

    layer: int
    scale: int
    place: int | None

    def theirs(self) -> list[str]:
        """The author's names of the step's tensors, in the order of :data:`TENSORS`."""
        return [f"layers.{self.layer}.{name}" for name in TENSORS]

    def ours(self) -> list[str]:
        """Our names of the same tensors."""
        first = 1 + 2 * (self.place or 0)
        prefix = f"scales.{self.scale}.layers"
        return [f"{prefix}.{first + offset}.{name}" for offset, name in TENSORS.values()]


def architecture(size: int, channels: int, hidden: int, repeats: int, bits: int) -> FlowConfig:
    """The author's network in our terms: K steps a scale, 2K where the map is below 4x4."""
    heights = [size // 2**scale for scale in range(1, SCALES + 1)]
    return FlowConfig(
        height=size,
        width=size,
        channels=channels,
        bits=bits,
        steps=tuple(repeats if height >= 4 else 2 * repeats for height in heights),
        split=(*(height <= 4 for height in heights[:-1]), False),
        hidden=hidden,
    )


def check_architecture(config: FlowConfig, any_steps: bool) -> None:
    """Refuses what the author's network cannot be; ``any_steps`` leaves its depth free."""
    reason = ""
    if config.height not in SIZES or len(config.steps) != SCALES:
        reason = f"it takes square images of side {', '.join(map(str, SIZES))} and five scales"
    elif len(set(config.widths)) > 1:
        reason = "'hidden' must be the same at every scale"
    else:
        repeats = max(config.steps[0], 1)
        wanted = architecture(
            config.height, config.channels, config.widths[0], repeats, config.bits
        )
        for field in dataclasses.fields(config):
            found, value = getattr(config, field.name), getattr(wanted, field.name)
            if field.name == "hidden" or (field.name == "steps" and any_steps):
                continue
            if found != value:
                reason = f"'{field.name}' must be {value}, not {found}"
                break
    if reason:
        raise FlowmendError(
            f"The author's network has no such architecture: {reason} (preset paper fits)."
        )


def place_steps(config: FlowConfig, skip_first: bool) -> list[Slot]:
    """Places our steps, in order, in the smallest network of the author's that holds them.

    A slot takes the next step of its scale where both change the same half: step n of ours
    changes the second half for even n, slot n of the author's the first.
    """
    for repeats in range(1, max(config.steps) + 2):
        theirs = architecture(
            config.height, config.channels, config.widths[0], repeats, config.bits
        )
        found: list[Slot] = []
        layer, index, held = 1, int(skip_first), True
        for scale, steps in enumerate(config.steps):
            place = index if scale == 0 else 0
            for number in range(1, theirs.steps[scale] + 1):
                fits = place < steps and (len(found) + index) % 2 == 1
                found.append(Slot(layer + number, scale, place if fits else None))
                place, index = place + fits, index + fits
            held = held and place == steps
            layer += 1 + theirs.steps[scale] + theirs.split[scale]
        if held:
            return found
    raise AssertionError("every step fits in two slots")


def identity_step(shapes: list[torch.Size]) -> list[Tensor]:
    """Tensors, in the order of :data:`TENSORS`, of a step that changes nothing."""
    tensors = [torch.zeros(shape) for shape in shapes]
    bias, channels = tensors[-2], shapes[-1].numel()
    bias.view(channels, -1)[0::2] = OPEN  # a pixel shuffle turns each row into one channel
    return tensors


def is_identity_step(tensors: list[Tensor]) -> bool:
    """Whether a step changes nothing, whatever its network does before its zero weights."""
    nothing = identity_step([value.shape for value in tensors])
    return all(torch.equal(tensors[i], nothing[i]) for i in (0, 1, 6, 7, 8))


def empty_flow(config: FlowConfig) -> MultiscaleFlow:
    """Our flow without memory for its weights: names and shapes only."""
    with torch.device("meta"):
        return MultiscaleFlow(config)


def with_leading_step(config: FlowConfig) -> FlowConfig:
    """The author's architecture with our first step, which changes nothing, before its own."""
    return dataclasses.replace(config, steps=(config.steps[0] + 1, *config.steps[1:]))


def expected_shapes(config: FlowConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the author's tensors for an architecture."""
    ours = with_leading_step(config)
    shapes = {key: tuple(value.shape) for key, value in empty_flow(ours).state_dict().items()}
    found = {}
    for slot in place_steps(ours, skip_first=True):
        for theirs, name in zip(slot.theirs(), slot.ours(), strict=True):
            found[theirs] = shapes[name][1:] if name.endswith("log_gain") else shapes[name]
    return found
