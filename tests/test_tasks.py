"""The table of tasks: the paper's settings, which options belong where, and what is measured."""

import math

import pytest
import torch
from conftest import smooth_images
from task_cases import SHAPE

import flowmend as fm
from flowmend.decimation import Decimate
from flowmend.errors import FlowmendError
from flowmend.noise import Gaussian
from flowmend.operators import Bayer, Blur, Downsample, Grey, Identity, Mask, Sense
from flowmend.tasks import TASKS, make_task

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
