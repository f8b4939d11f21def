"""A network for every size and its pictures."""

import torch
from conftest import smooth_images

import flowmend as fm
from flowmend.cli import main
from flowmend.stationary import StationaryGaussian


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(x, amount=0.05):
    """Images with a texture, as photographs have one."""
    return (x + amount * torch.randn(x.shape, generator=source(3))).clamp(0.0, 1.0)


def any_size_prior(channels=3, seed=0, wild=0.05, texture=0.0):
    """A network that takes every size, its weights moved by so much from those of a fresh one,
    which shrinks what it sees towards grey, every pixel by itself.
    """
    config = fm.VelocityConfig(channels=channels, widths=(8, 8), blocks=(1, 1), crop=16)
    velocity = fm.build_velocity(config, seed)
    with torch.no_grad():
        for weight in velocity.network.parameters():
            weight.add_(wild * torch.randn(weight.shape, generator=source(seed)))
    images = rough(smooth_images(40, channels, 16, 16).float(), texture)
    stationary = StationaryGaussian.fit([images])
    prior = fm.ContinuousPrior(velocity, stationary=stationary)
    return prior.eval().requires_grad_(False)


def photograph(height=70, width=90, channels=3, seed=1):
    return smooth_images(1, channels, height, width, seed=seed).float()


def uneven(height, width):
    """A noise level that grows from left to right, (H, W)."""
    return torch.linspace(0.02, 0.3, width).expand(height, width).contiguous()


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments]) or 0
    except SystemExit as stop:
        return stop.code or 0
