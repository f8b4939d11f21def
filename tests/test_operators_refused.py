"""Operators that cannot be, and functions that are none."""

import math

import pytest
import torch
from operator_cases import KERNELS, SHAPE, SIZE, every_operator, numbers
from torch.nn import functional

from flowmend.decimation import Decimate
from flowmend.errors import FlowmendError
from flowmend.operators import Blur, Downsample, FunctionOperator, Mask, Sense

REFUSED = {
    "kernel taller than the image": (lambda: Blur(SHAPE, torch.ones(9, 3)), "larger than"),
    "kernel wider than the image": (lambda: Blur(SHAPE, torch.ones(3, 13)), "larger than"),
    "kernel of zeros": (lambda: Blur(SHAPE, torch.zeros(3, 3)), "all zeros"),
    "kernel with NaN": (lambda: Blur(SHAPE, torch.full((3, 3), math.nan)), "finite matrix"),
    "kernel of one dimension": (lambda: Blur(SHAPE, torch.ones(3)), "finite matrix"),
    "kernel of three dimensions": (lambda: Blur(SHAPE, torch.ones(3, 3, 3)), "finite matrix"),
    "empty kernel": (lambda: Blur(SHAPE, torch.ones(0, 3)), "finite matrix"),
    "unknown boundary": (lambda: Blur(SHAPE, torch.ones(3, 3), "mirror"), "Unknown boundary"),
    "black mask": (lambda: Mask(SHAPE, torch.zeros(1, 8, 12)), "all black"),
    "mask of another size": (lambda: Mask(SHAPE, torch.ones(1, 12, 8)), "height and width"),
    "mask of two channels": (lambda: Mask(SHAPE, torch.ones(2, 8, 12)), "height and width"),
    "mask without channels": (lambda: Mask(SHAPE, torch.ones(8, 12)), "height and width"),
    "mask of half-tones": (lambda: Mask(SHAPE, torch.full((1, 8, 12), 0.5)), "only 0"),
    "mask with NaN": (lambda: Mask(SHAPE, torch.full((1, 8, 12), math.nan)), "only 0"),
    "scale that divides the height only": (lambda: Downsample(SHAPE, 8), "does not divide"),
    "scale that divides the width only": (lambda: Downsample(SHAPE, 3), "does not divide"),
    "scale of zero": (lambda: Downsample(SHAPE, 0), "does not divide"),
    "negative scale": (lambda: Downsample(SHAPE, -2), "does not divide"),
    "filter larger than the image": (lambda: Decimate(SHAPE, 2, torch.ones(17, 3)), "too large"),
    "filter wider than the image": (lambda: Decimate(SHAPE, 2, torch.ones(3, 26)), "too large"),
    "filter with NaN": (lambda: Decimate(SHAPE, 2, torch.full((3, 3), math.nan)), "finite"),
    "filter and a scale that is none": (lambda: Decimate(SHAPE, 3, torch.ones(3, 3)), "divide"),
    "no measurements": (lambda: Sense(SHAPE, 0), "between 1 and 288"),
    "more measurements than values": (lambda: Sense(SHAPE, SIZE + 1), "between 1 and 288"),
    "a matrix too large": (lambda: Sense((3, 4000, 4000), 10**7), "takes 3,840,000 GB"),
}


@pytest.mark.parametrize(("build", "phrase"), REFUSED.values(), ids=REFUSED)
def test_operators_that_cannot_be(build, phrase):
    with pytest.raises(FlowmendError, match=phrase):
        build()


@every_operator
def test_measurements_are_checked(operator):
    shape = operator.measurement_shape
    operator.check_measurements(torch.zeros(2, *shape))
    with pytest.raises(FlowmendError, match="do not fit"):
        operator.check_measurements(torch.zeros(2, *shape[:-1], shape[-1] + 1))
    with pytest.raises(FlowmendError, match="do not fit"):
        operator.check_measurements(torch.zeros(shape))
    for bad in (math.nan, math.inf):
        y = torch.zeros(2, *shape)
        y[1].view(-1)[0] = bad
        with pytest.raises(FlowmendError, match="finite"):
            operator.check_measurements(y)
    with pytest.raises(FlowmendError, match="floating-point"):
        operator.check_measurements(torch.zeros(2, *shape, dtype=torch.uint8))


def test_a_function_is_the_operator_it_describes():
    """The same map as a class of ours, adjoint and pseudo-inverse included."""
    kernel = KERNELS["sharp3"]

    def blur(x):
        padded = functional.pad(x, (1, 1, 1, 1), "circular")
        weight = kernel.to(x).flip(0, 1).expand(3, 1, 3, 3)
        return functional.conv2d(padded, weight, groups=3)

    mine, ours = FunctionOperator(SHAPE, blur), Blur(SHAPE, kernel, "circular")
    x, y = numbers(2, *SHAPE), numbers(2, *SHAPE, seed=1)
    assert torch.allclose(mine.A(x), ours.A(x), rtol=0, atol=1e-12)
    assert torch.allclose(mine.A_adjoint(y), ours.A_adjoint(y), rtol=0, atol=1e-12)
    assert torch.allclose(mine.A_dagger(y), ours.A_dagger(y), rtol=0, atol=1e-6)


NO_OPERATORS = {
    "affine": (lambda x: x + 0.1, "makes something of black images"),
    "bent": (lambda x: x.clamp(0.0, 1.0), "of a sum of images"),
    "absolute": (lambda x: x.abs(), "of a sum of images"),
    "rounding": (lambda x: (x * 255).round() / 255, "of a sum of images"),
    "quadratic": (lambda x: x + 1e-3 * x**2, "of a sum of images"),
    "normalising": (lambda x: x / (x.std((1, 2, 3), keepdim=True) + 1e-9), "of a sum of images"),
    "not finite": (torch.sqrt, "infinities or NaN"),
    "mixing images": (lambda x: x - x.mean(0), "mixes images"),
    "running sum": (lambda x: x.cumsum(0), "mixes images"),
    "mixing few": (lambda x: x + 1e-3 * x.flip(0), "mixes images"),
    "random": (lambda x: x * torch.rand(8, 12).to(x), "something else each time"),
    "zero": (lambda x: 0.0 * x, "nothing but zeros"),
    "numpy": (lambda x: torch.from_numpy(2 * x.numpy()), "cannot be differentiated"),
    "detached": (lambda x: 2 * x.detach(), "cannot be differentiated"),
    "half detached": (lambda x: x + x.detach(), "cannot be differentiated"),
    "no_grad": (torch.no_grad()(lambda x: 2 * x), "cannot be differentiated"),
    "failing": (lambda x: x @ torch.ones(5, 5), "fails on float64 images"),
    "constants of another precision": (lambda x: x @ torch.ones(12, 12), "with .to(x)"),
    "turning to float32": (lambda x: x.float(), "float32 of float64"),
    "turning to float64": (lambda x: x * torch.ones(8, 12).double(), "float64 of float32"),
    "for one image": (lambda x: x.reshape(1, 3, 8, 12), "for any batch"),
    "losing the batch": (lambda x: x[0], "must make a tensor"),
    "one number": (lambda x: x.sum(), "must make a tensor"),
    "one number for each": (lambda x: x.sum((1, 2, 3)), "must make a tensor"),
    "array": (lambda x: x.tolist(), "not list"),
    "nothing": (lambda x: None, "not NoneType"),
    "complex": (torch.fft.fft2, "complex128 of float64"),
}


@pytest.mark.parametrize(("function", "phrase"), NO_OPERATORS.values(), ids=NO_OPERATORS)
def test_functions_that_are_no_operator(function, phrase):
    with pytest.raises(FlowmendError) as error:
        FunctionOperator(SHAPE, function)
    sentence = str(error.value)
    assert phrase in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
