"""Reading pictures of every kind."""

import numpy as np
import pytest
import torch
from file_cases import colours, greys, levels
from PIL import Image

from flowmend.errors import FlowmendError
from flowmend.files import read_image


# Every kind of picture.
@pytest.mark.parametrize("ending", [".png", ".tif", ".tiff", ".bmp"])
def test_lossless_colour_is_read_exactly(tmp_path, ending):
    path = tmp_path / f"picture{ending}"
    Image.fromarray(colours()).save(path)
    image = read_image(path)
    assert image.shape == (3, 6, 5)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert np.array_equal(levels(path), colours().transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("ending", "options"), [(".jpg", {"quality": 95}), (".webp", {"quality": 95})]
)
def test_lossy_colour_is_read_closely(tmp_path, ending, options):
    smooth = np.array(Image.fromarray(colours(4, 4)).resize((64, 64), Image.Resampling.BICUBIC))
    path = tmp_path / f"picture{ending}"
    Image.fromarray(smooth).save(path, **options)
    error = levels(path).astype(float) - smooth.transpose(2, 0, 1)
    assert np.abs(error).mean() < 5


def test_lossless_webp_is_read_exactly(tmp_path):
    path = tmp_path / "picture.webp"
    Image.fromarray(colours()).save(path, lossless=True)
    assert np.array_equal(levels(path), colours().transpose(2, 0, 1))


def test_grey_stays_grey(tmp_path):
    path = tmp_path / "grey.png"
    Image.fromarray(greys()).save(path)
    assert np.array_equal(levels(path), greys()[None])


def test_black_and_white_becomes_grey(tmp_path):
    path = tmp_path / "bits.png"
    bits = greys() > 60
    Image.fromarray(bits).save(path)
    with Image.open(path) as picture:
        assert picture.mode == "1"
    assert np.array_equal(levels(path), 255 * bits[None])


def test_transparent_parts_are_put_on_white(tmp_path):
    path = tmp_path / "rgba.png"
    alpha = np.full((6, 5, 1), 255, np.uint8)
    alpha[0, 0], alpha[1, 1] = 0, 128
    Image.fromarray(np.concatenate([colours(), alpha], -1), "RGBA").save(path)
    found = levels(path).transpose(1, 2, 0)
    wanted = colours().astype(float)
    wanted[0, 0] = 255
    wanted[1, 1] = wanted[1, 1] * 128 / 255 + 127
    assert found.shape == (6, 5, 3)
    assert np.abs(found - wanted).max() <= 1


def test_transparent_grey_is_put_on_white(tmp_path):
    path = tmp_path / "la.png"
    alpha = np.full((6, 5), 255, np.uint8)
    alpha[2, 3] = 0
    Image.fromarray(np.stack([greys(), alpha], -1), "LA").save(path)
    wanted = greys().copy()
    wanted[2, 3] = 255
    found = levels(path)
    assert found.shape[1:] == (6, 5)
    assert all(np.array_equal(channel, wanted) for channel in found)


def indexed():
    picture = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5) % 3, "P")
    picture.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0])
    return picture


PALETTE = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 0]], np.uint8)


def test_palette_becomes_colour(tmp_path):
    path = tmp_path / "palette.png"
    indexed().save(path)
    wanted = PALETTE[np.arange(30).reshape(6, 5) % 3]
    assert np.array_equal(levels(path), wanted.transpose(2, 0, 1))


def test_transparent_palette_entry_is_put_on_white(tmp_path):
    path = tmp_path / "palette.png"
    indexed().save(path, transparency=1)
    table = PALETTE.copy()
    table[1] = 255
    wanted = table[np.arange(30).reshape(6, 5) % 3]
    assert np.array_equal(levels(path), wanted.transpose(2, 0, 1))


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, ending):
    values = np.array([[0, 128, 257], [32768, 65278, 65535]], np.uint16)
    path = tmp_path / f"deep{ending}"
    Image.fromarray(values).save(path)
    with Image.open(path) as picture:
        assert picture.mode == "I;16"
    assert levels(path).tolist() == [[[0, 0, 1], [128, 254, 255]]]


def test_dark_sixteen_bit_picture_stays_dark(tmp_path):
    path = tmp_path / "dark.png"
    Image.fromarray(np.full((2, 2), 200, np.uint16)).save(path)
    assert levels(path).max() == 1


def test_big_endian_sixteen_bit_tiff(tmp_path):
    path = tmp_path / "deep.tif"
    picture = Image.frombytes("I;16B", (2, 1), b"\x80\x00\xff\xff")
    picture.save(path)
    assert levels(path).tolist() == [[[128, 255]]]


def test_float_tiff_in_the_unit_range(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(path)
    assert levels(path).tolist() == [[[0, 128, 255]]]


def test_float_tiff_of_eight_bit_levels_keeps_its_brightness(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(np.array([[0.0, 100.0, 255.0]], np.float32)).save(path)
    assert levels(path).tolist() == [[[0, 100, 255]]]


def test_float_tiff_that_is_not_finite_is_refused(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(path)
    with pytest.raises(FlowmendError, match="not finite"):
        read_image(path)


def test_cmyk_jpeg_becomes_colour(tmp_path):
    path = tmp_path / "print.jpg"
    plain = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    Image.fromarray(plain).convert("CMYK").save(path, quality=95)
    with Image.open(path) as picture:
        assert picture.mode == "CMYK"
    found = levels(path)
    assert found.shape == (3, 16, 16)
    assert np.abs(found.mean((1, 2)) - (200, 60, 30)).max() < 5


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (6, lambda x: np.rot90(x, -1)),
        (8, lambda x: np.rot90(x, 1)),
    ],
    ids=["upright", "mirrored", "upside down", "on its left", "on its right"],
)
def test_picture_is_turned_as_its_exif_says(tmp_path, ending, orientation, upright):
    stored = np.full((16, 32, 3), 40, np.uint8)
    stored[:8, :8] = 220
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{ending}"
    options = {"lossless": True} if ending == ".webp" else {}
    Image.fromarray(stored).save(path, exif=exif.tobytes(), **options)
    found = levels(path).transpose(1, 2, 0)
    wanted = upright(stored)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(float) - wanted).mean() < 10


def test_single_pixel(tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (1, 1), (1, 2, 3)).save(path)
    assert levels(path).tolist() == [[[1]], [[2]], [[3]]]


def test_first_frame_of_an_animation(tmp_path):
    path = tmp_path / "moving.webp"
    frames = [Image.new("RGB", (4, 4), (level,) * 3) for level in (30, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert (levels(path) == 30).all()


def test_ending_does_not_matter_for_a_named_file(tmp_path):
    path = tmp_path / "photo.dat"
    Image.fromarray(colours()).save(path, format="PNG")
    assert read_image(path).shape == (3, 6, 5)
    assert read_image(str(path)).shape == (3, 6, 5)
