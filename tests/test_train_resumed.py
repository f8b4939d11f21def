"""Training that is interrupted ends where the uninterrupted run does."""

import dataclasses

import pytest
import torch
from conftest import Interrupted, interrupt_at
from safetensors.torch import load_file, save_file
from training_cases import (
    CONFIG,
    GLOW,
    IMAGES,
    PAPER,
    STEPS,
    STRONG,
    VALIDATION,
    WHITENED,
    assert_same,
    blobs,
    log_of,
    result_of,
    start,
)

from flowmend import checkpoint as checkpoint_module
from flowmend import train as training
from flowmend.errors import FlowmendError
from flowmend.train import train


def resume_counting(out, config, recipe):
    """Resumes a run and returns the steps it took."""
    told = []
    start(out, config, recipe, resume=True, progress=lambda *told_now: told.append(told_now))
    return [done for done, _, what in told if what.startswith("epoch")]


# Interruptions.
@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = {}
    for name, config, recipe in (("strong", WHITENED, STRONG), ("paper", CONFIG, PAPER)):
        out = tmp_path_factory.mktemp(name)
        start(out, config, recipe)
        results[name] = (config, recipe, result_of(out))
    return results


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 11, 12])
@pytest.mark.parametrize("name", ["strong", "paper"])
def test_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, uninterrupted, name, step):
    config, recipe, wanted = uninterrupted[name]
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    # a step is saved before its progress is told, so nothing is repeated
    with pytest.raises(Interrupted):
        start(tmp_path, config, recipe, progress=interrupt_at(step))
    assert resume_counting(tmp_path, config, recipe) == list(range(step + 1, STEPS + 1))
    assert_same(result_of(tmp_path), wanted)


@pytest.mark.parametrize("step", [5, 7, 9])
def test_steps_after_the_last_checkpoint_are_repeated(tmp_path, uninterrupted, step):
    config, recipe, wanted = uninterrupted["strong"]
    with pytest.raises(Interrupted):
        start(tmp_path, config, recipe, progress=interrupt_at(step))
    first = step // 4 * 4 + 1
    assert resume_counting(tmp_path, config, recipe) == list(range(first, STEPS + 1))
    assert_same(result_of(tmp_path), wanted)


def test_interruption_between_prior_and_checkpoint(tmp_path, uninterrupted):
    config, recipe, wanted = uninterrupted["strong"]

    def report(record):
        if record["epoch"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        start(tmp_path, config, recipe, report=report)
    assert [record["epoch"] for record in log_of(tmp_path)] == [1, 2]
    start(tmp_path, config, recipe, resume=True)
    assert_same(result_of(tmp_path), wanted)


def test_two_interruptions(tmp_path, monkeypatch, uninterrupted):
    config, recipe, wanted = uninterrupted["strong"]
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    for step, resume in ((2, False), (7, True)):
        with pytest.raises(Interrupted):
            start(tmp_path, config, recipe, resume=resume, progress=interrupt_at(step))
    start(tmp_path, config, recipe, resume=True)
    assert_same(result_of(tmp_path), wanted)


def test_interruption_before_the_first_checkpoint(tmp_path, uninterrupted):
    config, recipe, wanted = uninterrupted["strong"]
    with pytest.raises(Interrupted):
        start(tmp_path, config, recipe, progress=interrupt_at(2))
    with pytest.raises(FlowmendError, match="no run to resume"):
        start(tmp_path, config, recipe, resume=True)
    start(tmp_path, config, recipe)
    assert_same(result_of(tmp_path), wanted)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    path = start(tmp_path)
    before = {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()}
    assert start(tmp_path, resume=True) == path
    after = {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()}
    assert after == before


def test_run_does_not_depend_on_global_random_numbers(tmp_path, uninterrupted):
    config, recipe, wanted = uninterrupted["strong"]
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    start(tmp_path, config, recipe)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(result_of(tmp_path), wanted)


def test_another_seed_gives_another_run(tmp_path, uninterrupted):
    config, recipe, wanted = uninterrupted["strong"]
    start(tmp_path, config, recipe, seed=1)
    assert result_of(tmp_path)["log"] != wanted["log"]


# What is refused.
@pytest.fixture
def interrupted(tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path, progress=interrupt_at(4))
    return tmp_path


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed_pixel():
    images = IMAGES.clone()
    images[5, 0, 2, 2] += 1
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": dataclasses.replace(STRONG, learning_rate=1e-4)}, r"\(recipe\)"),
        ({"recipe": dataclasses.replace(STRONG, epochs=9)}, r"\(recipe\)"),
        ({"recipe": dataclasses.replace(STRONG, averaging=0.0)}, "recipe|belongs to another"),
        ({"config": dataclasses.replace(CONFIG, bits=8)}, r"\(config\)"),
        ({"config": dataclasses.replace(CONFIG, hidden=7)}, "belongs to another configuration"),
        ({"config": GLOW}, "belongs to another configuration"),
        ({"seed": 1}, r"\(seed\)"),
        ({"images": IMAGES[:63]}, r"\(images, pixel_sum\)"),
        ({"images": changed_pixel()}, r"\(pixel_sum\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_resuming_with_other_settings_is_refused(interrupted, changes, message):
    before = files_of(interrupted)
    with pytest.raises(FlowmendError, match=message):
        start(interrupted, resume=True, **changes)
    assert files_of(interrupted) == before


def test_existing_run_is_not_overwritten(interrupted):
    before = files_of(interrupted)
    with pytest.raises(FlowmendError, match="add --resume"):
        start(interrupted)
    assert files_of(interrupted) == before


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(FlowmendError, match="no run to resume"):
        start(tmp_path / "nowhere", resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "random", "empty", "foreign", "half a checkpoint"])
def test_damaged_checkpoint_is_refused(interrupted, damage):
    path = interrupted / "checkpoint.safetensors"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "random":
        path.write_bytes(b"\x17" * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        with checkpoint_module.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file(dict(list(load_file(path).items())[::2]), path, metadata=metadata)
    with pytest.raises(FlowmendError, match="damaged or belongs to another"):
        start(interrupted, resume=True)


@pytest.mark.parametrize(
    ("images", "validation"),
    [
        (blobs(8, channels=3), VALIDATION),
        (IMAGES, blobs(8, channels=3)),
        (IMAGES[..., :4], VALIDATION),
    ],
    ids=["training", "held out", "width"],
)
def test_images_of_another_shape_are_refused(tmp_path, images, validation):
    with pytest.raises(FlowmendError, match=r"\(1, 8, 8\)"):
        train(images, validation, tmp_path, CONFIG, STRONG)
    assert list(tmp_path.iterdir()) == []
