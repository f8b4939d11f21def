"""Traces, observers, rates, and images that stop being finite."""

import math

import pytest
import torch
from solver_cases import GAUSSIAN, OPERATORS, SIGMA, SIZE, flow_prior, measure, numbers, options

import flowmend as fm


class Recorder:
    """Passes a prior or an operator on, counting calls and changing what comes back."""

    def __init__(self, inner, change, name):
        self.inner, self.change, self.name, self.calls = inner, change, name, 0

    def at_precision(self, precision):
        return self

    def with_memory(self, memory):
        return self

    def __getattr__(self, name):
        value = getattr(self.inner, name)
        if name != self.name:
            return value

        def call(*arguments):
            self.calls += 1
            return self.change(self.calls, value(*arguments))

        return call


# The trace
@pytest.mark.parametrize("method", ["likelihood", "csgm", "glowip", "map"])
def test_trace_has_every_step_of_every_image(method):
    operator, prior = OPERATORS["mask"], flow_prior()
    y = measure(operator, 3)
    calls = []
    solution = fm.solve(
        y,
        operator,
        prior,
        method=method,
        sigma=0.1,
        steps=60,
        learning_rate=0.01,
        progress=lambda done, total, what: calls.append((done, total)),
    )
    assert set(solution.trace) == {"objective", "data", "regulariser"}
    assert all(values.shape == (60, 3) for values in solution.trace.values())
    total = solution.trace["data"] + solution.trace["regulariser"]
    assert torch.allclose(solution.trace["objective"], total, rtol=1e-12, atol=1e-12)
    quarters = solution.trace["objective"].reshape(4, 15, 3).mean(1)
    assert bool((quarters[1:] < quarters[:-1]).all())
    assert calls == [(step + 1, 60) for step in range(60)]
    assert solution.status == ["finished"] * 3
    assert solution.method == method
    assert solution.settings["steps"] == 60
    assert solution.seconds > 0


def test_the_trace_begins_with_the_start_by_hand():
    operator, prior, given = OPERATORS["blur"], flow_prior(), options(weight=0.3)
    y = measure(operator, 3)
    solution = fm.solve(y, operator, prior, **given)
    with torch.no_grad():
        x = prior.decode(given["start"])[0]
        data = (operator.A(x) - y).abs().sum((1, 2, 3))
        penalty = -0.3 * prior.log_prob(x)
    assert torch.allclose(solution.trace["data"][0], data, rtol=1e-10, atol=0)
    assert torch.allclose(solution.trace["regulariser"][0], penalty, rtol=1e-8, atol=0)
    assert solution.settings["start"] == "given latents"
    assert torch.allclose(solution.x, prior.decode(solution.z)[0].clamp(0, 1))


def test_an_observer_sees_every_iterate_and_changes_none():
    operator, prior, given = OPERATORS["blur"], flow_prior(), options(weight=0.3)
    y = measure(operator, 3)
    seen = []
    watched = fm.solve(y, operator, prior, observe=lambda *pair: seen.append(pair), **given)
    unwatched = fm.solve(y, operator, prior, **given)
    assert torch.equal(watched.x, unwatched.x)
    assert [step for step, _ in seen] == list(range(len(watched.trace["data"])))
    with torch.no_grad():
        assert torch.allclose(seen[0][1], prior.decode(given["start"])[0])
    data = torch.stack([(operator.A(x) - y).abs().sum((1, 2, 3)) for _, x in seen])
    assert torch.allclose(data, watched.trace["data"], rtol=1e-10, atol=0)


def test_learning_rate_and_cosine_by_hand():
    """Under a steady gradient each step of Adam has the size of its learning rate."""
    operator = OPERATORS["denoise"]
    y, start = measure(operator, 3), numbers(3, SIZE, seed=8)
    for steps in (1, 2, 4):
        flat, curved = (
            fm.solve(
                y, operator, GAUSSIAN, steps=steps, learning_rate=1e-4, start=start, cosine=cosine
            )
            for cosine in (False, True)
        )
        rates = [0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
        assert torch.allclose(
            (flat.z - start).abs().median() / 1e-4, torch.tensor(1.0 * steps).double(), rtol=1e-3
        )
        assert torch.allclose(
            (curved.z - start).abs().median() / 1e-4, torch.tensor(sum(rates)).double(), rtol=1e-3
        )


# What is not finite
def spoil(after):
    """From call ``after`` on, image 1 is NaN."""

    def change(calls, value):
        x = value[0] if isinstance(value, tuple) else value
        if calls >= after:
            x = torch.where(torch.arange(len(x)).reshape(-1, 1, 1, 1) == 1, math.nan, x)
        return (x, value[1]) if isinstance(value, tuple) else x

    return change


@pytest.mark.parametrize("part", ["operator", "prior"])
def test_an_image_that_stops_being_finite_is_taken_back(part):
    operator, prior = OPERATORS["blur"], flow_prior()
    y, given = measure(operator, 3), options(learning_rate=1e-3)
    wanted = fm.solve(y, operator, prior, **given)
    objective = wanted.trace["objective"]
    assert bool((objective[1:, 1] < objective[:-1, 1]).all()), "the best must be the last"
    before = fm.solve(y, operator, prior, **{**given, "steps": 5})
    if part == "operator":
        solution = fm.solve(y, Recorder(operator, spoil(7), "A"), prior, **given)
    else:
        # the last decode, of the result, is sound again
        def change(calls, value):
            return spoil(7)(calls if calls < 16 else 0, value)

        solution = fm.solve(y, operator, Recorder(prior, change, "decode"), **given)
    assert solution.status[0] == solution.status[2] == "finished"
    assert "not finite at step 6" in solution.status[1]
    assert "best iterate" in solution.status[1]
    assert not solution.finished
    assert bool(torch.isfinite(solution.x).all())
    assert torch.allclose(solution.z[[0, 2]], wanted.z[[0, 2]], rtol=0, atol=1e-12)
    assert torch.allclose(solution.z[1], before.z[1], rtol=0, atol=1e-12)
    assert bool(torch.isfinite(solution.trace["objective"][:, [0, 2]]).all())


def test_a_gradient_that_is_not_finite_stops_its_image_only():
    operator, prior = OPERATORS["blur"], flow_prior()
    y, given = measure(operator, 3), options(learning_rate=1e-3)

    def change(calls, value):
        if calls == 4:
            rows = torch.arange(3).reshape(-1, 1, 1, 1)
            value.register_hook(lambda gradient: torch.where(rows == 1, math.inf, gradient))
        return value

    solution = fm.solve(y, Recorder(operator, change, "A"), prior, **given)
    wanted = fm.solve(y, operator, prior, **given)
    before = fm.solve(y, operator, prior, **{**given, "steps": 2})
    assert solution.status[0] == solution.status[2] == "finished"
    assert "not finite at step 3" in solution.status[1]
    assert torch.allclose(solution.z[[0, 2]], wanted.z[[0, 2]], rtol=0, atol=1e-12)
    assert torch.allclose(solution.z[1], before.z[1], rtol=0, atol=1e-12)


def test_an_image_that_never_is_finite_keeps_its_start():
    operator, prior, given = OPERATORS["blur"], flow_prior(), options()
    y = measure(operator, 3)
    solution = fm.solve(y, Recorder(operator, spoil(1), "A"), prior, **given)
    assert "not finite at step 0" in solution.status[1]
    assert torch.equal(solution.z[1], given["start"][1])


def test_a_last_iterate_that_is_not_finite_is_not_passed_off_as_a_result():
    """Only the decode of the result, after the last step, is NaN."""
    operator, given = OPERATORS["blur"], options(learning_rate=1e-3)

    def change(calls, value):
        return spoil(16)(calls, value)

    prior = Recorder(flow_prior(), change, "decode")
    solution = fm.solve(measure(operator, 3), operator, prior, **given)
    assert bool(torch.isfinite(solution.x).all())
    assert solution.status[0] == solution.status[2] == "finished"
    assert "not finite" in solution.status[1]


@pytest.mark.parametrize("method", ["pinv", "lmmse"])
def test_closed_forms_say_which_image_is_not_finite(method):
    class Plain:
        A, A_adjoint, A_dagger = (
            staticmethod(getattr(OPERATORS["mask"], name))
            for name in ("A", "A_adjoint", "A_dagger")
        )

    y = measure(OPERATORS["mask"], 3)
    wanted = fm.solve(y, OPERATORS["mask"], GAUSSIAN, method=method, sigma=SIGMA)
    y[1, 0, 0, 0] = math.nan
    solution = fm.solve(y, Plain(), GAUSSIAN, method=method, sigma=SIGMA)
    assert solution.status == ["finished", "not finite", "finished"]
    assert bool(torch.isfinite(solution.x).all())
    assert torch.allclose(solution.x[[0, 2]], wanted.x[[0, 2]], rtol=0, atol=1e-12)
