"""Damaged, hostile and gigantic pictures."""

import struct
import time
import zlib

import numpy as np
import pytest
from file_cases import colours
from PIL import Image

from flowmend.errors import FlowmendError
from flowmend.files import LARGEST_PIXELS, read_image


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
