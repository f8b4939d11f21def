"""A folder of pictures as training images."""

import numpy as np
import pytest
import torch
from file_cases import colours
from PIL import Image

from flowmend.data import hold_out, load_folder
from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig

# Folders as training images.
CONFIG = FlowConfig(height=8, width=16, channels=1, steps=(1,), split=(False,))


def test_folder_becomes_training_images(tmp_path):
    for index, shape in enumerate([(8, 16), (40, 20), (9, 90)]):
        (tmp_path / f"{index}").mkdir()
        Image.fromarray(colours(*shape)).save(tmp_path / f"{index}" / "photo.png")
    told = []
    images, problems = load_folder(tmp_path, CONFIG, lambda *values: told.append(values))
    assert images.shape == (3, 1, 8, 16)
    assert images.dtype == torch.uint8
    assert problems == []
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    wanted = np.array(Image.fromarray(colours(8, 16)).convert("L"))
    assert np.array_equal(images[0, 0].numpy(), wanted)


def test_unusable_pictures_are_told_and_left_out(tmp_path):
    Image.fromarray(colours(8, 16)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    (tmp_path / "c.jpg").write_bytes(b"")
    Image.new("L", (2_000_000, 1)).save(tmp_path / "d.png")
    images, problems = load_folder(tmp_path, FlowConfig(height=128, width=128, channels=1))
    assert len(images) == 1
    assert len(problems) == 3
    for problem, name in zip(problems, ("b.png", "c.jpg", "d.png"), strict=True):
        assert name in problem


def test_folder_without_usable_pictures_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(FlowmendError, match=r"No picture in .*a\.png' is not a picture"):
        load_folder(tmp_path, CONFIG)


def test_file_and_missing_folder_are_no_training_folder(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    for path in (tmp_path / "a.png", tmp_path / "gone"):
        with pytest.raises(FlowmendError, match="is not a folder"):
            load_folder(path, CONFIG)


@pytest.mark.parametrize(
    ("count", "held"), [(2, 1), (19, 1), (40, 2), (1000, 50), (10_240, 512), (30_000, 512)]
)
def test_a_twentieth_is_held_out(count, held):
    images = torch.arange(count).reshape(count, 1, 1, 1)
    training, validation = hold_out(images, seed=0)
    assert (len(training), len(validation)) == (count - held, held)
    together = torch.cat([training, validation]).flatten()
    assert torch.equal(together.sort()[0], torch.arange(count))


def test_held_out_images_depend_on_the_seed_alone():
    images = torch.arange(200).reshape(200, 1, 1, 1)
    first, again, other = (hold_out(images, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_image_is_too_few_to_hold_out():
    with pytest.raises(FlowmendError, match="at least two"):
        hold_out(torch.zeros(1, 1, 2, 2), seed=0)
