"""The commands from files to files: degrade and restore."""

import json

import numpy as np
import pytest
import torch
from conftest import NAMES, QUICK, SIDE, leftovers, save_png, smooth_images
from PIL import Image

import flowmend as fm
from flowmend.files import read_image


@pytest.fixture
def degrade(run, clean_folder, tmp_path):
    """Degrades the clean pictures and returns the folder of the results."""

    def call(task, *options, out="try"):
        folder = tmp_path / out
        outcome = run(
            "degrade", clean_folder, "--task", task, "--size", SIDE, "--out", folder, *options
        )
        assert outcome.code == 0, outcome.err
        return folder

    return call


@pytest.fixture
def restore(run, tiny_prior_path, tmp_path):
    """Restores something with the tiny prior; returns the outcome, its results and its folder."""

    def call(inputs, task, *options, out="restored", quick=QUICK):
        results = tmp_path / f"{out}.json"
        places = ["--out", tmp_path / out, "--json", results, "--prior", tiny_prior_path]
        outcome = run("restore", inputs, "--task", task, *places, *quick, *options)
        values = json.loads(results.read_text()) if results.exists() else None
        return outcome, values, tmp_path / out

    return call


TOP = {"task": str, "method": str, "prior": str, "steps": int, "seconds": float}
EACH = {"psnr", "ssim", "input_psnr"}


def check_schema(values):
    for key, kind in TOP.items():
        assert type(values[key]) is kind, key
    assert {"images", "mean"} <= set(values)
    assert set(values["mean"]) == EACH
    for image in values["images"]:
        assert {"input", "output", "status"} | EACH <= set(image)
        assert type(image["input"]) is str
        assert type(image["status"]) is str
    for record in [*values["images"], values["mean"]]:
        assert all(record[name] is None or type(record[name]) is float for name in EACH)


# degrade and restore
@pytest.mark.parametrize("task", fm.TASKS)
def test_degrade_then_restore(task, degrade, restore, tiny_prior_path, tmp_path):
    folder = degrade(task)
    for name in NAMES:
        reference = read_image(folder / "reference" / f"{name}.png")
        assert reference.shape == (3, SIDE, SIDE)
        assert (folder / "measurement" / f"{name}.png").is_file()
        assert (folder / "measurement" / f"{name}.npy").is_file()
    assert json.loads((folder / "degrade.json").read_text())["task"] == task
    outcome, values, out = restore(
        folder / "measurement", task, "--reference", folder / "reference"
    )
    assert outcome.code == 0, outcome.err
    check_schema(values)
    assert values["task"] == task
    assert values["method"] == "fast-map"
    assert values["prior"] == str(tiny_prior_path)
    assert values["steps"] == 3
    assert values["seconds"] > 0
    assert len(values["images"]) == 3
    for name, record in zip(NAMES, values["images"], strict=True):
        assert record["input"] == str(folder / "measurement" / f"{name}.npy")
        assert record["output"] == str(out / f"{name}.png")
        assert record["status"] == "restored"
        restored = read_image(record["output"])[None]
        reference = read_image(folder / "reference" / f"{name}.png")[None]
        assert restored.shape == reference.shape
        assert record["psnr"] == pytest.approx(fm.psnr(restored, reference)[0], abs=1e-9)
        assert record["ssim"] == pytest.approx(fm.ssim(restored, reference)[0], abs=1e-9)
        y = torch.from_numpy(np.load(record["input"]))[None]
        picture = fm.make_task(task, (3, SIDE, SIDE)).picture(y)
        assert record["input_psnr"] == pytest.approx(fm.psnr(picture, reference)[0], abs=1e-9)
    for name in EACH:
        mean = sum(record[name] for record in values["images"]) / 3
        assert values["mean"][name] == pytest.approx(mean)
    with Image.open(out / "report.png") as report:
        assert report.size[1] > 3 * 128
    assert "3 of 3 restored" in outcome.err
    assert f"{values['mean']['psnr']:.2f}" in outcome.err
    assert leftovers(tmp_path) == []


def test_measurements_are_what_the_task_makes(degrade):
    plain = degrade("deblur", "--kernel", "box:5")
    noisy = degrade("deblur", "--kernel", "box:5", "--sigma", 0.05, out="noisy")
    task = fm.make_task("deblur", (3, SIDE, SIDE), kernel="box:5")
    noise = []
    for name in NAMES:
        x = read_image(plain / "reference" / f"{name}.png")[None]
        y = torch.from_numpy(np.load(plain / "measurement" / f"{name}.npy"))
        assert torch.allclose(y, task.operator.A(x)[0], rtol=0, atol=1e-7)
        shown = read_image(plain / "measurement" / f"{name}.png")
        assert (shown - y.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
        noise.append(torch.from_numpy(np.load(noisy / "measurement" / f"{name}.npy")) - y)
    assert float(torch.stack(noise).std()) == pytest.approx(0.05, rel=0.1)
    likeness = torch.corrcoef(torch.stack(noise).flatten(1)) - torch.eye(3)
    assert likeness.abs().max() < 0.3, "each picture has noise of its own"


def test_grey_measurements_and_a_grey_prior(degrade, run, tmp_path):
    from conftest import tiny_prior

    prior = fm.save(tmp_path / "grey.safetensors", tiny_prior(channels=1))
    folder = degrade("denoise", "--channels", 1)
    assert np.load(folder / "measurement" / "a.npy").shape == (1, SIDE, SIDE)
    out = tmp_path / "restored"
    outcome = run(
        "restore", folder / "measurement", "-t", "denoise", "-o", out, "-p", prior, *QUICK
    )
    assert outcome.code == 0, outcome.err
    with Image.open(out / "a.png") as picture:
        assert (picture.mode, picture.size) == ("L", (SIDE, SIDE))


def test_a_colour_picture_of_a_grey_measurement_is_averaged(restore, tmp_path):
    image = (smooth_images(1, 3, SIDE, SIDE)[0] * 255).round() / 255
    image[0] = 1.0
    path = save_png(tmp_path / "in" / "y.png", image)
    outcome, _, out = restore(path, "colorize", "--method", "pinv", quick=())
    assert outcome.code == 0, outcome.err
    found = read_image(out / "y.png").double()
    assert (found - image.mean(0)).abs().max() <= 0.5 / 255 + 1e-6


def test_metrics_are_null_without_a_reference(degrade, restore):
    folder = degrade("denoise")
    outcome, values, out = restore(folder / "measurement", "denoise")
    assert outcome.code == 0
    check_schema(values)
    for record in [*values["images"], values["mean"]]:
        assert {record[name] for name in EACH} == {None}
    assert (out / "report.png").is_file()
    assert "PSNR" not in outcome.err


def test_one_file_with_one_reference(degrade, restore):
    folder = degrade("denoise")
    outcome, values, out = restore(
        folder / "measurement" / "b.png",
        "denoise",
        "--reference",
        folder / "reference" / "b.png",
    )
    assert outcome.code == 0, outcome.err
    assert [record["output"] for record in values["images"]] == [str(out / "b.png")]
    assert values["mean"]["psnr"] == values["images"][0]["psnr"] > 5


def test_an_exact_match_is_null_and_not_infinite(restore, tmp_path):
    """JSON knows no infinity: a restoration equal to the truth has no PSNR."""
    image = torch.full((3, SIDE, SIDE), 100 / 255)
    measurement = save_png(tmp_path / "in" / "flat.png", image)
    outcome, values, _ = restore(
        measurement, "denoise", "--reference", measurement, "--method", "pinv", quick=()
    )
    assert outcome.code == 0, outcome.err
    assert values["images"][0]["psnr"] is None
    assert values["images"][0]["ssim"] == pytest.approx(1.0)
    assert values["mean"]["psnr"] is None


def test_arrays_are_preferred_in_folders(degrade, restore):
    folder = degrade("denoise")
    exact, values, out = restore(folder / "measurement", "denoise")
    assert exact.code == 0
    assert all(record["input"].endswith(".npy") for record in values["images"])
    before = (out / "a.png").read_bytes()
    for name in NAMES:
        save_png(folder / "measurement" / f"{name}.png", torch.zeros(3, SIDE, SIDE))
    again = restore(folder / "measurement", "denoise", out="again")[2]
    assert (again / "a.png").read_bytes() == before
    picture = restore(folder / "measurement" / "a.png", "denoise", out="picture")[2]
    assert (picture / "a.png").read_bytes() != before


@pytest.mark.parametrize("method", [name for name in fm.METHODS if name != "splitting"])
def test_every_method_restores(method, degrade, restore):
    if method == "bm3d":
        pytest.importorskip("bm3d")
    folder = degrade("denoise")
    closed = fm.METHODS[method].steps == 0
    quick = ("--device", "cpu") if closed else QUICK
    outcome, values, out = restore(
        folder / "measurement" / "a.npy", "denoise", "--method", method, quick=quick
    )
    assert outcome.code == 0, outcome.err
    assert values["method"] == method
    assert values["steps"] == (0 if closed else 3)
    assert (out / "a.png").is_file()


def test_map_with_the_right_noise_helps(degrade, restore):
    folder = degrade("denoise", "--sigma", 0.1)
    _, values, _ = restore(
        folder / "measurement",
        "denoise",
        *("--method", "map", "--sigma", 0.1, "--reference", folder / "reference"),
        quick=("--steps", 40, "--device", "cpu", "--precision", "float32"),
    )
    assert values["mean"]["psnr"] > values["mean"]["input_psnr"] + 2
    assert values["mean"]["ssim"] > 0.5


def test_the_papers_border_passes_through(degrade, restore):
    folder = degrade("deblur", "--boundary", "paper")
    options = ("--method", "lmmse", "--reference", folder / "reference")
    right = restore(
        folder / "measurement", "deblur", "--boundary", "paper", *options, out="right", quick=()
    )[1]
    wrong = restore(
        folder / "measurement", "deblur", "--boundary", "zero", *options, out="wrong", quick=()
    )[1]
    assert right["mean"]["psnr"] > wrong["mean"]["psnr"] + 3


def test_the_seed_makes_runs_repeatable(degrade, restore):
    first, same, other = (
        degrade("denoise", "--seed", seed, out=out)
        for seed, out in ((3, "one"), (3, "two"), (4, "three"))
    )
    for name in NAMES:
        place = f"measurement/{name}.npy"
        assert (first / place).read_bytes() == (same / place).read_bytes()
        assert (first / place).read_bytes() != (other / place).read_bytes()
        place = f"reference/{name}.png"
        assert (first / place).read_bytes() == (other / place).read_bytes()
    method = ("--method", "likelihood")
    folders = [
        restore(first / "measurement", "denoise", *method, "--seed", seed, out=out)[2]
        for seed, out in ((3, "x"), (3, "y"), (4, "z"))
    ]
    for name in NAMES:
        contents = [(folder / f"{name}.png").read_bytes() for folder in folders]
        assert contents[0] == contents[1]
        assert contents[0] != contents[2]


def test_the_posterior_writes_how_sure_it_is(degrade, restore):
    folder = degrade("inpaint")
    outcome, values, out = restore(
        folder / "measurement", "inpaint", "--method", "posterior", "--samples", 2
    )
    assert outcome.code == 0, outcome.err
    assert values["method"] == "posterior"
    assert [each["mean_error"] for each in values["images"]] == [0.0] * len(NAMES)
    for name in NAMES:
        std = np.load(out / name / "std.npy")
        assert std.shape == (3, SIDE, SIDE)
        assert (std >= 0).all()
        drawn = {path.name for path in (out / name).iterdir()}
        assert drawn == {"std.npy", "std.png", "sample-1.png", "sample-2.png"}
        shown = read_image(out / name / "std.png")
        assert torch.allclose(shown, torch.from_numpy(std / 0.2).clamp(0, 1), atol=0.5 / 255)
        one, two = (read_image(out / name / f"sample-{i}.png") for i in (1, 2))
        assert not torch.equal(one, two)


def test_noise_of_unknown_level_is_found_for_every_picture(degrade, restore, tmp_path):
    folder = degrade("denoise", "--sigma", 0.05)
    noisier = degrade("denoise", "--sigma", 0.2, out="noisier")
    (noisier / "measurement" / f"{NAMES[1]}.npy").replace(
        folder / "measurement" / f"{NAMES[1]}.npy"
    )
    outcome, values, _ = restore(folder / "measurement", "denoise", "--sigma", "auto")
    assert outcome.code == 0, outcome.err
    assert values["sigma"] is None
    found = {record["input"].split("/")[-1]: record["sigma"] for record in values["images"]}
    assert found[f"{NAMES[1]}.npy"] == pytest.approx(0.2, rel=0.25)
    assert found[f"{NAMES[0]}.npy"] == pytest.approx(0.05, rel=0.5)


@pytest.mark.parametrize("noise", [("poisson", "--peak", 60), ("salt-pepper", "--share", 0.2)])
def test_other_noise_than_gaussian_is_restored(noise, degrade, restore):
    options = ("--noise", *noise)
    folder = degrade("denoise", *options)
    outcome, values, _ = restore(
        folder / "measurement", "denoise", *options, "--reference", folder / "reference"
    )
    assert outcome.code == 0, outcome.err
    assert values["noise"] == noise[0]
    for record in values["images"]:
        assert record["psnr"] > record["input_psnr"] + 1.0


def test_options_that_mean_nothing_to_a_method_are_refused(degrade, restore):
    folder = degrade("denoise")
    for options, sentence in (
        (("--weight", 0.1), "takes no --weight"),
        (("--start", "zero"), "takes no --start"),
        (("--method", "lmmse", "--steps", 3), "takes no --steps"),
    ):
        outcome, _, out = restore(folder / "measurement", "denoise", *options, quick=())
        assert outcome.code == 1
        assert sentence in outcome.err
        assert not out.exists()


def test_degrade_says_where_measurements_and_clean_pictures_are(run, clean_folder, tmp_path):
    outcome = run("degrade", clean_folder, "--task", "denoise", "--size", SIDE, "--out", tmp_path)
    said = " ".join((outcome.out + outcome.err).split())
    for name in ("measurement", "reference"):
        assert f"'{tmp_path / name}'" in said
        assert (tmp_path / name).is_dir()


def test_results_say_where_they_came_from(degrade, restore):
    folder = degrade("denoise", "--seed", 9)
    made = json.loads((folder / "degrade.json").read_text())
    assert made["seed"] == 9
    values = restore(folder / "measurement", "denoise", "--seed", 5)[1]
    assert values["seed"] == 5
    assert values["sigma"] == 0.1
    assert values["precision"] == "float32"
    for source in (made, values):
        facts = source["made_with"]
        assert facts["torch"] == torch.__version__
        assert {"commit", "flowmend", "python", "device", "command"} <= set(facts)


def test_inputs_are_left_alone(degrade, restore, clean_folder):
    before = {path: path.read_bytes() for path in clean_folder.rglob("*.png")}
    folder = degrade("denoise")
    before |= {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    restore(folder / "measurement", "denoise", "--reference", folder / "reference")
    assert all(path.read_bytes() == content for path, content in before.items())
