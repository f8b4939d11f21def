"""Where the methods start, and with which settings."""

import math

import pytest
import torch
from solver_cases import (
    GAUSSIAN,
    OPERATORS,
    SIGMA,
    SIZE,
    flow_prior,
    measure,
    numbers,
    posterior_mean,
)

import flowmend as fm
from flowmend.latent import start_latents
from flowmend.methods import default_settings


def test_the_seed_decides_the_start():
    prior, operator = flow_prior(), OPERATORS["denoise"]
    y = measure(operator)

    def solve(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return fm.solve(
            y,
            operator,
            prior,
            method="likelihood",
            steps=3,
            start="small",
            generator=generator,
        ).x

    assert torch.equal(solve(4), solve(4))
    assert not torch.equal(solve(4), solve(5))
    assert torch.equal(solve(None), solve(0))


# Starts
@pytest.mark.parametrize(("start", "deviation"), [("zero", 0.0), ("small", 0.1), ("random", 1.0)])
def test_named_starts(start, deviation):
    z = start_latents(start, 100, GAUSSIAN, torch.Generator().manual_seed(0))
    assert z.shape == (100, SIZE)
    assert z.dtype == torch.float64
    assert float(z.std()) == pytest.approx(deviation, rel=0.03)
    assert float(z.mean().abs()) <= 4 * deviation / math.sqrt(z.numel())


def test_given_latents_are_copied():
    z = numbers(3, SIZE)
    first = start_latents(z, 3, GAUSSIAN, None)
    assert torch.equal(first, z)
    assert first.data_ptr() != z.data_ptr()


@pytest.mark.parametrize(
    ("method", "sigma", "deviation"),
    [("csgm", 0.0, 1.0), ("glowip", 0.0, 0.0), ("likelihood", 0.0, 0.1), ("map", 0.1, 0.1)],
)
def test_each_method_starts_where_it_should(method, sigma, deviation):
    y = measure(OPERATORS["denoise"], 40)
    solution = fm.solve(
        y, OPERATORS["denoise"], GAUSSIAN, method=method, sigma=sigma, steps=1, learning_rate=1e-9
    )
    assert float(solution.z.std()) == pytest.approx(deviation, rel=0.05, abs=1e-6)


@pytest.mark.parametrize("method", ["likelihood", "map"])
def test_the_start_lmmse_is_the_closed_form(method):
    prior, operator = flow_prior(), OPERATORS["blur"]
    y = measure(operator, 3)
    closed = posterior_mean(operator, y, SIGMA)
    solution = fm.solve(
        y, operator, prior, method=method, sigma=SIGMA, steps=1, weight=0.3, start="lmmse"
    )
    start = prior.encode(closed)[0]
    moved = (solution.z - start).abs()
    assert moved.max() <= 3e-3 * 1.001, "one step of Adam from there"
    assert moved.median() >= 3e-3 * 0.99
    penalty = -0.3 * prior.log_prob(closed)
    assert torch.allclose(solution.trace["regulariser"][0], penalty, rtol=1e-5, atol=0)


def test_an_image_starts_where_its_own_measurements_say():
    prior, operator = flow_prior(), OPERATORS["blur"]
    y = measure(operator, 3)
    together = fm.solve(y, operator, prior, sigma=SIGMA, steps=4)
    for index in range(3):
        one = slice(index, index + 1)
        alone = fm.solve(y[one], operator, prior, sigma=SIGMA, steps=4)
        assert torch.allclose(together.x[one], alone.x, rtol=0, atol=1e-6)


def test_default_settings():
    papers = {"steps": 1500, "learning_rate": 5e-3, "cosine": False}
    short = {"start": "lmmse", "steps": 100, "learning_rate": 3e-3, "cosine": True}
    for method, start in {"likelihood": "small", "csgm": "random", "glowip": "zero"}.items():
        assert {**papers, "start": start}.items() <= default_settings(method).items()
        assert {**papers, "start": "zero"}.items() <= default_settings(method, "zero").items()
        assert short.items() <= default_settings(method, "lmmse").items()
    settings = fm.solve(
        measure(OPERATORS["mask"]),
        OPERATORS["mask"],
        flow_prior(),
        method="likelihood",
        start="lmmse",
        steps=2,
        cosine=False,
    ).settings
    assert settings["start"] == "lmmse"
    assert settings["steps"] == 2
    assert settings["cosine"] is False


def test_the_default_method_suits_the_prior():
    operator = OPERATORS["mask"]
    y = measure(operator)
    assert fm.solve(y, operator, flow_prior(), steps=1).method == "fast-map"
    assert fm.solve(y, operator, GAUSSIAN, steps=1).method == "likelihood"
