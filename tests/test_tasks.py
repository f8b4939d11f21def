"""The table of tasks: the paper's settings, kernels and masks from text, measurements."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import SIDE, save_png, smooth_images
from PIL import Image

import flowmend as fm
from flowmend.decimation import Decimate
from flowmend.errors import FlowmendError
from flowmend.files import read_image
from flowmend.kernels import parse_measurements
from flowmend.noise import Gaussian, Poisson, SaltAndPepper, known_pixels
from flowmend.operators import Bayer, Blur, Downsample, Grey, Identity, Mask, Sense
from flowmend.tasks import TASKS, make_task, parse_kernel, parse_mask

SHAPE = (3, 16, 24)
OPERATORS = {
    "denoise": Identity,
    "deblur": Blur,
    "inpaint": Mask,
    "colorize": Grey,
    "demosaic": Bayer,
    "upscale": Downsample,
    "sense": Sense,
}
# On [-1, 1]: alpha of Eq. 7, gamma of Eq. 1 for CSGM and for GlowIP; copies of each value.
PAPER = {
    "denoise": (0.05, 0.1, 0.1, 1),
    "deblur": (0.02, 0.01, 0.0, 1),
    "inpaint": (0.002, 0.01, 0.0, 1),
    "colorize": (0.02, 0.01, 0.0, 3),
}


def test_the_table_names_every_task():
    assert list(TASKS) == list(OPERATORS)
    assert all(spec.name == name for name, spec in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_operator_and_noise_of_each_task(name):
    task = make_task(name, SHAPE)
    assert type(task.operator) is OPERATORS[name]
    assert task.operator.shape == SHAPE
    assert task.sigma == (0.1 if name == "denoise" else 0.0)
    assert make_task(name, SHAPE, sigma=0.25).sigma == 0.25
    assert task.measurement_shape == tuple(task.operator.A(torch.zeros(1, *SHAPE)).shape[1:])


def test_defaults_of_the_operators():
    deblur = make_task("deblur", SHAPE).operator
    assert torch.allclose(deblur.kernel, torch.full((3, 3), 1 / 9, dtype=torch.float64))
    assert deblur.boundary == "reflect"
    assert make_task("upscale", SHAPE).measurement_shape == (3, 8, 12)
    assert make_task("upscale", SHAPE, scale=4).measurement_shape == (3, 4, 6)
    for kernel in ("bicubic", "gaussian:0.8", torch.rand(3, 3)):
        task = make_task("upscale", SHAPE, scale=2, kernel=kernel)
        assert isinstance(task.operator, Decimate)
        assert task.measurement_shape == (3, 8, 12)
        flat = torch.full((1, *SHAPE), 0.3)
        assert torch.allclose(task.measure(flat, torch.Generator()), torch.tensor(0.3))
    assert make_task("sense", SHAPE).measurement_shape == (288,)
    assert make_task("sense", SHAPE, measurements=7).measurement_shape == (7,)
    assert make_task("colorize", SHAPE).measurement_shape == (1, 16, 24)


@pytest.mark.parametrize("name", PAPER)
def test_presets_are_the_papers_on_our_scale(name):
    alpha, csgm, glowip, copies = PAPER[name]
    presets = TASKS[name].presets
    assert presets["likelihood"]["weight"] == pytest.approx(alpha / 2 / copies, rel=1e-12)
    assert presets["csgm"]["weight"] == pytest.approx(csgm / 4 / copies, rel=1e-12)
    assert presets["glowip"]["weight"] == pytest.approx(glowip / 4 / copies, rel=1e-12)


def test_presets_in_numbers():
    weights = {
        name: {method: given["weight"] for method, given in spec.presets.items()}
        for name, spec in TASKS.items()
    }
    assert weights["denoise"] == {"likelihood": 0.025, "csgm": 0.025, "glowip": 0.025}
    assert weights["inpaint"] == {"likelihood": 0.001, "csgm": 0.0025, "glowip": 0.0}
    assert weights["colorize"]["likelihood"] == pytest.approx(0.02 / 6)


@pytest.mark.parametrize("method", ["likelihood", "csgm"])
def test_a_converted_weight_means_the_same(method):
    """The paper's objective on [-1, 1] and ours on [0, 1] differ by a factor that is constant."""
    x, y = smooth_images(2, 1, 4, 6)
    alpha, csgm = PAPER["deblur"][:2]
    residual = x - y
    if method == "likelihood":
        paper = [(2 * residual).abs().sum() + alpha * penalty for penalty in (0.0, 1.0)]
        ours = residual.abs().sum()
    else:
        paper = [(2 * residual).square().sum() + csgm * penalty for penalty in (0.0, 1.0)]
        ours = residual.square().sum()
    weight = TASKS["deblur"].presets[method]["weight"]
    assert float(paper[1] / paper[0]) == pytest.approx(float((ours + weight) / ours), rel=1e-12)


@pytest.mark.parametrize("method", ["likelihood", "csgm", "glowip"])
def test_restore_uses_the_preset(method):
    prior = fm.GaussianPrior.from_covariance(
        torch.full((3, 4, 6), 0.5), 0.01 * torch.eye(72, dtype=torch.float64)
    )
    task = make_task("denoise", prior.shape)
    y = task.measure(smooth_images(1, 3, 4, 6).float(), torch.Generator().manual_seed(0))
    found = fm.restore(y, task, prior, method, steps=1500)
    assert found.settings["weight"] == TASKS["denoise"].presets[method]["weight"]
    assert found.settings["sigma"] == 0.1
    assert found.settings["steps"] == 1500
    assert found.settings["learning_rate"] == 5e-3
    assert not found.settings["cosine"]


@pytest.mark.parametrize(("steps", "rate"), [(750, 0.01), (300, 0.025), (150, 0.05), (5, 0.05)])
def test_fewer_steps_take_longer_strides(steps, rate):
    prior = fm.GaussianPrior.from_covariance(
        torch.full((1, 2, 2), 0.5), 0.01 * torch.eye(4, dtype=torch.float64)
    )
    task = make_task("denoise", prior.shape)
    settings = fm.restore(torch.full((1, 1, 2, 2), 0.4), task, prior, steps=steps).settings
    assert settings["learning_rate"] == pytest.approx(rate)
    assert settings["cosine"]


def test_the_weight_is_the_users_or_the_papers():
    prior = fm.GaussianPrior.from_covariance(
        torch.full((1, 2, 2), 0.5), 0.01 * torch.eye(4, dtype=torch.float64)
    )
    y, task = torch.full((1, 1, 2, 2), 0.4), make_task("denoise", (1, 2, 2))
    for given, wanted in {None: 0.025, 0.5: 0.5, 0.0: 0.0}.items():
        settings = fm.restore(y, task, prior, steps=1, weight=given).settings
        assert settings["weight"] == wanted
    assert fm.restore(y, task, prior, "csgm", steps=1, weight=0.5).settings["weight"] == 0.5
    for weight in (-1.0, math.nan):
        with pytest.raises(FlowmendError, match="weight"):
            fm.restore(y, task, prior, steps=1, weight=weight)


def test_restore_takes_the_papers_border_off():
    """With mid-grey beyond the image, a mid-grey image is measured as mid-grey."""
    prior = fm.GaussianPrior.from_covariance(
        torch.full((1, 6, 6), 0.5), 0.01 * torch.eye(36, dtype=torch.float64)
    )
    task = make_task("deblur", prior.shape, boundary="paper")
    y = task.measure(torch.full((1, 1, 6, 6), 0.5), torch.Generator())
    assert torch.allclose(y, torch.full((1, 1, 6, 6), 0.5), rtol=0, atol=1e-6)
    solution = fm.restore(y, task, prior, "lmmse")
    assert torch.allclose(solution.x, y, rtol=0, atol=1e-5)


# Masks


def hole(mask):
    rows = torch.nonzero((mask == 0).any(-1).flatten()).flatten()
    columns = torch.nonzero((mask == 0).any(-2).flatten()).flatten()
    assert float((1 - mask).sum()) == len(rows) * len(columns), "the hole must be a rectangle"
    return [(int(side.min()), int(side.max())) for side in (rows, columns)]


def test_the_papers_hole_at_32_pixels():
    mask = parse_mask("center:0.4", (3, 32, 32))
    assert mask.shape == (1, 32, 32)
    assert hole(mask) == [(9, 21), (9, 21)]
    assert int((mask == 0).sum()) == 169
    assert torch.equal(make_task("inpaint", (3, 32, 32)).operator.mask, mask)


@pytest.mark.parametrize(
    ("share", "shape", "wanted"),
    [
        ("0.4", (3, 64, 64), [(19, 43), (19, 43)]),
        ("0.5", (3, 16, 24), [(4, 11), (6, 17)]),
        ("0.4", (1, 10, 20), [(3, 6), (6, 13)]),
        ("0.25", (3, 32, 32), [(12, 19), (12, 19)]),
    ],
)
def test_holes_of_other_sizes(share, shape, wanted):
    assert hole(parse_mask(f"center:{share}", shape)) == wanted


@pytest.mark.parametrize("shape", [SHAPE, (3, 32, 32), (1, 5, 7)])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 0.9999])
def test_random_masks_hide_a_share(shape, share):
    mask = parse_mask(f"random:{share}", shape)
    size = shape[1] * shape[2]
    assert mask.shape == (1, *shape[1:])
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    wanted = min(size - 1, max(1, share * size))
    assert float((mask == 0).sum()) == pytest.approx(wanted, abs=0.5)
    operator = make_task("inpaint", shape, mask=f"random:{share}").operator
    assert torch.equal(operator.mask, mask)


def test_a_random_mask_is_the_same_every_time_and_spread():
    random = torch.random.get_rng_state()
    mask = parse_mask("random:0.5", (3, 32, 32))
    assert torch.equal(parse_mask("random:0.5", (1, 32, 32)), mask)
    assert torch.equal(random, torch.random.get_rng_state())
    assert mask[0, :2, :6].tolist() == [[0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]]
    quarters = mask.reshape(2, 16, 2, 16).mean((1, 3))
    assert float((quarters - 0.5).abs().max()) < 4 * 0.5 / 16
    neighbours = (mask[:, :, 1:] == mask[:, :, :-1]).double().mean()
    assert float(neighbours) == pytest.approx(0.5, abs=4 * 0.5 / 31)


def test_a_mask_file_is_white_where_the_image_is_known(tmp_path):
    picture = torch.zeros(1, 16, 24)
    picture[:, 2:5, 7:20] = 1.0
    picture[:, 6, 6] = 130 / 255
    picture[:, 7, 7] = 126 / 255
    grey = parse_mask(str(save_png(tmp_path / "grey.png", picture)), SHAPE)
    colour = parse_mask(str(save_png(tmp_path / "rgb.png", picture.expand(3, -1, -1))), SHAPE)
    np.save(tmp_path / "mask.npy", picture[0].numpy())
    array = parse_mask(str(tmp_path / "mask.npy"), SHAPE)
    wanted = (picture > 0.5).float()
    for mask in (grey, colour, array):
        assert torch.equal(mask, wanted)
    assert float(wanted.sum()) == 3 * 13 + 1


def test_a_one_bit_mask(tmp_path):
    levels = np.zeros((16, 24), dtype=bool)
    levels[3, 4] = True
    Image.fromarray(levels).save(tmp_path / "bit.png")
    mask = parse_mask(str(tmp_path / "bit.png"), SHAPE)
    assert torch.nonzero(mask).tolist() == [[0, 3, 4]]


def test_masks_that_cannot_be_used(tmp_path):
    for text in ("center:0", "center:1", "center:-0.4", "center:nan", "center:2"):
        with pytest.raises(FlowmendError, match="between 0 and 1"):
            parse_mask(text, SHAPE)
    for text in ("random:0", "random:1", "random:1.5", "random:-0.5", "random:nan"):
        with pytest.raises(FlowmendError, match="missing pixels must be between 0 and 1"):
            parse_mask(text, SHAPE)
    for text in ("center:", "center:half", "random:", "random:half"):
        with pytest.raises(FlowmendError, match="not a number"):
            parse_mask(text, SHAPE)
    other = save_png(tmp_path / "other.png", torch.ones(1, 24, 16))
    with pytest.raises(FlowmendError, match="16 x 24 pixels; the images have 24 x 16"):
        parse_mask(str(other), SHAPE)
    black = save_png(tmp_path / "black.png", torch.zeros(1, 16, 24))
    with pytest.raises(FlowmendError, match="all black"):
        make_task("inpaint", SHAPE, mask=str(black))
    with pytest.raises(FlowmendError, match="nowhere"):
        parse_mask(str(tmp_path / "nowhere.png"), SHAPE)
    with pytest.raises(FlowmendError, match="height and width"):
        make_task("inpaint", SHAPE, mask=torch.ones(1, 24, 16))


def test_a_mask_array_of_one_dimension_is_refused(tmp_path):
    np.save(tmp_path / "line.npy", np.ones(24, dtype=np.float32))
    with pytest.raises(FlowmendError, match=r"line\.npy"):
        parse_mask(str(tmp_path / "line.npy"), SHAPE)


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


# Wrong names and options


@pytest.mark.parametrize(
    ("name", "hint"),
    [("denoize", "Did you mean denoise"), ("blur", "deblur"), ("zzz", "choose from denoise")],
)
def test_unknown_tasks(name, hint):
    with pytest.raises(FlowmendError, match=f"Unknown task '{name}'") as error:
        make_task(name, SHAPE)
    assert hint in str(error.value)


FOREIGN = {
    "kernel": "box:3",
    "boundary": "zero",
    "mask": "center:0.4",
    "scale": 2,
    "pattern": "gbrg",
}
OWNERS = {
    "kernel": ("deblur", "upscale"),
    "boundary": ("deblur",),
    "mask": ("inpaint",),
    "scale": ("upscale",),
    "pattern": ("demosaic",),
    "measurements": ("sense",),
}


@pytest.mark.parametrize("option", [*FOREIGN, "measurements"])
@pytest.mark.parametrize("name", TASKS)
def test_options_belong_to_tasks(name, option):
    given = {option: FOREIGN.get(option, 5)}
    if name in OWNERS[option]:
        make_task(name, SHAPE, **given)
        return
    with pytest.raises(FlowmendError, match=f"{name} has no option {option}"):
        make_task(name, SHAPE, **given)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf, -math.inf])
def test_noise_levels_that_cannot_be(sigma):
    with pytest.raises(FlowmendError, match="noise level sigma"):
        make_task("denoise", SHAPE, sigma=sigma)


@pytest.mark.parametrize(
    ("name", "given", "phrase"),
    [
        ("deblur", {"boundary": "mirror"}, "Unknown boundary"),
        ("deblur", {"kernel": "box:17"}, "larger than the image"),
        ("upscale", {"scale": 0}, "does not divide"),
        ("demosaic", {"pattern": "rgb"}, "Unknown pattern"),
        ("upscale", {"scale": 5}, "does not divide"),
        ("sense", {"measurements": 0}, "between 1 and 1152"),
        ("sense", {"measurements": 1153}, "between 1 and 1152"),
    ],
)
def test_options_that_cannot_be(name, given, phrase):
    with pytest.raises(FlowmendError, match=phrase):
        make_task(name, SHAPE, **given)


def test_grey_images_have_no_colours_to_find():
    with pytest.raises(FlowmendError, match="colour images"):
        make_task("colorize", (1, 16, 24))
    with pytest.raises(FlowmendError, match="colour images"):
        make_task("demosaic", (1, 16, 24))


# Measurements


@pytest.mark.parametrize("name", TASKS)
def test_measurements_are_a_x_plus_noise(name):
    x = smooth_images(4, *SHAPE)
    clean = make_task(name, SHAPE, sigma=0.0).measure(x, torch.Generator())
    task = make_task(name, SHAPE, sigma=0.2)
    assert torch.equal(clean, task.operator.A(x))
    noisy = task.measure(x, torch.Generator().manual_seed(1))
    assert torch.equal(noisy, task.measure(x, torch.Generator().manual_seed(1)))
    assert not torch.equal(noisy, task.measure(x, torch.Generator().manual_seed(2)))
    noise = (noisy - clean) / 0.2
    doubt = 4 / math.sqrt(2 * noise.numel())
    assert float(noise.std()) == pytest.approx(1.0, abs=doubt)
    assert abs(float(noise.mean())) < 4 / math.sqrt(noise.numel())
    assert noisy.dtype == x.dtype


@pytest.mark.parametrize("name", TASKS)
def test_measurements_can_be_looked_at(name):
    task = make_task(name, SHAPE, sigma=2.0)
    x = smooth_images(3, *SHAPE)
    y = task.measure(x, torch.Generator().manual_seed(0))
    picture = task.picture(y)
    assert picture.shape == (3, *SHAPE)
    assert float(picture.min()) == 0.0
    assert float(picture.max()) == 1.0


def test_pictures_show_what_was_measured():
    x = smooth_images(2, *SHAPE)
    upscale = make_task("upscale", SHAPE)
    small = upscale.measure(x, torch.Generator())
    assert torch.equal(upscale.picture(small)[:, :, ::2, ::2], small)
    assert torch.equal(upscale.picture(small)[:, :, 1::2, 1::2], small)
    colorize = make_task("colorize", SHAPE)
    grey = colorize.measure(x, torch.Generator())
    assert torch.equal(colorize.picture(grey), grey.expand(-1, 3, -1, -1))
    deblur = make_task("deblur", SHAPE)
    blurred = deblur.measure(x, torch.Generator())
    assert torch.equal(deblur.picture(blurred), blurred)
    sense = make_task("sense", SHAPE)
    values = sense.measure(x, torch.Generator())
    assert torch.equal(sense.picture(values), sense.operator.A_adjoint(values).clamp(0, 1))


# Numbers of measurements


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (7, 7),
        ("7", 7),
        (" 768 ", 768),
        (0.25, 288),
        ("0.25", 288),
        ("25%", 288),
        ("12.5%", 144),
        ("100%", 1152),
        (1.0, 1152),
        ("1", 1),
        ("1e-9%", 1),
        (0, 0),
        ("-3", -3),
    ],
)
def test_counts_and_shares(given, wanted):
    assert parse_measurements(given, 1152) == wanted
    if wanted > 0:
        assert make_task("sense", SHAPE, measurements=given).measurement_shape == (wanted,)


@pytest.mark.parametrize(
    "given", ["many", "", "%", "0%", "101%", "1.5", 1.5, "-0.5", "nan", "0.0"]
)
def test_no_counts_and_no_shares(given):
    with pytest.raises(FlowmendError, match="must be a count such as 768, or a share such as"):
        make_task("sense", SHAPE, measurements=given)


# Noise


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("name", TASKS)
def test_gaussian_measurements_are_bit_for_bit_what_they_were(name, sigma):
    x = smooth_images(2, *SHAPE).float()
    task = make_task(name, SHAPE, sigma=sigma)
    wanted = task.operator.A(x) + task.offset
    if sigma > 0:
        generator = torch.Generator().manual_seed(4)
        wanted = wanted + sigma * torch.randn(wanted.shape, generator=generator)
    found = task.measure(x, torch.Generator().manual_seed(4))
    assert torch.equal(found, wanted)
    named = make_task(name, SHAPE, sigma=sigma, noise="gaussian")
    assert torch.equal(named.measure(x, torch.Generator().manual_seed(4)), wanted)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "sense"])
def test_poisson_measurements(name):
    task = make_task(name, SHAPE, noise="poisson", peak=20)
    assert task.noise == Poisson(20)
    assert task.sigma == pytest.approx(math.sqrt(0.5 / 20))
    y = task.measure(smooth_images(2, *SHAPE), torch.Generator().manual_seed(0))
    assert torch.allclose(20 * y, (20 * y).round(), rtol=0, atol=1e-9)
    assert y.shape[1:] == task.measurement_shape


def test_noise_falls_on_the_offset_too():
    """Beyond the paper's border lies mid-grey light, and it is counted like any other."""
    x = torch.full((1, *SHAPE), 0.5)
    task = make_task("deblur", SHAPE, boundary="paper", noise="poisson", peak=1e4)
    y = task.measure(x, torch.Generator().manual_seed(0))
    assert torch.allclose(y, x, rtol=0, atol=5 * math.sqrt(0.5 / 1e4))


@pytest.mark.parametrize("name", TASKS)
def test_salt_and_pepper_measurements(name):
    task = make_task(name, SHAPE, noise="salt-pepper", share=0.4)
    assert task.noise == SaltAndPepper(0.4)
    assert task.sigma == 0.0
    x = smooth_images(2, *SHAPE)
    clean, y = task.operator.A(x), task.measure(x, torch.Generator().manual_seed(0))
    known = known_pixels(y).expand_as(y)
    assert torch.equal(y[known], clean[known])
    assert float(known_pixels(y).double().mean()) < 0.75


def test_the_noise_of_a_task_by_default():
    assert make_task("denoise", SHAPE).noise == Gaussian(0.1)
    assert make_task("deblur", SHAPE).noise == Gaussian(0.0)
    assert make_task("deblur", SHAPE, sigma="0.25").noise == Gaussian(0.25)
    assert make_task("deblur", SHAPE, noise="poisson").noise == Poisson(30.0)
    assert make_task("deblur", SHAPE, noise="salt-pepper").noise == SaltAndPepper(0.1)


def test_an_unknown_level_waits_for_its_value():
    task = make_task("deblur", SHAPE, sigma="auto")
    assert task.noise is None
    assert task.sigma is None
    x = smooth_images(1, *SHAPE)
    with pytest.raises(FlowmendError, match="'auto', which is to be estimated: give sigma"):
        task.measure(x, torch.Generator())
    prior = fm.GaussianPrior.from_covariance(
        torch.full(SHAPE, 0.5), 0.01 * torch.eye(1152, dtype=torch.float64)
    )
    known = task.with_sigma(0.2)
    assert task.sigma is None, "with_sigma changed its task"
    assert known.sigma == 0.2
    assert known.noise == Gaussian(0.2)
    assert known.operator is task.operator
    other = make_task("deblur", SHAPE, sigma=0.2)
    for _ in range(2):
        generators = [torch.Generator().manual_seed(1) for _ in range(2)]
        y = known.measure(x, generators[0])
        assert torch.equal(y, other.measure(x, generators[1]))
        known = other.with_sigma(0.2)
    assert torch.equal(
        fm.restore(y, known, prior, "lmmse").x, fm.restore(y, other, prior, "lmmse").x
    )


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_levels_found_must_be_levels(sigma):
    with pytest.raises(FlowmendError, match="noise level sigma"):
        make_task("denoise", SHAPE, sigma="auto").with_sigma(sigma)


def test_a_level_fits_gaussian_noise_only():
    with pytest.raises(FlowmendError, match="noise poisson has no option sigma"):
        make_task("denoise", SHAPE, noise="poisson").with_sigma(0.1)


NO_NOISE = {
    "unknown": ({"noise": "fog"}, "Unknown noise 'fog'"),
    "no name": ({"noise": ""}, "Unknown noise ''"),
    "negative peak": ({"noise": "poisson", "peak": -1.0}, "peak of Poisson noise"),
    "share beyond 1": ({"noise": "salt-pepper", "share": 1.2}, "between 0 and 1"),
    "peak alone": ({"peak": 3.0}, "gaussian has no option peak: it belongs to the noise poisson"),
    "share alone": ({"share": 0.3}, "gaussian has no option share"),
    "sigma of poisson": ({"noise": "poisson", "sigma": 0.1}, "poisson has no option sigma"),
    "auto of salt": ({"noise": "salt-pepper", "sigma": "auto"}, "salt-pepper has no option sigma"),
    "peak of auto": ({"sigma": "auto", "peak": 3.0}, "gaussian has no option peak"),
    "text": ({"sigma": "loud"}, "a number, auto, or a file"),
}


@pytest.mark.parametrize(("given", "phrase"), NO_NOISE.values(), ids=NO_NOISE)
def test_noises_that_cannot_be(given, phrase):
    with pytest.raises(FlowmendError) as error:
        make_task("denoise", SHAPE, **given)
    assert phrase in str(error.value)


def test_poisson_noise_needs_light():
    with pytest.raises(FlowmendError, match="measurements of the task sense can be negative"):
        make_task("sense", SHAPE, noise="poisson")


# On the command line

OPTIONS = {
    "random mask": ("inpaint", ("--mask", "random:0.3")),
    "motion": ("deblur", ("--kernel", "motion:5:30")),
    "upscale twice": ("upscale", ("--scale", "2")),
    "upscale four times": ("upscale", ("--scale", "4")),
    "share": ("sense", ("--measurements", "25%")),
    "fraction": ("sense", ("--measurements", "0.25")),
    "count": ("sense", ("--measurements", "192")),
}


@pytest.mark.parametrize(("task", "options"), OPTIONS.values(), ids=OPTIONS)
def test_degrade_and_restore_mean_the_same(
    task, options, run, clean_folder, tiny_prior_path, tmp_path
):
    made, out = tmp_path / "made", tmp_path / "out"
    outcome = run("degrade", clean_folder, "-t", task, *options, "--size", SIDE, "-o", made)
    assert outcome.code == 0, outcome.err
    name = options[0].removeprefix("--")
    given = int(options[1]) if name == "scale" else options[1]
    operator = make_task(task, (3, SIDE, SIDE), **{name: given}).operator
    x = read_image(made / "reference" / "a.png")
    y = read_image(made / "measurement" / "a.npy")
    # The reference is rounded to 8 bits after it was measured.
    size = 0.51 / 255 * (1 if task != "sense" else 3 * SIDE)
    assert torch.allclose(operator.A(x[None])[0], y, rtol=0, atol=size)
    for repeat in (options, ()) if task == "sense" else (options,):
        place = ("-o", out, "-p", tiny_prior_path, "--reference", made / "reference")
        arguments = ("-t", task, *repeat, "--method", "lmmse", "--device", "cpu")
        outcome = run(
            "restore", made / "measurement", *arguments, *place, "--json", out / "r.json"
        )
        assert outcome.code == 0, outcome.err
        mean = json.loads((out / "r.json").read_text())["mean"]
        assert mean["psnr"] > max(20.0, mean["input_psnr"] - 1.0)


BAD_COMMANDS = {
    "inpaint --mask random:1.5": "between 0 and 1",
    "inpaint --mask random:": "not a number",
    "deblur --kernel motion:0:10": "length of a motion kernel",
    "deblur --kernel motion:5": "not a number",
    "deblur --kernel motion:99:0": "larger than the image",
    "sense --measurements many": "must be a count",
    "sense --measurements 150%": "must be a count",
    "sense --measurements 99999": "between 1 and 768",
    "denoise --measurements 0.5": "no option measurements",
    "sense --noise poisson": "can be negative",
}


@pytest.mark.parametrize("command", ["degrade", "restore"])
@pytest.mark.parametrize(("given", "phrase"), BAD_COMMANDS.items(), ids=BAD_COMMANDS)
def test_command_lines_that_cannot_be(
    command, given, phrase, run, clean_folder, tiny_prior_path, tmp_path
):
    place = {"degrade": ("--size", SIDE), "restore": ("--prior", tiny_prior_path)}[command]
    out = tmp_path / "out"
    outcome = run(command, clean_folder, "--task", *given.split(), *place, "--out", out)
    assert outcome.code == 1
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert phrase in lines[0]
    assert not out.exists()
