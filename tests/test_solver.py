"""The solver: closed forms as ground truth, independent images, soundness, and bad arguments."""

import math

import numpy as np
import pytest
import torch
from conftest import smooth_images
from properties import randomise

import flowmend as fm
from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig, build_flow
from flowmend.latent import minimise, start_latents
from flowmend.methods import default_settings
from flowmend.objective import Objective
from flowmend.operators import Blur, Downsample, Identity, Mask, Sense
from flowmend.pixels import quantisation_sigma
from flowmend.prior import FlowPrior, GaussianPrior

SHAPE = (3, 4, 6)
SIZE = math.prod(SHAPE)
SIGMA = 0.1
TOLERANCE = 1e-4
DESCENT = {"steps": 300, "learning_rate": 0.05, "cosine": True}
"""Enough for the least-squares problems below, whose condition numbers are about ten."""


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gaussian_prior():
    """Neighbouring pixels and channels go together, with a deviation of 0.08; in float64."""
    places = torch.cartesian_prod(*(torch.arange(side).double() for side in SHAPE))
    covariance = 0.08**2 * torch.exp(-0.7 * torch.cdist(places, places))
    mean = 0.5 + 0.1 * torch.sin(numbers(*SHAPE, seed=1))
    return GaussianPrior.from_covariance(mean, covariance), mean, covariance


GAUSSIAN, MEAN, COVARIANCE = gaussian_prior()
HALF_MASK = (torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(2)) < 0.5).float()
KERNEL = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.3, 0.2], [0.05, 0.0, 0.05]], dtype=torch.float64)
OPERATORS = {
    "denoise": Identity(SHAPE),
    "blur": Blur(SHAPE, KERNEL, "zero"),
    "mask": Mask(SHAPE, HALF_MASK),
    "sense": Sense(SHAPE, 20),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def measure(operator, count=2, sigma=SIGMA):
    root = torch.linalg.cholesky(COVARIANCE)
    x = MEAN + (numbers(count, SIZE, seed=21) @ root.T).reshape(-1, *SHAPE)
    y = operator.A(x)
    return y + sigma * numbers(*y.shape, seed=5)


def posterior_mean(operator, y, sigma):
    """(C^-1 + A'A / sigma^2)^-1 (C^-1 mean + A'y / sigma^2), with dense matrices."""
    units = torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)
    A = operator.A(units).flatten(1).T
    precision = torch.linalg.inv(COVARIANCE)
    left = precision + A.T @ A / sigma**2
    right = (precision @ MEAN.flatten())[:, None] + A.T @ y.flatten(1).T / sigma**2
    return torch.linalg.solve(left, right).T.reshape(-1, *SHAPE)


def white_prior(shape):
    """Independent pixels around mid-grey, for methods that do not look at the prior."""
    size = math.prod(shape)
    mean = torch.full(shape, 0.5, dtype=torch.float64)
    return GaussianPrior.from_covariance(mean, torch.eye(size, dtype=torch.float64))


def flow_prior(seed=3):
    """A flow prior with random couplings on images of SHAPE, in float64, weights not frozen."""
    config = FlowConfig(
        channels=3, height=4, width=6, steps=(3,), split=(False,), hidden=6, whiten=True
    )
    flow = randomise(build_flow(config, seed), seed=seed)
    return FlowPrior(flow, gaussian_prior()[0]).double()


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


# Ground truth


@every_operator
def test_map_meets_the_closed_form(operator):
    y = measure(operator)
    wanted = posterior_mean(operator, y, SIGMA)
    assert bool(((wanted > 0.0) & (wanted < 1.0)).all()), "the truth must not be clamped"
    solution = fm.solve(y, operator, GAUSSIAN, method="map", sigma=SIGMA, weight=1.0, **DESCENT)
    assert solution.finished
    assert (solution.x - wanted).abs().max() < TOLERANCE


@every_operator
def test_a_wrong_objective_misses_the_closed_form(operator):
    y = measure(operator)
    wrong = Objective("l2", "likelihood", 1.0, data_weight=2.0 / (2.0 * SIGMA**2))
    start = torch.zeros(2, SIZE, dtype=torch.float64)
    z = minimise(wrong, y, operator, GAUSSIAN, start, **DESCENT)[0]
    assert bool((start == 0).all()), "the first iterate is the caller's"
    x = GAUSSIAN.decode(z)[0]
    assert (x - posterior_mean(operator, y, SIGMA)).abs().max() > 10 * TOLERANCE
    assert (x - posterior_mean(operator, y, SIGMA / math.sqrt(2))).abs().max() < TOLERANCE


@every_operator
def test_lmmse_is_the_closed_form(operator):
    y = measure(operator)
    solution = fm.solve(y, operator, GAUSSIAN, method="lmmse", sigma=SIGMA)
    assert (solution.x - posterior_mean(operator, y, SIGMA)).abs().max() < 1e-6
    assert solution.z is None
    assert solution.trace == {}


def test_lmmse_takes_the_rounding_of_a_file_as_the_least_noise():
    operator = OPERATORS["blur"]
    y = measure(operator, sigma=0.0)
    solution = fm.solve(y, operator, GAUSSIAN, method="lmmse")
    wanted = posterior_mean(operator, y, quantisation_sigma()).clamp(0.0, 1.0)
    assert (solution.x - wanted).abs().max() < 1e-6
    assert quantisation_sigma() == pytest.approx(1 / 255 / math.sqrt(12))


def test_lmmse_takes_the_gaussian_of_a_flow_prior():
    y = measure(OPERATORS["mask"])
    found = fm.solve(y, OPERATORS["mask"], flow_prior(), method="lmmse", sigma=SIGMA)
    wanted = fm.solve(y, OPERATORS["mask"], GAUSSIAN, method="lmmse", sigma=SIGMA)
    assert torch.equal(found.x, wanted.x)


def test_pinv_is_the_operators():
    operator = Downsample(SHAPE, 2)
    y = operator.A(smooth_images(2, *SHAPE))
    solution = fm.solve(y, operator, GAUSSIAN, method="pinv")
    assert torch.equal(solution.x, y.repeat_interleave(2, -1).repeat_interleave(2, -2))
    outside = fm.solve(2.0 * y + 0.5, operator, GAUSSIAN, method="pinv").x
    assert float(outside.max()) == 1.0, "what leaves [0, 1] is clamped"


@pytest.mark.parametrize("channels", [1, 3])
def test_bm3d_is_the_packages(channels):
    package = pytest.importorskip("bm3d")
    shape = (channels, 10, 12)
    y = smooth_images(1, *shape) + 0.1 * numbers(1, *shape)
    solution = fm.solve(y, Identity(shape), white_prior(shape), method="bm3d", sigma=0.1)
    if channels == 3:
        wanted = package.bm3d_rgb(y[0].permute(1, 2, 0).numpy(), 0.1).transpose(2, 0, 1)
    else:
        wanted = package.bm3d(y[0, 0].numpy(), 0.1)[None]
    np.testing.assert_allclose(solution.x[0].numpy(), wanted.clip(0, 1), rtol=0, atol=1e-12)
    assert (solution.x - y).norm() > 0.1


def test_bm3d_says_that_an_image_is_too_small():
    """Below its blocks of 8 x 8 the package raises, and at 8 x 8 it ends the whole process."""
    pytest.importorskip("bm3d")
    shape = (1, 7, 16)
    with pytest.raises(FlowmendError, match=r"(?i)bm3d"):
        fm.solve(numbers(1, *shape), Identity(shape), white_prior(shape), method="bm3d", sigma=0.1)


# Every image on its own


def options(**changes):
    usual = {"method": "likelihood", "steps": 15, "learning_rate": 0.02}
    return {**usual, "start": numbers(3, SIZE, seed=8), **changes}


@pytest.mark.parametrize(
    "change", [{}, {"method": "csgm"}, {"method": "map", "sigma": 0.1}, {"cosine": True}]
)
def test_images_do_not_depend_on_their_neighbours(change):
    prior, operator = flow_prior(), OPERATORS["blur"]
    y = measure(operator, 3)
    given = options(**change)
    together = fm.solve(y, operator, prior, **given)
    for index in range(3):
        one = slice(index, index + 1)
        alone = fm.solve(y[one], operator, prior, **{**given, "start": given["start"][one]})
        assert torch.allclose(together.x[one], alone.x, rtol=0, atol=1e-6)
        for name, values in alone.trace.items():
            assert torch.allclose(together.trace[name][:, one], values, rtol=1e-9, atol=1e-9)


def test_a_neighbour_out_of_bounds_changes_nothing():
    prior, operator = flow_prior(), OPERATORS["blur"]
    y = measure(operator, 3)
    wild = y.clone()
    wild[1] = 1e4
    calm, stormy = (fm.solve(value, operator, prior, **options()) for value in (y, wild))
    assert torch.allclose(calm.z[[0, 2]], stormy.z[[0, 2]], rtol=0, atol=1e-9)
    assert not torch.allclose(calm.z[1], stormy.z[1], rtol=0, atol=1e-3)


# Arguments and priors stay as they were


def test_arguments_and_weights_are_left_alone():
    prior, operator = flow_prior(), OPERATORS["blur"]
    y, given = measure(operator, 3), options()
    first = next(prior.parameters())
    first.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in prior.parameters()]
    before = [parameter.detach().clone() for parameter in prior.parameters()]
    kept_y, kept_start, mode = y.clone(), given["start"].clone(), prior.training
    random = torch.random.get_rng_state()
    solution = fm.solve(y, operator, prior, **given)
    assert torch.equal(y, kept_y)
    assert torch.equal(given["start"], kept_start)
    assert not given["start"].requires_grad
    assert [parameter.requires_grad for parameter in prior.parameters()] == flags
    assert any(flags)
    assert not all(flags)
    for parameter, value in zip(prior.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
    assert prior.training == mode
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not solution.x.requires_grad
    assert not solution.z.requires_grad
    assert not any(values.requires_grad for values in solution.trace.values())


def test_works_where_gradients_are_switched_off():
    prior, operator = flow_prior(), OPERATORS["blur"]
    y = measure(operator, 3)
    wanted = fm.solve(y, operator, prior, **options())
    with torch.no_grad():
        found = fm.solve(y, operator, prior, **options())
    assert torch.equal(found.x, wanted.x)


def test_bfloat16_is_for_the_networks_and_for_the_steps_only():
    prior, operator = flow_prior(), OPERATORS["blur"]
    y = measure(operator, 3)
    before = [parameter.detach().clone() for parameter in prior.parameters()]
    exact, rough = (
        fm.solve(y, operator, prior, **options(precision=name)) for name in ("float32", "bfloat16")
    )
    for parameter, value in zip(prior.parameters(), before, strict=True):
        assert parameter.dtype == torch.float64
        assert torch.equal(parameter, value)
    assert rough.z.dtype == rough.x.dtype == rough.trace["objective"].dtype == torch.float64
    assert rough.finished
    assert torch.equal(rough.x, prior.decode(rough.z)[0].clamp(0, 1))
    assert not torch.equal(rough.z, exact.z)
    assert (rough.x - exact.x).abs().max() < 0.05


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


# Other people's operators


class Physics:
    """Nothing but the three methods that a deepinv physics has."""

    def __init__(self, mask):
        self.mask = mask

    def A(self, x, **unused):  # noqa: N802
        return self.mask * x

    def A_adjoint(self, y, **unused):  # noqa: N802
        return self.mask * y

    def A_dagger(self, y, **unused):  # noqa: N802
        return self.mask * y


@pytest.mark.parametrize(
    ("method", "given"),
    [("likelihood", {"steps": 10}), ("map", {"steps": 10}), ("pinv", {}), ("lmmse", {})],
)
def test_an_operator_needs_no_base_class(method, given):
    y = measure(OPERATORS["mask"])
    found, wanted = (
        fm.solve(y, operator, GAUSSIAN, method=method, sigma=SIGMA, **given)
        for operator in (Physics(HALF_MASK), OPERATORS["mask"])
    )
    assert torch.allclose(found.x, wanted.x, rtol=0, atol=1e-12)
    assert found.finished


# Arguments that do not fit

Y = measure(OPERATORS["denoise"])
REFUSED = {
    "unknown method": ({"method": "magic"}, "Unknown method 'magic'"),
    "unknown start": ({"start": "warm"}, "Unknown start 'warm'"),
    "start of another shape": ({"start": torch.zeros(2, SIZE + 1)}, "Start latents"),
    "start of another count": ({"start": torch.zeros(3, SIZE)}, "Start latents"),
    "no steps": ({"steps": 0}, "at least 1"),
    "negative steps": ({"steps": -5}, "at least 1"),
    "no learning rate": ({"learning_rate": 0.0}, "learning rate"),
    "negative learning rate": ({"learning_rate": -0.1}, "learning rate"),
    "learning rate NaN": ({"learning_rate": math.nan}, "learning rate"),
    "infinite learning rate": ({"learning_rate": math.inf, "steps": 1}, "learning rate"),
    "unknown precision": ({"precision": "float16", "steps": 1}, "precision"),
    "negative weight": ({"weight": -1.0}, "weight"),
    "weight NaN": ({"weight": math.nan}, "weight"),
    "negative sigma": ({"sigma": -0.1}, "at least 0"),
    "sigma NaN": ({"sigma": math.nan}, "at least 0"),
    "infinite sigma": ({"sigma": math.inf}, "at least 0"),
    "negative sigma of a closed form": ({"method": "lmmse", "sigma": -0.1}, "at least 0"),
    "map without noise": ({"method": "map"}, "needs a noise level"),
    "bm3d without noise": ({"method": "bm3d"}, "needs a noise level"),
    "steps for pinv": ({"method": "pinv", "steps": 10}, "closed form"),
    "start for lmmse": ({"method": "lmmse", "start": "zero"}, "closed form"),
    "weight for bm3d": ({"method": "bm3d", "sigma": 0.1, "weight": 1.0}, "closed form"),
}


@pytest.mark.parametrize(("given", "phrase"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_do_not_fit(given, phrase):
    with pytest.raises(FlowmendError, match=phrase):
        fm.solve(Y, OPERATORS["denoise"], GAUSSIAN, **given)


@pytest.mark.parametrize("name", ["blur", "mask", "sense"])
def test_bm3d_only_denoises(name):
    y = measure(OPERATORS[name])
    with pytest.raises(FlowmendError, match="only denoises"):
        fm.solve(y, OPERATORS[name], GAUSSIAN, method="bm3d", sigma=0.1)


def test_lmmse_needs_a_gaussian():
    config = FlowConfig(channels=3, height=4, width=6, steps=(1,), split=(False,), hidden=4)
    prior = FlowPrior(build_flow(config, 0)).double()
    with pytest.raises(FlowmendError, match="needs a Gaussian"):
        fm.solve(Y, OPERATORS["denoise"], prior, method="lmmse", sigma=0.1)
    with pytest.raises(FlowmendError, match="Gaussian"):
        fm.solve(Y, OPERATORS["denoise"], prior, start="lmmse", sigma=0.1)


@pytest.mark.parametrize(
    ("y", "phrase"),
    [
        (torch.zeros(2, 3, 6, 4).double(), "do not fit"),
        (torch.zeros(2, 1, 4, 6).double(), "do not fit"),
        (torch.zeros(3, 4, 6).double(), "do not fit"),
        (torch.full((2, *SHAPE), math.nan), "finite"),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), "floating-point"),
    ],
)
def test_measurements_that_do_not_fit(y, phrase):
    with pytest.raises(FlowmendError, match=phrase):
        fm.solve(y, OPERATORS["denoise"], GAUSSIAN, steps=1)


def test_operator_and_prior_must_agree():
    operator = Identity((3, 6, 4))
    with pytest.raises(FlowmendError, match="the prior knows"):
        fm.solve(torch.zeros(1, 3, 6, 4), operator, GAUSSIAN, steps=1)
