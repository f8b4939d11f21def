"""Backpropagation by inversion: nothing in place, precisions, options, flat memory."""

import os
import subprocess
import sys

import pytest
import torch
from flow_cases import gaussian, numbers
from properties import check_batch, check_gradients, check_pure, check_round_trip, check_shapes
from reversible_cases import (
    BATCH,
    both_directions,
    check_same,
    every_preset,
    outcome,
    points_of,
    prior_of,
)
from safetensors.torch import load_file

import flowmend as fm
from flowmend.errors import FlowmendError
from flowmend.flow import Conditioner, build_flow, preset
from flowmend.prior import FlowPrior


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
