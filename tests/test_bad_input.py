"""Bad files: one sentence, and the others are restored."""

import json
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from bad_cases import CLOSED, SHAPE, everything, images, sentences
from conftest import SIDE, leftovers, save_png
from PIL import Image

from flowmend.files import read_image

QUICK = ("--steps", 2, "--device", "cpu", "--precision", "float32")


# Files in the wrong form
def declared_png(path, width, height):
    """A PNG whose header declares a size that its few bytes do not hold."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def cut_short(path, kind):
    noise = torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    whole = path.with_name("whole")
    Image.fromarray((noise * 255).byte().numpy()).save(whole, kind, quality=95)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    whole.unlink()


def array(path, values):
    np.save(path, values, allow_pickle=values.dtype == object)


def spoiled(value):
    values = images(1)[0].numpy()
    values[1, 2, 3] = value
    return values


BAD_FILES = {
    "text.png": (lambda path: path.write_text("hello"), "not a picture"),
    "empty.png": (lambda path: path.write_bytes(b""), "not a picture"),
    "cut.jpg": (lambda path: cut_short(path, "JPEG"), "damaged"),
    "cut.png": (lambda path: cut_short(path, "PNG"), "damaged"),
    "pixel.png": (lambda path: save_png(path, torch.ones(3, 1, 1)), "1 x 1 pixels"),
    "turned.png": (lambda path: save_png(path, torch.ones(3, SIDE, 8)), "8 x 16 pixels"),
    "large.png": (lambda path: save_png(path, torch.ones(3, 40, 30)), "30 x 40 pixels"),
    "huge.png": (lambda path: declared_png(path, 30000, 30000), "too many pixels"),
    "hollow.png": (lambda path: declared_png(path, SIDE, SIDE), "damaged"),
    "nan.npy": (lambda path: array(path, spoiled(np.nan)), "NaN or infinite"),
    "inf.npy": (lambda path: array(path, spoiled(np.inf)), "NaN or infinite"),
    "object.npy": (lambda path: array(path, np.array([{}, 1])), "plain array"),
    "whole.npy": (lambda path: array(path, np.ones(SHAPE, dtype=np.int64)), "floating-point"),
    "bytes.npy": (lambda path: array(path, np.ones(SHAPE, dtype=np.uint8)), "floating-point"),
    "complex.npy": (lambda path: array(path, np.ones(SHAPE, dtype=complex)), "no real numbers"),
    "words.npy": (lambda path: array(path, np.array(["a", "b"])), "no real numbers"),
    "none.npy": (lambda path: array(path, np.ones((3, 0, 16))), "empty"),
    "small.npy": (lambda path: array(path, np.ones((3, 8, 8))), "8 x 8 pixels"),
    "line.npy": (lambda path: array(path, np.ones(SIDE)), "not an image"),
    "stack.npy": (lambda path: array(path, np.ones((2, *SHAPE))), "not an image"),
    "scalar.npy": (lambda path: array(path, np.array(0.5)), "not an image"),
    "pickle.npy": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "plain array"),
    "cut.npy": (
        lambda path: (array(path, np.ones(SHAPE)), os.truncate(path, 500)),
        "plain array",
    ),
    "text.npy": (lambda path: path.write_text("hello"), "plain array"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_and_the_others_are_restored(name, run, tiny_prior_path, tmp_path):
    make, phrase = BAD_FILES[name]
    folder, out, results = tmp_path / "in", tmp_path / "out", tmp_path / "results.json"
    for good, image in zip(("apple", "zebra"), images(2), strict=True):
        save_png(folder / f"{good}.png", image)
    make(folder / name)
    places = ("--out", out, "--json", results, "--prior", tiny_prior_path)
    outcome = run("restore", folder, "--task", "denoise", *places, *CLOSED)
    assert outcome.code == 1
    lines = sentences(outcome)
    about = [line for line in lines if str(folder / name) in line]
    assert len(about) == 1, outcome.err
    assert phrase in about[0]
    assert "2 of 3 restored" in lines[-1]
    assert len(lines) == 2
    records = {record["input"]: record for record in json.loads(results.read_text())["images"]}
    assert len(records) == 3
    bad = records.pop(str(folder / name))
    assert phrase in bad["status"]
    assert bad["output"] is None
    assert {record["status"] for record in records.values()} == {"restored"}
    assert {path.name for path in out.iterdir()} == {"apple.png", "zebra.png", "report.png"}
    assert leftovers(tmp_path) == []


def test_nothing_but_bad_files(run, tiny_prior_path, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    out = tmp_path / "out"
    outcome = run(
        "restore", tmp_path / "text.png", "-t", "denoise", "-o", out, "-p", tiny_prior_path, *QUICK
    )
    assert outcome.code == 1
    lines = sentences(outcome)
    assert sum("not a picture" in line for line in lines) == 1
    assert "0 of 1 restored" in lines[-1]
    assert not out.exists() or not everything(out)


@pytest.mark.parametrize("name", ["text.png", "cut.jpg", "huge.png", "nan.npy"])
def test_degrade_skips_bad_files(name, run, clean_folder, tmp_path):
    BAD_FILES[name][0](clean_folder / name)
    out = tmp_path / "out"
    inputs = [clean_folder, clean_folder / name] if name.endswith(".npy") else [clean_folder]
    outcome = run("degrade", *inputs, "-t", "deblur", "--size", SIDE, "-o", out)
    assert outcome.code == 1
    lines = sentences(outcome)
    assert [line for line in lines if name in line] == [
        line for line in lines if "skipped" in line
    ]
    assert sum(name in line for line in lines) == 1
    assert "3 of 4 pictures" in lines[-1]
    assert {path.name for path in (out / "reference").rglob("*.png")} == {
        "a.png",
        "b.png",
        "c.png",
    }
    assert not list(out.rglob(name.replace(".jpg", ".png")))
    assert leftovers(tmp_path) == []


def test_score_skips_bad_files(run, clean_folder, tiny_prior_path):
    (clean_folder / "text.png").write_text("hello")
    outcome = run("score", tiny_prior_path, clean_folder)
    assert outcome.code == 1
    assert len(sentences(outcome)) == 1
    assert "text.png" in outcome.err
    assert "mean of 3" in outcome.out


def test_score_of_nothing_but_bad_files(run, tmp_path, tiny_prior_path):
    (tmp_path / "text.png").write_text("hello")
    outcome = run("score", tiny_prior_path, tmp_path)
    assert outcome.code == 1
    assert len(sentences(outcome)) == 1
    assert outcome.out == ""


def test_train_skips_bad_files(run, clean_folder, tmp_path):
    (clean_folder / "text.png").write_text("hello")
    cut_short(clean_folder / "cut.jpg", "JPEG")
    options = ("--size", 8, "--steps", 1, "--hidden", 2, "--epochs", 1, "--device", "cpu")
    outcome = run("train", clean_folder, "--out", tmp_path / "prior", *options)
    assert outcome.code == 0, outcome.err
    skipped = [line for line in sentences(outcome) if line.startswith("skipped")]
    assert len(skipped) == 2
    assert "2 training and 1 held-out" in outcome.err


# Files in an unusual form that are fine
LEVELS = (images(1)[0] * 255).round().byte().permute(1, 2, 0).numpy()
RGB = Image.fromarray(LEVELS)
OPAQUE = np.concatenate([LEVELS, np.full((SIDE, SIDE, 1), 255, dtype=np.uint8)], axis=-1)
SIXTEEN_BIT = Image.fromarray(LEVELS[..., 0].astype(np.uint16) * 257)
UNUSUAL = {
    "alpha.png": (Image.fromarray(OPAQUE), RGB),
    "grey.png": (RGB.convert("L"), RGB.convert("L").convert("RGB")),
    "grey and alpha.png": (RGB.convert("L").convert("LA"), RGB.convert("L").convert("RGB")),
    "16 bit.png": (SIXTEEN_BIT, Image.fromarray(LEVELS[..., 0]).convert("RGB")),
    "16 bit.tif": (SIXTEEN_BIT, Image.fromarray(LEVELS[..., 0]).convert("RGB")),
    "cmyk.tif": (RGB.convert("CMYK"), RGB.convert("CMYK").convert("RGB")),
    "palette.png": (RGB.quantize(16), RGB.quantize(16).convert("RGB")),
    "one bit.png": (RGB.convert("1"), RGB.convert("1").convert("RGB")),
    "colour.bmp": (RGB, RGB),
    "colour.webp": (RGB, RGB),
    "UPPER.PNG": (RGB, RGB),
    "two.dots.png": (RGB, RGB),
    "ünïcödé.png": (RGB, RGB),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_restore(name, run, tiny_prior_path, tmp_path):
    picture, wanted = UNUSUAL[name]
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    picture.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    outcome = run("restore", folder, "-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED)
    assert outcome.code == 0, outcome.err
    with Image.open((out / name).with_suffix(".png")) as found:
        assert (found.mode, found.size) == ("RGB", (SIDE, SIDE))
        np.testing.assert_allclose(np.asarray(found, int), np.asarray(wanted, int), atol=1)


def test_transparent_pixels_become_white(run, tiny_prior_path, tmp_path):
    clear = OPAQUE.copy()
    clear[:8, :, 3] = 0
    Image.fromarray(clear).save(tmp_path / "y.png")
    out = tmp_path / "out"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED)
    assert run("restore", tmp_path / "y.png", *arguments).code == 0
    found = read_image(out / "y.png")
    assert bool((found[:, :8] == 1.0).all())
    assert float(found[:, 8:].max()) < 1.0


def test_arrays_may_be_stored_in_any_usual_form(run, tiny_prior_path, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    x = images(1)[0].numpy()
    forms = {"double": x, "half": x.astype(np.float16), "last": x.transpose(1, 2, 0), "flat": x[0]}
    for name, values in forms.items():
        np.save(folder / f"{name}.npy", values)
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED)
    assert run("restore", folder, *arguments).code == 0
    wanted = np.round(x * 255) / 255
    for name in ("double", "half", "last"):
        np.testing.assert_allclose(read_image(out / f"{name}.png"), wanted, atol=1.01 / 255)
    grey = read_image(out / "flat.png")
    np.testing.assert_allclose(grey, np.repeat(wanted[:1], 3, axis=0), atol=1e-6)
