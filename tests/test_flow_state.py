"""Starting values, kept inverses, precision and inference mode."""

import pytest
import torch
from flow_cases import (
    FOLDED,
    GLOW,
    GREY,
    OURS,
    SPLIT,
    convolution,
    couplings,
    flow_prior,
    gaussian,
    hidden_values,
    instance,
    numbers,
    positive_definite,
)
from properties import randomise
from torch import nn

from flowmend.flow import ActNorm, AffineCoupling, Conditioner, build_flow
from flowmend.prior import FlowPrior


def assert_standard(value):
    mean, deviation = value.mean((0, 2, 3)), value.std((0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=0, atol=1e-4)


def walk(model, x):
    """The flow's layers with what enters each."""
    for scale, split in zip(model.scales, model.config.split, strict=True):
        for layer in scale.layers:
            yield layer, x
            x = layer.encode(x)[0]
        x = x[:, : x.shape[1] // 2] if split else x


@pytest.mark.parametrize("config", [SPLIT, GREY, GLOW, OURS, FOLDED], ids=range(5))
def test_initialise_gives_every_actnorm_mean_zero_and_variance_one(config):
    model = build_flow(config).double()
    with torch.no_grad():
        for layer in couplings(model):
            if layer.network.position is not None:
                layer.network.position.normal_(generator=torch.Generator().manual_seed(0))
    x = 0.5 + 0.2 * numbers(40, *config.shape) + 0.1 * numbers(1, *config.shape, seed=1)
    z = model.initialise(x)
    actnorms = 0
    with torch.no_grad():
        for layer, value in walk(model, x):
            if isinstance(layer, ActNorm):
                assert_standard(layer.encode(value)[0])
                actnorms += 1
            elif isinstance(layer, AffineCoupling):
                half = value.shape[1] // 2
                kept = value[:, half:] if layer.swap else value[:, :half]
                inner = hidden_values(layer.network, kept)[0]
                for before in inner:
                    assert_standard(before)
                actnorms += len(inner)
        assert torch.equal(z, model.encode(x)[0])
    assert actnorms == sum(isinstance(layer, ActNorm) for layer in model.modules())


def test_initialise_of_a_constant_channel_stays_finite():
    norm = ActNorm(2)
    z = norm.initialise(torch.ones(4, 2, 3, 3))
    assert bool(torch.isfinite(z).all())
    assert bool(torch.isfinite(norm.log_scale).all())


def test_actnorms_move_only_when_initialise_is_called():
    model = build_flow(SPLIT).train()
    x = 3.0 + 5.0 * torch.randn(8, *SPLIT.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.encode(x)
        model.decode(model.encode(x)[0])
        model(x)
    norms = [layer for layer in model.modules() if isinstance(layer, ActNorm)]
    assert all(not norm.shift.any() and not norm.log_scale.any() for norm in norms)
    model.initialise(x)
    assert all(norm.log_scale.any() for norm in norms)


def test_forward_is_encode():
    model, x = instance("flow with splits")
    with torch.no_grad():
        for found, wanted in zip(model(x), model.encode(x), strict=True):
            assert torch.equal(found, wanted)


# The inverse of a 1x1 convolution.
def test_cached_and_fresh_inverse_agree():
    layer = convolution(6)
    z = numbers(2, 6, 3, 3)
    learning = layer.decode(z)[0]
    assert learning.requires_grad
    layer.requires_grad_(False)
    cached = [layer.decode(z)[0] for _ in range(2)]
    layer.cached = False
    fresh = layer.decode(z)[0]
    for found in (*cached, learning.detach()):
        torch.testing.assert_close(found, fresh, rtol=1e-12, atol=1e-12)


def test_inverse_of_frozen_weights_is_computed_once_when_cached(monkeypatch):
    calls = []
    invert = torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda matrix: calls.append(1) or invert(matrix))
    layer, z = convolution(4).requires_grad_(False), numbers(1, 4, 2, 2)
    for _ in range(3):
        layer.decode(z)
    assert len(calls) == 1
    layer.cached = False
    for _ in range(3):
        layer.decode(z)
    assert len(calls) == 4


def optimise(layer, **options):
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, **options)
    layer.encode(numbers(2, 4, 3, 3, seed=4))[0].square().sum().backward()
    optimiser.step()


def overwrite(layer):
    with torch.no_grad():
        layer.weight.copy_(2.0 * layer.weight)


def replace(layer):
    layer.weight = nn.Parameter(2.0 * layer.weight.detach())


CHANGES = {
    "in place": overwrite,
    "another parameter": replace,
    "state dictionary": lambda layer: layer.load_state_dict(convolution_state()),
    "assigned state": lambda layer: layer.load_state_dict(convolution_state(), assign=True),
    "optimiser": lambda layer: optimise(layer, fused=False, foreach=False),
    "foreach optimiser": lambda layer: optimise(layer, foreach=True),
    "fused optimiser, as in training": lambda layer: optimise(layer, fused=True),
    "precision": lambda layer: layer.float(),
}


def convolution_state():
    return {"weight": positive_definite(4, seed=9)}


@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen before and after"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_cache_notices_changed_weights(change, frozen):
    layer = convolution(4)
    x = numbers(2, 4, 3, 3)
    layer.requires_grad_(not frozen)
    with torch.no_grad():
        layer.decode(x)
    layer.requires_grad_(True)
    change(layer)
    layer.requires_grad_(not frozen)
    x = x.to(layer.weight.dtype)
    with torch.no_grad():
        check = layer.decode(layer.encode(x)[0])[0]
    torch.testing.assert_close(check, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [GLOW, OURS], ids=["glow", "whitened"])
def test_decoding_in_inference_mode_leaves_the_prior_differentiable(config):
    prior = flow_prior(config).requires_grad_(False)
    z = numbers(1, config.dimensions)
    with torch.inference_mode():
        wanted = prior.decode(z)[0]
    z.requires_grad_()
    image = prior.decode(z)[0]
    torch.testing.assert_close(image.detach(), wanted.clone())
    assert bool(torch.autograd.grad(image.sum(), z)[0].any())


@pytest.mark.parametrize("config", [GLOW, OURS], ids=["glow", "whitened"])
def test_autocast_lowers_the_precision_of_networks_only(config):
    """A fresh flow's networks return zero, so nothing else may differ under autocast."""
    prior = FlowPrior(build_flow(config), gaussian(*config.shape).float())
    x = torch.rand(4, *config.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = prior.encode(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = prior.encode(x)
    for value, reference in zip(found, wanted, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-4)


def test_autocast_reaches_the_networks():
    network = Conditioner(2, 4, 4, 3, 8, 8, positional=True)
    randomise(network).float()
    h = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network(h)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(h)
    assert not torch.equal(found.float(), wanted)
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)
