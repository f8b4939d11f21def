"""Bad command lines: one sentence, an exit code, and nothing is lost."""

import json

import pytest
from bad_cases import (
    CLOSED,
    RESTORE,
    SHAPE,
    check_one_message,
    everything,
    filled,
    images,
    sentences,
)
from conftest import SIDE, leftovers, save_png

from flowmend.files import read_image


@pytest.fixture
def place(tmp_path, tiny_prior_path):
    """Everything that the commands name; its files are ``name``."""
    return filled(tmp_path / "place", tiny_prior_path)


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
