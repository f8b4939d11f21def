"""Checkpoints of the paper's own code: the same image from the same latent.

What is expected comes from ``Reference``, a plain reading of that layout in float64 which takes
the tensors by the author's names and knows nothing of this library.
"""

import math

import pytest
import torch
from author_cases import (
    CLOSE,
    HIDDEN,
    TENSORS,
    Reference,
    distance,
    images,
    latents,
    random_state,
    same,
    small,
)
from conftest import tiny_prior

from flowmend.convert import author_config, from_author, to_author
from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig, build_flow, preset
from flowmend.prior import FlowPrior
from flowmend.weights import load_prior, save_prior


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def prior(state):
    return from_author(state, small())


@pytest.fixture(scope="module")
def reference(state):
    return Reference(state)


KINDS = {
    "as released": {},
    "one step a scale": {"repeats": 1},
    "three steps a scale": {"repeats": 3},
    "grey": {"channels": 1},
    "64 pixels": {"size": 64, "repeats": 1},
}


# The reference is a flow: its log-determinant is that of its Jacobian, its directions inverses.
def test_reference_is_a_flow_with_the_log_determinant_it_says():
    reference = Reference(random_state(channels=1, hidden=3), channels=1)
    z = latents(1, channels=1)
    u, logdet = reference.decode(z)
    back, other = reference.encode(u)
    torch.testing.assert_close(back, z.double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(other, -logdet)
    jacobian = torch.func.jacrev(lambda v: reference.encode(v)[0][0], chunk_size=256)(u)
    wanted = torch.linalg.slogdet(jacobian.reshape(1024, 1024))[1]
    torch.testing.assert_close(other[0], wanted, rtol=0, atol=1e-6)


# From the author's layout to ours.
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_same_latent_gives_the_same_image(kind):
    state = random_state(**kind)
    reference, prior = Reference(state, **kind), from_author(state, small(**kind))
    channels, size, _ = reference.shape
    z = latents(size=size, channels=channels)
    wanted, wanted_logdet = reference.decode(z)
    assert 0.1 < wanted.std() < 10  # neither dead nor exploded
    found, logdet = prior.decode(z)
    torch.testing.assert_close(found.double(), (wanted + 1) / 2, rtol=0, atol=CLOSE)
    halving = prior.dimensions * math.log(2.0)
    torch.testing.assert_close(logdet.double(), wanted_logdet - halving, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_same_image_gives_the_same_latent(kind):
    state = random_state(**kind)
    reference, prior = Reference(state, **kind), from_author(state, small(**kind))
    channels, size, _ = reference.shape
    x = images(size=size, channels=channels)
    wanted, wanted_logdet = reference.encode(2.0 * x.double() - 1.0)
    found, logdet = prior.encode(x)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=CLOSE)
    doubling = prior.dimensions * math.log(2.0)
    torch.testing.assert_close(logdet.double(), wanted_logdet + doubling, rtol=1e-5, atol=1e-2)


def test_in_double_precision_both_agree_to_rounding(state, reference):
    prior = from_author(state, small()).double()
    z = latents().double()
    wanted, logdet = reference.decode(z)
    found, found_logdet = prior.decode(z)
    torch.testing.assert_close(found, (wanted + 1) / 2, rtol=0, atol=1e-11)
    wanted_logdet = logdet - prior.dimensions * math.log(2.0)
    torch.testing.assert_close(found_logdet, wanted_logdet, rtol=0, atol=1e-7)


def test_prior_is_ready_to_restore(prior):
    assert prior.config == FlowConfig(**(small().to_dict() | {"steps": (3, 2, 2, 4, 4)}))
    assert not prior.training
    assert prior.gaussian is None
    assert not any(value.requires_grad for value in prior.parameters())
    assert all(value.dtype == torch.float32 for value in prior.parameters())


def test_saved_prior_is_still_the_author_s(prior, reference, tmp_path):
    for half in (False, True):
        path = save_prior(tmp_path / "prior.safetensors", prior, half=half)
        assert distance(load_prior(path), reference) < (0.05 if half else CLOSE)


def test_bfloat16_networks_keep_the_added_step_exact(prior):
    step = prior.at_precision("bfloat16").flow.scales[0].layers[2]
    h = images(channels=12, size=16)
    assert torch.equal(step.encode(h)[0], h)
    assert torch.equal(step.decode(h)[0], h)
    assert step.encode(h)[1].abs().max() < 1e-30


def test_state_is_copied_and_left_alone(state):
    given = {name: value.clone() for name, value in state.items()}
    prior = from_author(given, small())
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(1.0)
    assert same(given, state)


def test_other_precisions_are_read(state, reference):
    wide = {name: value.double() for name, value in state.items()}
    assert distance(from_author(wide, small()), reference) < CLOSE


def test_released_architecture_is_preset_paper():
    state = {name: value.to("meta") for name, value in random_state(hidden=512).items()}
    shapes = {name: torch.zeros(1).expand(value.shape) for name, value in state.items()}
    with pytest.raises(FlowmendError, match="no floating-point tensor"):
        author_config(shapes)  # names more numbers than it stores
    with pytest.raises(FlowmendError, match="no floating-point tensor"):
        author_config(state)
    shapes = {name: torch.empty(value.shape) for name, value in state.items()}
    assert sum(value.numel() for value in shapes.values()) == 32_736_864
    assert author_config(shapes) == preset("paper")


# What the checks would notice.
@pytest.mark.parametrize("broken", ["halves", "squeeze", "outputs", "sign", "gain"])
def test_the_comparison_notices_a_misread_layout(state, prior, broken):
    misread = Reference(state, broken=broken)
    z = latents(1)
    back = misread.encode(misread.decode(z)[0])[0]
    torch.testing.assert_close(back, z.double(), rtol=0, atol=1e-8)  # a flow, only another one
    assert distance(prior, misread) > 100 * CLOSE


def test_the_comparison_notices_a_conversion_without_the_added_step(state, reference):
    """The names alone fit, and the swaps are then the wrong way round."""
    weights = from_author(state, small()).flow.state_dict()
    renamed = {}
    for name, value in weights.items():
        scale, layer, rest = name.removeprefix("scales.").replace(".layers.", ".", 1).split(".", 2)
        layer = int(layer) - (2 if scale == "0" else 0)
        if layer > 0:
            renamed[f"scales.{scale}.layers.{layer}.{rest}"] = value
    flow = build_flow(small())
    flow.load_state_dict(renamed)
    assert distance(FlowPrior(flow).requires_grad_(False), reference) > 100 * CLOSE


@pytest.mark.parametrize("name", TENSORS)
def test_the_comparison_notices_every_tensor(state, reference, name):
    for layer in (2, 8, 14, 21):  # of a 16x16, 4x4, 2x2 and 1x1 map
        key = f"layers.{layer}.{name}"
        reversed_state = {**state, key: state[key].flatten().flip(0).reshape(state[key].shape)}
        assert distance(from_author(reversed_state, small()), reference) > 10 * CLOSE


# There and back.
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_state_comes_back(kind):
    state = random_state(**kind)
    assert same(to_author(from_author(state, small(**kind))), state)


def test_prior_comes_back(prior, state):
    again = from_author(to_author(prior), small())
    assert again.config == prior.config
    assert same(again.flow.state_dict(), prior.flow.state_dict())


def our_own(steps=(2, 2, 2, 4, 4), seed=3):
    """A prior made here, not converted: its first step changes the second half."""
    flow = build_flow(FlowConfig(**(small().to_dict() | {"steps": steps})), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return FlowPrior(flow).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("steps", "repeats"),
    [((2, 2, 2, 4, 4), 3), ((1, 1, 1, 1, 1), 2), ((0, 3, 1, 0, 2), 3), ((0, 0, 0, 0, 0), 1)],
)
def test_our_own_prior_goes_to_the_author_s_network(steps, repeats):
    prior = our_own(steps)
    state = to_author(prior)
    assert author_config(state) == small(repeats=repeats)
    reference = Reference(state, repeats=repeats)
    assert distance(prior, reference) < CLOSE
    z = latents()
    wanted = reference.decode(z)[1] - prior.dimensions * math.log(2.0)
    torch.testing.assert_close(prior.decode(z)[1].double(), wanted, rtol=1e-5, atol=1e-2)
    again = from_author(state, small(repeats=repeats))
    assert same(to_author(again), state)
    assert distance(again, reference) < CLOSE


def test_state_shares_no_memory_with_the_prior(prior):
    before = {name: value.clone() for name, value in prior.flow.state_dict().items()}
    for value in to_author(prior).values():
        value.add_(1.0)
    assert same(prior.flow.state_dict(), before)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"scale": "bounded"}, "'scale' must be sigmoid"),
        ({"permutation": "conv1x1"}, "'permutation' must be swap"),
        ({"depth": 3}, "'depth' must be 2"),
        ({"positional": True}, "'positional'"),
        ({"width": 64}, "'width' must be 32"),
        ({"height": 96, "width": 96}, "side 32, 64, 128"),
        ({"split": (True, False, True, True, False)}, "'split'"),
        ({"hidden": (3, 3, 3, 3, 4)}, "'hidden' must be the same"),
        ({"steps": (2, 2), "split": (False, False)}, "five scales"),
    ],
    ids=str,
)
def test_other_architectures_are_refused_both_ways(state, changes, phrase):
    config = FlowConfig(**(small().to_dict() | changes))
    with pytest.raises(FlowmendError, match=phrase):
        to_author(FlowPrior(build_flow(config)))
    with pytest.raises(FlowmendError, match=phrase):
        from_author(state, config)


def test_steps_that_the_author_s_network_cannot_have_are_refused(state):
    for steps in ((2, 2, 2, 2, 2), (0, 0, 0, 0, 0)):
        with pytest.raises(FlowmendError, match="'steps' must be"):
            from_author(state, FlowConfig(**(small().to_dict() | {"steps": steps})))


def test_whitened_priors_are_refused():
    with pytest.raises(FlowmendError, match="no such architecture"):
        to_author(tiny_prior())


def test_hidden_given_for_each_scale_is_the_same_architecture(state, reference):
    config = FlowConfig(**(small().to_dict() | {"hidden": (HIDDEN,) * 5}))
    assert distance(from_author(state, config), reference) < CLOSE


def test_prior_with_values_that_are_not_finite_is_refused():
    prior = our_own()
    prior.flow.scales[1].layers[1].shift[0, 0] = math.nan
    with pytest.raises(FlowmendError, match="not finite"):
        to_author(prior)
