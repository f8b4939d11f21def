"""Independent images, arguments that are left alone, and those that do not fit."""

import math

import pytest
import torch
from solver_cases import (
    GAUSSIAN,
    HALF_MASK,
    OPERATORS,
    SHAPE,
    SIGMA,
    SIZE,
    flow_prior,
    measure,
    options,
)

import flowmend as fm
from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig, build_flow
from flowmend.operators import Identity
from flowmend.prior import FlowPrior


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
