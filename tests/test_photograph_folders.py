"""Pictures of any size: folders, memory and options."""

import json

import pytest
import torch
from photograph_cases import any_size_prior, photograph, run, source, uneven

import flowmend as fm
from flowmend import photographs
from flowmend.album import usual_prior
from flowmend.files import save_array, save_image
from flowmend.items import find_items
from flowmend.photographs import photograph_task, restore_photograph


@pytest.fixture(scope="module")
def prior():
    return any_size_prior()


# Files
def test_the_usual_prior_follows_the_size_of_the_images(tmp_path):
    save_image(tmp_path / "face" / "a.png", photograph(32, 32)[0])
    save_image(tmp_path / "half" / "a.png", photograph(16, 16)[0])
    save_image(tmp_path / "both" / "a.png", photograph(32, 32)[0])
    save_image(tmp_path / "both" / "b.png", photograph(40, 32)[0])
    save_array(tmp_path / "list" / "a.npy", torch.rand(768))
    save_array(tmp_path / "arrays" / "a.npy", torch.rand(3, 32, 32))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"nothing")

    def usual(folder, task="denoise", method=None, **options):
        items = find_items([tmp_path / folder], tmp_path / "out")
        return usual_prior(items, task, options, method)

    assert usual("face") == "faces32-continuous"
    for method in fm.METHODS:
        coupling = method in ("fast-map", "likelihood", "map", "csgm", "glowip")
        assert usual("face", method=method) == ("faces32" if coupling else "faces32-continuous")
    assert usual("half") == "natural"
    assert usual("half", "upscale", scale=2) == "faces32-continuous"
    assert usual("face", "upscale") == "natural"
    assert usual("both") == "natural"
    assert usual("list", "sense") == "faces32"
    assert usual("list", "sense", "likelihood") == "faces32"
    assert usual("list", "sense", "splitting") == "faces32-continuous"
    assert usual("arrays") == "faces32-continuous"
    assert usual("bad") == "faces32-continuous"


@pytest.fixture
def weights(tmp_path, prior):
    return fm.save(tmp_path / "any.safetensors", prior)


def test_a_folder_of_photographs_of_all_sizes(tmp_path, weights, capsys):
    folder = tmp_path / "in"
    save_image(folder / "a.png", photograph(40, 50)[0])
    save_image(folder / "b.png", photograph(64, 33, channels=1)[0])
    (folder / "c.png").write_bytes(b"no picture")
    out, results = tmp_path / "out", tmp_path / "results.json"
    code = run(
        *("restore", folder, "-t", "denoise", "--sigma", 0.05, "--prior", weights),
        *("-o", out, "--json", results, "--reference", folder, "--device", "cpu"),
    )
    assert code == 1
    values = json.loads(results.read_text())
    assert values["method"] == "splitting"
    assert [record["status"] for record in values["images"][:2]] == ["restored", "restored"]
    assert "not a picture" in values["images"][2]["status"]
    assert all(record["psnr"] > 10 for record in values["images"][:2])
    sizes = [fm.files.read_picture(out / name) for name in ("a.png", "b.png")]
    assert [picture.size for picture in sizes] == [(50, 40), (33, 64)]
    assert [picture.mode for picture in sizes] == ["RGB", "L"]
    assert (out / "report.png").is_file()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("denoise", "--sigma", 0.05), 1),
        (("denoise", "--sigma", 0.05, "--steps", 3), 1),
        (("deblur", "--kernel", "box:3", "--sigma", 0.05), 10),
        (("inpaint", "--mask", "random:0.5"), 30),
        (("inpaint", "--mask", "random:0.5", "--steps", 4), 4),
    ],
)
def test_the_results_say_how_often_the_network_was_evaluated(tmp_path, weights, options, steps):
    save_image(tmp_path / "a.png", photograph(24, 30)[0])
    results = tmp_path / "results.json"
    run(
        *("restore", tmp_path / "a.png", "-t", *options, "--prior", weights),
        *("-o", tmp_path / "out", "--json", results, "--device", "cpu"),
    )
    values = json.loads(results.read_text())
    assert values["steps"] == steps
    assert [record["steps"] for record in values["images"]] == [steps]


def test_upscaling_shows_the_small_picture_large(tmp_path, weights):
    save_image(tmp_path / "a.png", photograph(20, 30)[0])
    out = tmp_path / "out"
    code = run(
        *("restore", tmp_path / "a.png", "-t", "upscale", "--scale", 2, "--steps", 2),
        *("--prior", weights, "-o", out, "--device", "cpu"),
    )
    assert code == 0
    assert fm.files.read_picture(out / "a.png").size == (60, 40)


def test_photographs_are_measured_and_restored_at_their_own_size(tmp_path, weights):
    save_image(tmp_path / "in" / "a.png", photograph(35, 41)[0])
    save_image(tmp_path / "in" / "b.png", photograph(24, 30)[0])
    for task, options in (
        ("upscale", ("--scale", 2)),
        ("upscale", ("--kernel", "bicubic")),
        ("deblur", ("--kernel", "box:3")),
    ):
        made, out = tmp_path / task, tmp_path / f"{task}-restored"
        code = run("degrade", tmp_path / "in", "-t", task, *options, "-o", made)
        assert code == 0
        code = run(
            *("restore", made / "measurement", "-t", task, *options, "--prior", weights),
            *("--reference", made / "reference", "-o", out, "--steps", 2, "--device", "cpu"),
        )
        assert code == 0
        size = fm.files.read_picture(out / "a.png").size
        assert size == fm.files.read_picture(made / "reference" / "a.png").size
        assert size == ((40, 34) if task == "upscale" else (41, 35))


def test_the_noise_level_may_be_a_file(tmp_path, weights, capsys):
    save_image(tmp_path / "a.png", photograph(40, 50)[0])
    save_array(tmp_path / "levels.npy", uneven(40, 50))
    base = ("restore", tmp_path / "a.png", "-t", "denoise", "-o", tmp_path / "out")
    assert run(*base, "--prior", weights, "--sigma", tmp_path / "levels.npy") == 0
    assert (tmp_path / "out" / "a.png").is_file()
    assert run(*base, "--prior", weights, "--sigma", tmp_path / "no.npy") == 1
    assert "a file with a level for every pixel" in capsys.readouterr().err.replace("\n", " ")


@pytest.fixture
def scarce(monkeypatch):
    """A machine that holds parts of so many pixels a side, and counts what was tried."""
    tried, restore = [], photographs.restore

    def limit(side, message="[enforce fail] DefaultCPUAllocator: can't allocate memory"):
        def careful(y, task, *arguments, **options):
            tried.append(max(task.operator.shape[1:]))
            if tried[-1] > side:
                raise RuntimeError(message)
            return restore(y, task, *arguments, **options)

        monkeypatch.setattr(photographs, "restore", careful)
        return tried

    return limit


def test_smaller_parts_are_tried_where_larger_ones_do_not_fit_the_memory(prior, scarce):
    x = photograph(300, 340)
    task = photograph_task("denoise", (3, 300, 340), 3, sigma=0.1)
    y = task.measure(x, source())
    wanted = restore_photograph(y, task, prior, tile=170, generator=source())
    tried = scarce(200)
    found = restore_photograph(y, task, prior, generator=source())
    assert tried[0] == 340
    assert found.settings["tile"] == 170
    assert torch.equal(found.x, wanted.x)


def test_what_fits_no_memory_says_so(prior, scarce):
    scarce(100)
    task = photograph_task("denoise", (3, 300, 340), 3, sigma=0.1)
    with pytest.raises(fm.FlowmendError, match=r"does not hold a part of 128 x 128 pixels"):
        restore_photograph(photograph(300, 340), task, prior)
    task = fm.make_task("deblur", (3, 300, 340), kernel="box:3", boundary="circular")
    with pytest.raises(fm.FlowmendError, match=r"does not hold a part of 340 x 300 pixels"):
        restore_photograph(photograph(300, 340), task, prior)
    scarce(100, "a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        restore_photograph(photograph(300, 340), task, prior)


def test_the_user_is_told_of_smaller_parts(scarce, tmp_path, weights, capsys):
    scarce(200)
    save_image(tmp_path / "a.png", photograph(300, 340)[0])
    results = tmp_path / "results.json"
    code = run(
        *("restore", tmp_path / "a.png", "-t", "denoise", "--sigma", 0.1, "--prior", weights),
        *("-o", tmp_path / "out", "--json", results, "--device", "cpu"),
    )
    assert code == 0
    assert "parts of at most 170 pixels" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads(results.read_text())["images"][0]["tile"] == 170


def test_a_part_of_which_nothing_is_known(prior):
    """The prior's own picture fills it, and nothing breaks."""
    x, mask = photograph(160, 300), torch.ones(1, 160, 300)
    mask[..., 120:] = 0.0
    task = fm.make_task("inpaint", (3, 160, 300), mask=mask)
    found = restore_photograph(task.measure(x, source()), task, prior, tile=128, steps=2)
    assert found.finished
    assert found.settings["tiles"] > 1


def test_options_of_tiles_are_checked(tmp_path, weights, capsys):
    save_image(tmp_path / "a.png", photograph(32, 32)[0])
    base = ("restore", tmp_path / "a.png", "-t", "denoise", "-o", tmp_path / "out")
    assert run(*base, "--tile", 256) == 1
    assert "take every size" in capsys.readouterr().err.replace("\n", " ")
    assert run(*base, "--prior", weights, "--tile", 20) == 1
    assert "at least 128" in capsys.readouterr().err.replace("\n", " ")
