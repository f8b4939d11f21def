"""The presets: parameters, scales, swaps and where latents leave."""

import math

import pytest
import torch
from flow_cases import SPLIT, couplings, flow, numbers, on_meta, small

from flowmend.flow import (
    PRESETS,
    ActNorm,
    AffineCoupling,
    Centre,
    InvertibleConv1x1,
    Squeeze,
    preset,
    standard_normal_log_prob,
)


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
