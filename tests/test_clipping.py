"""Noise that was clipped to black and white: against scipy's truncated normal, and in pictures."""

import math

import pytest
import scipy.stats
import torch
from conftest import smooth_images, tiny_prior
from torch.nn import functional

import flowmend as fm
from flowmend.clipping import at_limits, before_clipping
from flowmend.faces import sample_faces
from flowmend.metrics import psnr
from flowmend.noise import make_noise
from flowmend.operators import Grey, Identity
from flowmend.picture_sigma import differences_sigma
from flowmend.pixels import round_to_bytes
from flowmend.sigma import estimate_sigma

LIMITS = (0.0, 1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("expected", [-0.4, 0.02, 0.3, 0.97, 1.2, 9.0])
@pytest.mark.parametrize("spread", [0.03, 0.25])
def test_the_mean_is_that_of_a_normal_cut_off_at_the_limit(expected, spread):
    y = torch.tensor([[0.0, 1.0, 0.4]], dtype=torch.float64)
    found = before_clipping(y, torch.full_like(y, expected), spread, LIMITS)[0]
    below = scipy.stats.truncnorm(-math.inf, (0.0 - expected) / spread, expected, spread)
    above = scipy.stats.truncnorm((1.0 - expected) / spread, math.inf, expected, spread)
    assert float(found[0]) == pytest.approx(below.mean(), rel=1e-6, abs=1e-7)
    assert float(found[1]) == pytest.approx(above.mean(), rel=1e-6, abs=1e-7)
    assert float(found[2]) == 0.4


def test_draws_are_distributed_as_that_normal():
    chance = torch.rand(2, 4000, generator=seeded(), dtype=torch.float64)
    y = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 4000)
    found = before_clipping(y, torch.full_like(y, 0.3), 0.25, LIMITS, chance)
    below = scipy.stats.truncnorm(-math.inf, -1.2, 0.3, 0.25)
    above = scipy.stats.truncnorm(2.8, math.inf, 0.3, 0.25)
    for values, truth, other in ((found[0], below, above), (found[1], above, below)):
        assert scipy.stats.kstest(values.numpy(), truth.cdf).pvalue > 1e-3
        assert scipy.stats.kstest(values.numpy(), other.cdf).pvalue < 1e-9


def test_an_image_with_values_beyond_the_limits_was_not_clipped():
    y = torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 1.01], [-0.01, 0.0, 1.0]])
    below, above = at_limits(y, LIMITS)
    assert below.tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert above.tolist() == [[False, True, False], [False] * 3, [False] * 3]
    found = before_clipping(y, torch.full_like(y, 0.5), 0.1, LIMITS)
    assert torch.equal(found[1:], y[1:])
    assert not torch.equal(found[0], y[0])


def test_limits_of_every_value_and_none_at_one_end():
    y = torch.tensor([[0.0, 0.0]])
    low = torch.tensor([[0.0, -math.inf]])
    found = before_clipping(y, torch.full_like(y, 0.1), 0.1, (low, math.inf))[0]
    assert float(found[0]) < 0.0
    assert float(found[1]) == 0.0


def test_far_beyond_a_limit_everything_is_finite():
    y = torch.tensor([[0.0, 1.0]])
    for chance in (None, torch.full_like(y, 1e-6)):
        found = before_clipping(y, torch.tensor([[40.0, -40.0]]), 0.1, LIMITS, chance)
        assert bool(found.isfinite().all())


# Restoring


@pytest.fixture(scope="module")
def natural():
    return fm.load("natural")


def clipped(name, prior, **options):
    """A picture of eight faces, a task on it and its measurement as a file holds it."""
    x = sample_faces().view(2, 4, 3, 32, 32).permute(2, 0, 3, 1, 4).reshape(1, 3, 64, 128)
    task = fm.make_task(name, tuple(x.shape[1:]), **options)
    return x, task, round_to_bytes(task.measure(x, seeded())), prior.at_shape(task.operator.shape)


@pytest.mark.parametrize(
    ("name", "options", "gain"),
    [
        ("denoise", {"sigma": 0.2}, 0.4),
        ("denoise", {"noise": "poisson", "peak": 8.0}, 0.2),
        ("demosaic", {"sigma": 0.1}, 0.1),
    ],
)
def test_a_clipped_picture_is_restored_better_than_as_if_it_were_not(natural, name, options, gain):
    x, task, y, prior = clipped(name, natural, **options)
    found = fm.restore(y, task, prior).x
    # a value just beyond white says that nothing was clipped
    other = y.clone()
    other[0, 0, 0, 0] = 1.0 + 1e-6
    assert psnr(found, x)[0] > psnr(fm.restore(other, task, prior).x, x)[0] + gain


def test_solve_takes_the_limits_that_restore_gives_it(natural):
    _, task, y, prior = clipped("denoise", natural, sigma=0.2)
    found = fm.restore(y, task, prior).x
    limited = fm.solve(y, task.operator, prior, sigma=0.2, limits=LIMITS).x
    assert torch.equal(found, limited)
    assert not torch.allclose(found, fm.solve(y, task.operator, prior, sigma=0.2).x, atol=1e-3)


def test_a_coupling_flow_knows_of_clipping_too():
    prior = tiny_prior()
    task = fm.make_task("denoise", prior.shape, sigma=0.5)
    x = smooth_images(8, *prior.shape, seed=3).float()
    y = round_to_bytes(task.measure(x, seeded()))
    for method in ("fast-map", "posterior"):
        errors = [
            float((solution.x - x).square().mean())
            for solution in (
                fm.solve(y, task.operator, prior, method=method, sigma=0.5, steps=5, limits=limits)
                for limits in (LIMITS, None)
            )
        ]
        assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("method", ["lmmse", "likelihood", "map"])
def test_methods_of_others_take_measurements_as_they_are(method):
    prior = tiny_prior()
    task = fm.make_task("denoise", prior.shape, sigma=0.3)
    y = round_to_bytes(task.measure(smooth_images(2, *prior.shape).float(), seeded()))
    options = {} if method == "lmmse" else {"steps": 2}
    settings = {"method": method, "sigma": 0.3, **options}
    plain = fm.solve(y, task.operator, prior, **settings).x
    assert torch.equal(fm.solve(y, task.operator, prior, limits=LIMITS, **settings).x, plain)


def test_each_image_is_restored_as_if_it_were_alone(natural):
    _, task, y, prior = clipped("denoise", natural, sigma=0.2)
    grey = torch.full_like(y, 0.5)
    both = fm.restore(torch.cat([grey, y]), task, prior).x
    assert torch.allclose(both[1:], fm.restore(y, task, prior).x, atol=1e-5)
    assert torch.allclose(both[:1], fm.restore(grey, task, prior).x, atol=1e-5)


# The noise level


@pytest.mark.parametrize("operator", [Identity, Grey])
def test_the_noise_level_of_clipped_faces_is_that_before_clipping(operator):
    prior, sigma = fm.load("faces32"), 0.25
    operator = operator(prior.shape)
    x = sample_faces()
    noisy = make_noise(sigma=sigma).corrupt(operator.A(x), seeded())
    y = round_to_bytes(noisy)
    truth = estimate_sigma(noisy, operator, prior.gaussian, limits=LIMITS)
    assert float((truth / sigma).median()) == pytest.approx(1.0, abs=0.05)
    plain = estimate_sigma(y, operator, prior.gaussian)
    found = estimate_sigma(y, operator, prior.gaussian, limits=LIMITS)
    assert float((plain / truth).median()) < 0.9
    assert float((found / truth).median()) == pytest.approx(1.0, abs=0.03)
    alone = estimate_sigma(y[3:4], operator, prior.gaussian, limits=LIMITS)
    assert float(found[3]) == pytest.approx(float(alone), rel=1e-3)


def test_without_a_gaussian_too():
    x = functional.interpolate(sample_faces()[:1], scale_factor=8, mode="bilinear")
    operator, sigma = Identity(tuple(x.shape[1:])), 0.25
    y = round_to_bytes(make_noise(sigma=sigma).corrupt(x, seeded()))
    assert float(differences_sigma(y, operator)) < 0.93 * sigma
    found = float(differences_sigma(y, operator, LIMITS))
    assert found == pytest.approx(sigma, rel=0.05)
    # an image that was not clipped is judged as if it were alone
    grey = round_to_bytes(0.5 + 0.02 * (make_noise(sigma=1.0).corrupt(x, seeded()) - x))
    both = differences_sigma(torch.cat([grey, y]), operator, LIMITS)
    assert torch.equal(both[:1], differences_sigma(grey, operator, LIMITS))
    assert torch.equal(both[:1], differences_sigma(grey, operator))
    unclipped = make_noise(sigma=sigma).corrupt(x, seeded())
    assert float(differences_sigma(unclipped, operator, LIMITS)) == float(
        differences_sigma(unclipped, operator)
    )


def test_a_task_tells_the_limits_of_its_measurements():
    y = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(1)).double()
    assert fm.make_task("denoise", y.shape[1:]).limits(y) == (0.0, 1.0)
    black, white = fm.make_task("denoise", y.shape[1:], noise="poisson", peak=50).limits(y)
    assert (black, white) == (-torch.inf, 1.0)
    noise = {"noise": "salt-pepper", "share": 0.1}
    assert fm.make_task("denoise", y.shape[1:], **noise).limits(y) is None
    whole = fm.make_task("deblur", y.shape[1:], kernel="box:3")
    whole.offset = 0.1 * torch.ones(1, 1, 1, 1)
    low, high = whole.limits(y)
    assert float(low) == pytest.approx(-0.1)
    assert float(high) == pytest.approx(0.9)
    assert low.dtype == y.dtype
    sense = fm.make_task("sense", y.shape[1:])
    assert sense.limits(sense.operator.A(y)) is None
