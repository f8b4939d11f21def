"""A flow of patches as a prior of pictures of any size."""

import dataclasses
import importlib
import itertools

import pytest
import torch
from conftest import smooth_images

import flowmend as fm
from flowmend.cosines import cosine_matrix
from flowmend.data import random_patches
from flowmend.files import read_picture, save_image
from flowmend.flow import build_flow, preset
from flowmend.patches import PatchPrior
from flowmend.prior import FlowPrior, GaussianPrior
from flowmend.stationary import StationaryGaussian

training_command = importlib.import_module("flowmend.cli.train")
SIDE = 4
CONFIG = preset(
    "whitened",
    **{"height": SIDE, "width": SIDE, "channels": 1, "steps": (1, 1), "split": (False, False)},
    **{"hidden": 6, "bits": 8, "patches": True},
)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def covariance(channels=1):
    """Neighbours are alike: an exponential covariance, positive definite."""
    at = torch.arange(SIDE, dtype=torch.float64)
    line = 0.8 ** (at[:, None] - at).abs()
    colours = torch.eye(channels, dtype=torch.float64) + 0.5
    return 0.03 * torch.kron(colours, torch.kron(line, line))


def gaussian_patches():
    """A flow that is its Gaussian: the networks of a fresh one are zero at their ends."""
    gaussian = GaussianPrior.from_covariance(torch.full((1, SIDE, SIDE), 0.4), covariance())
    return FlowPrior(build_flow(CONFIG), gaussian)


@pytest.fixture(scope="module")
def patch():
    return gaussian_patches()


def test_a_fresh_flow_of_patches_is_its_gaussian(patch):
    x = torch.rand(5, 1, SIDE, SIDE, generator=source())
    torch.testing.assert_close(patch.log_prob(x), patch.gaussian.log_prob(x))


def test_a_grid_covers_every_pixel_once(patch):
    """At place (0, 0) of a picture that is a multiple of a patch the sum is that of its patches;
    elsewhere of those of the mirrored picture."""
    prior = PatchPrior(patch, (1, 8, 12))
    x = torch.rand(2, 1, 8, 12, generator=source())
    wanted = sum(
        patch.log_prob(x[:, :, r : r + SIDE, c : c + SIDE])
        for r, c in itertools.product(range(0, 8, SIDE), range(0, 12, SIDE))
    )
    torch.testing.assert_close(prior.grid_log_prob(x, (0, 0)), wanted)
    rows = torch.tensor([1, *range(8), 6, 5, 4])
    columns = torch.tensor([2, 1, *range(12), 10, 9])
    mirrored = x[:, :, rows][:, :, :, columns]
    wanted = PatchPrior(patch, (1, 12, 16)).grid_log_prob(mirrored, (0, 0))
    torch.testing.assert_close(prior.grid_log_prob(x, (1, 2)), wanted)
    assert not torch.allclose(prior.grid_log_prob(x, (2, 1)), wanted)


def test_the_density_of_a_picture_is_the_mean_over_the_places(patch):
    prior = PatchPrior(patch, (1, 9, 7))
    x = torch.rand(2, 1, 9, 7, generator=source())
    places = itertools.product(range(SIDE), range(SIDE))
    values = torch.stack([prior.grid_log_prob(x, place) for place in places])
    torch.testing.assert_close(prior.log_prob(x), values.mean(0))
    torch.testing.assert_close(prior.log_prob(x[1:]), prior.log_prob(x)[1:])


def test_the_stationary_gaussian_is_the_covariance_in_cosines():
    channels = 3
    mean = torch.rand(channels, SIDE, SIDE, generator=source()).double()
    found = StationaryGaussian.from_covariance(mean, covariance(channels))
    basis = torch.kron(cosine_matrix(SIDE), cosine_matrix(SIDE)).double()
    basis = torch.kron(torch.eye(channels, dtype=torch.float64), basis)
    wanted = (basis @ covariance(channels) @ basis.T).reshape(channels, SIDE, SIDE, channels, -1)
    for row, column in itertools.product(range(SIDE), range(SIDE)):
        block = wanted[:, row, column, :, row * SIDE + column]
        torch.testing.assert_close(found.spectrum[row, column], block)
    assert torch.equal(found.mean, mean)


def test_a_picture_of_one_patch_is_denoised_as_the_gaussian_would(patch, monkeypatch):
    """Where the flow is a Gaussian and there is one patch, the closed form is the truth."""
    monkeypatch.setattr("flowmend.patches.STEPS", 400)
    prior = PatchPrior(patch)
    monkeypatch.setattr(prior, "grid_log_prob", lambda x, place: patch.log_prob(x))
    x = patch.gaussian.sample(3, generator=source())
    y = x + 0.1 * torch.randn(x.shape, generator=source(1))
    wanted = patch.gaussian.posterior(fm.make_task("denoise", x.shape[1:]).operator, 0.1).mean(y)
    found = prior.denoise(y, 0.1)
    assert float((found - wanted).abs().max()) < 3e-3
    first = prior.stationary.denoise(y, 0.1)
    assert float((first - wanted).abs().max()) > 1e-2
    assert torch.equal(prior.denoise(y, torch.full((3,), 0.1, dtype=torch.float64)), found)
    assert torch.allclose(prior.denoise(y[1:2], 0.1), found[1:2], atol=1e-6)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("denoise", {"sigma": 0.1}),
        ("deblur", {"kernel": "box:3", "sigma": 0.02}),
        ("inpaint", {"mask": "random:0.3"}),
        ("sense", {"measurements": 120, "sigma": 0.01}),
    ],
)
def test_pictures_are_restored_by_their_patches(patch, task, options):
    x = 0.2 + 0.6 * smooth_images(2, 1, 14, 18, seed=3)
    work = fm.make_task(task, (1, 14, 18), **options)
    prior = PatchPrior(patch, (1, 14, 18))
    y = work.measure(x, source())
    solution = fm.restore(y, work, prior, steps=4)
    assert solution.method == "splitting"
    assert solution.status == ["finished"] * 2
    before = fm.psnr(work.operator.A_dagger(y).clamp(0.0, 1.0), x)
    after = fm.psnr(solution.x, x)
    assert min(a - b for a, b in zip(after, before, strict=True)) > 0.5
    alone = fm.restore(y[1:], work, prior, steps=4)
    assert torch.allclose(alone.x, solution.x[1:], atol=1e-3)


def test_what_a_prior_of_patches_cannot_do(patch):
    whole = FlowPrior(build_flow(dataclasses.replace(CONFIG, patches=False)), patch.gaussian)
    with pytest.raises(fm.FlowmendError, match="trained on patches"):
        PatchPrior(whole)
    for shape in ((3, 8, 8), (1, 3, 8), (1, 8, 3)):
        with pytest.raises(fm.FlowmendError, match="smaller, or of another kind"):
            PatchPrior(patch, shape)
    prior = PatchPrior(patch, (1, 8, 8))
    y = torch.full((1, 1, 8, 8), 0.5)
    identity = fm.make_task("denoise", (1, 8, 8)).operator
    with pytest.raises(fm.FlowmendError, match="no latents"):
        fm.solve(y, identity, prior, method="likelihood", steps=1)
    with pytest.raises(fm.FlowmendError, match="knows patches"):
        fm.solve(y, identity, prior, method="posterior", sigma=0.1)
    for sigma in (0.0, torch.tensor([0.1, 0.2]), torch.full((1, 1, 8, 8), float("nan"))):
        with pytest.raises(fm.FlowmendError, match="one noise level"):
            prior.denoise(y, torch.as_tensor(sigma))
    with pytest.raises(fm.FlowmendError, match="patches are squares"):
        dataclasses.replace(CONFIG, width=2 * SIDE)
    with pytest.raises(fm.FlowmendError, match="true or false"):
        dataclasses.replace(CONFIG, patches=1)


def test_a_flow_of_patches_is_trained_and_restores_photographs(tmp_path, run, monkeypatch):
    monkeypatch.setattr(training_command, "PATCHES", 64)
    monkeypatch.setattr(training_command, "HELD_OUT_PATCHES", 16)
    for index in range(3):
        image = smooth_images(1, 3, 20, 26, seed=index)[0]
        save_image(tmp_path / "in" / f"{index}.png", image)
    small = ("--steps", "1,1", "--hidden", 6, "--epochs", 1, "--batch", 16, "--device", "cpu")
    told = run("train", tmp_path / "in", "--out", tmp_path / "run", "--crop", 4, *small)
    assert told.code == 0, told.err
    assert "64 training and 16 held-out patches" in told.err + told.out
    prior = fm.load(tmp_path / "run")
    assert prior.config.patches
    assert prior.shape == (3, 4, 4)
    told = run(
        *("restore", tmp_path / "in", "-t", "denoise", "--sigma", 0.1),
        *("--prior", tmp_path / "run", "--out", tmp_path / "out", "--device", "cpu"),
    )
    assert told.code == 0, told.err
    assert read_picture(tmp_path / "out" / "1.png").size == (26, 20)
    told = run("score", tmp_path / "run", tmp_path / "in")
    assert told.code == 0, told.err
    told = run("train", tmp_path / "in", "--out", tmp_path / "o", "--crop", 4, "--size", 4)
    assert told.code != 0
    assert "give one of them" in told.err


def test_random_patches_come_from_all_pictures():
    images = [torch.full((1, 6, 8), 10 * k, dtype=torch.uint8) for k in range(4)]
    images[3] = images[3].repeat(1, 2, 2)
    found = random_patches(images, 4, 4000, 0)
    assert found.shape == (4000, 1, 4, 4)
    share = torch.stack([(found[:, 0, 0, 0] == 10 * k).double().mean() for k in range(4)])
    torch.testing.assert_close(share, torch.tensor([1, 1, 1, 4]).double() / 7, atol=0.03, rtol=0)
    assert torch.equal(found, random_patches(images, 4, 4000, 0))
    assert not torch.equal(found, random_patches(images, 4, 4000, 1))
