"""Backpropagation by inversion: the gradients of autograd."""

import pytest
import torch
from flow_cases import INSTANCES, instance, numbers
from properties import randomise
from reversible_cases import (
    BATCH,
    DIRECTIONS,
    both_directions,
    check_same,
    every_preset,
    outcome,
    points_of,
    prior_of,
)

from flowmend.flow import ActNorm, AffineCoupling, Chain, Conditioner, Squeeze, reversible
from flowmend.latent import minimise
from flowmend.objective import likelihood
from flowmend.operators import Grey

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}


def check_against_autograd(function, reference, module, point, tolerance):
    """Value, log-determinant and the gradients of input and trainable parameters are the same."""
    named = {key: p for key, p in module.named_parameters() if p.requires_grad}
    found = outcome(function, point, named.values())
    wanted = outcome(reference, point, named.values())
    check_same(found, wanted, ["value", "logdet", "input", *named], tolerance)


def check_bijection(bijection, direction, x, tolerance=1e-9):
    with torch.no_grad():
        point = x if direction == "encode" else bijection.encode(x)[0]
    check_against_autograd(
        lambda argument: DIRECTIONS[direction](bijection, argument),
        getattr(bijection, direction),
        bijection,
        point,
        tolerance,
    )


# Autograd's gradients.
@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items(), ids=map(str, TOLERANCES))
@both_directions
@every_preset
def test_gradients_of_presets(name, direction, dtype, tolerance, trainable):
    prior = prior_of(name, dtype).requires_grad_(trainable)
    twin = prior.with_memory("reversible")
    point = points_of(prior, direction)
    check_against_autograd(
        getattr(twin, direction), getattr(prior, direction), prior, point, tolerance
    )


@both_directions
@pytest.mark.parametrize("name", INSTANCES)
def test_gradients_of_every_layer(name, direction):
    bijection, x = instance(name)
    check_bijection(bijection, direction, x)
    check_bijection(bijection.requires_grad_(False), direction, x)


@both_directions
def test_gradients_with_some_parameters_frozen(direction):
    prior = prior_of("glow")
    for index, parameter in enumerate(prior.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    check_bijection(prior.flow, direction, points_of(prior, "encode"))


@both_directions
@pytest.mark.parametrize("which", [0, 1], ids=["value", "logdet"])
def test_loss_of_one_output_alone(which, direction):
    prior = prior_of("glow")
    point = points_of(prior, direction).requires_grad_()
    inputs = [point, *prior.parameters()]
    found, wanted = (
        torch.autograd.grad(
            getattr(one, direction)(point)[which].square().sum(),
            inputs,
            allow_unused=True,
            materialize_grads=True,
        )
        for one in (prior.with_memory("reversible"), prior)
    )
    check_same(found, wanted, range(len(inputs)), 1e-9)


@both_directions
def test_no_gradient_of_frozen_parameters_is_computed(direction, monkeypatch):
    asked = []
    for name in ("_step", "_coupling_step"):
        step = getattr(reversible, name)
        monkeypatch.setattr(
            reversible, name, lambda *a, step=step: (asked.append(len(a[-1])), step(*a))[1]
        )
    prior = prior_of("glow").requires_grad_(False)
    twin = prior.with_memory("reversible")
    point = points_of(prior, direction)
    alone = point.clone().requires_grad_()
    getattr(twin, direction)(alone)[0].sum().backward()
    assert sum(asked) == 0
    assert alone.grad is not None
    shift = prior.flow.scales[1].layers[1].shift.requires_grad_()
    found, wanted = (
        torch.autograd.grad(getattr(one, direction)(point)[0].sum(), shift)
        for one in (twin, prior)
    )
    assert sum(asked) == 1
    check_same(found, wanted, ["shift"], 1e-9)
    assert point.grad is None


@both_directions
@pytest.mark.parametrize("size", [1, 2**12, 2**14])
def test_slices_change_nothing(size, direction, monkeypatch):
    counts = []
    forward = Conditioner.forward
    monkeypatch.setattr(
        Conditioner, "forward", lambda self, h: (counts.append(len(h)), forward(self, h))[1]
    )
    monkeypatch.setattr(reversible, "SLICE", size)
    prior = prior_of("paper")
    check_bijection(prior.flow, direction, points_of(prior, "encode", count=10))
    assert min(counts) < 10, "nothing was sliced"


def test_a_solution_is_the_same():
    prior = prior_of("whitened").requires_grad_(False)
    operator = Grey(prior.shape)
    y = operator.A(points_of(prior, "encode"))
    z = 0.1 * points_of(prior, "decode")
    found, wanted = (
        minimise(likelihood(0.025), y, operator, one, z, steps=10, learning_rate=0.01)
        for one in (prior.with_memory("reversible"), prior)
    )
    assert found[3] == wanted[3] == ["finished"] * BATCH
    check_same(found[:2], wanted[:2], ["last", "best"], 1e-7)
    assert float((wanted[0] - z).norm()) > 0.1


def test_training_is_the_same():
    start = list(prior_of("glow").parameters())
    moves = []
    for memory in ("autograd", "reversible"):
        prior = prior_of("glow")
        twin = prior.with_memory(memory)
        optimiser = torch.optim.SGD(prior.parameters(), lr=1e-5)
        for _ in range(3):
            optimiser.zero_grad()
            twin.log_prob(points_of(prior, "encode")).mean().neg().backward()
            optimiser.step()
        moves.append(
            [a.detach() - b.detach() for a, b in zip(prior.parameters(), start, strict=True)]
        )
    assert min(float(move.norm()) for move in moves[0]) > 0
    check_same(moves[1], moves[0], range(len(start)), 1e-7)


# The checker notices what is broken.
class InexactActNorm(ActNorm):
    """Its decode does not quite undo its encode."""

    def decode(self, z):
        x, logdet = super().decode(z)
        return x + 1e-6, logdet


class InexactCoupling(AffineCoupling):
    """Its decode does not quite undo its encode."""

    def decode(self, z):
        x, logdet = super().decode(z)
        return x * (1.0 + 1e-6), logdet


def small_chain(norm=ActNorm, coupling=AffineCoupling):
    torch.manual_seed(0)
    layers = [Squeeze()]
    for swap in (False, True):
        layers += [norm(8), coupling(8, 4, 4, swap, 4, 2, "bounded", False)]
    return randomise(Chain(layers), seed=3, size=0.2)


def no_logdet_gradient(step, *arguments):
    *first, logdet_gradient, parameters = arguments
    return step(*first, 0.0 * logdet_gradient, parameters)


def no_value_gradient(step, *arguments):
    argument, slope, *slopes = step(*arguments)
    return argument, 0.999999 * slope, *slopes


def scaled_parameter_gradients(step, *arguments):
    argument, slope, *slopes = step(*arguments)
    return argument, slope, *(0.999999 * each for each in slopes)


@both_directions
@pytest.mark.parametrize(
    "layers",
    [{"norm": InexactActNorm}, {"coupling": InexactCoupling}],
    ids=["actnorm", "coupling"],
)
def test_the_checker_notices_an_inexact_inverse(layers, direction):
    x = numbers(BATCH, 2, 8, 8)
    check_bijection(small_chain(), direction, x)
    with pytest.raises(AssertionError, match="differs by"):
        check_bijection(small_chain(**layers), direction, x)


@both_directions
@pytest.mark.parametrize("name", ["_step", "_coupling_step"])
@pytest.mark.parametrize(
    "broken", [no_logdet_gradient, no_value_gradient, scaled_parameter_gradients]
)
def test_the_checker_notices_a_wrong_gradient(broken, name, direction, monkeypatch):
    step = getattr(reversible, name)
    monkeypatch.setattr(reversible, name, lambda *arguments: broken(step, *arguments))
    with pytest.raises(AssertionError, match="differs by"):
        check_bijection(small_chain(), direction, numbers(BATCH, 2, 8, 8))
