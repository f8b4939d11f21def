"""A larger network that begins as a smaller one."""

import dataclasses

import pytest
import torch
from properties import randomise

from flowmend.errors import FlowmendError
from flowmend.flow import VelocityConfig, build_velocity
from flowmend.growth import forgotten, grow

SMALL = VelocityConfig(widths=(5, 7), blocks=(1, 1), size=(8, 12))


def small(config=SMALL):
    return randomise(build_velocity(config, 0), size=0.2)


def changed(**changes):
    return dataclasses.replace(SMALL, **changes)


def answers(velocity):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, 8, 12, generator=generator).double()
    known = torch.rand(4, 3, 8, 12, generator=generator).round().double()
    linear = torch.randn(4, 3, 8, 12, generator=generator).double()
    times = (torch.tensor([0.0, 0.2, 0.7, 1.0]).double(), known)
    return torch.stack([velocity.residual(x, t, linear) for t in times])


@pytest.mark.parametrize(
    "larger",
    [
        SMALL,
        changed(widths=(9, 7)),
        changed(widths=(5, 12)),
        changed(widths=(8, 11), blocks=(3, 2)),
        changed(widths=(8, 11), informed=True),
    ],
    ids=["same", "finest", "coarsest", "blocks", "informed"],
)
def test_a_larger_network_begins_as_the_smaller_one(larger):
    old, new = small(), build_velocity(larger, 1).double()
    before = {name: value.clone() for name, value in old.state_dict().items()}
    grow(new, old)
    torch.testing.assert_close(answers(new), answers(old), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    with torch.no_grad():
        new.network.middle[0].first.weight[0, -1] += 1.0
    assert not torch.allclose(answers(new), answers(old), atol=1e-4)


def test_what_is_new_learns():
    old, new = small(), build_velocity(changed(widths=(8, 11), blocks=(2, 1)), 1).double()
    grow(new, old)
    answers(new).square().sum().backward()
    first = new.network.down[0][0].first.weight.grad
    assert float(first[:5, 5:].abs().max()) > 0  # how an old feature sees new ones
    assert float(new.network.down[0][1].second.weight.grad.abs().max()) > 0  # a new block


def test_a_network_of_every_size_begins_one_of_one_size():
    old = small(changed(size=None))
    new = build_velocity(changed(widths=(6, 8)), 1).double()
    grow(new, old)
    torch.testing.assert_close(answers(new), answers(old), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (changed(widths=(4, 7)), "fewer features"),
        (changed(widths=(5, 7, 9), blocks=(1, 1, 1)), "same channels and levels"),
        (changed(channels=1), "same channels and levels"),
        (changed(size=(8, 8)), "knows images of"),
        (changed(size=None), "knows images of"),
        (changed(sigma_data=0.3), "deviation of 0.5"),
    ],
)
def test_a_network_that_is_no_enlargement_is_refused(config, reason):
    with pytest.raises(FlowmendError, match=f"same architecture or a smaller one: .*{reason}"):
        grow(build_velocity(config, 0).double(), small())


def test_a_gaussian_cannot_be_lost():
    informed = small(changed(informed=True))
    with pytest.raises(FlowmendError, match="lose its Gaussian"):
        grow(build_velocity(SMALL, 0).double(), informed)


def test_forgetting_moves_weights_towards_fresh_ones():
    old = small(changed(informed=True))
    before = {name: value.clone() for name, value in old.state_dict().items()}
    part, fresh = forgotten(old, 0.25, 7), build_velocity(old.config, 7).double()
    for name, value in fresh.named_parameters():
        wanted = 0.75 * before[name] + 0.25 * value if value.ndim > 1 else before[name]
        torch.testing.assert_close(part.get_parameter(name), wanted)
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    torch.testing.assert_close(answers(forgotten(old, 0.0, 7)), answers(old))
    assert not torch.allclose(answers(part), answers(old), atol=1e-4)
    whole = forgotten(old, 1.0, 7)
    assert torch.equal(whole.network.first.weight, fresh.network.first.weight)
    assert not torch.equal(whole.network.first.weight, forgotten(old, 1.0, 8).network.first.weight)
