"""Training pictures of one size, each shown as a part of itself that is a little elsewhere."""

import dataclasses
import json

import pytest
import torch
from conftest import save_png, smooth_images
from PIL import Image

from flowmend import flowmatching
from flowmend.chance import random_parts
from flowmend.data import load_folder
from flowmend.errors import FlowmendError
from flowmend.files import resize_and_crop
from flowmend.flow import VelocityConfig
from flowmend.flowmatching import MatchingRun
from flowmend.pixels import from_bytes, to_bytes
from flowmend.recipes import MatchingRecipe

CONFIG = VelocityConfig(channels=1, widths=(4, 4), blocks=(1, 1), size=(8, 8))
RECIPE = MatchingRecipe(epochs=1, batch=8, jitter=0.2)
LARGER = to_bytes(smooth_images(24, 1, 24, 24))
IMAGES = random_parts(LARGER, (8, 8), 0.0, torch.Generator())


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def test_parts_begin_and_end_everywhere_within_the_jitter():
    ramp = torch.arange(200).expand(1, 100, 200).to(torch.uint8)
    images = torch.stack([ramp, ramp.flip(2)] * 300)
    parts = random_parts(images, (50, 100), 0.1, source()).float()
    assert parts.shape == (600, 1, 50, 100)
    first, last = parts[::2, 0, 20, 0], parts[::2, 0, 20, -1]
    assert 0 <= float(first.min()) < 2
    assert 14 < float(first.max()) <= 21
    assert 178 <= float(last.min()) < 185
    assert 197 < float(last.max()) <= 199
    assert float((last - first).min()) < 183 < 195 < float((last - first).max())
    lines = torch.arange(100).view(1, 100, 1).expand(1, 100, 200).to(torch.uint8)
    moved = random_parts(lines[None].expand(300, -1, -1, -1), (50, 100), 0.1, source(1))
    assert float(moved[:, 0, 0, 5].float().std()) > 1.0
    # the same share in height and width
    wide = random_parts(images, (50, 100), 0.1, source(2)).float()
    assert torch.equal(random_parts(images, (50, 100), 0.1, source(2)).float(), wide)
    assert not torch.equal(random_parts(images, (50, 100), 0.1, source(3)).float(), wide)


def test_without_jitter_a_picture_is_reduced_only():
    assert torch.equal(random_parts(IMAGES, (8, 8), 0.0, source()), IMAGES)
    flat = torch.full((2, 3, 24, 24), 77, dtype=torch.uint8)
    assert torch.equal(random_parts(flat, (8, 8), 0.3, source()), flat[:, :, :8, :8])


@pytest.mark.parametrize("shape", [(40, 50), (90, 71), (8, 8)])
def test_a_zoomed_picture_shows_the_same(shape):
    values = to_bytes(smooth_images(1, 3, *shape))[0].permute(1, 2, 0).numpy()
    picture = Image.fromarray(values)
    plain = resize_and_crop(picture, 8, 8)
    zoomed = resize_and_crop(picture, 8, 8, zoom=3)
    assert zoomed.shape == (3, 24, 24)
    reduced = from_bytes(random_parts(to_bytes(zoomed)[None], (8, 8), 0.0, source()))[0]
    assert float((reduced - plain).abs().mean()) < 0.01
    assert float((reduced.roll(1, 2) - plain).abs().mean()) > 0.02


def test_a_run_sees_parts(tmp_path, monkeypatch):
    seen = []

    def parts(images, size, jitter, noise):
        seen.append((len(images), size, jitter))
        return random_parts(images, size, jitter, noise)

    monkeypatch.setattr(flowmatching, "random_parts", parts)
    run = MatchingRun(tmp_path, CONFIG, RECIPE, IMAGES, IMAGES[:4], 0, "cpu", larger=LARGER)
    chosen = torch.arange(8)
    losses = [float(run.loss(chosen, source(seed)).detach()) for seed in (0, 0, 1)]
    assert seen == [(8, (8, 8), 0.2)] * 3
    assert losses[0] == losses[1] != losses[2]
    plain = MatchingRun(
        tmp_path / "b", CONFIG, MatchingRecipe(epochs=1), IMAGES, IMAGES[:4], 0, "cpu"
    )
    plain.loss(chosen, source())
    assert len(seen) == 3
    assert plain.larger is None


def test_what_it_lacks_is_said(tmp_path):
    def run(config=CONFIG, **options):
        return MatchingRun(tmp_path, config, RECIPE, IMAGES, IMAGES[:4], 0, "cpu", **options)

    with pytest.raises(FlowmendError, match="every training image in more pixels"):
        run()
    with pytest.raises(FlowmendError, match="every training image in more pixels"):
        run(larger=LARGER[:-1])
    with pytest.raises(FlowmendError, match="crops have it already"):
        run(dataclasses.replace(CONFIG, size=None, crop=8), larger=LARGER)
    for jitter in (-0.1, 0.6, float("nan")):
        with pytest.raises(FlowmendError, match="jitter"):
            MatchingRecipe(jitter=jitter)


@pytest.mark.parametrize(
    ("name", "crops"), [("jitter", "crops have it already"), ("affine", "images of one size")]
)
def test_commands(run, tmp_path, name, crops):
    faces = tmp_path / "faces"
    faces.mkdir()
    for index, image in enumerate(smooth_images(24, 3, 30, 26, seed=3)):
        save_png(faces / f"{index}.png", image)
    images, _ = load_folder(faces, dataclasses.replace(CONFIG, channels=3), None, 3)
    assert images.shape == (24, 3, 24, 24)
    options = ("--hidden", "4,6", "--steps", "1,1", "--epochs", 1, "--batch", 8)
    outcome = run(
        "train", faces, "--out", tmp_path / "a", "--kind", "continuous", "--size", 8,
        f"--{name}", 0.1, *options,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "a" / "prior.json").read_text())["recipe"][name] == 0.1
    outcome = run("train", faces, "--out", tmp_path / "b", "--size", 8, f"--{name}", 0.1)
    assert outcome.code == 1
    assert f"--{name} is an option of --kind continuous" in outcome.err
    outcome = run(
        "train", faces, "--out", tmp_path / "c", "--kind", "continuous", "--crop", 8,
        f"--{name}", 0.1, *options,
    )  # fmt: skip
    assert outcome.code == 1
    assert crops in outcome.err
