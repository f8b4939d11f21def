"""Training on a handful of tiny images: it improves, resumes to the same bits after any
interruption, survives steps that are not finite, and keeps the best prior."""

import dataclasses
import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flowmend import checkpoint as checkpoint_module
from flowmend import train as training
from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig
from flowmend.pixels import dequantise
from flowmend.prior import FlowPrior, GaussianPrior
from flowmend.train import RECIPES, Recipe, Run, finish, held_out_bits, round_trip_error, train
from flowmend.weights import load_prior

SIZE = 8
CONFIG = FlowConfig(
    height=SIZE, width=SIZE, channels=1, steps=(1, 2), split=(True, False), hidden=6
)
GLOW = FlowConfig(
    **(CONFIG.to_dict() | {"permutation": "conv1x1", "scale": "bounded", "positional": True})
)
WHITENED = FlowConfig(**(GLOW.to_dict() | {"whiten": True}))
STRONG = Recipe(epochs=3, batch=16, warmup=3, learning_rate=2e-3, weight_decay=0.1, averaging=0.9)
PAPER = dataclasses.replace(RECIPES["paper"], epochs=3, batch=16, learning_rate=1e-3)
STEPS = 12


def blobs(count, seed=0, channels=1):
    """Smooth random images uint8 (N, C, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(SIZE) + 0.5
    place = SIZE * torch.rand(count, channels, 2, 1, 1, generator=generator)
    width = 2.0 + 2.0 * torch.rand(count, 1, 1, 1, generator=generator)
    distance = (axis[:, None] - place[:, :, 0]) ** 2 + (axis - place[:, :, 1]) ** 2
    return (20 + 200 * (-distance / (2 * width**2)).exp()).to(torch.uint8)


IMAGES, VALIDATION = blobs(64), blobs(12, seed=1)


def start(out, config=CONFIG, recipe=STRONG, images=IMAGES, **options):
    return train(images, VALIDATION, out, config, recipe, **options)


def run_in(out, config=CONFIG, recipe=STRONG, images=IMAGES, seed=0):
    return Run(out, config, recipe, images, VALIDATION, seed, "cpu")


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def result_of(out):
    """All that a run leaves but times and the machine it ran on."""
    card = json.loads((out / "prior.json").read_text())
    for key in ("made_with", "sha256", "name"):
        card.pop(key)
    with checkpoint_module.safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        values = json.loads(file.metadata()["values"])
    return {
        "card": card,
        "log": [{k: v for k, v in record.items() if k != "seconds"} for record in log_of(out)],
        "prior": load_file(out / "prior.safetensors"),
        "checkpoint": load_file(out / "checkpoint.safetensors"),
        "values": values,
        "samples": {path.name: path.read_bytes() for path in (out / "samples").iterdir()},
    }


def assert_same(found, wanted):
    for key in ("prior", "checkpoint"):
        one, other = found[key], wanted[key]
        assert one.keys() == other.keys()
        different = [name for name in one if not torch.equal(one[name], other[name])]
        assert different == [], f"{key} differs"
    for key in ("card", "log", "values", "samples"):
        assert found[key] == wanted[key]


class Interrupted(Exception):  # noqa: N818
    pass


def interrupt_at(step):
    def progress(done, total, what):
        if done == step:
            raise Interrupted

    return progress


def resume_counting(out, config, recipe):
    """Resumes a run and returns the steps it took."""
    told = []
    start(out, config, recipe, resume=True, progress=lambda *told_now: told.append(told_now))
    return [done for done, _, what in told if what.startswith("epoch")]


# It learns, and writes what it says.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One longer run on whitened images that several tests look at."""
    out = tmp_path_factory.mktemp("finished")
    recipe = dataclasses.replace(STRONG, epochs=8)
    records, steps = [], []
    path = start(
        out,
        WHITENED,
        recipe,
        report=records.append,
        progress=lambda *arguments: steps.append(arguments),
    )
    return {"out": out, "path": path, "records": records, "steps": steps, "recipe": recipe}


@pytest.mark.parametrize("config", [CONFIG, GLOW], ids=["swap", "conv1x1"])
def test_bits_per_dim_improve(tmp_path, config):
    recipe = dataclasses.replace(STRONG, epochs=8, learning_rate=5e-3)
    before = held_out_bits(run_in(tmp_path / "unused", config, recipe).kept(), VALIDATION)
    prior = load_prior(start(tmp_path, config, recipe))
    bits = [record["val_bits_per_dim"] for record in log_of(tmp_path)]
    assert bits[-1] < bits[0] - 0.05
    assert bits[-1] < before - 0.2
    assert held_out_bits(prior, VALIDATION) == pytest.approx(min(bits), abs=1e-5)
    assert held_out_bits(prior, VALIDATION) < held_out_bits(
        prior, torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    )


def test_card_compares_the_flow_with_its_gaussian(finished):
    """Both numbers are of the same images with the same dequantisation noise."""
    card = json.loads((finished["out"] / "prior.json").read_text())
    assert card["val_bits_per_dim"] < finished["records"][0]["val_bits_per_dim"] - 0.01
    gaussian = GaussianPrior.fit(IMAGES, WHITENED.bits, flip=True)
    noise = training.generator_at(0, 0)
    bits = gaussian.bits_per_dim(VALIDATION.float() / 255.0, WHITENED.bits, noise).mean()
    assert card["gaussian_val_bits_per_dim"] == pytest.approx(bits.item(), abs=1e-4)


def test_log_has_a_line_for_each_epoch(finished):
    log = log_of(finished["out"])
    assert log == finished["records"]
    assert [record["epoch"] for record in log] == list(range(1, 9))
    for record in log:
        assert set(record) == {
            "epoch",
            "train_bits_per_dim",
            "val_bits_per_dim",
            "learning_rate",
            "skipped_steps",
            "seconds",
        }
        assert all(math.isfinite(value) for value in record.values())
        assert record["skipped_steps"] == 0
        assert record["seconds"] >= 0


def test_progress_counts_every_step(finished):
    fit, *steps = finished["steps"]
    assert fit == (0, 32, "fitting a Gaussian")
    assert steps == [(step, 32, f"epoch {(step + 3) // 4}") for step in range(1, 33)]


def test_samples_of_each_epoch_are_a_sheet(finished):
    folder = finished["out"] / "samples"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"epoch-{epoch:04d}.png" for epoch in range(1, 9)]
    with Image.open(folder / names[-1]) as sheet:
        assert sheet.size == (8 * (SIZE + 2) + 2, 8 * (SIZE + 2) + 2)
        assert sheet.mode == "L"
        assert len(sheet.getcolors()) > 10


def test_nothing_else_is_left_in_the_folder(finished):
    assert sorted(path.name for path in finished["out"].iterdir()) == [
        "checkpoint.safetensors",
        "log.jsonl",
        "prior.json",
        "prior.safetensors",
        "samples",
    ]
    assert finished["path"] == finished["out"] / "prior.safetensors"


def test_card_says_how_it_was_trained(finished):
    card = load_prior(finished["path"]).card
    best = min(finished["records"], key=lambda record: record["val_bits_per_dim"])
    assert card["epoch"] == best["epoch"]
    assert card["val_bits_per_dim"] == round(best["val_bits_per_dim"], 4)
    assert card["training_images"] == 64
    assert card["validation_images"] == 12
    assert Recipe(**card["recipe"]) == finished["recipe"]
    assert card["parameters"] == sum(
        value.numel() for value in load_prior(finished["path"]).parameters()
    )
    assert card["made_with"]["torch"] == torch.__version__


def test_kept_prior_gives_the_bits_of_its_card(finished):
    """The bits of the card are those of the file, whatever precision the Gaussian is kept in."""
    prior = load_prior(finished["path"])
    found = held_out_bits(prior, VALIDATION)
    assert found == pytest.approx(prior.card["val_bits_per_dim"], abs=2e-3)


def test_finish_measures_the_round_trip(finished):
    card = finish(finished["path"], VALIDATION)
    prior = load_prior(finished["path"])
    assert 0 < card["round_trip_error"] < 1e-3
    assert card["round_trip_error"] == round_trip_error(prior, VALIDATION)
    assert prior.card == card
    assert json.loads((finished["out"] / "prior.json").read_text())["round_trip_error"] > 0


def test_round_trip_error_is_the_largest_difference(finished):
    prior = load_prior(finished["path"])
    x = dequantise(VALIDATION.float() / 255.0, WHITENED.bits)
    wanted = (prior.decode(prior.encode(x)[0])[0] - x).abs().max().item()
    for batch in (5, 64):
        found = round_trip_error(prior, VALIDATION, batch)
        assert found == pytest.approx(wanted, abs=2e-6)
    with torch.no_grad():
        prior.flow.scales[1].layers[1].shift.fill_(torch.nan)
    assert round_trip_error(prior, VALIDATION) == math.inf


def test_round_trip_error_notices_a_wrong_inverse(finished, monkeypatch):
    prior = load_prior(finished["path"])
    decode = FlowPrior.decode

    def slightly_wrong(self, z):
        x, logdet = decode(self, z)
        x[-1, 0, 3, 5] += 0.01
        return x, logdet

    monkeypatch.setattr(FlowPrior, "decode", slightly_wrong)
    assert round_trip_error(prior, VALIDATION) == pytest.approx(0.01, abs=1e-3)


def test_held_out_bits_are_a_mean_over_images(finished):
    prior = load_prior(finished["path"])
    whole = held_out_bits(prior, VALIDATION)
    assert whole == held_out_bits(prior, VALIDATION)
    assert whole != held_out_bits(prior, VALIDATION, seed=1)
    parts = [held_out_bits(prior, VALIDATION[index : index + 1]) for index in range(12)]
    assert whole == pytest.approx(sum(parts) / 12, abs=0.1)
    assert whole == pytest.approx(held_out_bits(prior, VALIDATION, batch=5), abs=0.1)


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


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FlowmendError, match="Cannot write"):
        start(tmp_path / "file" / "run")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("full")])
def test_full_disk_keeps_the_older_checkpoint(tmp_path, monkeypatch, error):
    calls = []

    def fail_later(tensors, path, metadata):
        calls.append(1)
        save_file(tensors, path, metadata=metadata)
        if len(calls) == 2:
            path.write_bytes(b"half a file")
            raise error

    monkeypatch.setattr(checkpoint_module, "save_file", fail_later)
    with pytest.raises(FlowmendError, match=r"Cannot write '.*checkpoint"):
        start(tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    monkeypatch.undo()
    start(tmp_path / "whole")
    start(tmp_path, resume=True)
    assert_same(result_of(tmp_path), result_of(tmp_path / "whole"))


# Steps that are not finite.


def poison(monkeypatch, steps, how=torch.nan):
    """Spoils the loss of some training steps (counted from 1), and records the others."""
    log_prob, calls, losses = FlowPrior.log_prob, [], []

    def poisoned(self, x):
        value = log_prob(self, x)
        if not torch.is_grad_enabled():
            return value
        calls.append(1)
        if len(calls) not in steps:
            bits = CONFIG.bits - value.detach().mean() / (CONFIG.dimensions * math.log(2.0))
            losses.append(float(bits))
            return value
        if how == "gradient":  # a finite value whose gradient is 0 / 0
            return value + (0.0 * value).clamp(min=0.0).sqrt()
        if how == "value":  # the reverse: a gradient that looks sound
            return value + torch.nan
        return value * how

    monkeypatch.setattr(FlowPrior, "log_prob", poisoned)
    return losses


@pytest.mark.parametrize("how", [torch.nan, torch.inf, "gradient", "value"], ids=str)
@pytest.mark.parametrize("recipe", [STRONG, PAPER], ids=["strong", "paper"])
def test_step_that_is_not_finite_changes_nothing(tmp_path, monkeypatch, recipe, how):
    run = run_in(tmp_path, recipe=recipe)
    poison(monkeypatch, {2, 3}, how)
    run.advance()

    def state():
        optimiser = run.optimiser.state_dict()["state"]
        return [
            *run.prior.state_dict().values(),
            *run.flow.state_dict().values(),
            *(value for slot in optimiser.values() for value in slot.values()),
        ]

    before = [value.clone() for value in state()]
    for skipped in (1, 2):
        run.advance()
        assert (run.step, run.skipped) == (skipped + 1, skipped)
    assert all(torch.equal(one, other) for one, other in zip(state(), before, strict=True))
    run.advance()
    assert run.skipped == 2
    assert not all(torch.equal(one, other) for one, other in zip(state(), before, strict=True))
    assert all(bool(torch.isfinite(value).all()) for value in state())


def test_skipped_steps_are_counted_and_training_goes_on(tmp_path, monkeypatch):
    poison(monkeypatch, {2, 6, 7})
    prior = load_prior(start(tmp_path))
    assert [record["skipped_steps"] for record in log_of(tmp_path)] == [1, 3, 3]
    assert prior.card["skipped_steps"] == 3
    for value in load_file(tmp_path / "checkpoint.safetensors").values():
        assert bool(torch.isfinite(value).all())


def test_skipped_steps_are_counted_across_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    poison(monkeypatch, {2})
    with pytest.raises(Interrupted):
        start(tmp_path, progress=interrupt_at(3))
    start(tmp_path, resume=True)
    assert log_of(tmp_path)[-1]["skipped_steps"] == 1


@pytest.mark.parametrize("spoiled", [set(), {2}, {1, 4}], ids=["none", "one", "two"])
def test_training_bits_are_the_mean_of_the_steps_taken(tmp_path, monkeypatch, spoiled):
    losses = poison(monkeypatch, spoiled)
    run = run_in(tmp_path)
    for _ in range(4):
        run.advance()
    record = run.finish_epoch(0.0)
    assert len(losses) == 4 - len(spoiled)
    assert record["train_bits_per_dim"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_hopeless_run_is_one_sentence_and_keeps_no_prior(tmp_path):
    recipe = dataclasses.replace(STRONG, epochs=1, learning_rate=1e30, warmup=0)
    with pytest.raises(FlowmendError, match=r"never gave finite.*lower the learning rate"):
        start(tmp_path, recipe=recipe)
    assert not (tmp_path / "prior.safetensors").exists()


# The best prior.


def scripted(monkeypatch, bits):
    values = iter(bits)
    monkeypatch.setattr(training, "held_out_bits", lambda *arguments: next(values))


@pytest.mark.parametrize(
    ("bits", "best"),
    [
        ((3.0, 2.0, 4.0), 2),
        ((1.0, 2.0, 3.0), 1),
        ((3.0, 2.0, 1.0), 3),
        ((2.0, math.nan, 3.0), 1),
        ((math.nan, 5.0, -math.inf), 2),
        ((2.0, 2.0, 2.0), 1),
    ],
    ids=str,
)
def test_best_prior_is_kept(tmp_path, monkeypatch, bits, best):
    scripted(monkeypatch, bits)
    kept = []

    def report(record):
        kept.append(
            (tmp_path / "prior.safetensors").is_file()
            and load_file(tmp_path / "prior.safetensors")
        )

    card = load_prior(start(tmp_path, report=report)).card
    assert card["epoch"] == best
    assert card["val_bits_per_dim"] == bits[best - 1]
    final = load_file(tmp_path / "prior.safetensors")
    assert all(torch.equal(final[key], kept[best - 1][key]) for key in final)


def test_best_prior_survives_an_interruption(tmp_path, monkeypatch):
    scripted(monkeypatch, (2.0, 3.0, 2.5))
    with pytest.raises(Interrupted):
        start(tmp_path, progress=interrupt_at(8))
    best = (tmp_path / "prior.safetensors").read_bytes()
    start(tmp_path, resume=True)
    assert (tmp_path / "prior.safetensors").read_bytes() == best


# Recipes.


def test_recipe_of_the_paper():
    recipe = RECIPES["paper"]
    assert recipe.learning_rate == 1e-4
    assert recipe.betas == (0.5, 0.999)
    assert recipe.batch == 32
    assert recipe.epochs == 100
    assert (recipe.weight_decay, recipe.averaging, recipe.clip) == (0.0, 0.0, 0.0)
    assert not recipe.flip
    assert {recipe.rate(step, 5000) for step in (0, 1, 2500, 4999)} == {1e-4}


def test_rate_warms_up_and_falls_along_a_cosine():
    recipe = Recipe(learning_rate=2.0, warmup=10)
    assert recipe.rate(0, 1000) == pytest.approx(0.2, rel=1e-3)
    assert recipe.rate(4, 1000) == pytest.approx(1.0, rel=1e-3)
    assert recipe.rate(500, 1000) == pytest.approx(1.0)
    assert recipe.rate(250, 1000) == pytest.approx(1.0 + math.sqrt(0.5))
    assert recipe.rate(999, 1000) < 1e-4


def test_rate_of_each_step_reaches_the_optimiser(tmp_path):
    run = run_in(tmp_path)
    for step in range(STEPS):
        run.advance()
        wanted = STRONG.rate(step, STEPS)
        assert {group["lr"] for group in run.optimiser.param_groups} == {wanted}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epoch"),
        ({"batch": 0}, "batch"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"learning_rate": -1.0}, "learning rate"),
        ({"learning_rate": math.nan}, "learning rate"),
        ({"learning_rate": math.inf}, "learning rate"),
        ({"precision": "float8"}, "float8"),
    ],
    ids=str,
)
def test_impossible_recipe_is_refused(changes, message):
    with pytest.raises(FlowmendError, match=message):
        Recipe(**changes)


def test_only_convolutions_of_networks_decay(tmp_path):
    run = run_in(tmp_path, GLOW)
    names = {id(value): name for name, value in run.prior.named_parameters()}
    groups = run.optimiser.param_groups
    found = [{names[id(value)] for value in group["params"]} for group in groups]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert found[0] | found[1] == set(names.values())
    assert found[0] & found[1] == set()
    assert found[0] == {
        name
        for name in names.values()
        if name.endswith((".network.first.weight", ".network.last.weight"))
    }


def test_average_forgets_its_first_steps(tmp_path):
    run = run_in(tmp_path, recipe=dataclasses.replace(STRONG, averaging=0.25))
    key = "scales.0.layers.1.shift"
    wanted = None
    for count in range(8):
        run.advance()
        now = run.prior.flow.state_dict()[key].double()
        decay = min(0.25, (1.0 + count) / (10.0 + count))
        wanted = now if count == 0 else decay * wanted + (1.0 - decay) * now
        found = run.flow.state_dict()[key].double()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)
    assert not torch.equal(found, now)


def test_run_without_averaging_keeps_the_weights(tmp_path):
    run = run_in(tmp_path, recipe=PAPER)
    run.advance()
    assert run.flow is run.prior.flow


def test_gradients_are_clipped(tmp_path, monkeypatch):
    norms = []
    for clip in (1e-3, 0.0):
        run = run_in(tmp_path, recipe=dataclasses.replace(STRONG, clip=clip))
        run.advance()
        squares = [value.grad.square().sum() for value in run.prior.parameters()]
        norms.append(float(sum(squares)) ** 0.5)
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1] > 0.01


def batches_of(run, monkeypatch):
    seen = []
    monkeypatch.setattr(
        training, "dequantise", lambda x, *rest: seen.append(x.clone()) or dequantise(x, *rest)
    )
    for _ in range(2 * run.steps_per_epoch):
        run.advance()
    monkeypatch.undo()
    return [(255.0 * x).round().to(torch.uint8) for x in seen]


def test_every_image_is_seen_once_an_epoch(tmp_path, monkeypatch):
    run = run_in(tmp_path, recipe=PAPER)
    batches = batches_of(run, monkeypatch)
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])

    def keys(images):
        return [image.numpy().tobytes() for image in images]

    assert len(set(keys(IMAGES))) == 64
    assert sorted(keys(first)) == sorted(keys(second)) == sorted(keys(IMAGES))
    assert keys(first) != keys(second)


def test_mirroring_is_random_and_optional(tmp_path, monkeypatch):
    known = {image.numpy().tobytes() for image in IMAGES}
    mirrored = {image.numpy().tobytes() for image in IMAGES.flip(-1)}
    for flip, low, high in ((True, 32, 96), (False, 0, 0)):
        run = run_in(tmp_path, recipe=dataclasses.replace(STRONG, flip=flip))
        seen = [image.numpy().tobytes() for image in torch.cat(batches_of(run, monkeypatch))]
        assert all(image in known | mirrored for image in seen)
        assert low <= sum(image not in known for image in seen) <= high


def test_fewer_images_than_a_batch(tmp_path):
    path = start(tmp_path, images=IMAGES[:5], recipe=dataclasses.replace(STRONG, epochs=2))
    assert [record["epoch"] for record in log_of(tmp_path)] == [1, 2]
    assert load_prior(path).card["training_images"] == 5


def test_actnorms_start_from_the_images(tmp_path):
    run = run_in(tmp_path)
    with torch.no_grad():
        z = run.prior.encode(dequantise(IMAGES.float() / 255.0, 5))[0]
    assert z.abs().max() < 10
    assert run.prior.flow.scales[0].layers[1].log_scale.any()


@pytest.mark.parametrize("recipe", [STRONG, PAPER], ids=["averaged", "not averaged"])
def test_kept_prior_inverts_while_it_trains(tmp_path, recipe):
    """The cached inverse of a 1x1 convolution must follow the optimiser."""
    run = run_in(tmp_path, GLOW, dataclasses.replace(recipe, learning_rate=0.02, warmup=0))
    for _ in range(3):
        assert round_trip_error(run.kept(), VALIDATION) < 1e-3
        run.advance()


def test_lower_precision_trains_too(tmp_path):
    recipe = dataclasses.replace(STRONG, epochs=2, precision="bfloat16")
    prior = load_prior(start(tmp_path, WHITENED, recipe))
    assert all(value.dtype == torch.float32 for value in prior.parameters())
    start(tmp_path / "single", WHITENED, dataclasses.replace(recipe, precision="float32"))
    low, single = (log_of(out)[-1] for out in (tmp_path, tmp_path / "single"))
    assert low["val_bits_per_dim"] != single["val_bits_per_dim"]
    assert low["val_bits_per_dim"] == pytest.approx(single["val_bits_per_dim"], abs=0.05)
