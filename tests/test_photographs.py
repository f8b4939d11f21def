"""Pictures of any size: parts of operators and of pictures, and the whole way through files."""

import itertools
import json

import pytest
import torch
from conftest import smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st

import flowmend as fm
from flowmend import photographs
from flowmend.album import usual_prior
from flowmend.batch import find_items
from flowmend.cli import main
from flowmend.decimation import Decimate, bicubic_kernel
from flowmend.files import save_array, save_image
from flowmend.operators import Bayer, Blur, Downsample, Grey, Identity, Mask, OfGrey, Sense
from flowmend.photographs import photograph_task, restore_photograph
from flowmend.stationary import StationaryGaussian
from flowmend.tasks import task_noise, task_shape
from flowmend.tiles import Canvas, spans


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(x, amount=0.05):
    """Images with a texture, as photographs have one."""
    return (x + amount * torch.randn(x.shape, generator=source(3))).clamp(0.0, 1.0)


def any_size_prior(channels=3, seed=0, wild=0.05, texture=0.0):
    """A network that takes every size, its weights moved by so much from those of a fresh one,
    which shrinks what it sees towards grey, every pixel by itself.
    """
    config = fm.VelocityConfig(channels=channels, widths=(8, 8), blocks=(1, 1), crop=16)
    velocity = fm.build_velocity(config, seed)
    with torch.no_grad():
        for weight in velocity.network.parameters():
            weight.add_(wild * torch.randn(weight.shape, generator=source(seed)))
    images = rough(smooth_images(40, channels, 16, 16).float(), texture)
    stationary = StationaryGaussian.fit([images])
    prior = fm.ContinuousPrior(velocity, stationary=stationary)
    return prior.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior():
    return any_size_prior()


def photograph(height=70, width=90, channels=3, seed=1):
    return smooth_images(1, channels, height, width, seed=seed).float()


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
    auto = photograph_task("denoise", (3, 40, 50), 3, sigma="auto")
    found = restore_photograph(y, auto, prior)
    assert found.settings["sigma"] == pytest.approx(0.1, rel=0.15)
    salt = photograph_task("denoise", (3, 40, 50), 3, noise="salt-pepper", share=0.2)
    found = restore_photograph(salt.measure(x, source()), salt, prior)
    assert found.finished


def uneven(height, width):
    """A noise level that grows from left to right, (H, W)."""
    return torch.linspace(0.02, 0.3, width).expand(height, width).contiguous()


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


# Files


def test_the_usual_prior_follows_the_size_of_the_images(tmp_path):
    save_image(tmp_path / "face" / "a.png", photograph(32, 32)[0])
    save_image(tmp_path / "half" / "a.png", photograph(16, 16)[0])
    save_image(tmp_path / "both" / "a.png", photograph(32, 32)[0])
    save_image(tmp_path / "both" / "b.png", photograph(40, 32)[0])
    save_array(tmp_path / "list" / "a.npy", torch.rand(768))
    save_array(tmp_path / "arrays" / "a.npy", torch.rand(3, 32, 32))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"nothing")

    def usual(folder, task="denoise", method=None, **options):
        items = find_items([tmp_path / folder], tmp_path / "out")
        return usual_prior(items, task, options, method)

    assert usual("face") == "faces32-continuous"
    for method in fm.METHODS:
        coupling = method in ("fast-map", "likelihood", "map", "csgm", "glowip")
        assert usual("face", method=method) == ("faces32" if coupling else "faces32-continuous")
    assert usual("half") == "natural"
    assert usual("half", "upscale", scale=2) == "faces32-continuous"
    assert usual("face", "upscale") == "natural"
    assert usual("both") == "natural"
    assert usual("list", "sense") == "faces32"
    assert usual("list", "sense", "likelihood") == "faces32"
    assert usual("list", "sense", "splitting") == "faces32-continuous"
    assert usual("arrays") == "faces32-continuous"
    assert usual("bad") == "faces32-continuous"


@pytest.fixture
def weights(tmp_path, prior):
    return fm.save(tmp_path / "any.safetensors", prior)


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments]) or 0
    except SystemExit as stop:
        return stop.code or 0


def test_a_folder_of_photographs_of_all_sizes(tmp_path, weights, capsys):
    folder = tmp_path / "in"
    save_image(folder / "a.png", photograph(40, 50)[0])
    save_image(folder / "b.png", photograph(64, 33, channels=1)[0])
    (folder / "c.png").write_bytes(b"no picture")
    out, results = tmp_path / "out", tmp_path / "results.json"
    code = run(
        *("restore", folder, "-t", "denoise", "--sigma", 0.05, "--prior", weights),
        *("-o", out, "--json", results, "--reference", folder, "--device", "cpu"),
    )
    assert code == 1
    values = json.loads(results.read_text())
    assert values["method"] == "splitting"
    assert [record["status"] for record in values["images"][:2]] == ["restored", "restored"]
    assert "not a picture" in values["images"][2]["status"]
    assert all(record["psnr"] > 10 for record in values["images"][:2])
    sizes = [fm.files.read_picture(out / name) for name in ("a.png", "b.png")]
    assert [picture.size for picture in sizes] == [(50, 40), (33, 64)]
    assert [picture.mode for picture in sizes] == ["RGB", "L"]
    assert (out / "report.png").is_file()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("denoise", "--sigma", 0.05), 1),
        (("denoise", "--sigma", 0.05, "--steps", 3), 1),
        (("deblur", "--kernel", "box:3", "--sigma", 0.05), 10),
        (("inpaint", "--mask", "random:0.5"), 30),
        (("inpaint", "--mask", "random:0.5", "--steps", 4), 4),
    ],
)
def test_the_results_say_how_often_the_network_was_evaluated(tmp_path, weights, options, steps):
    save_image(tmp_path / "a.png", photograph(24, 30)[0])
    results = tmp_path / "results.json"
    run(
        *("restore", tmp_path / "a.png", "-t", *options, "--prior", weights),
        *("-o", tmp_path / "out", "--json", results, "--device", "cpu"),
    )
    values = json.loads(results.read_text())
    assert values["steps"] == steps
    assert [record["steps"] for record in values["images"]] == [steps]


def test_upscaling_shows_the_small_picture_large(tmp_path, weights):
    save_image(tmp_path / "a.png", photograph(20, 30)[0])
    out = tmp_path / "out"
    code = run(
        *("restore", tmp_path / "a.png", "-t", "upscale", "--scale", 2, "--steps", 2),
        *("--prior", weights, "-o", out, "--device", "cpu"),
    )
    assert code == 0
    assert fm.files.read_picture(out / "a.png").size == (60, 40)


def test_photographs_are_measured_and_restored_at_their_own_size(tmp_path, weights):
    save_image(tmp_path / "in" / "a.png", photograph(35, 41)[0])
    save_image(tmp_path / "in" / "b.png", photograph(24, 30)[0])
    for task, options in (
        ("upscale", ("--scale", 2)),
        ("upscale", ("--kernel", "bicubic")),
        ("deblur", ("--kernel", "box:3")),
    ):
        made, out = tmp_path / task, tmp_path / f"{task}-restored"
        code = run("degrade", tmp_path / "in", "-t", task, *options, "-o", made)
        assert code == 0
        code = run(
            *("restore", made / "measurement", "-t", task, *options, "--prior", weights),
            *("--reference", made / "reference", "-o", out, "--steps", 2, "--device", "cpu"),
        )
        assert code == 0
        size = fm.files.read_picture(out / "a.png").size
        assert size == fm.files.read_picture(made / "reference" / "a.png").size
        assert size == ((40, 34) if task == "upscale" else (41, 35))


def test_the_noise_level_may_be_a_file(tmp_path, weights, capsys):
    save_image(tmp_path / "a.png", photograph(40, 50)[0])
    save_array(tmp_path / "levels.npy", uneven(40, 50))
    base = ("restore", tmp_path / "a.png", "-t", "denoise", "-o", tmp_path / "out")
    assert run(*base, "--prior", weights, "--sigma", tmp_path / "levels.npy") == 0
    assert (tmp_path / "out" / "a.png").is_file()
    assert run(*base, "--prior", weights, "--sigma", tmp_path / "no.npy") == 1
    assert "a file with a level for every pixel" in capsys.readouterr().err.replace("\n", " ")


@pytest.fixture
def scarce(monkeypatch):
    """A machine that holds parts of so many pixels a side, and counts what was tried."""
    tried, restore = [], photographs.restore

    def limit(side, message="[enforce fail] DefaultCPUAllocator: can't allocate memory"):
        def careful(y, task, *arguments, **options):
            tried.append(max(task.operator.shape[1:]))
            if tried[-1] > side:
                raise RuntimeError(message)
            return restore(y, task, *arguments, **options)

        monkeypatch.setattr(photographs, "restore", careful)
        return tried

    return limit


def test_smaller_parts_are_tried_where_larger_ones_do_not_fit_the_memory(prior, scarce):
    x = photograph(300, 340)
    task = photograph_task("denoise", (3, 300, 340), 3, sigma=0.1)
    y = task.measure(x, source())
    wanted = restore_photograph(y, task, prior, tile=170, generator=source())
    tried = scarce(200)
    found = restore_photograph(y, task, prior, generator=source())
    assert tried[0] == 340
    assert found.settings["tile"] == 170
    assert torch.equal(found.x, wanted.x)


def test_what_fits_no_memory_says_so(prior, scarce):
    scarce(100)
    task = photograph_task("denoise", (3, 300, 340), 3, sigma=0.1)
    with pytest.raises(fm.FlowmendError, match=r"does not hold a part of 128 x 128 pixels"):
        restore_photograph(photograph(300, 340), task, prior)
    task = fm.make_task("deblur", (3, 300, 340), kernel="box:3", boundary="circular")
    with pytest.raises(fm.FlowmendError, match=r"does not hold a part of 340 x 300 pixels"):
        restore_photograph(photograph(300, 340), task, prior)
    scarce(100, "a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        restore_photograph(photograph(300, 340), task, prior)


def test_the_user_is_told_of_smaller_parts(scarce, tmp_path, weights, capsys):
    scarce(200)
    save_image(tmp_path / "a.png", photograph(300, 340)[0])
    results = tmp_path / "results.json"
    code = run(
        *("restore", tmp_path / "a.png", "-t", "denoise", "--sigma", 0.1, "--prior", weights),
        *("-o", tmp_path / "out", "--json", results, "--device", "cpu"),
    )
    assert code == 0
    assert "parts of at most 170 pixels" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads(results.read_text())["images"][0]["tile"] == 170


def test_a_part_of_which_nothing_is_known(prior):
    """The prior's own picture fills it, and nothing breaks."""
    x, mask = photograph(160, 300), torch.ones(1, 160, 300)
    mask[..., 120:] = 0.0
    task = fm.make_task("inpaint", (3, 160, 300), mask=mask)
    found = restore_photograph(task.measure(x, source()), task, prior, tile=128, steps=2)
    assert found.finished
    assert found.settings["tiles"] > 1


def test_options_of_tiles_are_checked(tmp_path, weights, capsys):
    save_image(tmp_path / "a.png", photograph(32, 32)[0])
    base = ("restore", tmp_path / "a.png", "-t", "denoise", "-o", tmp_path / "out")
    assert run(*base, "--tile", 256) == 1
    assert "take every size" in capsys.readouterr().err.replace("\n", " ")
    assert run(*base, "--prior", weights, "--tile", 20) == 1
    assert "at least 128" in capsys.readouterr().err.replace("\n", " ")
