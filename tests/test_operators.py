"""Every linear operator: dense matrices, the adjoint, the pseudo-inverse, and bad input."""

import itertools
import math

import numpy as np
import pytest
import torch
from properties import check_adjoint
from torch.nn import functional

from flowmend.decimation import Decimate, bicubic_kernel
from flowmend.errors import FlowmendError
from flowmend.operators import (
    BOUNDARIES,
    Blur,
    Downsample,
    FunctionOperator,
    Grey,
    Identity,
    LinearOperator,
    Mask,
    Sense,
    least_squares,
)
from flowmend.tasks import TASKS, make_task

SHAPE = (3, 8, 12)
SIZE = math.prod(SHAPE)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_mask(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(channels, *SHAPE[1:], generator=generator) < 0.6).float()


KERNELS = {
    "box3": torch.full((3, 3), 1 / 9, dtype=torch.float64),
    "corner3": torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.1, 0.0], [0.1, 0.0, 0.0]]).double(),
    "single": torch.tensor([[2.0]]).double(),
    "sharp3": torch.tensor([[0.05, 0.1, 0.0], [0.2, 0.6, 0.02], [0.0, -0.05, 0.03]]).double(),
    "even2": torch.tensor([[0.1, 0.15], [-0.2, 0.9]]).double(),
    "even4x2": numbers(4, 2, seed=3),
    "wide3x6": numbers(3, 6, seed=4),
    "tall7x1": numbers(7, 1, seed=5),
}
BLURS = list(itertools.product(KERNELS, BOUNDARIES))


class Chirp(LinearOperator):
    """A user's operator that writes only A: weighted differences of neighbours, times a ramp."""

    def A(self, x):  # noqa: N802
        ramp = torch.linspace(0.5, 2.0, self.shape[2] - 1).to(x)
        return (x[..., 1:] - 0.5 * x[..., :-1]) * ramp


def shear(x):
    """A user's function: it writes into its argument, and mixes channels with weights it holds."""
    x[:, :, 2:4] = 0.0
    weights = torch.tensor([0.2, 0.3, 0.5]).to(x)
    return (x * weights[:, None, None]).sum(1)[:, 1:] - torch.roll(x, 1, -1)[:, 0, 1:]


OPERATORS = {
    "identity": Identity(SHAPE),
    "mask for all channels": Mask(SHAPE, random_mask(1)),
    "mask for each channel": Mask(SHAPE, random_mask(3, seed=1)),
    "grey": Grey(SHAPE),
    "downsample 1": Downsample(SHAPE, 1),
    "downsample 2": Downsample(SHAPE, 2),
    "downsample 4": Downsample(SHAPE, 4),
    "decimate, bicubic 2": Decimate(SHAPE, 2, bicubic_kernel(2)),
    "decimate, small filter": Decimate(SHAPE, 4, KERNELS["corner3"]),
    "decimate, no symmetry": Decimate(SHAPE, 2, numbers(5, 4, seed=6)),
    "sense": Sense(SHAPE, 40),
    "sense, one number": Sense(SHAPE, 1),
    "only A": Chirp(SHAPE),
    "function": FunctionOperator(SHAPE, shear),
    "function, vector": FunctionOperator(SHAPE, lambda x: x.flatten(1)[:, ::7].cumsum(1)),
    **{
        f"blur {kernel} {boundary}": Blur(SHAPE, KERNELS[kernel], boundary)
        for kernel, boundary in BLURS
    },
    **{f"task {name}": make_task(name, SHAPE).operator for name in TASKS},
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


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
