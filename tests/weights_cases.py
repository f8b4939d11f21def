"""Weights files for the tests that save and refuse them."""

import torch

from flowmend.flow import FlowConfig, build_flow
from flowmend.prior import FlowPrior, GaussianPrior

CONFIG = FlowConfig(
    height=8,
    width=8,
    channels=1,
    steps=(1, 2),
    split=(True, False),
    hidden=(3, 4),
    depth=3,
    permutation="conv1x1",
    scale="bounded",
    positional=True,
)
WHITENED = FlowConfig(**(CONFIG.to_dict() | {"whiten": True}))
CARD = {"name": "test", "val_bits_per_dim": 2.5, "recipe": {"epochs": 3}}


def pictures(count=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 1, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(small, (8, 8), mode="bilinear")
    noise = 0.02 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


def make(config=CONFIG, with_gaussian=False, card=None):
    generator = torch.Generator().manual_seed(1)
    gaussian = GaussianPrior.fit(pictures()) if with_gaussian else None
    prior = FlowPrior(build_flow(config, seed=1), gaussian, CARD if card is None else card)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return prior


def state_of(prior):
    return {key: value.clone() for key, value in prior.flow.state_dict().items()}
