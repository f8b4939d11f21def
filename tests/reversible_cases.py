"""Priors and gradients for the tests of reversible backpropagation."""

import pytest
import torch
from flow_cases import gaussian, numbers
from properties import randomise

from flowmend.flow import build_flow, preset
from flowmend.flow.reversible import reversible_decode, reversible_encode
from flowmend.prior import FlowPrior

BATCH = 3
REDUCED = {
    "paper": preset("paper", hidden=8),
    "glow": preset("glow", height=16, width=16, steps=(2, 2, 2), hidden=8),
    "whitened": preset("whitened", height=16, width=8, steps=(2, 2, 1), hidden=(8, 6, 4)),
}
DIRECTIONS = {"encode": reversible_encode, "decode": reversible_decode}
both_directions = pytest.mark.parametrize("direction", DIRECTIONS)
every_preset = pytest.mark.parametrize("name", REDUCED)


def prior_of(name, dtype=torch.float64):
    config = REDUCED[name]
    whitening = gaussian(*config.shape) if config.whiten else None
    return randomise(FlowPrior(build_flow(config), whitening), seed=6, size=0.05).to(dtype)


def points_of(prior, direction, count=BATCH):
    """Images or latents, what ``direction`` takes."""
    x = (0.5 + 0.2 * numbers(count, *prior.shape, seed=8)).to(next(prior.parameters()).dtype)
    with torch.no_grad():
        return x if direction == "encode" else prior.encode(x)[0]


def outcome(function, point, parameters):
    """Value, log-determinant, and the gradients of a loss of both."""
    point = point.detach().clone().requires_grad_()
    value, logdet = function(point)
    weights = (numbers(*each.shape, seed=9).to(each) for each in (value, logdet))
    loss = sum((each * w).sum() for each, w in zip((value, logdet), weights, strict=True))
    loss = loss + 0.1 * value.square().sum() + 1e-3 * logdet.square().sum()
    return value.detach(), logdet.detach(), *torch.autograd.grad(loss, [point, *parameters])


def check_same(found, wanted, names, tolerance):
    """Tensors equal in pairs: ``|found - wanted| <= tolerance |wanted|``, Euclidean norms."""
    for name, one, other in zip(names, found, wanted, strict=True):
        assert one.shape == other.shape, f"{name}: shape {tuple(one.shape)}"
        assert one.dtype == other.dtype, f"{name}: {one.dtype}"
        assert bool(torch.isfinite(one).all()), f"{name}: not finite"
        error = (one.double() - other.double()).norm().item()
        size = other.double().norm().item()
        assert error <= tolerance * size, f"{name}: differs by {error:.3g} of {size:.3g}"
