"""Tasks on the command line: degrade and restore mean the same, and what cannot be."""

import json

import pytest
import torch
from conftest import SIDE

from flowmend.files import read_image
from flowmend.tasks import make_task

# On the command line
OPTIONS = {
    "random mask": ("inpaint", ("--mask", "random:0.3")),
    "motion": ("deblur", ("--kernel", "motion:5:30")),
    "upscale twice": ("upscale", ("--scale", "2")),
    "upscale four times": ("upscale", ("--scale", "4")),
    "share": ("sense", ("--measurements", "25%")),
    "fraction": ("sense", ("--measurements", "0.25")),
    "count": ("sense", ("--measurements", "192")),
}


@pytest.mark.parametrize(("task", "options"), OPTIONS.values(), ids=OPTIONS)
def test_degrade_and_restore_mean_the_same(
    task, options, run, clean_folder, tiny_prior_path, tmp_path
):
    made, out = tmp_path / "made", tmp_path / "out"
    outcome = run("degrade", clean_folder, "-t", task, *options, "--size", SIDE, "-o", made)
    assert outcome.code == 0, outcome.err
    name = options[0].removeprefix("--")
    given = int(options[1]) if name == "scale" else options[1]
    operator = make_task(task, (3, SIDE, SIDE), **{name: given}).operator
    x = read_image(made / "reference" / "a.png")
    y = read_image(made / "measurement" / "a.npy")
    # The reference is rounded to 8 bits after it was measured.
    size = 0.51 / 255 * (1 if task != "sense" else 3 * SIDE)
    assert torch.allclose(operator.A(x[None])[0], y, rtol=0, atol=size)
    for repeat in (options, ()) if task == "sense" else (options,):
        place = ("-o", out, "-p", tiny_prior_path, "--reference", made / "reference")
        arguments = ("-t", task, *repeat, "--method", "lmmse", "--device", "cpu")
        outcome = run(
            "restore", made / "measurement", *arguments, *place, "--json", out / "r.json"
        )
        assert outcome.code == 0, outcome.err
        mean = json.loads((out / "r.json").read_text())["mean"]
        assert mean["psnr"] > max(20.0, mean["input_psnr"] - 1.0)


BAD_COMMANDS = {
    "inpaint --mask random:1.5": "between 0 and 1",
    "inpaint --mask random:": "not a number",
    "deblur --kernel motion:0:10": "length of a motion kernel",
    "deblur --kernel motion:5": "not a number",
    "deblur --kernel motion:99:0": "larger than the image",
    "sense --measurements many": "must be a count",
    "sense --measurements 150%": "must be a count",
    "sense --measurements 99999": "between 1 and 768",
    "denoise --measurements 0.5": "no option measurements",
    "sense --noise poisson": "can be negative",
}


@pytest.mark.parametrize("command", ["degrade", "restore"])
@pytest.mark.parametrize(("given", "phrase"), BAD_COMMANDS.items(), ids=BAD_COMMANDS)
def test_command_lines_that_cannot_be(
    command, given, phrase, run, clean_folder, tiny_prior_path, tmp_path
):
    place = {"degrade": ("--size", SIDE), "restore": ("--prior", tiny_prior_path)}[command]
    out = tmp_path / "out"
    outcome = run(command, clean_folder, "--task", *given.split(), *place, "--out", out)
    assert outcome.code == 1
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert phrase in lines[0]
    assert not out.exists()
