"""Pictures of any size as training images, and those that do not fit."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import Interrupted, interrupt_at, save_png, smooth_images
from matching_cases import (
    CROPS,
    FIXED,
    IMAGES,
    PHOTOGRAPHS,
    RECIPE,
    VALIDATION,
    levels,
    photographs_in,
    start,
)
from PIL import Image

from flowmend import data
from flowmend.errors import FlowmendError
from flowmend.files import read_image, read_picture
from flowmend.flow import FlowConfig, VelocityConfig
from flowmend.flowmatching import match


@pytest.fixture
def photographs(tmp_path):
    return photographs_in(tmp_path / "photographs")


# What is refused.
@pytest.mark.parametrize(
    ("config", "images", "message"),
    [
        (FIXED, levels(4, 8, 9), r"shape \(1, 8, 8\)"),
        (FIXED, levels(4, channels=3), "1 channel"),
        (CROPS, [*PHOTOGRAPHS, levels(1, 7, 30)[0]], r"at least 8 pixels.*\(1, 7, 30\)"),
        (CROPS, [levels(1, 9, 9, 3)[0]], "1 channel"),
    ],
    ids=["size", "channels", "too small", "crop channels"],
)
def test_images_that_do_not_fit_are_refused(tmp_path, config, images, message):
    with pytest.raises(FlowmendError, match=message):
        match(images, VALIDATION, tmp_path, config, RECIPE)
    with pytest.raises(FlowmendError, match=message):
        match(IMAGES, images, tmp_path, config, RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_existing_run_and_other_settings_are_refused(tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path, progress=interrupt_at(4))
    with pytest.raises(FlowmendError, match="add --resume"):
        start(tmp_path)
    for changes, message in (
        ({"recipe": dataclasses.replace(RECIPE, epochs=9)}, r"\(recipe\)"),
        ({"recipe": dataclasses.replace(RECIPE, minutes=5.0)}, r"\(recipe\)"),
        ({"seed": 1}, r"\(seed\)"),
        ({"case": "crops"}, "belongs to another configuration"),
    ):
        with pytest.raises(FlowmendError, match=message):
            start(tmp_path, resume=True, **changes)
    with pytest.raises(FlowmendError, match="no run to resume"):
        start(tmp_path / "nowhere", resume=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_keep_their_size(photographs, channels):
    config = dataclasses.replace(CROPS, channels=channels)
    images, problems = data.load_photographs(photographs, config)
    sizes = [(9, 20), (16, 8), (30, 31), (8, 8), (12, 9)]
    assert [tuple(image.shape) for image in images] == [(channels, *size) for size in sizes]
    assert all(image.dtype == torch.uint8 for image in images)
    assert len(problems) == 1
    assert "5.png" in problems[0]
    assert "40 x 7 pixels, smaller than crops of 8 x 8: choose a smaller crop" in problems[0]
    wanted = np.array(Image.open(photographs / "2.png").convert("L" if channels == 1 else "RGB"))
    found = images[2].permute(1, 2, 0).numpy()
    assert np.array_equal(found[..., 0] if channels == 1 else found, wanted)


def test_large_photographs_are_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGEST_KEPT", 200)
    save_png(tmp_path / "a.png", smooth_images(1, 3, 40, 20)[0])
    save_png(tmp_path / "b.png", torch.full((3, 20, 20), 100 / 255))
    images, problems = data.load_photographs(tmp_path, dataclasses.replace(CROPS, channels=3))
    assert [tuple(image.shape) for image in images] == [(3, 20, 10), (3, 14, 14)]
    assert bool((images[1] == 100).all())
    assert problems == []


def test_folder_of_small_pictures_is_refused(photographs):
    with pytest.raises(FlowmendError, match=r"No picture.*smaller than crops of 64 x 64"):
        data.load_photographs(photographs, dataclasses.replace(CROPS, crop=64))
    with pytest.raises(FlowmendError, match="is not a folder"):
        data.load_photographs(photographs / "0.png", CROPS)


def test_list_is_held_out_like_a_tensor():
    images = torch.arange(60).reshape(60, 1, 1, 1)
    for found, wanted in zip(
        data.hold_out(list(images), seed=3), data.hold_out(images, seed=3), strict=True
    ):
        assert isinstance(found, list)
        assert torch.equal(torch.stack(found), wanted)


def test_pictures_are_scored_as_they_were_trained(photographs):
    picture = read_picture(photographs / "2.png")
    x = data.as_trained(picture, dataclasses.replace(CROPS, channels=3))
    assert torch.equal(x, read_image(photographs / "2.png")[:, 11:19, 11:19])
    for config in (
        VelocityConfig(size=(8, 8)),
        FlowConfig(height=8, width=8, steps=(1,), split=(False,)),
    ):
        resized = data.as_trained(picture, config)
        assert resized.shape == (3, 8, 8)
        assert not torch.equal(resized, x)
    with pytest.raises(FlowmendError, match="smaller than crops"):
        data.as_trained(picture, VelocityConfig(crop=64))
