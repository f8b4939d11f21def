"""Resizing, cropping and the channels of pictures."""

import numpy as np
import pytest
from file_cases import colours, greys
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowmend.errors import FlowmendError
from flowmend.files import resize_and_crop
from flowmend.pixels import to_bytes


# The paper's rule for sizes.
def paper_rule(picture, size):
    """Shorter side to ``size``, longer in proportion (cut off), centre crop: as torchvision."""
    short, long = sorted(picture.size)
    other = int(size * long / short)
    wide = picture.width >= picture.height
    shape = (other, size) if wide else (size, other)
    resized = np.array(picture.resize(shape, Image.Resampling.BILINEAR))
    top = round((resized.shape[0] - size) / 2.0)
    left = round((resized.shape[1] - size) / 2.0)
    return resized[top : top + size, left : left + size]


SIZES = [(89, 109), (109, 89), (178, 218), (32, 32), (33, 32), (7, 9), (500, 33), (49, 98)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_and_crop_as_the_paper(shape, channels):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    found = resize_and_crop(picture, 32, 32, channels)
    wanted = paper_rule(picture if channels == 3 else picture.convert("L"), 32)
    wanted = wanted if channels == 3 else wanted[..., None]
    assert found.shape == (channels, 32, 32)
    assert np.array_equal(to_bytes(found).numpy(), wanted.transpose(2, 0, 1))


@given(st.integers(1, 120), st.integers(1, 120), st.sampled_from([8, 16, 32]))
@settings(deadline=None, max_examples=60)
def test_resize_and_crop_of_any_shape(height, width, size):
    rows, columns = np.mgrid[0:height, 0:width]
    picture = Image.fromarray(((rows * 37 + columns * 59) % 256).astype(np.uint8))
    found = to_bytes(resize_and_crop(picture, size, size, 1)).numpy()
    assert np.array_equal(found[0], paper_rule(picture, size))


def test_resize_and_crop_leaves_a_picture_of_the_right_size_alone():
    picture = Image.fromarray(colours(8, 8))
    found = to_bytes(resize_and_crop(picture, 8, 8)).numpy()
    assert np.array_equal(found, colours(8, 8).transpose(2, 0, 1))


def test_resize_and_crop_keeps_the_centre():
    values = np.zeros((30, 90), np.uint8)
    values[:, 30:60] = 200
    found = to_bytes(resize_and_crop(Image.fromarray(values), 30, 30, 1))
    assert (found == 200).all()


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 8), (8, 40), (5, 7)])
def test_resize_and_crop_to_a_shape_that_is_not_square(height, width):
    for shape in ((20, 20), (10, 50), (50, 10), (3, 2)):
        plain = Image.new("RGB", shape, (10, 20, 30))
        found = to_bytes(resize_and_crop(plain, height, width))
        assert found.shape == (3, height, width)
        assert found[:, 0, 0].tolist() == found[:, -1, -1].tolist() == [10, 20, 30]


def test_grey_and_colour_are_turned_into_each_other():
    grey = Image.fromarray(greys(8, 8))
    found = to_bytes(resize_and_crop(grey, 8, 8, 3)).numpy()
    assert all(np.array_equal(channel, greys(8, 8)) for channel in found)
    assert resize_and_crop(Image.fromarray(colours(8, 8)), 8, 8, 1).shape == (1, 8, 8)


def test_extremely_narrow_picture_is_refused_at_once():
    with pytest.raises(FlowmendError, match="too long and narrow"):
        resize_and_crop(Image.new("L", (1_000_000, 1)), 256, 256)
