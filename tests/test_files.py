"""Reading pictures of every kind, good and damaged, and writing results that are never half
there; folders as training images."""

import errno
import os
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowmend.data import hold_out, load_folder
from flowmend.errors import FlowmendError
from flowmend.files import (
    LARGEST_PIXELS,
    PICTURES,
    atomic_path,
    find_pictures,
    read_image,
    resize_and_crop,
    save_array,
    save_image,
)
from flowmend.flow import FlowConfig
from flowmend.pixels import grid, to_bytes


def colours(height=6, width=5, seed=0):
    """A smooth RGB picture, uint8 (H, W, 3)."""
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([40 * rows, 40 * columns, 20 * (rows + columns)], -1) + 10 * seed
    return (base % 256).astype(np.uint8)


def greys(height=6, width=5):
    return colours(height, width)[..., 2]


def levels(path):
    """The picture as the library reads it, uint8 (C, H, W)."""
    return to_bytes(read_image(path)).numpy()


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


# Files that are no pictures.


def test_text_named_as_a_picture_is_refused(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    with pytest.raises(FlowmendError, match=r"notes\.png' is not a picture"):
        read_image(path)


def test_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.jpg"
    path.write_bytes(b"")
    with pytest.raises(FlowmendError, match=r"empty\.jpg' is not a picture"):
        read_image(path)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_truncated_picture_is_refused(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut{ending}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FlowmendError, match=r"cut\."):
        read_image(path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of broken metadata
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_damaged_picture_is_read_or_refused(tmp_path, ending):
    """Whatever bytes change, nothing but FlowmendError comes out."""
    generator = np.random.default_rng(1)
    path = tmp_path / f"picture{ending}"
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if ending == ".bmp" else {"exif": exif.tobytes()}
    Image.fromarray(colours(12, 12)).save(path, **options)
    good = path.read_bytes()
    refusals = []
    for _ in range(60):
        data = bytearray(good)
        for place in generator.integers(0, min(len(data), 120), 3):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            image = read_image(path)
        except FlowmendError as error:
            refusals.append(str(error))
        else:
            assert image.shape[0] in (1, 3)
            assert 0.0 <= image.min() <= image.max() <= 1.0
    assert refusals
    assert all(str(path) in refusal for refusal in refusals)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(FlowmendError, match="Cannot read"):
            read_image(path)


def png_header(width, height):
    """The smallest PNG that claims a size."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("size", [(30000, 30000), (2_000_000_000, 1), (20000, 10001)], ids=str)
def test_gigantic_picture_is_refused_before_it_is_read(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    begun = time.monotonic()
    with pytest.raises(FlowmendError, match=r"bomb\.png.*pixels"):
        read_image(path)
    assert time.monotonic() - begun < 5


def test_picture_just_below_the_limit_is_not_called_too_large(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png_header(LARGEST_PIXELS // 10_000, 10_000))
    with pytest.raises(FlowmendError, match="damaged"):
        read_image(path)


def test_size_warning_of_pillow_stays_silent(tmp_path, recwarn):
    path = tmp_path / "large.png"
    path.write_bytes(png_header(10_000, 10_000))
    with pytest.raises(FlowmendError, match="damaged"):
        read_image(path)
    assert [str(warning.message) for warning in recwarn] == []


# Arrays.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_array_is_read_as_it_is(tmp_path, dtype):
    values = np.linspace(-0.25, 1.25, 24).reshape(2, 3, 4).astype(dtype)
    np.save(tmp_path / "values.npy", values)
    found = read_image(tmp_path / "values.npy")
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), values.astype(np.float32))


def test_array_stored_by_columns_is_read_the_same(tmp_path):
    values = np.asfortranarray(np.random.default_rng(0).random((3, 4, 5), np.float32))
    np.save(tmp_path / "values.npy", values)
    assert np.array_equal(read_image(tmp_path / "values.npy").numpy(), values)


def test_saved_array_comes_back_exactly(tmp_path):
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    path = save_array(tmp_path / "deep" / "values.npy", values)
    assert torch.equal(read_image(path), values.detach())
    assert [item.name for item in path.parent.iterdir()] == ["values.npy"]


ARRAYS = {
    "nan": (np.array([0.5, np.nan]), "NaN"),
    "inf": (np.array([0.5, np.inf], np.float32), "infinite"),
    "minus inf": (np.array([-np.inf, 0.5], np.float16), "infinite"),
    "too large for float32": (np.array([1e300, 0.5]), "infinite"),
    "object": (np.array([{}, 1], dtype=object), "no plain array"),
    "complex": (np.array([1j]), "no real numbers"),
    "text": (np.array(["a"]), "no real numbers"),
    "records": (np.zeros(2, [("a", "f4")]), "no real numbers"),
    "integer": (np.arange(4), "floating-point.*int64"),
    "bytes": (np.arange(4, dtype=np.uint8), "floating-point.*uint8"),
    "bool": (np.array([True]), "floating-point.*bool"),
    "empty": (np.zeros((0, 3, 4), np.float32), "empty"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ARRAYS)
def test_unsuitable_array_is_refused(tmp_path, name):
    values, message = ARRAYS[name]
    path = tmp_path / "values.npy"
    np.save(path, values, allow_pickle=True)
    with pytest.raises(FlowmendError, match=rf"values\.npy.*{message}"):
        read_image(path)


def damaged_arrays():
    good = b"\x93NUMPY\x01\x00v\x00"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
    huge = header.replace(b"(2,)", b"(2000000000, 2000000)")
    whole = good + header.ljust(117) + b"\n" + bytes(8)
    return {
        "empty": b"",
        "text": b"0.5 0.25\n",
        "cut in the header": whole[:40],
        "cut in the data": whole[:-3],
        "open bracket": whole.replace(b"(2,)", b"(2, "),
        "no dictionary": whole.replace(b"{", b"["),
        "huge shape": good + huge.ljust(117) + b"\n" + bytes(8),
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle": b"\x80\x04K\x01.",
    }


@pytest.mark.parametrize("name", damaged_arrays())
def test_damaged_array_is_refused(tmp_path, name):
    path = tmp_path / "values.npy"
    path.write_bytes(damaged_arrays()[name])
    with pytest.raises(FlowmendError, match=r"values\.npy"):
        read_image(path)


def test_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "values.npz", a=np.zeros(3))
    os.replace(tmp_path / "values.npz", tmp_path / "values.npy")
    with pytest.raises(FlowmendError, match=r"values\.npy"):
        read_image(tmp_path / "values.npy")


def test_missing_array_is_refused(tmp_path):
    with pytest.raises(FlowmendError, match=r"gone\.npy"):
        read_image(tmp_path / "gone.npy")


# Finding pictures.


def make(folder, *names):
    """Empty files: finding does not open them."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_pictures_are_found_at_any_depth_in_order(tmp_path):
    wanted = make(tmp_path, "a.png", "b/a.JPG", "b/c/z.webp", "d.tiff")
    make(tmp_path, "notes.txt", "b/list.csv", "png", "e.gif.part")
    assert find_pictures([tmp_path]) == wanted
    assert find_pictures([str(tmp_path)]) == wanted


def test_every_known_ending_is_found(tmp_path):
    wanted = make(tmp_path, *sorted(f"picture{ending}" for ending in PICTURES))
    assert find_pictures([tmp_path]) == wanted


def test_hidden_files_are_passed_over(tmp_path):
    wanted = make(tmp_path, "a.png")
    make(tmp_path, ".b.png", "._a.png", ".c.png.x.part")
    assert find_pictures([tmp_path]) == wanted


def test_folder_named_like_a_picture_is_no_picture(tmp_path):
    wanted = make(tmp_path, "album.png/a.png")
    assert find_pictures([tmp_path]) == wanted


def test_named_files_are_taken_whatever_their_ending(tmp_path):
    named = make(tmp_path, "photo.dat", ".hidden.png")
    assert find_pictures(named) == named


def test_nothing_is_listed_twice(tmp_path):
    first, second = make(tmp_path, "a.png", "b.png")
    assert find_pictures([second, tmp_path, tmp_path]) == [second, first]


def test_missing_input_is_refused(tmp_path):
    good = make(tmp_path, "a.png")
    with pytest.raises(FlowmendError, match=r"gone\.png' does not exist"):
        find_pictures([*good, tmp_path / "gone.png"])


def test_folder_without_pictures_is_refused(tmp_path):
    make(tmp_path, "notes.txt", ".hidden.png", "values.npy")
    with pytest.raises(FlowmendError, match=r"holds no pictures \(\.png .*\.bmp\)"):
        find_pictures([tmp_path])


def test_arrays_are_found_when_asked_for(tmp_path):
    picture, array = make(tmp_path, "a.png", "b.npy")
    assert find_pictures([tmp_path]) == [picture]
    assert find_pictures([tmp_path], arrays=True) == [picture, array]


def test_array_stands_for_the_picture_beside_it(tmp_path):
    array, _, other, deep = make(tmp_path, "a.npy", "a.png", "b.png", "c/a.png")
    assert find_pictures([tmp_path], arrays=True) == [array, other, deep]
    assert find_pictures([tmp_path]) == [tmp_path / "a.png", other, deep]


def test_array_with_a_capital_ending_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.full((1, 2, 2), 0.5, np.float32))
    os.replace(tmp_path / "a.npy", tmp_path / "a.NPY")
    (found,) = find_pictures([tmp_path], arrays=True)
    assert read_image(found).tolist() == [[[0.5, 0.5], [0.5, 0.5]]]


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


# Writing.


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_image_comes_back(tmp_path, channels):
    values = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0))
    path = save_image(tmp_path / "new" / "folder" / "image.png", values.requires_grad_())
    assert torch.equal(to_bytes(read_image(path)), to_bytes(values))
    assert [item.name for item in path.parent.iterdir()] == ["image.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == ("L" if channels == 1 else "RGB")


def test_saved_image_clamps_values(tmp_path):
    path = save_image(tmp_path / "image.png", torch.tensor([[[-1.0, 0.5, 2.0]]]))
    assert levels(path).tolist() == [[[0, 128, 255]]]


def test_saved_file_has_ordinary_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        path = save_image(tmp_path / "image.png", torch.zeros(1, 2, 2))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def break_writing(monkeypatch, error):
    """Every writer writes something and then fails."""

    def fail_image(self, path, format=None):
        path.write_bytes(b"half a picture")
        raise error

    def fail_array(file, values):
        file.write(b"half an array")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail_image)
    monkeypatch.setattr(np, "save", fail_array)


@pytest.mark.parametrize("save", [save_image, save_array])
def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, save):
    break_writing(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(FlowmendError, match=r"Cannot write '.*result': No space left on device"):
        save(tmp_path / "result", torch.zeros(1, 2, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [save_image, save_array])
def test_failed_write_keeps_the_older_file(tmp_path, monkeypatch, save):
    path = save(tmp_path / "result", torch.zeros(1, 2, 2))
    before = path.read_bytes()
    break_writing(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(FlowmendError):
        save(path, torch.ones(1, 2, 2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("save", [save_image, save_array])
def test_interruption_while_writing_leaves_nothing_behind(tmp_path, monkeypatch, save):
    break_writing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "result", torch.zeros(1, 2, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [save_image, save_array])
def test_place_that_cannot_be_written_is_one_sentence(tmp_path, save):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "result", tmp_path / "file" / "deep" / "result"):
        with pytest.raises(FlowmendError, match=r"Cannot write '.*result': "):
            save(path, torch.zeros(1, 2, 2))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FlowmendError, match=r"Cannot write '.*folder'"):
        save(tmp_path / "folder", torch.zeros(1, 2, 2))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]


def test_atomic_path_shows_the_file_only_when_all_went_well(tmp_path):
    path = tmp_path / "result.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
    assert path.read_text() == "done"
    assert list(tmp_path.iterdir()) == [path]


# Sheets.


def test_grid_places_images_row_by_row():
    images = torch.stack([torch.full((1, 2, 3), 0.1 * index) for index in range(5)])
    sheet = grid(images, columns=3, gap=1)
    assert sheet.shape == (1, 2 * 3 + 1, 3 * 4 + 1)
    wanted = torch.ones(7, 13)
    for index in range(5):
        top, left = 1 + 3 * (index // 3), 1 + 4 * (index % 3)
        wanted[top : top + 2, left : left + 3] = 0.1 * index
    assert torch.equal(sheet[0], wanted)


def test_grid_enlarges_and_clamps():
    images = torch.tensor([[[[-1.0, 2.0]]], [[[0.25, 0.5]]]])
    sheet = grid(images, columns=2, gap=0, scale=2)
    assert sheet.tolist() == [[[0.0, 0.0, 1.0, 1.0, 0.25, 0.25, 0.5, 0.5]] * 2]


def test_grid_of_colour_images_without_gap_is_their_row():
    images = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grid(images, columns=3, gap=0), torch.cat(list(images), -1))
    assert grid(images, columns=8).shape == (3, 8, 58)


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
