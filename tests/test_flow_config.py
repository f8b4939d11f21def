"""Configurations of flows: what is impossible, JSON, seeds."""

import json

import pytest
import torch
from flow_cases import GLOW, GREY, OURS, SPLIT, couplings, on_meta, small

from flowmend.errors import FlowmendError
from flowmend.flow import PRESETS, FlowConfig, InvertibleConv1x1, build_flow, preset


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
