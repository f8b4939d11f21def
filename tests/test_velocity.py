"""The velocity network: factors that are the best linear prediction, every size of image, one
image never depending on another, precisions, and configurations that are refused."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from properties import randomise
from torch.utils.flop_counter import FlopCounterMode

from flowmend.errors import FlowmendError
from flowmend.flow import VelocityConfig, VelocityNet, build_velocity, preconditioning
from flowmend.flow.velocity import _padded

TINY = VelocityConfig(channels=2, widths=(4, 6), blocks=(1, 1))
FIXED = dataclasses.replace(TINY, size=(8, 6))


def numbers(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def net(config=TINY, size=0.2):
    return randomise(build_velocity(config), seed=1, size=size).requires_grad_(False)


def times(count):
    return torch.linspace(0.0, 1.0, count, dtype=torch.float64)


# The factors.


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_factors_are_the_best_linear_prediction(t, sigma):
    """With x = sigma a and e = b for independent standard a and b, x_t and the velocity x - e are
    vectors in the plane of (a, b): the best prediction is a projection, its error the rest."""
    x_t = torch.tensor([t * sigma, 1.0 - t], dtype=torch.float64)
    velocity = torch.tensor([sigma, -1.0], dtype=torch.float64)
    slope = (velocity @ x_t) / (x_t @ x_t)
    error = (velocity - slope * x_t).norm()
    factors = preconditioning(torch.tensor(t, dtype=torch.float64), sigma)
    found = torch.stack(factors)
    wanted = torch.stack([1.0 / x_t.norm(), slope, error])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_input_and_target_have_size_one_for_gaussian_images():
    sigma, count = 0.5, 200_000
    x, e = sigma * numbers(count), numbers(count, seed=1)
    for t in (0.02, 0.3, 0.8, 0.99):
        c_in, c_skip, c_out = preconditioning(torch.tensor(t, dtype=torch.float64), sigma)
        x_t = t * x + (1.0 - t) * e
        target = (x - e - c_skip * x_t) / c_out
        assert float((c_in * x_t).std()) == pytest.approx(1.0, abs=0.01)
        assert float(target.std()) == pytest.approx(1.0, abs=0.01)
        assert abs(float((target * x_t).mean())) < 0.01


def test_fresh_network_is_the_linear_prediction():
    x, t = numbers(3, 2, 8, 8), times(3)
    with torch.no_grad():
        found = build_velocity(TINY).double()(x, t)
    wanted = preconditioning(t, TINY.sigma_data)[1].view(-1, 1, 1, 1) * x
    assert torch.equal(found, wanted)


def test_velocity_is_made_of_the_residual():
    model, x, t = net(), numbers(3, 2, 8, 8), times(3)
    c_in, c_skip, c_out = (f.view(-1, 1, 1, 1) for f in preconditioning(t, TINY.sigma_data))
    wanted = c_skip * x + c_out * model.residual(c_in * x, t)
    torch.testing.assert_close(model(x, t), wanted, rtol=1e-12, atol=1e-12)
    assert not torch.equal(wanted, c_skip * x)


# Any size.


@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 5, 6), (3, 3, 3, 3)], ids=len)
@pytest.mark.parametrize("shape", [(4, 4), (4, 9), (8, 8), (7, 5), (17, 33), (32, 16)], ids=str)
def test_every_size_comes_back(widths, shape):
    model = net(VelocityConfig(channels=1, widths=widths, blocks=(1,) * len(widths)))
    v = model(numbers(2, 1, *shape), times(2))
    assert v.shape == (2, 1, *shape)
    assert v.is_contiguous()
    assert bool(torch.isfinite(v).all())


@pytest.mark.parametrize("size", [2, 4, 5, 9, 15, 16])
@pytest.mark.parametrize("multiple", [2, 8, 16])
def test_padding_reflects(size, multiple):
    x = numbers(1, 2, size, size + 1)
    padded = _padded(x, multiple)
    height, width = (-(-side // multiple) * multiple for side in x.shape[2:])
    after = ((0, 0), (0, 0), (0, height - size), (0, width - size - 1))
    assert np.array_equal(padded.numpy(), np.pad(x.numpy(), after, mode="reflect"))


def test_size_that_fits_is_not_copied():
    x = numbers(1, 2, 8, 4)
    assert _padded(x, 4) is x


def test_padding_matters_only_near_the_edge_it_is_at():
    """The middle of an image is the same whether what lies to the right was padded or seen."""
    model = net(VelocityConfig(channels=1, widths=(4, 6), blocks=(1, 1)))
    x, t = numbers(1, 1, 32, 70), torch.tensor([0.5], dtype=torch.float64)
    whole, part = model(x, t), model(x[..., :50], t)
    torch.testing.assert_close(whole[..., :16], part[..., :16], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(whole[..., 46:50], part[..., 46:50], rtol=1e-3)


def test_network_of_one_size_knows_the_place():
    x, t = torch.ones(1, 2, 64, 64, dtype=torch.float64), torch.tensor([0.5]).double()
    middle = (slice(None), slice(None), slice(28, 36, 4), slice(28, 36, 4))
    for size in (None, (64, 64)):
        model = net(dataclasses.replace(TINY, size=size))
        spread = model(x, t)[middle].flatten(2).std(dim=2).max().item()
        assert (spread > 1e-3) == (size is not None)


def test_map_of_a_size_that_needs_padding():
    model = net(dataclasses.replace(TINY, size=(6, 9)))
    assert model.network.position.shape == (1, 4, 4, 6)
    assert model(numbers(2, 2, 6, 9), times(2)).shape == (2, 2, 6, 9)


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (TINY, (1, 8, 8), "2 channel"),
        (TINY, (2, 3, 8), "at least 4 pixels"),
        (TINY, (2, 8, 1), "at least 4 pixels"),
        (FIXED, (2, 6, 8), r"\(2, 8, 6\).*only; got \(2, 6, 8\)"),
        (FIXED, (2, 16, 12), "only"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(config, shape, message):
    with pytest.raises(FlowmendError, match=message):
        net(config)(numbers(2, *shape), times(2))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)], ids=str)
def test_times_that_do_not_fit_are_refused(shape):
    with pytest.raises(FlowmendError, match="2 images need as many times"):
        net()(numbers(2, 2, 8, 8), torch.zeros(shape))


# One image at a time, nothing changed, any precision.


def test_image_does_not_depend_on_its_batch():
    model, x, t = net(), numbers(4, 2, 6, 10), times(4)
    together = model(x, t)
    for index in range(4):
        part = slice(index, index + 1)
        torch.testing.assert_close(model(x[part], t[part]), together[part], rtol=1e-11, atol=1e-11)


def test_check_of_the_batch_notices_normalisation():
    x, t = numbers(4, 2, 6, 10), times(4)
    model = net()
    model.network.first.register_forward_hook(lambda module, given, out: out - out.mean(0))
    alone, together = model(x[:1], t[:1]), model(x, t)[:1]
    assert not torch.allclose(alone, together, rtol=1e-3)


def test_time_matters_for_each_image_apart():
    model, x = net(), numbers(2, 2, 8, 8)
    same = torch.tensor([0.3, 0.3], dtype=torch.float64)
    other = torch.tensor([0.3, 0.7], dtype=torch.float64)
    first, second = model(x, same), model(x, other)
    torch.testing.assert_close(first[0], second[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first[1], second[1], rtol=1e-2)


def test_velocity_is_pure():
    model, x, t = net().train(), numbers(2, 2, 6, 6), times(2)
    kept, random = (x.clone(), t.clone()), torch.random.get_rng_state()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = model(x, t), model.eval()(x, t)
    assert torch.equal(first, second)
    assert torch.equal(x, kept[0])
    assert torch.equal(t, kept[1])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


def test_finite_at_both_ends_of_the_path():
    for dtype in (torch.float32, torch.float64):
        model = net().to(dtype)
        v = model(numbers(2, 2, 8, 8, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype))
        assert v.dtype == dtype
        assert bool(torch.isfinite(v).all())


def test_unet_in_bfloat16_leaves_the_factors_in_single_precision():
    x, t = numbers(3, 2, 8, 8, dtype=torch.float32), times(3).float()
    fresh = build_velocity(TINY).requires_grad_(False)
    wanted = fresh(x, t)
    fresh.network.to(torch.bfloat16)
    assert torch.equal(fresh(x, t), wanted)
    model = net().float()
    wanted = model(x, t)
    model.network.to(torch.bfloat16)
    found = model(x, t)
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_every_parameter_learns():
    model = randomise(build_velocity(FIXED), seed=1)
    v = model(numbers(3, 2, 8, 6), times(3))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad((v * numbers(*v.shape, seed=2)).sum(), parameters)
    for name, gradient in zip(names, gradients, strict=True):
        assert bool(torch.isfinite(gradient).all()), name
        assert bool(gradient.any()), name


# Configurations and building.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"channels": 1.5}, "channels"),
        ({"widths": ()}, "widths"),
        ({"widths": (4,) * 9}, "widths"),
        ({"widths": (4, 0)}, "widths"),
        ({"widths": (4, "6")}, "widths"),
        ({"widths": (2**20, 4)}, "widths"),
        ({"blocks": (1,)}, "blocks"),
        ({"blocks": (1, 0)}, "blocks"),
        ({"blocks": (1, 10**6)}, "blocks"),
        ({"size": (8,)}, "size"),
        ({"size": (8, 3)}, "size"),
        ({"size": (8, 2**40)}, "size"),
        ({"crop": 3}, "crop"),
        ({"bits": 9}, "bits"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"sigma_data": math.nan}, "sigma_data"),
        ({"sigma_data": "much"}, "sigma_data"),
    ],
    ids=str,
)
def test_impossible_configuration_is_refused(changes, message):
    with pytest.raises(FlowmendError, match=f"cannot be built.*{message}"):
        dataclasses.replace(TINY, **changes)


def test_configuration_survives_json():
    for config in (VelocityConfig(), TINY, FIXED):
        again = VelocityConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert hash(again) == hash(config)


def test_unknown_setting_is_refused():
    with pytest.raises(FlowmendError, match="colour"):
        VelocityConfig.from_dict(TINY.to_dict() | {"colour": True})


def test_blocks_and_shapes_that_follow():
    assert VelocityConfig().blocks == (3, 2, 1)
    assert VelocityConfig(widths=(4, 4, 4, 4, 4)).blocks == (3, 2, 1, 1, 1)
    assert VelocityConfig(crop=48).shape == (3, 48, 48)
    assert FIXED.shape == (2, 8, 6)
    assert FIXED.dimensions == 96
    assert FIXED.multiple == 4


def test_building_depends_on_the_seed_alone():
    torch.manual_seed(1)
    random = torch.random.get_rng_state()
    first = build_velocity(TINY, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), random)
    torch.manual_seed(2)
    again = build_velocity(TINY, seed=3).state_dict()
    other = build_velocity(TINY, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["network.first.weight"], other["network.first.weight"])


def test_size_and_cost_of_the_default_network():
    model = build_velocity(VelocityConfig(size=(32, 32)))
    assert 2.5e6 < sum(value.numel() for value in model.parameters()) < 3.0e6
    with FlopCounterMode(display=False) as count, torch.no_grad():
        model(numbers(1, 3, 32, 32, dtype=torch.float32), torch.zeros(1))
    assert 0.4e9 < count.get_total_flops() < 0.6e9


def test_network_can_be_built_without_memory():
    with torch.device("meta"):
        model = VelocityNet(VelocityConfig(widths=(2**14,) * 8))
    assert all(value.is_meta for value in model.parameters())


# A time for every value.


def test_even_times_of_values_are_the_times_of_images():
    network, x = net(), numbers(3, 2, 8, 6)
    t = times(5)[1:4]
    every = t.view(-1, 1, 1, 1).expand(x.shape)
    torch.testing.assert_close(network(x, every), network(x, t))


def test_values_at_time_zero_tell_nothing_of_others():
    network, x = net(), numbers(2, 2, 8, 6)
    t = torch.ones_like(x)
    t[:, 1, 2:5, 1:4] = 0.0
    noise = torch.where(t > 0, x, numbers(2, 2, 8, 6, seed=3))
    first, second = network(x, t), network(noise, t)
    torch.testing.assert_close(first[t > 0], second[t > 0])
    known = torch.where(t > 0, x + 0.3, x)
    assert not torch.allclose(network(known, t)[t == 0], first[t == 0])


def test_times_of_another_shape_are_refused():
    with pytest.raises(FlowmendError, match="one for every value"):
        net()(numbers(2, 2, 8, 6), torch.zeros(2, 1, 8, 6).double())
