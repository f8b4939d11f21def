"""What flow matching minimises, and what is measured on held-out images meanwhile.

Source: Flow Matching for Generative Modeling (Lipman et al., 2023),
https://arxiv.org/abs/2210.02747
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .chance import generator_at, stratified_times
from .continuous import ContinuousPrior
from .data import middle_crop
from .flow import Drop, VelocityNet, expanded
from .metrics import psnr
from .pixels import dequantise, from_bytes

__all__ = ["held_out_loss", "held_out_psnr", "likelihood_and_inverse", "matching_loss"]

SIGMA = 25.0 / 255.0
"""Noise of the held-out images that are denoised, on the [0, 1] scale."""
SCORED_PIXELS = 2**14
"""Pixels of held-out images whose likelihood and round trip the finished prior's card tells."""


def matching_loss(
    velocity: VelocityNet,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    linear: Callable[[Tensor, Tensor], Tensor] | None = None,
    drop: Drop | None = None,
) -> Tensor:
    """Mean squared error of the network's residual F, shape (B,): 1 is that of no network.

    The velocity ``x - noise`` of the straight path through ``x_t = (1 - t) noise + t x`` leaves
    F to predict ``(x - noise - c_skip x_t) / c_out``. Values at time 1 are known and do not count.

    Args:
        velocity: The network.
        x: Images (B, C, H, W) on the network's range.
        t: Times (B,), or (B, C, H, W) one of every value.
        noise: Starts of the paths (B, C, H, W), standard normal.
        linear: Gives the Gaussian's velocities of points at times, for an informed network; None
            lets the network compute them.
        drop: What leaves out features; see :meth:`VelocityNet.residual`.
    """
    times = expanded(t).expand(x.shape)
    x_t = (1.0 - times) * noise + times * x
    c_in, c_skip, c_out = velocity.factors(x_t, t)
    target = (x - noise - c_skip * x_t) / c_out
    hints = None if linear is None else linear(x_t, t)
    errors = (velocity.residual(c_in * x_t, t, hints, drop) - target).square()
    counts = (times < 1.0).to(errors)
    return (errors * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1.0)


@torch.no_grad()
def held_out_loss(prior: ContinuousPrior, images: Tensor, seed: int = 0, batch: int = 64) -> float:
    """Mean of :func:`matching_loss` over uint8 images (N, C, H, W), at fixed times and noise."""
    device = next(prior.parameters()).device
    generator = generator_at(seed, 0)
    total = 0.0
    for part, times in zip(
        images.split(batch), stratified_times(len(images)).split(batch), strict=True
    ):
        x = prior.to_network(dequantise(from_bytes(part), prior.config.bits, generator))
        noise = torch.randn(x.shape, generator=generator)
        loss = matching_loss(prior.velocity, x.to(device), times.to(device), noise.to(device))
        total += float(loss.double().sum())
    return total / len(images)


@torch.no_grad()
def held_out_psnr(
    prior: ContinuousPrior,
    images: Tensor,
    sigma: float = SIGMA,
    seed: int = 0,
    batch: int = 64,
) -> float:
    """Mean PSNR, dB, of denoised uint8 images (N, C, H, W) with noise of sigma on [0, 1]."""
    device = next(prior.parameters()).device
    generator = generator_at(seed, 1)
    values: list[float] = []
    for part in images.split(batch):
        x = from_bytes(part)
        y = x + sigma * torch.randn(x.shape, generator=generator)
        values += psnr(prior.denoise(y.to(device), sigma), x)
    return sum(values) / len(values)


@torch.no_grad()
def likelihood_and_inverse(
    prior: ContinuousPrior, validation: Sequence[Tensor] | Tensor, seed: int = 0
) -> dict:
    """What a card says of a prior's likelihood and inverse.

    Args:
        prior: The prior.
        validation: Held-out images, uint8 (N, C, H, W), or (C, H, W) each; a few of them are
            enough.
        seed: Seed of the dequantisation noise and of the random signs.

    Returns:
        ``val_bits_per_dim``, the mean over ``scored`` images or middles of them, and
        ``round_trip_error``: their largest |decode(encode(x)) - x| on the [0, 1] scale.
    """
    _, height, width = prior.shape
    count = min(len(validation), max(2, SCORED_PIXELS // (height * width)))
    middles = [middle_crop(image, height, width) for image in validation[:count]]
    x = from_bytes(torch.stack(middles))
    bits = prior.bits_per_dim(x, prior.config.bits, generator_at(seed, 0))
    return {
        "val_bits_per_dim": round(float(bits.mean()), 4),
        "scored": count,
        "round_trip_error": float((prior.round_trip(x) - x).abs().max()),
    }
