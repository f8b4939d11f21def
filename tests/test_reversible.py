"""Backpropagation by inversion: autograd's gradients, nothing in place, memory flat in depth."""

import os
import subprocess
import sys

import pytest
import torch
from flow_cases import INSTANCES, gaussian, instance, numbers
from properties import (
    check_batch,
    check_gradients,
    check_pure,
    check_round_trip,
    check_shapes,
    randomise,
)
from safetensors.torch import load_file

import flowmend as fm
from flowmend.errors import FlowmendError
from flowmend.flow import (
    ActNorm,
    AffineCoupling,
    Chain,
    Conditioner,
    Squeeze,
    build_flow,
    preset,
    reversible,
)
from flowmend.flow.reversible import reversible_decode, reversible_encode
from flowmend.latent import minimise
from flowmend.objective import likelihood
from flowmend.operators import Grey
from flowmend.prior import FlowPrior

BATCH = 3
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
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


# What every bijection promises.


@pytest.mark.parametrize(
    "check",
    [check_round_trip, check_shapes, check_pure, check_batch, check_gradients],
    ids=lambda check: check.__name__,
)
@every_preset
def test_promises_of_a_bijection(name, check):
    prior = prior_of(name).with_memory("reversible")
    check(prior, points_of(prior, "encode"))


@both_directions
@every_preset
def test_nothing_changes_in_place(name, direction):
    prior = prior_of(name).with_memory("reversible")
    point = points_of(prior, direction).requires_grad_()
    held = [point, *prior.parameters(), *prior.buffers()]
    before = [each.detach().clone() for each in held]
    random = torch.random.get_rng_state()
    value, logdet = getattr(prior, direction)(point)
    results = value.detach().clone(), logdet.detach().clone()
    loss = value.square().sum() + logdet.sum()
    first = torch.autograd.grad(loss, point, retain_graph=True)[0]
    kept = first.clone()
    second = torch.autograd.grad(loss, point)[0]
    assert torch.equal(first, kept)
    assert torch.equal(first, second)
    assert torch.equal(value, results[0])
    assert torch.equal(logdet, results[1])
    assert all(torch.equal(each, old) for each, old in zip(held, before, strict=True))
    assert all(parameter.grad is None for parameter in prior.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


@both_directions
@every_preset
def test_gradients_do_not_depend_on_the_batch(name, direction):
    prior = prior_of(name).with_memory("reversible").requires_grad_(False)
    points = points_of(prior, direction)
    together = outcome(getattr(prior, direction), points, [])[2]

    def slope(index):
        point = points[index : index + 1].clone().requires_grad_()
        value, logdet = getattr(prior, direction)(point)
        weights = numbers(BATCH, *value.shape[1:], seed=9)[index]
        loss = (value[0] * weights).sum() + 0.1 * value.square().sum()
        loss = loss + logdet[0] * numbers(BATCH, seed=9)[index] + 1e-3 * logdet.square().sum()
        return torch.autograd.grad(loss, point)[0][0]

    alone = torch.stack([slope(index) for index in range(BATCH)])
    check_same(alone, together, range(BATCH), 1e-10)


@both_directions
@every_preset
def test_without_gradients(name, direction):
    prior = prior_of(name)
    twin = prior.with_memory("reversible")
    point = points_of(prior, direction)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found, wanted = (getattr(one, direction)(point) for one in (twin, prior))
        assert not found[0].requires_grad
        assert not found[1].requires_grad
        check_same(found, wanted, ["value", "logdet"], 1e-12)
    assert not getattr(prior.requires_grad_(False), direction)(point)[0].requires_grad


@both_directions
def test_gradients_cannot_be_differentiated(direction):
    prior = prior_of("glow").with_memory("reversible")
    point = points_of(prior, direction).requires_grad_()
    value, _ = getattr(prior, direction)(point)
    (slope,) = torch.autograd.grad(value.square().sum(), point, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


@both_directions
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_parameters_changed_before_the_gradient_are_noticed(frozen, direction):
    prior = prior_of("glow").with_memory("reversible").requires_grad_(not frozen)
    point = points_of(prior, direction).requires_grad_()
    value, _ = getattr(prior, direction)(point)
    with torch.no_grad():
        prior.flow.scales[0].layers[1].shift.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


# Precision.


@both_directions
def test_networks_in_bfloat16(direction):
    """Rounding to 8 bits decides differently where inputs differ in the last of 24: the gradients
    agree as well as the precision allows, measured by what it costs autograd."""
    exact = prior_of("paper", torch.float32).requires_grad_(False)
    prior = exact.at_precision("bfloat16")
    twin = prior.with_memory("reversible")
    point = points_of(exact, direction)
    found, wanted, best = (
        outcome(getattr(one, direction), point, [])[2] for one in (twin, prior, exact)
    )
    assert found.dtype == torch.float32
    assert float((found - wanted).norm()) <= 2.0 * float((wanted - best).norm())
    assert 0 < float((wanted - best).norm()) < 0.05 * float(best.norm())


@both_directions
def test_autocast_of_the_forward_pass_holds_in_the_backward_pass(direction):
    prior = prior_of("paper", torch.float32)
    twin = prior.with_memory("reversible")
    dtypes = []
    for module in prior.modules():
        if isinstance(module, Conditioner):
            module.register_forward_hook(lambda *arguments: dtypes.append(arguments[-1].dtype))
    point = points_of(prior, direction)
    slopes, seen = [], []
    for one in (twin, prior):
        dtypes.clear()
        with torch.autocast("cpu", torch.bfloat16):
            value, logdet = getattr(one, direction)(point)
        (value.square().sum() + logdet.sum()).backward()
        seen.append(tuple(dtypes))
        slopes.append([parameter.grad.clone() for parameter in prior.parameters()])
        prior.zero_grad()
    assert torch.bfloat16 in seen[1]
    assert seen[0] == seen[1] + seen[1][::-1]
    found, wanted = (torch.cat([slope.flatten() for slope in each]) for each in slopes)
    assert float((found - wanted).norm()) <= 0.05 * float(wanted.norm())


def test_plain_gradients_after_reversible_ones_in_the_same_autocast():
    """Weights cast without a gradient must not be what autocast keeps for the plain direction."""
    prior = prior_of("paper", torch.float32)
    point = points_of(prior, "decode")
    with torch.autocast("cpu", torch.bfloat16):
        prior.with_memory("reversible").decode(point)
        value, logdet = prior.decode(point)
    (value.square().sum() + logdet.sum()).backward()
    assert all(parameter.grad is not None for parameter in prior.parameters())


# The prior's setting.


def test_unknown_memory_is_refused_with_the_choices():
    for prior in (prior_of("paper"), gaussian(3, 4, 2)):
        with pytest.raises(FlowmendError, match="'disk': choose autograd or reversible"):
            prior.with_memory("disk")


def test_a_gaussian_needs_no_memory():
    prior = gaussian(3, 4, 2)
    assert prior.with_memory("reversible") is prior
    assert prior.with_memory("autograd") is prior


def test_weights_are_shared_and_the_prior_is_left_alone():
    prior = prior_of("whitened").eval()
    twin = prior.with_memory("reversible")
    assert (prior.memory, twin.memory) == ("autograd", "reversible")
    assert not twin.training
    assert twin.with_memory("reversible") is twin
    assert prior.with_memory("autograd") is prior
    assert twin.with_memory("autograd").memory == "autograd"
    assert list(map(id, prior.parameters())) == list(map(id, twin.parameters()))
    assert list(map(id, prior.buffers())) == list(map(id, twin.buffers()))
    assert twin.gaussian is prior.gaussian
    assert twin.card == prior.card
    assert prior.state_dict().keys() == twin.state_dict().keys()


def test_weights_files_are_the_same(tmp_path):
    prior = prior_of("whitened", torch.float32)
    plain, twin = (
        load_file(fm.save(tmp_path / f"{memory}.safetensors", prior.with_memory(memory)))
        for memory in ("autograd", "reversible")
    )
    assert plain.keys() == twin.keys()
    assert all(torch.equal(plain[key], twin[key]) for key in plain)
    assert fm.load(tmp_path / "reversible.safetensors").memory == "autograd"


@both_directions
def test_memory_and_precision_in_either_order(direction):
    prior = prior_of("whitened", torch.float32).requires_grad_(False)
    first = prior.with_memory("reversible").at_precision("bfloat16")
    second = prior.at_precision("bfloat16").with_memory("reversible")
    assert prior.with_memory("reversible").at_precision("float32").memory == "reversible"
    point = points_of(prior, direction)
    results = []
    for twin in (first, second):
        assert twin.memory == "reversible"
        kinds = {
            p.dtype for m in twin.modules() if isinstance(m, Conditioner) for p in m.parameters()
        }
        assert kinds == {torch.bfloat16}
        results.append(outcome(getattr(twin, direction), point, []))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert {p.dtype for p in prior.parameters()} == {torch.float32}


# Memory.


def saved_bytes(prior, point, direction):
    """Bytes that the graph of one direction keeps, the weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in prior._tensors()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that none is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = getattr(prior, direction)(point)
    assert results[0].requires_grad
    return sum(size for size, _ in kept.values())


@both_directions
@pytest.mark.parametrize("name", ["paper", "whitened"])
def test_the_graph_keeps_one_tensor_however_deep(name, direction):
    kept = {}
    for times in (1, 4):
        config = preset(name, hidden=8, whiten=False)
        config = preset(
            name, hidden=8, whiten=False, steps=tuple(times * steps for steps in config.steps)
        )
        prior = FlowPrior(build_flow(config)).requires_grad_(False)
        point = points_of(prior, direction).requires_grad_()
        for memory in ("autograd", "reversible"):
            kept[memory, times] = saved_bytes(prior.with_memory(memory), point, direction)
    assert kept["reversible", 1] == kept["reversible", 4] == 4 * BATCH * 3 * 32 * 32
    assert kept["autograd", 4] > 3 * kept["autograd", 1]
    assert kept["autograd", 1] > 10 * kept["reversible", 1]


PEAK = """
import sys
from pathlib import Path
import torch
from flowmend.flow import MultiscaleFlow, preset
from flowmend.prior import FlowPrior

memory, times, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
steps = tuple(times * count for count in preset("paper").steps)
with torch.device("meta"):
    flow = MultiscaleFlow(preset("paper", steps=steps))
flow = flow.to_empty(device="cpu").requires_grad_(False)
for parameter in flow.parameters():
    parameter.uniform_(-0.01, 0.01)
prior = FlowPrior(flow).with_memory(memory)

def step(z):
    z = z.requires_grad_()
    x, logdet = prior.decode(z)
    loss = (x - 0.5).square().sum() - logdet.sum()
    return torch.autograd.grad(loss, z)[0]

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

z = torch.randn(batch, prior.dimensions)
step(z[:1].clone())
Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, starts anew
before = resident("VmRSS")
assert bool(torch.isfinite(step(z)).all())
print(resident("VmHWM") - before)
"""


def peak_bytes(memory, times, batch):
    """Growth of a process over its weights in one step of latent optimisation, paper preset."""
    command = [sys.executable, "-c", PEAK, memory, str(times), str(batch)]
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
    run = subprocess.run(
        command, env=os.environ | fixed, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here"
)
def test_peak_memory_of_a_step_is_small_and_flat_in_depth():
    batch = 64
    plain = peak_bytes("autograd", 1, batch)
    short, deep = (peak_bytes("reversible", times, batch) for times in (1, 4))
    assert short <= 0.35 * plain, (short, plain)
    assert deep <= 1.1 * short, (deep, short)
