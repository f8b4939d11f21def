"""Every layer and whole flows: exact inverses and log-determinants, the paper's sizes, Eq. 9-12,
configurations, data-dependent initialisation and the cached inverse of 1x1 convolutions."""

import json
import math

import pytest
import torch
from properties import (
    check_batch,
    check_gradients,
    check_logdet,
    check_pure,
    check_round_trip,
    check_shapes,
    randomise,
)
from torch import nn
from torch.nn import functional

from flowmend.errors import FlowmendError
from flowmend.flow import (
    PRESETS,
    ActNorm,
    AffineCoupling,
    Centre,
    Chain,
    Conditioner,
    FlowConfig,
    InvertibleConv1x1,
    MultiscaleFlow,
    Squeeze,
    Whitening,
    build_flow,
    preset,
    standard_normal_log_prob,
)
from flowmend.prior import FlowPrior, GaussianPrior

BATCH = 3


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def positive_definite(size, seed=0):
    factor = numbers(size, size, seed=seed)
    return factor @ factor.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def whitening(*shape):
    size = math.prod(shape)
    return Whitening(0.5 + 0.1 * numbers(*shape, seed=1), positive_definite(size, seed=2))


def gaussian(*shape):
    size = math.prod(shape)
    mean = 0.5 + 0.1 * numbers(*shape, seed=3)
    return GaussianPrior.from_covariance(mean, 0.1 * positive_definite(size, seed=4))


def small(**changes):
    values = {
        "height": 8,
        "width": 8,
        "channels": 1,
        "steps": (1, 2),
        "split": (False, False),
        "hidden": 3,
    }
    return FlowConfig(**(values | changes))


SPLIT = small(channels=3, steps=(1, 2, 1), split=(True, True, False))
GREY = small(width=16, steps=(1, 1, 1), split=(False, True, False), hidden=(2, 3, 4))
GLOW = small(channels=3, steps=(1, 1, 1), split=(False,) * 3, permutation="conv1x1")
OURS = small(
    steps=(2, 1, 1),
    split=(False,) * 3,
    hidden=(3, 4, 5),
    depth=3,
    permutation="conv1x1",
    scale="bounded",
    positional=True,
    whiten=True,
)
FOLDED = small(height=16, width=16, steps=(2,), split=(False,), depth=3, positional=True)
LAYERLESS = small(steps=(0, 0), split=(True, False))

COUPLING_MAPS = [(2, 8, 8), (2, 12, 6), (4, 8, 4), (4, 4, 4), (4, 2, 4), (4, 2, 2), (8, 1, 1)]
COUPLING_KINDS = [  # swap, depth, scale
    (False, 2, "sigmoid"),
    (True, 3, "sigmoid"),
    (False, 3, "bounded"),
    (True, 2, "bounded"),
]


def coupling(shape, swap=False, depth=2, scale="sigmoid", positional=False, seed=0):
    channels, height, width = shape
    torch.manual_seed(seed)
    layer = AffineCoupling(
        channels, height, width, swap, hidden=4, depth=depth, scale=scale, positional=positional
    )
    return randomise(layer, seed, size=0.2)


def flow(config):
    return randomise(build_flow(config), seed=5)


def flow_prior(config, with_gaussian=True):
    return randomise(
        FlowPrior(build_flow(config), gaussian(*config.shape) if with_gaussian else None), seed=6
    )


def convolution(channels):
    torch.manual_seed(0)
    return randomise(InvertibleConv1x1(channels))


def chain():
    parts = [Squeeze(), ActNorm(8), InvertibleConv1x1(8)]
    parts += [coupling((8, 2, 2), swap=True), ActNorm(8), coupling((8, 2, 2), depth=3)]
    return randomise(Chain(parts), seed=7)


INSTANCES = {
    "actnorm": (lambda: randomise(ActNorm(3), size=0.7), (3, 3, 4)),
    "conv1x1": (lambda: convolution(4), (4, 3, 2)),
    "conv1x1 of one channel": (lambda: convolution(1), (1, 2, 3)),
    "squeeze": (Squeeze, (2, 4, 6)),
    "centre": (Centre, (3, 2, 4)),
    "whitening": (lambda: whitening(2, 3, 4), (2, 3, 4)),
    "chain": (chain, (2, 4, 4)),
    "empty chain": (lambda: Chain([]), (2, 3, 2)),
    "flow with splits": (lambda: flow(SPLIT), SPLIT.shape),
    "grey flow, not square": (lambda: flow(GREY), GREY.shape),
    "glow": (lambda: flow(GLOW), GLOW.shape),
    "bounded positional flow": (lambda: flow(OURS), OURS.shape),
    "flow with folded actnorms": (lambda: flow(FOLDED), FOLDED.shape),
    "flow without steps": (lambda: flow(LAYERLESS), LAYERLESS.shape),
    "gaussian prior": (lambda: gaussian(3, 4, 2), (3, 4, 2)),
    "flow prior": (lambda: flow_prior(SPLIT, False), SPLIT.shape),
    "whitened flow prior": (lambda: flow_prior(OURS), OURS.shape),
}
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


def instance(name):
    build, shape = INSTANCES[name]
    return build().double(), 0.5 + 0.3 * numbers(BATCH, *shape, seed=8)


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


# The paper's sizes.


def on_meta(config):
    with torch.device("meta"):
        return MultiscaleFlow(config)


def couplings(module):
    return [layer for layer in module.modules() if isinstance(layer, AffineCoupling)]


@pytest.mark.parametrize(("name", "count"), [("paper", 32_736_864), ("glow", 33_780_096)])
def test_parameter_count_of_preset(name, count):
    assert sum(p.numel() for p in on_meta(PRESETS[name]).parameters()) == count


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("paper", [ActNorm, AffineCoupling]),
        ("glow", [ActNorm, InvertibleConv1x1, AffineCoupling]),
        ("whitened", [ActNorm, InvertibleConv1x1, AffineCoupling]),
    ],
)
def test_scales_are_a_squeeze_and_flow_steps(name, step):
    config = PRESETS[name]
    for scale, steps in zip(on_meta(config).scales, config.steps, strict=True):
        assert [type(layer) for layer in scale.layers] == [Squeeze, *(step * steps)]


@pytest.mark.parametrize(
    "config",
    [PRESETS["paper"], PRESETS["glow"], SPLIT, small(steps=(3, 1), split=(True, False))],
    ids=["paper", "glow", "1 2 1", "3 1"],
)
def test_swap_alternates_over_all_steps(config):
    swaps = [layer.swap for layer in couplings(on_meta(config))]
    assert swaps == [index % 2 == 1 for index in range(sum(config.steps))]


def test_latents_of_paper_preset_leave_at_three_scales():
    config = preset("paper", hidden=2)
    model = flow(config).float()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = model.encode(x)[0]
        parts = []
        for scale, split in zip(model.scales, config.split, strict=True):
            x = scale.encode(x)[0]
            if split:
                half = x.shape[1] // 2
                parts.append(x[:, half:])
                x = x[:, :half]
        parts.append(x)
    assert [tuple(part.shape[1:]) for part in parts] == [(96, 4, 4), (192, 2, 2), (768, 1, 1)]
    assert z.shape == (2, 3072)
    torch.testing.assert_close(z, torch.cat([part.flatten(1) for part in parts], 1))


def test_squeeze_moves_blocks_of_pixels_into_channels():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    z = Squeeze().encode(x)[0]
    assert z.shape == (1, 8, 2, 2)
    assert z[0, :4, 0, 0].tolist() == [0.0, 1.0, 4.0, 5.0]
    assert z[0, 4:, 1, 1].tolist() == [26.0, 27.0, 30.0, 31.0]


def test_centre_maps_unit_range_to_network_range():
    x = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    z, logdet = Centre().encode(x)
    assert z.flatten().tolist() == [-1.0, 0.0, 1.0]
    assert logdet.item() == pytest.approx(3 * math.log(2))


def test_standard_normal_log_prob_against_torch():
    z = numbers(4, 5)
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(standard_normal_log_prob(z), wanted)


# Coupling: Eq. 9-12.


def hidden_values(network, h):
    """Independent of the library's forward: all values before a ReLU, and the output."""
    height, width = h.shape[2:]
    shrinks = (height, width) in ((4, 4), (2, 2))
    padding = 1 if not shrinks and (height, width) != (1, 1) else 0

    def convolve(layer, value, spatial):
        value = functional.conv2d(
            value, layer.weight, layer.bias, padding=padding if spatial else 0
        )
        return functional.pixel_shuffle(value, 2) if spatial and shrinks else value

    before = []
    value = convolve(network.first, h, True)
    value = value if network.position is None else value + network.position
    for index, norm in enumerate(network.norms):
        if index > 0:
            value = convolve(network.middle[index - 1], value.clamp(min=0.0), False)
        value = (value + norm.shift) * norm.log_scale.exp()
        before.append(value)
    output = convolve(network.last, value.clamp(min=0.0), True)
    return before, output * (3.0 * network.log_gain).exp()


@pytest.mark.parametrize("positional", [False, True], ids=["", "positional"])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("shape", COUPLING_MAPS, ids=str)
def test_network_against_unfolded_computation(shape, depth, positional):
    network = coupling(shape, depth=depth, positional=positional).network
    h = numbers(2, shape[0] // 2, *shape[1:])
    with torch.no_grad():
        found, wanted = network(h), hidden_values(network, h)[1]
    assert found.shape == (2, *shape)
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_actnorms_are_folded_on_large_maps_only():
    folds = {shape[1:]: coupling(shape).network.folds for shape in COUPLING_MAPS}
    assert [size for size, folded in folds.items() if folded] == [(8, 8), (12, 6)]


@pytest.mark.parametrize("swap", [False, True], ids=["", "swapped"])
@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 4, 4), (8, 1, 1)], ids=str)
def test_coupling_equation(shape, swap):
    layer = coupling(shape, swap=swap)
    x = numbers(2, *shape)
    half = shape[0] // 2
    first, second = x[:, :half], x[:, half:]
    kept, changed = (second, first) if swap else (first, second)
    with torch.no_grad():
        output = hidden_values(layer.network, kept)[1]
        z, logdet = layer.encode(x)
    s, t = output[:, 0::2], output[:, 1::2]
    wanted = changed * torch.sigmoid(s + 2.0) + t
    wanted = torch.cat((wanted, kept) if swap else (kept, wanted), 1)
    torch.testing.assert_close(z, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logdet, torch.sigmoid(s + 2.0).log().flatten(1).sum(1))


def set_output(layer, bias, log_gain):
    """Makes the network return ``bias * exp(3 log_gain)`` for every channel, whatever it sees."""
    with torch.no_grad():
        layer.network.last.weight.zero_()
        layer.network.last.bias.copy_(bias.repeat_interleave(layer.network.shuffle**2))
        layer.network.log_gain.copy_(log_gain.view(1, -1, 1, 1))


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 4, 4), (4, 1, 1)], ids=str)
def test_coupling_with_known_scale_and_shift(shape):
    layer = coupling(shape)
    bias = torch.tensor([0.3, -0.2, -1.5, 0.7], dtype=torch.float64)
    log_gain = torch.tensor([0.1, -0.1, 0.0, 0.2], dtype=torch.float64)
    set_output(layer, bias, log_gain)
    x = numbers(1, *shape)
    with torch.no_grad():
        z = layer.encode(x)[0]
    assert torch.equal(z[:, :2], x[:, :2])
    for channel, s, t in (
        (2, 0.3 * math.exp(0.3), -0.2 * math.exp(-0.3)),
        (3, -1.5, 0.7 * math.exp(0.6)),
    ):
        wanted = x[:, channel] / (1.0 + math.exp(-s - 2.0)) + t
        torch.testing.assert_close(z[:, channel], wanted)


@pytest.mark.parametrize(("s", "factor"), [(0.0, 1.0), (1e3, math.e**2), (-1e3, math.e**-2)])
def test_bounded_scale_stays_within_its_bounds(s, factor):
    layer = coupling((4, 4, 4), scale="bounded")
    set_output(layer, torch.tensor([s, 0.0, s, 0.0]), torch.zeros(4))
    x = numbers(1, 4, 4, 4)
    with torch.no_grad():
        z, logdet = layer.encode(x)
    torch.testing.assert_close(z[:, 2:], factor * x[:, 2:])
    assert logdet.item() == pytest.approx(32 * math.log(factor))


@pytest.mark.parametrize(
    ("scale", "factor"), [("sigmoid", 1 / (1 + math.exp(-2.0))), ("bounded", 1.0)]
)
@pytest.mark.parametrize("shape", COUPLING_MAPS, ids=str)
def test_fresh_coupling_only_scales(shape, scale, factor):
    layer = AffineCoupling(*shape, False, hidden=4, depth=3, scale=scale, positional=True).double()
    x = numbers(2, *shape)
    half = shape[0] // 2
    with torch.no_grad():
        z = layer.encode(x)[0]
    torch.testing.assert_close(z, torch.cat((x[:, :half], factor * x[:, half:]), 1))


def test_positional_network_knows_the_place():
    h = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    for positional in (False, True):
        network = coupling((2, 8, 8), positional=positional).network
        with torch.no_grad():
            spread = network(h)[inner].std(dim=(2, 3)).max().item()
        assert (spread > 1e-3) == positional


# Configurations.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": (), "split": ()}, "at least one scale"),
        ({"steps": (1, -1)}, "whole numbers"),
        ({"steps": (1.5, 1)}, "whole numbers"),
        ({"split": (False,)}, "one entry for each scale"),
        ({"split": (False, True)}, "last scale"),
        ({"height": 10}, "multiples of 4"),
        ({"width": 6}, "multiples of 4"),
        ({"height": 0}, "height"),
        ({"width": -8}, "width"),
        ({"channels": 0}, "channels"),
        ({"bits": 0}, "bits"),
        ({"bits": 9}, "bits"),
        ({"hidden": 0}, "hidden"),
        ({"hidden": (4, 0)}, "hidden"),
        ({"hidden": (4,)}, "hidden"),
        ({"hidden": ()}, "hidden"),
        ({"depth": 1}, "depth"),
        ({"permutation": "shuffle"}, "shuffle"),
        ({"scale": "exp"}, "exp"),
    ],
    ids=str,
)
def test_impossible_configuration_is_refused(changes, message):
    with pytest.raises(FlowmendError, match=message):
        small(**changes)


def test_configuration_survives_json():
    for config in (*PRESETS.values(), SPLIT, OURS):
        again = FlowConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert hash(again) == hash(config)


def test_unknown_setting_is_refused():
    with pytest.raises(FlowmendError, match="colour"):
        FlowConfig.from_dict(small().to_dict() | {"colour": True})


def test_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(FlowmendError, match=r"nice.*paper, glow, whitened"):
        preset("nice")


def test_preset_takes_changes():
    assert preset("paper", channels=1, bits=8) == FlowConfig(channels=1, bits=8)
    assert PRESETS["paper"] == FlowConfig()
    with pytest.raises(FlowmendError, match="bits"):
        preset("paper", bits=16)


def test_shape_and_widths_of_a_configuration():
    assert GREY.shape == (1, 8, 16)
    assert GREY.dimensions == 128
    assert GREY.widths == (2, 3, 4)
    assert SPLIT.widths == (3, 3, 3)


def test_hidden_channels_of_each_scale():
    widths = [layer.network.first.out_channels for layer in couplings(on_meta(GREY))]
    assert widths == [2 * 1, 3 * 1, 4 * 1]
    assert on_meta(OURS).scales[2].layers[3].network.middle[0].in_channels == 5


# Building.


def test_building_leaves_global_random_numbers_alone():
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    build_flow(GLOW, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_building_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = build_flow(GLOW, seed=3).state_dict()
    torch.manual_seed(2)
    again = build_flow(GLOW, seed=3).state_dict()
    other = build_flow(GLOW, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    key = "scales.0.layers.2.weight"
    assert not torch.equal(first[key], other[key])


def test_fresh_conv1x1_is_a_rotation():
    weight = InvertibleConv1x1(6).weight.detach().double()
    torch.testing.assert_close(
        weight @ weight.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6
    )


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
