"""What must survive a restoration: 16 bits, transparency, colour profile, the camera's notes."""

import numpy as np
import png
import pytest
import tifffile
import torch
from photograph_cases import any_size_prior, run
from PIL import Image, ImageCms

import flowmend as fm
from flowmend.originals import Original, read_original, save_like

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def levels(height, width, channels, top=65535, seed=0):
    return np.random.default_rng(seed).integers(0, top + 1, (height, width, channels))


def write_deep(path, values):
    height, width, channels = values.shape
    writer = png.Writer(
        width, height, bitdepth=16, greyscale=channels < 3, alpha=channels in (2, 4)
    )
    with path.open("wb") as file:
        writer.write(file, values.reshape(height, -1).astype(np.uint16))
    return path


def read_deep(path):
    width, height, rows, about = png.Reader(filename=str(path)).read()
    assert about["bitdepth"] == 16
    return np.vstack([np.asarray(row) for row in rows]).reshape(height, width, about["planes"])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_come_back_as_they_were(tmp_path, channels):
    values = levels(5, 7, channels)
    original = read_original(write_deep(tmp_path / "a.png", values))
    assert original.deep
    assert original.values.shape == (3 if channels > 2 else 1, 5, 7)
    assert (original.alpha is not None) == (channels in (2, 4))
    save_like(tmp_path / "b.png", original.values, original)
    assert np.array_equal(read_deep(tmp_path / "b.png"), values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_deep_tiff_becomes_a_deep_png(tmp_path, channels, planar):
    values = levels(5, 7, channels).astype(np.uint16)
    stored = values.transpose(2, 0, 1) if planar == "separate" and channels == 3 else values
    kind = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored[..., 0] if channels == 1 else stored,
        photometric=kind,
        planarconfig=planar if channels == 3 else None,
    )
    original = read_original(tmp_path / "a.tif")
    assert original.deep
    save_like(tmp_path / "b.png", original.values, original)
    assert np.array_equal(read_deep(tmp_path / "b.png"), values)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_a_turned_picture_is_set_upright(tmp_path, turn, deep):
    from PIL import ImageOps

    values = levels(4, 6, 3, 255, seed=turn).astype(np.uint8)
    picture = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x010F] = "a camera"
    picture.save(tmp_path / "a.png", exif=exif.tobytes())
    with Image.open(tmp_path / "a.png") as stored:
        wanted = np.array(ImageOps.exif_transpose(stored))
    path = tmp_path / "a.png"
    if deep:
        write_deep(tmp_path / "plain.png", values.astype(np.uint16) * 257)
        chunks = list(png.Reader(filename=str(tmp_path / "plain.png")).chunks())
        chunks.insert(1, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
        with path.open("wb") as file:
            png.write_chunks(file, chunks)
    original = read_original(path)
    found = (original.values * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(found, wanted)
    save_like(tmp_path / "b.png", original.values, original)
    with Image.open(tmp_path / "b.png") as after:
        notes = after.getexif()
        assert after.size == (wanted.shape[1], wanted.shape[0])
    assert notes[0x0112] == 1
    assert notes[0x010F] == "a camera"


@pytest.mark.parametrize("deep", [False, True])
def test_the_colour_profile_survives(tmp_path, deep):
    original = Original(torch.rand(3, 4, 5), None, deep, PROFILE, None)
    save_like(tmp_path / "a.png", original.values, original)
    assert read_original(tmp_path / "a.png").profile == PROFILE
    Image.fromarray(levels(4, 5, 3, 255).astype(np.uint8)).save(
        tmp_path / "a.jpg", icc_profile=PROFILE
    )
    assert read_original(tmp_path / "a.jpg").profile == PROFILE


def test_a_picture_that_gains_colours_loses_its_grey_profile(tmp_path):
    original = Original(torch.rand(1, 4, 5), None, False, PROFILE, None)
    save_like(tmp_path / "a.png", torch.rand(3, 4, 5), original)
    assert read_original(tmp_path / "a.png").profile is None


def test_transparency_is_passed_through_and_resized(tmp_path):
    values = levels(4, 6, 4, 255).astype(np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
    original = read_original(tmp_path / "a.png")
    save_like(tmp_path / "b.png", original.values, original)
    assert np.array_equal(np.array(Image.open(tmp_path / "b.png")), values)
    save_like(tmp_path / "c.png", torch.rand(3, 8, 12), original)
    large = np.array(Image.open(tmp_path / "c.png"))
    assert large.shape == (8, 12, 4)
    assert abs(float(large[..., 3].mean()) - float(values[..., 3].mean())) < 8


def test_what_cannot_be_used_says_why(tmp_path):
    pages = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for name in ("a.gif", "a.tif"):
        with pytest.raises(fm.FlowmendError, match="holds 2 pictures"):
            read_original(tmp_path / name)
    whole = write_deep(tmp_path / "whole.png", levels(9, 9, 3)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(fm.FlowmendError, match="damaged"):
        read_original(tmp_path / "cut.png")
    (tmp_path / "no.png").write_bytes(b"nothing")
    with pytest.raises(fm.FlowmendError, match="not a picture"):
        read_original(tmp_path / "no.png")


def test_a_deep_picture_is_restored_as_one(tmp_path):
    weights = fm.save(tmp_path / "any.safetensors", any_size_prior())
    write_deep(tmp_path / "a.png", levels(24, 30, 4))
    code = run(
        *("restore", tmp_path / "a.png", "-t", "denoise", "--sigma", 0.05, "--prior", weights),
        *("-o", tmp_path / "out", "--device", "cpu"),
    )
    assert code == 0
    after = read_deep(tmp_path / "out" / "a.png")
    assert after.shape == (24, 30, 4)
    assert np.array_equal(after[..., 3], levels(24, 30, 4)[..., 3])
    assert len(np.unique(after[..., 0])) > 300  # more than 8 bits hold
