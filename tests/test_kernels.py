"""Kernels from texts, files and tensors."""

import math

import numpy as np
import pytest
import torch
from conftest import smooth_images
from PIL import Image
from task_cases import SHAPE

from flowmend.errors import FlowmendError
from flowmend.tasks import make_task, parse_kernel


# Kernels
@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_box_kernels(side):
    kernel = parse_kernel(f"box:{side}")
    assert torch.equal(kernel, torch.full((side, side), 1 / side**2, dtype=torch.float64))


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 1.6, 4.0])
def test_gaussian_kernels(width):
    kernel = parse_kernel(f"gaussian:{width}")
    side = len(kernel)
    radius = side // 2
    assert kernel.shape == (side, side)
    assert side % 2 == 1
    assert radius >= 3 * width - 0.5
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(kernel, kernel.T)
    assert torch.allclose(kernel, kernel.flip(0, 1))
    ratio = float(kernel[radius, radius + 1] / kernel[radius, radius])
    assert ratio == pytest.approx(math.exp(-0.5 / width**2), rel=1e-12)


def motion(length, angle):
    return parse_kernel(f"motion:{length}:{angle}")


@pytest.mark.parametrize("length", [1, 3, 7])
@pytest.mark.parametrize("angle", [0, 180, -180, 360])
def test_level_motion_is_a_box(length, angle):
    box = torch.full((1, length), 1 / length, dtype=torch.float64)
    assert torch.allclose(motion(length, angle), box, rtol=0, atol=1e-12)
    assert torch.allclose(motion(length, angle + 90), box.T, rtol=0, atol=1e-12)


def test_motion_of_an_even_length_has_half_ends():
    wanted = torch.tensor([[0.125, 0.25, 0.25, 0.25, 0.125]]).double()
    assert torch.allclose(motion(4, 0), wanted, rtol=0, atol=1e-12)


def test_motion_up_to_the_right_is_counter_clockwise():
    kernel = motion(5, 45)
    assert kernel.shape == (5, 5)
    assert torch.allclose(kernel, kernel.flip(1).diagonal().diag().flip(1), rtol=0, atol=1e-12)
    steep = motion(9, 70)
    rows, columns = steep.shape
    assert rows > columns
    assert float(steep[0, columns // 2 :].sum()) > 0
    assert float(steep[0, : columns // 2].sum()) == 0.0


def painted(length, angle, points=200_001):
    """The same line by points, thrown into pixels."""
    along = (np.arange(points) + 0.5) / points - 0.5
    columns = np.round(along * length * math.cos(math.radians(angle))).astype(int)
    rows = np.round(-along * length * math.sin(math.radians(angle))).astype(int)
    half = (np.abs(rows).max(), np.abs(columns).max())
    kernel = np.zeros((2 * half[0] + 1, 2 * half[1] + 1))
    np.add.at(kernel, (rows + half[0], columns + half[1]), 1 / points)
    return torch.from_numpy(kernel)


@pytest.mark.parametrize("length", [1.0, 2.5, 4.0, 7.0, 15.3])
@pytest.mark.parametrize("angle", [10, 30, 63.4, 90, 117, -20])
def test_motion_is_a_line_through_pixels(length, angle):
    kernel = motion(length, angle)
    assert torch.allclose(kernel, painted(length, angle), rtol=0, atol=5e-5)
    assert torch.allclose(kernel, kernel.flip(0, 1), rtol=0, atol=1e-15)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(kernel, motion(length, angle + 180), rtol=0, atol=1e-9)
    assert torch.allclose(kernel.flip(1), motion(length, -angle), rtol=0, atol=1e-9)


def test_the_painted_line_notices_another_angle():
    assert not torch.allclose(motion(7, 30), painted(7, 31), rtol=0, atol=1e-3)


def test_motion_changes_smoothly_with_the_angle():
    image = smooth_images(1, *SHAPE)
    for angle in (0, 45, 90):
        near = [make_task("deblur", SHAPE, kernel=f"motion:7:{angle + d}") for d in (0, 0.01)]
        first, second = (task.operator.A(image) for task in near)
        assert torch.allclose(first, second, rtol=0, atol=1e-3)


def test_kernels_of_files(tmp_path):
    values = np.array([[0.0, 1.0, 2.0], [3.0, 10.0, 0.0]])
    wanted = torch.from_numpy(values / values.sum())
    np.save(tmp_path / "kernel.npy", values)
    assert torch.allclose(parse_kernel(str(tmp_path / "kernel.npy")), wanted, rtol=1e-6)
    Image.fromarray((values * 20).astype(np.uint8)).save(tmp_path / "grey.png")
    assert torch.allclose(parse_kernel(str(tmp_path / "grey.png")), wanted, rtol=1e-6)
    colour = np.repeat((values * 20).astype(np.uint8)[..., None], 3, axis=-1)
    Image.fromarray(colour).save(tmp_path / "rgb.png")
    assert torch.allclose(parse_kernel(str(tmp_path / "rgb.png")), wanted, rtol=1e-6)
    assert torch.allclose(parse_kernel(torch.from_numpy(values)), wanted)
    task = make_task("deblur", SHAPE, kernel=str(tmp_path / "kernel.npy"))
    assert torch.allclose(task.operator.kernel, wanted, rtol=1e-6)


def test_a_kernel_may_have_negative_values_but_a_positive_sum():
    sharpen = torch.tensor([[-0.5, 0.0], [0.0, 2.5]])
    assert torch.allclose(parse_kernel(sharpen), sharpen.double() / 2.0)


NO_KERNELS = {
    "box:0": "side of a box",
    "box:-3": "side of a box",
    "box:2.5": "side of a box",
    "box:1000": "side of a box",
    "box:inf": "side of a box",
    "box:nan": "side of a box",
    "box:": "not a number",
    "box:three": "not a number",
    "gaussian:0": "width of a Gaussian",
    "gaussian:-1": "width of a Gaussian",
    "gaussian:nan": "width of a Gaussian",
    "gaussian:1e9": "width of a Gaussian",
    "gaussian:wide": "not a number",
    "motion:0:10": "length of a motion kernel",
    "motion:-3:10": "length of a motion kernel",
    "motion:nan:10": "length of a motion kernel",
    "motion:1000:10": "length of a motion kernel",
    "motion:5:inf": "angle of a motion kernel",
    "motion:5:nan": "angle of a motion kernel",
    "motion:5": "not a number",
    "motion:5:": "not a number",
    "motion::10": "not a number",
    "motion:5:10:2": "not a number",
    "motion:": "not a number",
    "triangle:3": "triangle:3",
    "": ".",
}


@pytest.mark.parametrize(("text", "phrase"), NO_KERNELS.items(), ids=list(NO_KERNELS))
def test_texts_that_are_no_kernel(text, phrase):
    with pytest.raises(FlowmendError, match=phrase):
        parse_kernel(text)


@pytest.mark.parametrize(
    ("kernel", "phrase"),
    [
        (torch.zeros(3, 3), "positive sum"),
        (torch.tensor([[-1.0, 0.5]]), "positive sum"),
        (torch.tensor([[-1.0, 1.0]]), "positive sum"),
        (torch.tensor([[math.nan, 1.0]]), "finite"),
        (torch.tensor([[math.inf, 1.0]]), "finite"),
        (torch.ones(3), "matrix"),
        (torch.ones(2, 3, 3, 3), "matrix"),
    ],
)
def test_tensors_that_are_no_kernel(kernel, phrase):
    with pytest.raises(FlowmendError, match=phrase):
        parse_kernel(kernel)


def test_an_array_file_that_is_no_kernel(tmp_path):
    for name, values in {"line": np.ones(3), "cube": np.ones((2, 2, 2, 2))}.items():
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(FlowmendError, match="matrix"):
            parse_kernel(str(tmp_path / f"{name}.npy"))
