"""Full disks, steps that are not finite, and which prior is kept."""

import dataclasses
import math

import pytest
import torch
from conftest import Interrupted, interrupt_at
from safetensors.torch import load_file, save_file
from training_cases import CONFIG, PAPER, STRONG, assert_same, log_of, result_of, run_in, start

from flowmend import checkpoint as checkpoint_module
from flowmend import train as training
from flowmend.errors import FlowmendError
from flowmend.prior import FlowPrior
from flowmend.weights import load_prior


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
