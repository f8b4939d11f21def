"""Runs of flow matching that are interrupted, go wrong, or end with their minutes."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import Interrupted, interrupt_at
from matching_cases import CASES, RECIPE, log_of, run_in, start
from safetensors import safe_open
from safetensors.torch import load_file

from flowmend import flowmatching, training
from flowmend.errors import FlowmendError
from flowmend.flowmatching import MatchingRun
from flowmend.matching_loss import matching_loss
from flowmend.recipes import MatchingRecipe
from flowmend.weights import load_prior


def result_of(out):
    """All that a run leaves but times and the machine it ran on."""
    card = json.loads((out / "prior.json").read_text())
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        values = json.loads(file.metadata()["values"])
    return {
        "card": {k: v for k, v in card.items() if k not in ("made_with", "sha256", "name")},
        "log": [{k: v for k, v in record.items() if k != "seconds"} for record in log_of(out)],
        "values": values,
        "samples": {path.name: path.read_bytes() for path in (out / "samples").iterdir()},
        "prior": load_file(out / "prior.safetensors"),
        "checkpoint": load_file(out / "checkpoint.safetensors"),
    }


def assert_same(found, wanted):
    for key in ("prior", "checkpoint"):
        assert found[key].keys() == wanted[key].keys()
        for name, value in wanted[key].items():
            assert torch.equal(found[key][name], value), f"{name} of the {key} differs"
    for key in ("card", "log", "values", "samples"):
        assert found[key] == wanted[key]


# Interruptions.
@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = {}
    for case in CASES:
        for precision in ("float32", "bfloat16"):
            out = tmp_path_factory.mktemp("whole")
            start(out, case, dataclasses.replace(RECIPE, precision=precision))
            results[case, precision] = result_of(out)
    return results


@pytest.mark.parametrize("step", [1, 4, 6, 8])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_resumed_run_is_the_uninterrupted_one(
    tmp_path, monkeypatch, uninterrupted, case, precision, step
):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    monkeypatch.setattr(flowmatching, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(Interrupted):
        start(tmp_path, case, recipe, progress=interrupt_at(step))
    start(tmp_path, case, recipe, resume=True)
    assert_same(result_of(tmp_path), uninterrupted[case, precision])


def test_precision_reaches_the_network(uninterrupted):
    single, low = (uninterrupted["one size", key] for key in ("float32", "bfloat16"))
    assert single["log"] != low["log"]
    assert single["log"][-1]["val_loss"] == pytest.approx(low["log"][-1]["val_loss"], rel=0.05)


def test_run_does_not_depend_on_global_random_numbers(tmp_path, uninterrupted):
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    start(tmp_path, "crops")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(result_of(tmp_path), uninterrupted["crops", "float32"])
    other = tmp_path / "other"
    start(other, "crops", seed=1)
    assert result_of(other)["log"] != uninterrupted["crops", "float32"]["log"]


def test_step_that_is_not_finite_changes_nothing(tmp_path, monkeypatch):
    run = run_in(tmp_path)
    run.advance()
    before = {key: value.clone() for key, value in run.prior.state_dict().items()}
    loss = matching_loss
    monkeypatch.setattr(
        flowmatching, "matching_loss", lambda *arguments: loss(*arguments) * math.nan
    )
    run.advance()
    assert (run.step, run.skipped) == (2, 1)
    assert all(torch.equal(value, before[k]) for k, value in run.prior.state_dict().items())


def test_hopeless_run_is_one_sentence_and_keeps_no_prior(tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, warmup=0)
    with pytest.raises(FlowmendError, match=r"finite.*lower the learning rate"):
        start(tmp_path, recipe=recipe)
    assert not (tmp_path / "prior.safetensors").exists()


def test_best_prior_is_kept(tmp_path, monkeypatch):
    values = iter((0.5, 0.4, 0.6))
    monkeypatch.setattr(flowmatching, "held_out_loss", lambda *arguments: next(values))
    card = load_prior(start(tmp_path)).card
    assert (card["epoch"], card["val_loss"]) == (2, 0.4)


# The time limit.
class Clock:
    """A clock that a training step moves by 10 seconds."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(training.time, "monotonic", lambda: self.now)
        advance = MatchingRun.advance

        def slow(run):
            advance(run)
            self.now += 10.0

        monkeypatch.setattr(MatchingRun, "advance", slow)


def test_training_ends_with_its_minutes(tmp_path, monkeypatch):
    Clock(monkeypatch)
    recipe = dataclasses.replace(RECIPE, epochs=1000, minutes=1.0, warmup=0)
    rates = []
    told = []

    def progress(done, total, what):
        if what.startswith("epoch"):
            told.append((done, total))

    rate = MatchingRecipe.rate
    monkeypatch.setattr(
        MatchingRecipe, "rate", lambda *arguments: rates.append(rate(*arguments)) or rates[-1]
    )
    path = start(tmp_path, recipe=recipe, progress=progress)
    assert told[-1] == (6, 6)
    wanted = [5e-3 * 0.5 * (1.0 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates[::2] == pytest.approx(wanted)
    assert [record["epoch"] for record in log_of(tmp_path)] == [1, 2]
    assert load_prior(path).card["recipe"]["minutes"] == 1.0


def test_resumed_run_has_the_minutes_that_are_left(tmp_path, monkeypatch):
    Clock(monkeypatch)
    monkeypatch.setattr(flowmatching, "CHECKPOINT_SECONDS", -1.0)
    recipe = dataclasses.replace(RECIPE, epochs=1000, minutes=1.0)
    with pytest.raises(Interrupted):
        start(tmp_path, recipe=recipe, progress=interrupt_at(2))
    told = []
    start(tmp_path, recipe=recipe, resume=True, progress=lambda *now: told.append(now[0]))
    assert [step for step in told if step] == [3, 4, 5, 6]
    before = (tmp_path / "prior.safetensors").read_bytes()
    start(tmp_path, recipe=recipe, resume=True)
    assert (tmp_path / "prior.safetensors").read_bytes() == before


def test_steps_can_end_before_the_minutes(tmp_path):
    recipe = dataclasses.replace(RECIPE, minutes=60.0)
    start(tmp_path, recipe=recipe)
    assert len(log_of(tmp_path)) == 3
    assert log_of(tmp_path)[-1]["learning_rate"] == pytest.approx(RECIPE.rate(11, 12))


def test_warm_up_is_a_twentieth_of_a_long_run_at_most():
    recipe = MatchingRecipe(learning_rate=1.0, warmup=100)
    assert recipe.rate(0, 100_000) == pytest.approx(0.01)
    assert recipe.rate(0, 1000) == pytest.approx(0.02)
    assert recipe.rate(49, 1000) == pytest.approx(1.0, abs=0.01)
    assert recipe.rate(0, 10) == pytest.approx(0.05)
    assert dataclasses.replace(recipe, warmup=2).rate(1, 10_000) == pytest.approx(1.0)


@pytest.mark.parametrize("minutes", [-1.0, math.nan, math.inf])
def test_impossible_minutes_are_refused(minutes):
    with pytest.raises(FlowmendError, match="minutes"):
        MatchingRecipe(minutes=minutes)
