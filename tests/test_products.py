"""Convolutions as matrix products, against PyTorch's convolutions."""

import pytest
import torch
from flow_cases import numbers
from torch import nn
from torch.nn import functional

from flowmend.flow import products


def layer(outputs, channels, side, offset=(1,)):
    weight = numbers(outputs, channels, side, side)
    return weight.flatten(1), numbers(outputs, *offset)


@pytest.mark.parametrize("at_a_time", [1, 3 * 5 * 4 * 2, 10**6])
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("positional", [False, True], ids=["", "positional"])
def test_chained_is_one_convolution_after_the_other(monkeypatch, at_a_time, side, positional):
    monkeypatch.setattr(products, "CACHED", at_a_time)
    h = numbers(5, 2, 5, 4).requires_grad_()
    first = layer(6, 2, side, (20,) if positional else (1,))
    middle, last = layer(3, 6, 1), numbers(4, 3, side, side)
    found = products.chained(h, [first, middle], last)
    added = first[1].view(1, 6, *((5, 4) if positional else (1, 1)))
    wanted = functional.conv2d(h, first[0].view(6, 2, side, side), padding=side // 2) + added
    wanted = functional.conv2d(wanted.relu(), middle[0].view(3, 6, 1, 1), middle[1].flatten())
    wanted = functional.conv2d(wanted.relu(), last, padding=side // 2)
    assert wanted.abs().max() > 1.0
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weight = numbers(*wanted.shape)
    slopes = [torch.autograd.grad((x * weight).sum(), h)[0] for x in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 20, 70])
@pytest.mark.parametrize(("size", "kernel"), [((4, 4), 3), ((2, 2), 2), ((1, 1), 1), ((4, 3), 1)])
@pytest.mark.parametrize("shuffle", [1, 2])
@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16], ids=str)
def test_small_product_is_a_convolution(count, size, kernel, shuffle, precision):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, kernel).to(precision)
    h = numbers(count, 3, *size).to(precision).requires_grad_()
    found = products.small_product(h, convolution, shuffle)
    wanted = functional.pixel_shuffle(convolution(h), shuffle)
    near = {"rtol": 1e-12, "atol": 1e-12} if precision is torch.float64 else {}
    torch.testing.assert_close(found, wanted, **near)
    weight = numbers(*wanted.shape).to(precision)
    slopes = [torch.autograd.grad((x * weight).sum(), h)[0] for x in (found, wanted)]
    near = near or {"rtol": 0.03, "atol": 0.03}
    torch.testing.assert_close(*slopes, **near)
