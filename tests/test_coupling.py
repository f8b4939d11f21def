"""The coupling network and the paper's equation, against values computed by hand."""

import math

import pytest
import torch
from flow_cases import COUPLING_MAPS, coupling, hidden_values, numbers

from flowmend.flow import AffineCoupling


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
    folds = {shape[1:]: coupling(shape).network.large for shape in COUPLING_MAPS}
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
