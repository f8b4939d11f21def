"""Bad files and command lines: one sentence, an exit code, and nothing half-written."""

import errno
import functools
import json
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import SIDE, leftovers, save_png, smooth_images
from PIL import Image
from safetensors.torch import save_file

import flowmend as fm
from flowmend.files import read_image

SHAPE = (3, SIDE, SIDE)
QUICK = ("--steps", 2, "--device", "cpu", "--precision", "float32")
CLOSED = ("--method", "pinv", "--device", "cpu")


def images(count=3):
    return smooth_images(count, *SHAPE, seed=5)


def everything(folder):
    """Every file under a folder, with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sentences(outcome):
    """What was said on stderr, checked to be plain speech."""
    assert "Traceback" not in outcome.err, outcome.err
    assert "Error:" not in outcome.err, outcome.err
    return [line for line in outcome.err.splitlines() if line.strip()]


def check_one_message(outcome, phrase):
    """Exactly one sentence on stderr, and for wrong usage a hint where to read on."""
    lines = sentences(outcome)
    assert outcome.code in (1, 2), outcome.err
    if outcome.code == 2 and lines[-1].startswith("Try '"):
        lines.pop()
    if "training and" in lines[0]:  # train says how many pictures it has read
        lines.pop(0)
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("flowmend: ")
    assert outcome.code == 2 or lines[0].endswith((".", "?"))
    assert phrase in lines[0]


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


# Command lines that cannot work


@pytest.fixture
def place(tmp_path, tiny_prior_path):
    """A folder with everything that the bad command lines name; its files are ``name``."""
    folder = tmp_path / "place"
    for name, image in zip(("a", "b", "c"), images(), strict=True):
        save_png(folder / "in" / f"{name}.png", image)
    save_png(folder / "twin" / "a.png", images(1)[0])
    (folder / "in" / "deep").mkdir()
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("hello")
    (folder / "file").write_text("I am in the way")
    save_png(folder / "black.png", torch.zeros(1, SIDE, SIDE))
    save_png(folder / "small.png", torch.ones(1, 8, 8))
    np.save(folder / "zeros.npy", np.zeros((3, 3)))
    np.save(folder / "nan.npy", np.full((3, 3), np.nan))
    np.save(folder / "negative.npy", np.array([[1.0, -2.0]]))
    np.save(folder / "line.npy", np.ones(SIDE))
    (folder / "corrupt.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0" + b"x" * 50)
    (folder / "hollow.safetensors").write_bytes(b"")
    save_file({"weight": torch.ones(2)}, folder / "foreign.safetensors")
    content = tiny_prior_path.read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    torch.save({"weight": torch.ones(2)}, folder / "pickled.pt")
    (folder / "changed.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    card = tiny_prior_path.with_suffix(".json").read_text()
    (folder / "changed.json").write_text(card)
    (folder / "prior.safetensors").write_bytes(content)
    return folder


RESTORE = "restore in --out out --prior prior.safetensors"
DEGRADE = "degrade in --out out"
TRAIN = "train in --out out --size 8 --steps 1 --hidden 2 --epochs 1"
COMMANDS = {
    # restore
    "restore empty --task denoise --out out --prior prior.safetensors": "holds no pictures",
    "restore gone.png --task denoise --out out --prior prior.safetensors": "'gone.png' does not",
    "restore --task denoise --out out": "Missing argument",
    f"{RESTORE}": "Missing option",
    "restore in --task denoise --prior prior.safetensors": "Missing option",
    f"{RESTORE} --task denoize": "Did you mean denoise?",
    f"{RESTORE} --task denoise --method magic": "Unknown method 'magic'",
    f"{RESTORE} --task denoise --colour red": "No such option",
    f"{RESTORE} --task denoise --steps 0": "at least 1",
    f"{RESTORE} --task denoise --steps -3": "at least 1",
    f"{RESTORE} --task denoise --steps many": "valid integer",
    f"{RESTORE} --task denoise --method pinv --steps 5": "closed form",
    f"{RESTORE} --task denoise --sigma -0.1": "at least 0",
    f"{RESTORE} --task denoise --sigma nan": "at least 0",
    f"{RESTORE} --task denoise --sigma inf": "at least 0",
    f"{RESTORE} --task denoise --sigma loud": "--sigma",
    f"{RESTORE} --task denoise --sigma 0 --method map": "needs a noise level",
    f"{RESTORE} --task deblur --sigma 0.1 --method bm3d": "only denoises",
    f"{RESTORE} --task denoise --device warp": "device 'warp'",
    f"{RESTORE} --task denoise --device meta": "device 'meta'",
    f"{RESTORE} --task denoise --device hpu": "device 'hpu'",
    f"{RESTORE} --task denoise --precision float16": "Unknown precision",
    f"{RESTORE} --task denoise --start warm": "Unknown start 'warm'",
    f"{RESTORE} --task denoise --method lmmse --start zero": "closed form",
    f"{RESTORE} --task denoise --method pinv --weight 0.1": "closed form",
    f"{RESTORE} --task denoise --weight -1": "weight",
    f"{RESTORE} --task denoise --weight nan": "weight",
    f"{RESTORE} --task denoise --seed 99999999999999999999": "seed",
    f"{RESTORE} --task denoise --kernel box:3": "no option kernel",
    f"{RESTORE} --task deblur --mask center:0.4": "no option mask",
    f"{RESTORE} --task deblur --boundary mirror": "Unknown boundary",
    f"{RESTORE} --task deblur --kernel zeros.npy": "positive sum",
    f"{RESTORE} --task deblur --kernel nan.npy": "NaN or infinite",
    f"{RESTORE} --task deblur --kernel negative.npy": "positive sum",
    f"{RESTORE} --task deblur --kernel line.npy": "matrix",
    f"{RESTORE} --task deblur --kernel black.png": "positive sum",
    f"{RESTORE} --task deblur --kernel text.txt": "not a picture",
    f"{RESTORE} --task deblur --kernel gone.png": "gone.png",
    f"{RESTORE} --task deblur --kernel empty": "empty",
    f"{RESTORE} --task deblur --kernel box:17": "larger than the image",
    f"{RESTORE} --task deblur --kernel box:nan": "box",
    f"{RESTORE} --task deblur --kernel box:-1": "side of a box",
    f"{RESTORE} --task deblur --kernel gaussian:wide": "not a number",
    f"{RESTORE} --task inpaint --mask black.png": "all black",
    f"{RESTORE} --task inpaint --mask small.png": "8 x 8 pixels",
    f"{RESTORE} --task inpaint --mask line.npy": "line.npy",
    f"{RESTORE} --task inpaint --mask text.txt": "not a picture",
    f"{RESTORE} --task inpaint --mask gone.png": "gone.png",
    f"{RESTORE} --task inpaint --mask center:2": "between 0 and 1",
    f"{RESTORE} --task inpaint --mask center:nan": "between 0 and 1",
    f"{RESTORE} --task upscale --scale 3": "does not divide",
    f"{RESTORE} --task upscale --scale 0": "does not divide",
    f"{RESTORE} --task upscale --kernel box:99": "too large",
    f"{RESTORE} --task upscale --kernel gone.png": "gone.png",
    f"{RESTORE} --task denoise --turns 2": "belongs to continuous",
    f"{RESTORE} --task denoise --turns 0": "belongs to continuous",
    f"{RESTORE} --task denoise --reference gone": "'gone' does not exist",
    f"{RESTORE} --task denoise --reference twin/a.png": "fits one input",
    "restore in twin --task denoise --out out --prior prior.safetensors": "both be written",
    "restore in --task denoise --out in --prior prior.safetensors": "one of the inputs",
    "restore in/a.png --task denoise --out in --prior prior.safetensors": "one of the inputs",
    "restore in --task denoise --out file --prior prior.safetensors --method pinv": "'file",
    "restore in --task denoise --out file/x --prior prior.safetensors --method pinv": "'file",
    # weights
    "restore in --task denoise --out out --prior gone": "no prior 'gone'",
    "restore in --task denoise --out out --prior empty": "prior.safetensors",
    "restore in --task denoise --out out --prior corrupt.safetensors": "not a readable",
    "restore in --task denoise --out out --prior hollow.safetensors": "not a readable",
    "restore in --task denoise --out out --prior cut.safetensors": "not a readable",
    "restore in --task denoise --out out --prior foreign.safetensors": "not one of flowmend",
    "restore in --task denoise --out out --prior pickled.pt": "never loaded",
    "restore in --task denoise --out out --prior text.txt": "not a readable",
    "restore in --task denoise --out out --prior changed.safetensors": "sha256 differs",
    # degrade
    "degrade in --task denoise --size 8": "Missing option",
    f"{DEGRADE} --task denoise --size 0": "between 1 and 8192",
    f"{DEGRADE} --task denoise --size -4": "between 1 and 8192",
    f"{DEGRADE} --task denoise --size 100000": "between 1 and 8192",
    f"{DEGRADE} --task denoise --size 1.5": "valid integer",
    f"{DEGRADE} --task denoise --size 8 --channels 2": "must be 1 or 3",
    f"{DEGRADE} --task colorize --size 8 --channels 1": "colour images",
    f"{DEGRADE} --task blur --size 8": "Did you mean deblur?",
    f"{DEGRADE} --task denoise --size 8 --sigma nan": "at least 0",
    f"{DEGRADE} --task deblur --size 8 --kernel box:9": "larger than the image",
    f"{DEGRADE} --task sense --size 8 --measurements 0": "between 1 and 192",
    f"{DEGRADE} --task sense --size 8 --measurements 500": "between 1 and 192",
    f"{DEGRADE} --task denoise --size 8 --measurements 5": "no option measurements",
    f"{DEGRADE} --task denoise --size 8 --seed 99999999999999999999": "seed",
    "degrade empty --task denoise --size 8 --out out": "holds no pictures",
    "degrade gone --task denoise --size 8 --out out": "does not exist",
    "degrade in twin --task denoise --size 8 --out out": "both be written",
    "degrade in --task denoise --size 8 --out file": "'file",
    # train
    f"{TRAIN} --preset magic": "Unknown preset 'magic'",
    f"{TRAIN} --recipe magic": "Unknown recipe 'magic'",
    f"{TRAIN} --device warp": "device 'warp'",
    f"{TRAIN} --precision float16": "Unknown precision",
    f"{TRAIN} --epochs 0": "at least one epoch",
    f"{TRAIN} --batch 0": "at least one epoch",
    f"{TRAIN} --batch -1": "at least one epoch",
    f"{TRAIN} --learning-rate nan": "learning rate",
    f"{TRAIN} --learning-rate 0": "learning rate",
    f"{TRAIN} --learning-rate -1": "learning rate",
    f"{TRAIN} --weight-decay -1": "weight decay",
    f"{TRAIN} --weight-decay nan": "weight decay",
    f"{TRAIN} --size 15": "multiples of 2",
    f"{TRAIN} --size 0": "cannot be built",
    f"{TRAIN} --channels 0": "channels",
    f"{TRAIN} --channels 2": "channels",
    f"{TRAIN} --bits 0": "'bits'",
    f"{TRAIN} --bits 9": "'bits'",
    f"{TRAIN} --depth 1": "'depth'",
    f"{TRAIN} --hidden 0": "'hidden'",
    f"{TRAIN} --hidden 4,4": "'hidden'",
    f"{TRAIN} --hidden wide": "whole numbers",
    f"{TRAIN} --steps 1,x": "whole numbers",
    f"{TRAIN} --steps -1": "'steps'",
    f"{TRAIN} --seed 99999999999999999999": "seed",
    f"{TRAIN} --resume": "no run to resume",
    "train twin --out out --size 8 --steps 1 --hidden 2": "at least two pictures",
    "train empty --out out": "holds no pictures",
    "train gone --out out": "is not a folder",
    "train file --out out": "is not a folder",
    "train in --val gone --out out --size 8 --steps 1 --hidden 2": "is not a folder",
    "train in --out file --size 8 --steps 1 --hidden 2 --epochs 1": "'file",
    # sample, score, info, demo and the program itself
    "sample prior.safetensors --out s.png -n 0": "1 to",
    "sample prior.safetensors --out s.png --columns 0": "at least 1",
    "sample prior.safetensors --out s.png --scale 0": "1 to",
    "sample prior.safetensors --out s.png --temperature nan": "at least 0",
    "sample prior.safetensors --out s.png --temperature -1": "at least 0",
    "sample prior.safetensors --out s.png --seed 99999999999999999999": "seed",
    "sample prior.safetensors --out file/s.png": "'file",
    "sample gone --out s.png": "no prior 'gone'",
    "score gone in": "no prior 'gone'",
    "score prior.safetensors gone": "does not exist",
    "score prior.safetensors empty": "holds no pictures",
    "score prior.safetensors in --device warp": "device 'warp'",
    "info gone": "no prior 'gone'",
    "info pickled.pt": "never loaded",
    "demo --steps 0": "at least 1",
    "demo --prior gone": "no prior 'gone'",
    "demo --prior prior.safetensors": "32 x 32",
    "mend in": "No such command",
    "--version-of-nothing": "No such option",
}


@pytest.mark.parametrize(("line", "phrase"), COMMANDS.items(), ids=COMMANDS)
def test_one_sentence_for_a_bad_command_line(line, phrase, run, place, monkeypatch):
    monkeypatch.chdir(place)
    before = everything(place)
    outcome = run(*line.split())
    check_one_message(outcome, phrase)
    assert outcome.out == ""
    assert everything(place) == before
    assert leftovers(place) == []


def test_the_bad_command_lines_are_bad_for_their_reason_only(run, place, monkeypatch):
    """What they start from works."""
    monkeypatch.chdir(place)
    assert run(*f"{RESTORE} --task denoise".split(), *CLOSED).code == 0
    assert run(*f"{DEGRADE}2 --task denoise --size 8".split()).code == 0
    assert run(*f"{TRAIN}".replace("--out out", "--out out3").split()).code == 0
    assert run("sample", "prior.safetensors", "--out", "s.png", "-n", 1).code == 0


@pytest.mark.parametrize("name", ["photo[old].png", "[red]x.png", "[bold]y[/].png", "a[/b]c.png"])
def test_brackets_in_names_are_shown_as_they_are(
    name, run, tiny_prior_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = ("-t", "denoise", "-o", "out[1]", "-p", tiny_prior_path, *CLOSED)
    check_one_message(run("restore", name, *arguments), f"'{name}' does not exist")
    bad = tmp_path / "in" / name.replace("/", "_")
    bad.parent.mkdir()
    bad.write_text("hello")
    save_png(tmp_path / "in" / "good.png", images(1)[0])
    outcome = run("restore", "in", *arguments)
    assert outcome.code == 1
    lines = sentences(outcome)
    assert sum(f"in/{bad.name}:" in line for line in lines) == 1, outcome.err
    assert "out[1]" in lines[-1]
    outcome = run("degrade", "in", "-t", "denoise", "--size", SIDE, "-o", "try[/]")
    assert outcome.code == 1
    assert any(bad.name in line for line in sentences(outcome))
    assert "try[/]" in outcome.err


def test_an_input_named_twice_is_restored_once(run, tiny_prior_path, tmp_path):
    a = save_png(tmp_path / "in" / "a.png", images(1)[0])
    results = tmp_path / "r.json"
    places = ("-o", tmp_path / "out", "-p", tiny_prior_path, "--json", results)
    outcome = run("restore", tmp_path / "in", a, a, "-t", "denoise", *places, *CLOSED)
    assert outcome.code == 0, outcome.err
    assert len(json.loads(results.read_text())["images"]) == 1


def test_outputs_do_not_collide_with_the_report(run, tiny_prior_path, tmp_path):
    """An input called report.png is refused, or its restoration is kept."""
    save_png(tmp_path / "in" / "report.png", images(1)[0])
    out, results = tmp_path / "out", tmp_path / "r.json"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, "--json", results, *CLOSED)
    outcome = run("restore", tmp_path / "in", *arguments)
    if outcome.code:
        check_one_message(outcome, "report")
        return
    output = json.loads(results.read_text())["images"][0]["output"]
    assert read_image(output).shape == SHAPE


def test_degrade_does_not_replace_the_pictures_it_reads(run, clean_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    clean_folder.rename(photos / "reference")
    before = everything(photos)
    arguments = ("-t", "denoise", "--size", SIDE, "-o", photos)
    outcome = run("degrade", photos / "reference", *arguments)
    check_one_message(outcome, "one of the inputs")
    assert everything(photos) == before


def test_degrade_does_not_replace_pictures_in_the_measurement_folder(run, clean_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    clean_folder.rename(photos / "measurement")
    before = everything(photos)
    run("degrade", photos / "measurement", "-t", "denoise", "--size", SIDE, "-o", photos)
    after = everything(photos)
    assert all(after[path] == content for path, content in before.items())


# References


def test_a_missing_or_bad_reference_spares_the_restoration(run, tiny_prior_path, tmp_path):
    folder, truth, out = tmp_path / "in", tmp_path / "truth", tmp_path / "out"
    for name, image in zip(("a", "b", "c"), images(), strict=True):
        save_png(folder / f"{name}.png", image)
    save_png(truth / "a.png", images(1)[0])
    (truth / "b.png").write_text("hello")
    results = tmp_path / "results.json"
    outcome = run(
        "restore",
        folder,
        *("-t", "denoise", "-o", out, "-p", tiny_prior_path),
        *("--reference", truth, "--json", results, *CLOSED),
    )
    assert outcome.code == 1
    lines = sentences(outcome)
    assert sum("no reference for it" in line for line in lines) == 1
    assert sum("not a picture" in line for line in lines) == 1
    records = json.loads(results.read_text())["images"]
    assert records[0]["status"] == "restored"
    assert "no reference" in records[2]["status"]
    assert [record["psnr"] is None for record in records][1:] == [True, True]
    for name in ("a", "b", "c"):
        assert read_image(out / f"{name}.png").shape == SHAPE


# Disks that are full and people who are in a hurry


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["PIL.Image.Image.save", "os.replace"])
def test_a_full_disk_while_restoring(where, run, tiny_prior_path, tmp_path, monkeypatch):
    for name, image in zip(("a", "b"), images(2), strict=True):
        save_png(tmp_path / "in" / f"{name}.png", image)
    before = everything(tmp_path)
    monkeypatch.setattr(where, full)
    out, results = tmp_path / "out", tmp_path / "results.json"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED, "--json", results)
    outcome = run("restore", tmp_path / "in", *arguments)
    monkeypatch.undo()
    check_one_message(outcome, "No space left on device")
    after = everything(tmp_path)
    assert {path for path in after if path.suffix == ".png"} == set(before)
    assert leftovers(tmp_path) == []
    if results.exists():
        assert all(
            record["output"] is None for record in json.loads(results.read_text())["images"]
        )


def test_a_disk_that_fills_up_keeps_what_was_written(run, tiny_prior_path, tmp_path, monkeypatch):
    for name, image in zip(("a", "b", "c"), images(), strict=True):
        save_png(tmp_path / "in" / f"{name}.png", image)
    saves = []
    save = Image.Image.save

    def limited(picture, *arguments, **options):
        saves.append(picture)
        return save(picture, *arguments, **options) if len(saves) == 1 else full()

    monkeypatch.setattr("PIL.Image.Image.save", limited)
    out, results = tmp_path / "out", tmp_path / "results.json"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED, "--json", results)
    outcome = run("restore", tmp_path / "in", *arguments)
    check_one_message(outcome, "No space left on device")
    assert [path.name for path in out.iterdir()] == ["a.png"]
    assert read_image(out / "a.png").shape == SHAPE
    records = json.loads(results.read_text())["images"]
    assert [record["status"] == "restored" for record in records] == [True, False, False]
    assert [record["output"] is None for record in records] == [False, True, True]


@pytest.mark.parametrize("where", ["PIL.Image.Image.save", "numpy.save", "os.replace"])
def test_a_full_disk_while_degrading(where, run, clean_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(where, full)
    out = tmp_path / "out"
    outcome = run("degrade", clean_folder, "-t", "denoise", "--size", SIDE, "-o", out)
    monkeypatch.undo()
    check_one_message(outcome, "No space left on device")
    assert leftovers(tmp_path) == []
    assert not list(out.rglob("*.npy"))


@pytest.mark.parametrize(
    "command", ["sample prior.safetensors --out s.png", "score prior.safetensors in --json s.json"]
)
def test_a_full_disk_for_other_commands(command, run, place, monkeypatch):
    monkeypatch.chdir(place)
    before = everything(place)
    monkeypatch.setattr("os.replace", full)
    outcome = run(*command.split())
    assert outcome.code == 1
    assert sum("No space left on device" in line for line in sentences(outcome)) == 1
    assert everything(place) == before
    assert leftovers(place) == []


def test_a_full_disk_while_training(run, clean_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", full)
    out = tmp_path / "out"
    options = ("--size", 8, "--steps", 1, "--hidden", 2, "--epochs", 1, "--device", "cpu")
    outcome = run("train", clean_folder, "--out", out, *options)
    assert outcome.code == 1
    assert sum("No space left on device" in line for line in sentences(outcome)) == 1
    assert not everything(out)


def test_results_that_cannot_be_written_spare_the_pictures(run, place, monkeypatch):
    monkeypatch.chdir(place)
    line = f"{RESTORE} --task denoise --json file/results.json"
    check_one_message(run(*line.split(), *CLOSED), "file/results.json")
    for name in ("a", "b", "c"):
        assert read_image(place / "out" / f"{name}.png").shape == SHAPE


def test_an_interruption_keeps_what_was_finished(run, tiny_prior_path, tmp_path, monkeypatch):
    from flowmend import batch

    for index, image in enumerate(images(5)):
        save_png(tmp_path / "in" / f"{index}.png", image)
    calls = []

    def interrupted(*arguments, **options):
        calls.append(len(arguments[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fm.restore(*arguments, **options)

    monkeypatch.setattr(batch, "restore", interrupted)
    in_pairs = functools.partial(batch.restore_items, batch=2)
    monkeypatch.setattr("flowmend.cli.restore.restore_items", in_pairs)
    out, results = tmp_path / "out", tmp_path / "results.json"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED, "--json", results)
    outcome = run("restore", tmp_path / "in", *arguments)
    assert outcome.code == 130
    lines = sentences(outcome)
    assert len(lines) == 1
    assert "what was finished is kept" in lines[0]
    assert calls == [2, 2]
    assert {path.name for path in out.iterdir()} == {"0.png", "1.png", "report.png"}
    assert all(read_image(out / f"{index}.png").shape == SHAPE for index in range(2))
    values = json.loads(results.read_text())
    assert [r["status"] for r in values["images"]] == ["restored"] * 2 + ["not reached"] * 3
    assert [r["output"] is None for r in values["images"]] == [False] * 2 + [True] * 3
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("moment", ["flowmend.batch.save_image", "PIL.Image.Image.save"])
def test_an_interruption_while_writing_leaves_no_part(
    moment, run, tiny_prior_path, tmp_path, monkeypatch
):
    save_png(tmp_path / "in" / "a.png", images(1)[0])

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, stop)
    out = tmp_path / "out"
    arguments = ("-t", "denoise", "-o", out, "-p", tiny_prior_path, *CLOSED)
    outcome = run("restore", tmp_path / "in", *arguments)
    assert outcome.code == 130
    assert len(sentences(outcome)) == 1
    assert not out.exists() or not everything(out)


def test_too_little_memory_is_said_in_a_sentence(run, place, monkeypatch):
    monkeypatch.chdir(place)

    def starve(*arguments, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("flowmend.batch.restore", starve)
    check_one_message(run(*f"{RESTORE} --task denoise".split(), *CLOSED), "not enough memory")
