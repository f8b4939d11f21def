"""Every layer and whole flows: exact inverses and log-determinants."""

import pytest
import torch
from flow_cases import COUPLING_MAPS, INSTANCES, coupling, instance, numbers
from properties import (
    check_batch,
    check_gradients,
    check_logdet,
    check_pure,
    check_round_trip,
    check_shapes,
)

COUPLING_KINDS = [  # swap, depth, scale
    (False, 2, "sigmoid"),
    (True, 3, "sigmoid"),
    (False, 3, "bounded"),
    (True, 2, "bounded"),
]
for _place, _map in enumerate(COUPLING_MAPS):
    for _turn, (_swap, _depth, _scale) in enumerate(COUPLING_KINDS):
        _positional = (_place + _turn // 2) % 2 == 0
        _where = ", positional" if _positional else ""
        _swapped = ", swapped" if _swap else ""
        INSTANCES[f"coupling {_map}, depth {_depth}, {_scale}{_swapped}{_where}"] = (
            lambda shape=_map, kind=(_swap, _depth, _scale, _positional): coupling(shape, *kind),
            _map,
        )
TRAINABLE = [name for name, (build, _) in INSTANCES.items() if list(build().parameters())]


@pytest.mark.parametrize(
    "check",
    [check_round_trip, check_logdet, check_shapes, check_pure, check_batch],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("name", INSTANCES)
def test_promises_of_a_bijection(name, check):
    check(*instance(name))


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_parameter_learns(name):
    check_gradients(*instance(name))


@pytest.mark.parametrize("name", ["flow with splits", "glow", "whitened flow prior"])
def test_round_trip_in_single_precision(name):
    bijection, x = instance(name)
    check_round_trip(bijection.float(), x.float(), tolerance=1e-4)


@pytest.mark.parametrize("name", ["flow prior", "whitened flow prior"])
def test_gradient_of_frozen_decoder_with_respect_to_latents(name):
    bijection, x = instance(name)
    bijection.requires_grad_(False)
    z = bijection.encode(x[:1])[0].requires_grad_()
    direction = numbers(*z.shape, seed=9)
    weights = numbers(*x[:1].shape, seed=10)

    def objective(point):
        image, logdet = bijection.decode(point)
        return (image * weights).sum() + logdet.sum()

    slope = (torch.autograd.grad(objective(z), z)[0] * direction).sum()
    with torch.no_grad():
        step = 1e-6 * direction
        difference = (objective(z + step) - objective(z - step)) / 2e-6
    assert abs(slope - difference) <= 1e-6 * abs(difference)
