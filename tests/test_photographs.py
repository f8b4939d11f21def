"""Pictures of any size: parts of operators and of pictures, and the whole."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photograph_cases import any_size_prior, photograph, rough, source, uneven

import flowmend as fm
from flowmend.decimation import Decimate, bicubic_kernel
from flowmend.operators import Bayer, Blur, Downsample, Grey, Identity, Mask, OfGrey, Sense
from flowmend.photographs import photograph_task, restore_photograph
from flowmend.tasks import task_noise, task_shape
from flowmend.tiles import Canvas, spans


@pytest.fixture(scope="module")
def prior():
    return any_size_prior()


# Parts
@given(
    length=st.integers(1, 400),
    tile=st.integers(8, 128),
    overlap=st.integers(0, 60),
    grain=st.sampled_from((1, 2, 3, 4)),
)
@settings(deadline=None)
def test_spans_cover_and_overlap(length, tile, overlap, grain):
    length = -(-length // grain) * grain
    if length > tile and (tile - overlap) // grain < 1:
        with pytest.raises(fm.FlowmendError, match="too small"):
            spans(length, tile, overlap, grain)
        return
    found = spans(length, tile, overlap, grain)
    assert found[0].start == 0
    assert found[-1].stop == length
    sizes = {part.stop - part.start for part in found}
    assert len(sizes) == 1
    assert max(sizes) <= max(tile, length if len(found) == 1 else 0)
    assert all(edge % grain == 0 for part in found for edge in (part.start, part.stop))
    for left, right in itertools.pairwise(found):
        assert left.start < right.start
        assert left.stop - right.start >= overlap - grain


def test_parts_of_a_picture_make_that_picture():
    x = photograph(50, 61)[0]
    canvas = Canvas(tuple(x.shape), 8, x)
    for rows, columns in itertools.product(spans(50, 24, 8), spans(61, 24, 8)):
        canvas.add(x[:, rows, columns], rows, columns)
    assert torch.allclose(canvas.picture(), x, atol=1e-5)


def test_the_border_of_a_part_counts_nothing_where_another_sees_more():
    x = torch.zeros(1, 10, 40)
    canvas = Canvas(tuple(x.shape), 16, x)
    for columns in spans(40, 28, 16):
        part = x[:, :, columns].clone()
        inner = 27 if columns.start == 0 else 0
        part[..., inner] = 1000.0
        canvas.add(part, slice(0, 10), columns)
    assert float(canvas.picture().abs().max()) < 0.01


WINDOWED = {
    "identity": Identity((3, 24, 36)),
    "mask": Mask((3, 24, 36), (torch.rand(1, 24, 36, generator=source()) < 0.5).float()),
    "grey": Grey((3, 24, 36)),
    "downsample": Downsample((3, 24, 36), 2),
    "bicubic": Decimate((3, 24, 36), 2, bicubic_kernel(2)),
    "decimate": Decimate((3, 24, 36), 2, torch.rand(5, 4, generator=source(7))),
    "blur": Blur((3, 24, 36), torch.rand(4, 3, generator=source(1)), "valid"),
    "blur of grey": OfGrey(Blur((1, 24, 36), torch.rand(3, 5, generator=source(2)), "valid"), 3),
    "bayer": Bayer((3, 24, 36), "grbg"),
    "half of grey": OfGrey(Downsample((1, 24, 36), 2), 3),
}


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize(("rows", "columns"), [((0, 12), (8, 36)), ((6, 24), (12, 28))])
def test_a_part_measures_what_the_whole_measures_there(name, rows, columns):
    operator = WINDOWED[name]
    rows, columns = slice(*rows), slice(*columns)
    window = operator.window(rows, columns)
    x = torch.rand(2, 3, 24, 36, generator=source(5))
    found = window.operator.A(x[..., rows, columns])
    assert torch.allclose(found, operator.A(x)[..., window.rows, window.columns], atol=1e-6)
    assert window.operator.measurement_shape == tuple(found.shape[1:])
    assert operator.shape == (3, 24, 36)


def test_a_blur_that_assumes_a_border_has_no_parts():
    for boundary in ("reflect", "zero", "circular", "paper"):
        blur = Blur((3, 24, 36), torch.ones(3, 3), boundary)
        assert blur.window(slice(0, 12), slice(0, 12)) is None
        # and rightly so: the part is not what the whole measures there
        part = Blur((3, 12, 12), torch.ones(3, 3), boundary)
        x = torch.rand(1, 3, 24, 36, generator=source())
        assert not torch.allclose(part.A(x[..., :12, :12]), blur.A(x)[..., :12, :12])
    assert Sense((3, 4, 4), 5).window(slice(0, 2), slice(0, 2)) is None
    assert WINDOWED["downsample"].window(slice(1, 13), slice(0, 12)) is None
    assert WINDOWED["blur"].window(slice(0, 3), slice(0, 12)) is None
    assert WINDOWED["bicubic"].window(slice(0, 12), slice(12, 20)) is None
    assert WINDOWED["bicubic"].window(slice(1, 13), slice(0, 12)) is None


def test_grey_adjoint_is_the_adjoint():
    operator = WINDOWED["blur of grey"]
    x = torch.rand(2, 3, 24, 36, generator=source(5)).double()
    y = torch.rand(2, *operator.measurement_shape, generator=source(6)).double()
    left, right = (operator.A(x) * y).sum(), (x * operator.A_adjoint(y)).sum()
    assert float((left - right).abs() / left.abs()) < 1e-12
    with pytest.raises(fm.FlowmendError, match="does not act on grey"):
        OfGrey(Identity((3, 4, 4)), 3)


# Tasks of measurements of any size
def test_the_size_of_the_image_follows_from_the_measurement():
    assert task_shape("denoise", (3, 20, 30)) == (3, 20, 30)
    assert task_shape("upscale", (3, 20, 30), scale=3) == (3, 60, 90)
    assert task_shape("deblur", (3, 20, 30), kernel="box:5", boundary="valid") == (3, 24, 34)
    assert task_shape("deblur", (3, 20, 30), kernel="box:5") == (3, 20, 30)
    with pytest.raises(fm.FlowmendError, match="do not tell the size"):
        task_shape("sense", (1, 1, 10))
    for name, options in (("deblur", {"kernel": "box:5"}), ("upscale", {}), ("colorize", {})):
        measured = (1 if name == "colorize" else 3, 20, 30)
        assert photograph_task(name, measured, 3, **options).measurement_shape == measured
    assert photograph_task("denoise", (1, 20, 30), 3).measurement_shape == (1, 20, 30)


def test_the_noise_of_a_task_is_checked_without_a_size():
    assert task_noise("denoise", sigma=0.2).sigma == 0.2
    assert task_noise("denoise", sigma="auto") is None
    with pytest.raises(fm.FlowmendError, match="no option kernel"):
        task_noise("denoise", kernel="box:3")
    with pytest.raises(fm.FlowmendError, match=r"Unknown task 'denoize'.*Did you mean denoise"):
        task_noise("denoize")


# Restoring
CASES = {
    "denoise": {"sigma": 0.1},
    "inpaint": {"mask": "random:0.6"},
    "colorize": {},
    "upscale": {"sigma": 0.02},
    "demosaic": {},
    "deblur": {"kernel": "box:3", "sigma": 0.05},
}


def measured(name, x, seed=0):
    channels, options = x.shape[1], CASES[name]
    if name == "deblur":
        options = options | {"boundary": "valid"}
    task = fm.make_task(name, tuple(x.shape[1:]), **options)
    y = task.measure(x, source(seed))
    return y, photograph_task(name, tuple(y.shape[1:]), channels, **CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_parts_restore_what_the_whole_restores(prior, name):
    if name in ("colorize", "demosaic", "upscale", "deblur"):
        # there a network that is no denoiser carries the borders of parts far inside
        prior = any_size_prior(wild=0.0, texture=0.05)
    x = rough(photograph(200, 260))
    y, task = measured(name, x)
    whole = restore_photograph(y, task, prior, steps=3, tile=512)
    parts = restore_photograph(y, task, prior, steps=3, tile=160)
    assert whole.settings["tiles"] == 1
    assert parts.settings["tiles"] > 1
    truth = x if name != "deblur" else x[..., 1:-1, 1:-1]
    assert whole.x.shape == parts.x.shape == truth.shape
    difference = abs(fm.psnr(whole.x, truth)[0] - fm.psnr(parts.x, truth)[0])
    assert difference <= 0.02
    assert whole.finished
    assert parts.finished


def test_a_grey_picture_comes_back_grey(prior):
    x = photograph(40, 50, channels=1)
    for name in ("denoise", "inpaint", "upscale", "deblur"):
        y, _ = measured(name, x)
        task = photograph_task(name, tuple(y.shape[1:]), 3, **CASES[name])
        found = restore_photograph(y, task, prior, steps=2)
        expected = (38, 48) if name == "deblur" else (40, 50)
        assert tuple(found.x.shape) == (1, 1, *expected)


def test_posterior_draws_and_unknown_noise_and_lost_pixels(prior):
    x = photograph(40, 50)
    task = photograph_task("denoise", (3, 40, 50), 3, sigma=0.1)
    y = task.measure(x, source())
    found = restore_photograph(y, task, prior, "posterior", steps=2, samples=2)
    assert found.std.shape == x.shape
    assert found.samples.shape == (2, *x.shape)
    assert found.mean_error.tolist() == [0.0]
    small = photograph_task("upscale", (3, 20, 25), 3)
    y_small = small.measure(x, source())
    found = restore_photograph(y_small, small, prior, "posterior", steps=2, samples=2, tile=32)
    assert found.mean_error.shape == (1,)
    assert 0.0 < float(found.mean_error) < float(found.std.mean())
    auto = photograph_task("denoise", (3, 40, 50), 3, sigma="auto")
    found = restore_photograph(y, auto, prior)
    assert found.settings["sigma"] == pytest.approx(0.1, rel=0.15)
    salt = photograph_task("denoise", (3, 40, 50), 3, noise="salt-pepper", share=0.2)
    found = restore_photograph(salt.measure(x, source()), salt, prior)
    assert found.finished


def test_noise_of_a_known_map_counts_as_much_as_it_is(prior):
    x = photograph(40, 50)
    task = photograph_task("denoise", (3, 40, 50), 3, sigma=uneven(40, 50))
    y = task.measure(x, source())
    error = (y - x).square().mean((0, 1, 2)).sqrt()
    assert torch.allclose(error, uneven(40, 50)[0], rtol=0.3)
    found = restore_photograph(y, task, prior).x
    local = prior.at_shape((3, 40, 50))
    exact = local.denoise(y, uneven(40, 50).expand_as(y).contiguous()).clamp(0, 1)
    assert torch.allclose(found, exact, atol=1e-4)
    with pytest.raises(fm.FlowmendError, match="does not fit"):
        photograph_task("denoise", (3, 41, 50), 3, sigma=uneven(40, 50))


def test_a_map_of_noise_goes_along_with_the_parts(prior):
    x = photograph(200, 260)
    task = photograph_task("denoise", (3, 200, 260), 3, sigma=uneven(200, 260))
    y = task.measure(x, source())
    whole = restore_photograph(y, task, prior, tile=512)
    parts = restore_photograph(y, task, prior, tile=160)
    assert parts.settings["tiles"] > 1
    assert abs(fm.psnr(whole.x, x)[0] - fm.psnr(parts.x, x)[0]) <= 0.02


def test_counted_light_is_noisier_where_it_is_bright(prior):
    x = torch.linspace(0.02, 0.98, 50).expand(1, 3, 40, 50).contiguous()
    task = photograph_task("denoise", (3, 40, 50), 3, noise="poisson", peak=40)
    y = task.measure(x, source())
    found = restore_photograph(y, task, prior).x
    level = (x / 40).sqrt()
    exact = prior.at_shape((3, 40, 50)).denoise(y, level).clamp(0, 1)
    even = prior.at_shape((3, 40, 50)).denoise(y, float((0.5 / 40) ** 0.5)).clamp(0, 1)
    assert float((found - exact).abs().mean()) < 0.25 * float((even - exact).abs().mean())


def test_what_cannot_be_restored_says_why(prior):
    x = photograph(200, 260)
    y = torch.cat([x, x])
    task = photograph_task("denoise", (3, 200, 260), 3)
    with pytest.raises(fm.FlowmendError, match="one at a time, not 2"):
        restore_photograph(y, task, prior)
    task = photograph_task("deblur", (3, 200, 260), 3, boundary="reflect", sigma=0.01)
    with pytest.raises(fm.FlowmendError, match="needs the whole picture at once"):
        restore_photograph(x, task, prior, tile=160)
    with pytest.raises(fm.FlowmendError, match="knows grey ones only"):
        photograph_task("denoise", (3, 20, 20), 1)
