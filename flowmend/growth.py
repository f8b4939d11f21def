"""The weights of a trained velocity network for one that is as large or larger.

Source: Net2Net: Accelerating Learning via Knowledge Transfer (Chen, Goodfellow and Shlens, 2016),
https://arxiv.org/abs/1511.05641, whose idea this is. Here what is new in the larger network begins
at random, and what was there before does not look at it yet. Of forgetting: On Warm-Starting
Neural Network Training (Ash and Adams, 2020), https://arxiv.org/abs/1910.08475
"""

import torch
from torch import Tensor, nn

from .errors import FlowmendError
from .flow import VelocityNet, build_velocity

__all__ = ["forgotten", "grow"]


@torch.no_grad()
def forgotten(velocity: VelocityNet, share: float, seed: int) -> VelocityNet:
    """A network whose weights lie between those of a trained one and fresh ones.

    A network that knows its training images by heart goes on knowing them, however it is trained
    further. What it knows of images in general survives this better than what it knows of one.

    Args:
        velocity: The trained network; it stays as it is.
        share: How far the weights are moved towards fresh ones, 0 to 1. Biases and the share of
            the Gaussian stay.
        seed: Seed of the fresh weights.
    """
    fresh = build_velocity(velocity.config, seed).to(velocity.embedding.first.weight)
    for new, old in zip(fresh.parameters(), velocity.parameters(), strict=True):
        new.copy_(old.lerp(new, share) if old.ndim > 1 else old)
    return fresh


@torch.no_grad()
def grow(velocity: VelocityNet, smaller: VelocityNet) -> None:
    """Makes a fresh network compute what a smaller one does, at every point and time.

    Features, blocks and the Gaussian's prediction may be new. Old features ignore the new ones,
    whose weights stay as they are; a fresh block changes nothing; the share of a Gaussian that
    was not there is 0.

    Args:
        velocity: A fresh network of :func:`flowmend.flow.build_velocity`; it is changed.
        smaller: A network with the same levels, for images of the same kind.

    Raises:
        FlowmendError: If the network is no enlargement of the smaller one.
    """
    _check(velocity, smaller)
    old = dict(smaller.named_modules())
    for name, module in velocity.named_modules():
        if name not in old:
            continue
        if isinstance(module, nn.Linear) and name.endswith("modulation"):
            for new, found in zip(_halves(module), _halves(old[name]), strict=True):
                _place(new, found)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            turned = isinstance(module, nn.ConvTranspose2d)
            _place(_layer(module, turned), _layer(old[name], turned))
    if velocity.network.position is not None and smaller.network.position is not None:
        found = smaller.network.position
        velocity.network.position[:, : found.shape[1]] = found
    if velocity.share is not None:
        velocity.share.copy_(torch.zeros(()) if smaller.share is None else smaller.share)


def _check(velocity: VelocityNet, smaller: VelocityNet) -> None:
    """Refuses a network that does not contain the smaller one."""
    new, old = velocity.config, smaller.config
    if new.channels != old.channels or len(new.widths) != len(old.widths):
        reason = "both need the same channels and levels"
    elif any(a < b for a, b in zip(new.widths + new.blocks, old.widths + old.blocks, strict=True)):
        reason = "no level may have fewer features or blocks than before"
    elif new.sigma_data != old.sigma_data:
        reason = f"it was scaled for images with a deviation of {old.sigma_data}"
    elif old.informed and not new.informed:
        reason = "it would lose its Gaussian"
    elif old.size is not None and new.size != old.size:
        reason = f"it knows images of {old.size} pixels only"
    else:
        return
    raise FlowmendError(
        f"Training can begin with a prior of the same architecture or a smaller one: {reason}."
    )


def _layer(module: nn.Module, turned: bool) -> tuple[Tensor, Tensor]:
    """Weights (out, in, ...) and biases (out,), which share memory with the layer's."""
    weight = module.weight.data
    return (weight.transpose(0, 1) if turned else weight), module.bias.data


def _halves(module: nn.Linear) -> list[tuple[Tensor, Tensor]]:
    """Those of a layer that makes scales and shifts, apart."""
    return list(zip(module.weight.data.chunk(2), module.bias.data.chunk(2), strict=True))


def _place(new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> None:
    """Writes old weights over the first of the new; old outputs ignore new inputs."""
    outputs, inputs = old[0].shape[:2]
    new[0][:outputs] = 0.0
    new[0][:outputs, :inputs] = old[0]
    new[1][:outputs] = old[1]
