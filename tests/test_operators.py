"""Every linear operator: dense matrices, the adjoint, the pseudo-inverse."""

import itertools
import math

import numpy as np
import pytest
import torch
from operator_cases import (
    BLURS,
    KERNELS,
    OPERATORS,
    SHAPE,
    SIZE,
    every_operator,
    numbers,
    random_mask,
)
from properties import check_adjoint
from torch.nn import functional

from flowmend.decimation import Decimate, bicubic_kernel
from flowmend.operators import BOUNDARIES, Blur, Downsample, Sense, least_squares
from flowmend.tasks import make_task


def matrix(operator):
    """The operator as a dense (m, D) matrix, column by column."""
    units = torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)
    return operator.A(units).flatten(1).T


def reflected(index, length):
    """Place inside of a mirrored index, without the edge repeated."""
    index = abs(index)
    return index if index < length else 2 * (length - 1) - index


def convolve_by_loops(image, kernel, boundary):
    """out[i, j] = sum_ab kernel[a, b] image[i - a + h // 2, j - b + w // 2], one by one."""
    _, rows, columns = image.shape
    height, width = kernel.shape
    out = np.zeros_like(image)
    for i, j, a, b in itertools.product(*map(range, (rows, columns, height, width))):
        row, column = i - a + height // 2, j - b + width // 2
        if boundary == "circular":
            row, column = row % rows, column % columns
        elif boundary == "reflect":
            row, column = reflected(row, rows), reflected(column, columns)
        elif not (0 <= row < rows and 0 <= column < columns):
            continue
        out[:, i, j] += kernel[a, b] * image[:, row, column]
    if boundary == "valid":  # only where the kernel lies inside
        top, left = height - 1 - height // 2, width - 1 - width // 2
        out = out[:, top : top + rows - height + 1, left : left + columns - width + 1]
    return out


@every_operator
def test_adjoint(operator):
    check_adjoint(operator.A, operator.A_adjoint, (2, *SHAPE), (2, *operator.measurement_shape))


@every_operator
def test_adjoint_is_the_transposed_matrix(operator):
    dense = matrix(operator)
    count = len(dense)
    units = torch.eye(count, dtype=torch.float64).reshape(count, *operator.measurement_shape)
    assert torch.allclose(operator.A_adjoint(units).flatten(1), dense, rtol=0, atol=1e-12)


@every_operator
def test_adjoint_needs_no_gradient_mode(operator):
    y = numbers(2, *operator.measurement_shape)
    wanted = operator.A_adjoint(y)
    with torch.no_grad():
        assert torch.equal(operator.A_adjoint(y), wanted)


@every_operator
def test_linear_and_in_the_precision_of_the_image(operator):
    x, other = numbers(2, *SHAPE), numbers(2, *SHAPE, seed=1)
    together = operator.A(2.0 * x - 3.0 * other)
    apart = 2.0 * operator.A(x) - 3.0 * operator.A(other)
    assert torch.allclose(together, apart, rtol=0, atol=1e-11)
    y = operator.A(x.float())
    assert y.dtype == torch.float32
    assert operator.A_adjoint(y).dtype == operator.A_dagger(y).dtype == torch.float32


@every_operator
def test_measurement_shape(operator):
    assert operator.A(numbers(5, *SHAPE)).shape == (5, *operator.measurement_shape)


@every_operator
def test_each_image_is_measured_on_its_own(operator):
    x = numbers(3, *SHAPE)
    y = operator.A(x)
    back, inverse = operator.A_adjoint(y), operator.A_dagger(y)
    for index in range(3):
        one = slice(index, index + 1)
        assert torch.allclose(operator.A(x[one]), y[one], rtol=0, atol=1e-12)
        assert torch.allclose(operator.A_adjoint(y[one]), back[one], rtol=0, atol=1e-12)
        assert torch.allclose(operator.A_dagger(y[one]), inverse[one], rtol=0, atol=1e-9)


@every_operator
def test_arguments_stay_as_they_were(operator):
    x, y = numbers(2, *SHAPE), numbers(2, *operator.measurement_shape)
    kept_x, kept_y = x.clone(), y.clone()
    operator.A(x)
    operator.A_adjoint(y)
    operator.A_dagger(y)
    assert torch.equal(x, kept_x)
    assert torch.equal(y, kept_y)
    assert not x.requires_grad
    assert not y.requires_grad


@every_operator
def test_pseudo_inverse_reproduces_measurements(operator):
    y = operator.A(numbers(2, *SHAPE))
    again = operator.A(operator.A_dagger(y))
    assert (again - y).norm() <= 1e-3 * y.norm()


WELL_POSED = [name for name in OPERATORS if not name.startswith("blur")] + [
    *(f"blur sharp3 {boundary}" for boundary in BOUNDARIES),
    *(f"blur even2 {boundary}" for boundary in BOUNDARIES),
    "blur box3 zero",
    "blur box3 circular",
    "blur corner3 circular",
    "blur single paper",
]


@pytest.mark.parametrize("name", WELL_POSED)
def test_pseudo_inverse_is_the_smallest_least_squares(name):
    operator = OPERATORS[name]
    dense = matrix(operator)
    y = numbers(2, *operator.measurement_shape)  # mostly outside of the range of A
    wanted = y.flatten(1) @ torch.linalg.pinv(dense, rtol=1e-9).T
    found = operator.A_dagger(y).flatten(1)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    exact = least_squares(operator, y, steps=5000, tolerance=1e-13).flatten(1)
    assert (exact - wanted).norm() <= 1e-7 * wanted.norm()


def test_least_squares_of_zero_measurements_is_zero():
    y = torch.zeros(2, *SHAPE, dtype=torch.float64)
    y[1] = 1.0
    x = least_squares(OPERATORS["blur box3 zero"], y)
    assert bool((x[0] == 0).all())
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize(("kernel", "boundary"), BLURS)
def test_blur_is_a_true_convolution(kernel, boundary):
    x = numbers(1, *SHAPE, seed=9)
    found = OPERATORS[f"blur {kernel} {boundary}"].A(x)[0].numpy()
    wanted = convolve_by_loops(x[0].numpy(), KERNELS[kernel].numpy(), boundary)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_the_loops_notice_a_correlation():
    x = numbers(1, *SHAPE, seed=9)
    turned = Blur(SHAPE, KERNELS["corner3"].flip(0, 1), "zero").A(x)[0].numpy()
    wanted = convolve_by_loops(x[0].numpy(), KERNELS["corner3"].numpy(), "zero")
    assert np.abs(turned - wanted).max() > 0.1


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_point_becomes_the_kernel_around_its_centre(kernel):
    weights = KERNELS[kernel]
    height, width = weights.shape
    point = torch.zeros(1, 3, 8, 12, dtype=torch.float64)
    point[0, 1, 4, 6] = 1.0
    found = Blur(SHAPE, weights, "zero").A(point)[0]
    wanted = torch.zeros(8, 12, dtype=torch.float64)
    top, left = 4 - height // 2, 6 - width // 2
    wanted[top : top + height, left : left + width] = weights
    assert torch.allclose(found[1], wanted, rtol=0, atol=1e-15)
    assert bool((found[0] == 0).all())
    assert bool((found[2] == 0).all())


def test_kernel_as_large_as_the_image():
    x = numbers(1, *SHAPE)
    kernel = numbers(8, 12, seed=2)
    for boundary in BOUNDARIES:
        found = Blur(SHAPE, kernel, boundary).A(x)[0].numpy()
        wanted = convolve_by_loops(x[0].numpy(), kernel.numpy(), boundary)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)


def test_other_operators_by_hand():
    x = numbers(2, *SHAPE)
    assert torch.equal(OPERATORS["identity"].A(x), x)
    assert torch.allclose(OPERATORS["grey"].A(x)[:, 0], (x[:, 0] + x[:, 1] + x[:, 2]) / 3)
    blocks = OPERATORS["downsample 4"].A(x)
    assert blocks.shape == (2, 3, 2, 3)
    for i, j in itertools.product(range(2), range(3)):
        block = x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        assert torch.allclose(blocks[:, :, i, j], block.mean((2, 3)), rtol=0, atol=1e-14)
    mask = random_mask(3, seed=1).bool()
    masked = OPERATORS["mask for each channel"].A(x)
    assert torch.equal(masked[:, mask], x[:, mask])
    assert bool((masked[:, ~mask] == 0).all())


def test_sense_has_the_promised_variance_and_seed():
    operator = Sense((3, 16, 16), 400, seed=5)
    assert operator.matrix.shape == (400, 768)
    assert abs(float(operator.matrix.mean())) < 4 * (1 / 20) / math.sqrt(400 * 768)
    assert float(operator.matrix.var()) * 400 == pytest.approx(1.0, abs=0.02)
    assert torch.equal(operator.matrix, Sense((3, 16, 16), 400, seed=5).matrix)
    assert not torch.equal(operator.matrix, Sense((3, 16, 16), 400, seed=6).matrix)
    x = numbers(2, 3, 16, 16)
    assert torch.allclose(operator.A(x), x.flatten(1) @ operator.matrix.double().T)


def test_box_with_zero_boundary_at_32_pixels_hides_63_dimensions():
    """The 1-D factor has eigenvalues 1 + 2 cos(k pi / 33), and one of them, k = 22, is zero."""
    units = torch.eye(1024, dtype=torch.float64).reshape(1024, 1, 32, 32)
    dense = Blur((1, 32, 32), KERNELS["box3"], "zero").A(units).flatten(1).T
    line = Blur((1, 1, 32), torch.ones(1, 3, dtype=torch.float64), "zero")
    factor = line.A(torch.eye(32, dtype=torch.float64)[:, None, None, :])[:, 0, 0]
    assert torch.allclose(dense, torch.kron(factor, factor) / 9, rtol=0, atol=1e-15)
    values = torch.linalg.eigvalsh(factor)
    formula = 1 + 2 * torch.cos(math.pi * torch.arange(1, 33).double() / 33)
    assert torch.allclose(values, formula.sort().values, rtol=0, atol=1e-12)
    products = (values[:, None] * values[None, :] / 9).abs().flatten()
    assert int((products < 1e-12).sum()) == 63
    assert float(products[products >= 1e-12].min()) > 1e-4


def test_paper_boundary_is_average_pooling_between_minus_one_and_one():
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = make_task("deblur", SHAPE, boundary="paper")
    network = functional.avg_pool2d(2 * x - 1, 3, stride=1, padding=1)
    measured = task.measure(x, torch.Generator())
    assert torch.allclose(measured, (network + 1) / 2, rtol=0, atol=1e-7)
    assert torch.allclose(measured - task.offset, task.operator.A(x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("boundary", ["reflect", "zero", "circular"])
def test_other_boundaries_add_nothing(boundary):
    operator = Blur(SHAPE, KERNELS["corner3"], boundary)
    assert bool((operator.offset == 0).all())


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_flat_images_stay_flat(boundary):
    flat = torch.full((1, *SHAPE), 0.7, dtype=torch.float64)
    blurred = Blur(SHAPE, KERNELS["corner3"], boundary).A(flat)
    assert torch.allclose(blurred, flat, rtol=0, atol=1e-7)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_reduction_is_that_of_pillow(factor):
    """Away from the borders, where Pillow cuts its filter off and we mirror the image."""
    from PIL import Image

    size = 24 * factor
    x = numbers(1, 1, size, size)
    found = Decimate((1, size, size), factor, bicubic_kernel(factor)).A(x)
    image = Image.fromarray(x[0, 0].float().numpy())
    wanted = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC))
    assert np.abs(found[0, 0].numpy() - wanted)[3:-3, 3:-3].max() < 1e-5
    shifted = np.roll(wanted, 1, 0)
    assert np.abs(found[0, 0].numpy() - shifted)[3:-3, 3:-3].max() > 0.1


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (3, 1), (1, 1), (5, 4), (7, 3)])
def test_decimation_is_a_sum_over_what_the_filter_sees(size):
    kernel, (_, rows, columns) = numbers(*size, seed=2), SHAPE
    x = numbers(1, *SHAPE)
    found = Decimate(SHAPE, 2, kernel).A(x)[0]
    wanted = np.zeros(found.shape)
    for i, j, a, b in itertools.product(range(rows // 2), range(columns // 2), *map(range, size)):
        # the filter, turned, begins where its middle falls on the block's or half a pixel before
        row = 2 * i - math.ceil((size[0] - 2) / 2) + size[0] - 1 - a
        column = 2 * j - math.ceil((size[1] - 2) / 2) + size[1] - 1 - b
        seen = x[0, :, reflected(row, rows), reflected(column, columns)].numpy()
        wanted[:, i, j] += float(kernel[a, b]) * seen
    assert np.abs(found.numpy() - wanted).max() < 1e-12


def test_decimation_by_a_box_is_the_mean_of_blocks():
    x = numbers(2, *SHAPE)
    box = torch.full((4, 4), 1 / 16, dtype=torch.float64)
    assert torch.allclose(Decimate(SHAPE, 4, box).A(x), Downsample(SHAPE, 4).A(x))
