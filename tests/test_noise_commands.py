"""Noise on the command line."""

import json
import math

import pytest
import torch
from conftest import SIDE

from flowmend.errors import FlowmendError
from flowmend.files import read_image
from flowmend.noise import AUTO, known_pixels, make_noise, parse_sigma

BAD = {
    "unknown": (("fog", {}), "Unknown noise 'fog': choose from gaussian, poisson, salt-pepper."),
    "empty": (("", {}), "Unknown noise ''"),
    "peak of gaussian": (("gaussian", {"peak": 3.0}), "no option peak: it belongs to the noise p"),
    "share of poisson": (
        ("poisson", {"share": 0.1}),
        "no option share: it belongs to the noise s",
    ),
    "sigma of salt": (
        ("salt-pepper", {"sigma": 0.1}),
        "no option sigma: it belongs to the noise g",
    ),
    "nobody's": (("poisson", {"colour": 1.0}), "no option colour."),
    "negative peak": (("poisson", {"peak": -3.0}), "peak of Poisson noise must be a number above"),
    "peak of zero": (("poisson", {"peak": 0.0}), "above 0, not 0.0"),
    "infinite peak": (("poisson", {"peak": math.inf}), "above 0, not inf"),
    "peak NaN": (("poisson", {"peak": math.nan}), "above 0, not nan"),
    "share of zero": (("salt-pepper", {"share": 0.0}), "between 0 and 1, not 0.0"),
    "share of all": (("salt-pepper", {"share": 1.0}), "between 0 and 1, not 1.0"),
    "share beyond": (("salt-pepper", {"share": 1.5}), "between 0 and 1, not 1.5"),
    "share NaN": (("salt-pepper", {"share": math.nan}), "between 0 and 1, not nan"),
    "negative sigma": (("gaussian", {"sigma": -0.1}), "number of at least 0, not -0.1"),
    "sigma NaN": (("gaussian", {"sigma": math.nan}), "number of at least 0, not nan"),
}


@pytest.mark.parametrize(("given", "phrase"), BAD.values(), ids=BAD)
def test_noises_that_cannot_be(given, phrase):
    name, options = given
    with pytest.raises(FlowmendError) as error:
        make_noise(name, **options)
    assert phrase in str(error.value)
    assert str(error.value).endswith(".")


def test_noise_levels_from_text():
    assert parse_sigma(None) is None
    assert parse_sigma(AUTO) == "auto"
    assert parse_sigma("0.25") == parse_sigma(0.25) == 0.25
    for text in ("loud", "", "Auto", "0,1"):
        with pytest.raises(FlowmendError, match=r"--sigma\) must be a number, auto, or a file"):
            parse_sigma(text)


# On the command line
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--noise", "poisson", "--peak", 20), {"noise": "poisson", "peak": 20.0, "share": None}),
        (("--noise", "salt-pepper"), {"noise": "salt-pepper", "share": 0.1, "sigma": 0.0}),
        (("--noise", "gaussian", "--sigma", "0.2"), {"noise": "gaussian", "sigma": 0.2}),
        ((), {"noise": "gaussian", "sigma": 0.1, "peak": None, "share": None}),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "",
)
def test_degrade_then_restore_with_noise(
    options, wanted, run, clean_folder, tiny_prior_path, tmp_path
):
    made, out = tmp_path / "made", tmp_path / "out"
    task = ("--task", "denoise", *options)
    outcome = run("degrade", clean_folder, *task, "--size", SIDE, "--out", made)
    assert outcome.code == 0, outcome.err
    facts = json.loads((made / "degrade.json").read_text())
    assert {name: facts[name] for name in wanted} == wanted
    y, x = (read_image(made / place) for place in ("measurement/a.npy", "reference/a.png"))
    if "poisson" in options:
        assert torch.allclose(y * 20, (y * 20).round(), rtol=0, atol=1e-4)
    if "salt-pepper" in options:
        known = known_pixels(y[None]).expand(1, *y.shape)[0]
        assert torch.allclose(y[known], x[known], rtol=0, atol=0.51 / 255)
        assert bool((~known).any())
    outcome = run(
        *("restore", made / "measurement", *task, "--prior", tiny_prior_path, "--out", out),
        *("--method", "lmmse", "--device", "cpu", "--json", tmp_path / "r.json"),
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["noise"] == wanted["noise"]


COMMANDS = {
    "--noise fog": "Unknown noise 'fog'",
    "--noise poisson --peak -3": "peak of Poisson noise",
    "--noise poisson --sigma 0.1": "no option sigma",
    "--noise salt-pepper --share 1.5": "between 0 and 1",
    "--noise salt-pepper --peak 3": "no option peak",
    "--peak 3": "the noise poisson",
    "--share 0.2": "the noise salt-pepper",
    "--sigma loud": "--sigma",
    "--noise poisson --sigma auto": "no option sigma",
}


@pytest.mark.parametrize("command", ["degrade", "restore"])
@pytest.mark.parametrize(("options", "phrase"), COMMANDS.items(), ids=COMMANDS)
def test_command_lines_that_cannot_be(
    command, options, phrase, run, clean_folder, tiny_prior_path, tmp_path
):
    place = {"degrade": ("--size", SIDE), "restore": ("--prior", tiny_prior_path)}[command]
    out = tmp_path / "out"
    outcome = run(
        command, clean_folder, "--task", "denoise", *options.split(), *place, "--out", out
    )
    assert outcome.code == 1
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert phrase in lines[0]
    assert not out.exists()


def test_degrade_cannot_guess_its_own_noise(run, clean_folder, tmp_path):
    out = tmp_path / "out"
    options = ("--task", "denoise", "--sigma", "auto", "--size", SIDE, "--out", out)
    outcome = run("degrade", clean_folder, *options)
    assert outcome.code == 1
    assert outcome.err.strip() == (
        "flowmend: degrade makes the noise, so it cannot be auto: give --sigma a number."
    )
    assert not out.exists()
