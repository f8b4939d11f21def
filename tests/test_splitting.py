"""Splitting and the calls that lead to it, against closed forms."""

import pytest
import torch
from conftest import smooth_images
from guided_cases import SHAPE, closed_form, gaussian, guidance, measured, tasks
from properties import randomise

import flowmend as fm
from flowmend.coordinates import known_coordinates
from flowmend.guidance import LINEAR_NOISE, MOST_RISE, RISE, Guidance
from flowmend.guided import TRUST, posterior, splitting
from flowmend.pixels import quantisation_sigma
from flowmend.stationary import StationaryGaussian


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)
def test_splitting_begins_at_the_closed_form(task):
    prior = gaussian()
    y = measured(task)
    exact, _ = closed_form(prior, task.operator, task.sigma, y)
    ready = guidance(task, prior, y)
    assert torch.allclose(ready.linear(), exact, atol=1e-6)
    assert not torch.allclose(ready.linear(0.05), exact, atol=1e-3)


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)
def test_splitting_rests_at_the_closed_form_of_less_noise(task):
    prior, level = gaussian(), 0.05
    y = measured(task)
    seen = []
    found = splitting(
        guidance(task, prior, y, tolerance=1e-7),
        prior,
        evaluations=1000,
        noise=(level, level),
        observe=lambda index, x: seen.append(index),
    )
    assert seen == list(range(1000))
    # the prior that a denoiser of noise of this level knows is blurred by it
    blurred = StationaryGaussian(
        prior.mean, prior.spectrum + level**2 * torch.eye(SHAPE[0]).double()
    )
    exact, _ = closed_form(blurred, task.operator, task.sigma / TRUST**0.5, y)
    other, _ = closed_form(blurred, task.operator, task.sigma, y)
    near, far = (float((found - mean).abs().max()) for mean in (exact, other))
    assert near < 1e-3
    assert near < 0.25 * far


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)
def test_splitting_starts_where_the_linear_estimate_is_wrong(task, monkeypatch):
    """What one draw says of its error is what the closed form says of the mean over all."""
    prior = gaussian((2, 24, 20))
    monkeypatch.setattr("flowmend.guidance.LEAST_NOISE", 0.0)
    operator = fm.make_task(task.name, prior.shape, sigma=task.sigma).operator
    y = torch.zeros(1, *operator.measurement_shape).double()
    guide = Guidance(y, operator, task.sigma, prior, steps=500, tolerance=1e-10)
    unit = torch.eye(prior.mean.numel()).double().reshape(-1, *prior.shape)
    covariance = prior.remaining(unit, LINEAR_NOISE).flatten(1).T
    matrix = operator.A(unit).flatten(1).T
    gain = matrix @ covariance @ matrix.T
    gain.diagonal().add_(task.sigma**2)
    left = covariance - covariance @ matrix.T @ torch.linalg.solve(gain, matrix @ covariance)
    expected = float(left.diagonal().mean().sqrt())
    assert RISE * expected**2 < MOST_RISE
    assert guide.first_level() == pytest.approx(RISE * expected**2, rel=0.35)


@pytest.mark.parametrize("length", [9, 111])
def test_a_corner_tells_where_splitting_starts(length, monkeypatch):
    monkeypatch.setattr("flowmend.guidance.LEAST_NOISE", 0.0)
    shape = (1, 40, 400)
    prior = StationaryGaussian.fit([smooth_images(60, 1, 12, 12)]).at_size(*shape[1:])
    kernel = {"kernel": f"motion:{length}:0", "boundary": "valid"}
    operator = fm.make_task("deblur", shape, sigma=0.02, **kernel).operator
    y = torch.zeros(1, *operator.measurement_shape)
    corner = Guidance(y, operator, 0.02, prior).first_level()
    monkeypatch.setattr("flowmend.guidance.CORNER", 400)
    assert corner == pytest.approx(Guidance(y, operator, 0.02, prior).first_level(), rel=0.35)


def test_splitting_of_known_coordinates_is_the_posterior_mean_at_once():
    prior = gaussian()
    task = fm.make_task("denoise", SHAPE, sigma=0.1)
    y = measured(task)
    known = known_coordinates(y, task.operator, task.sigma, prior.mean)
    seen = []
    found = splitting(
        guidance(task, prior, y, known=known),
        prior,
        evaluations=6,
        observe=lambda level, x: seen.append(level),
    )
    assert seen == [0]
    assert torch.allclose(found, closed_form(prior, task.operator, task.sigma, y)[0], atol=1e-6)


def test_splitting_needs_a_continuous_flow():
    x = torch.full((1, 3, 32, 32), 0.5)
    prior = fm.load("faces32")
    with pytest.raises(fm.FlowmendError, match="needs the denoiser of a continuous flow"):
        fm.restore(x, fm.make_task("denoise", prior.shape), prior, "splitting")


def test_a_continuous_prior_restores_through_the_same_call():
    config = fm.VelocityConfig(widths=(8, 8), blocks=(1, 1), size=(8, 8))
    x = smooth_images(40, 3, 8, 8).float()
    stationary = StationaryGaussian.fit([x])
    prior = fm.ContinuousPrior(fm.build_velocity(config, 0), stationary=stationary).eval()
    for name in ("denoise", "inpaint", "colorize"):
        task = fm.make_task(name, prior.shape)
        y = task.measure(x[:2], torch.Generator().manual_seed(0))
        assert fm.restore(y, task, prior, steps=3).method == "splitting"
        solution = fm.restore(y, task, prior, "posterior", steps=3, samples=3)
        assert solution.method == "posterior"
        assert solution.x.shape == (2, 3, 8, 8)
        assert solution.samples.shape == (3, 2, 3, 8, 8)
        assert bool(torch.isfinite(solution.x).all())
        assert solution.status == ["finished", "finished"]
    with pytest.raises(fm.FlowmendError, match="needs a coupling flow"):
        fm.restore(y, task, prior, "fast-map")
    bare = fm.ContinuousPrior(fm.build_velocity(config, 0))
    with pytest.raises(fm.FlowmendError, match="holds no stationary Gaussian"):
        fm.restore(y, task, bare)


@pytest.mark.parametrize(
    ("size", "exact", "noisy", "grey"), [((8, 8), 4, 1, 4), (None, 30, 30, 1)]
)
def test_only_a_network_of_whole_images_fills_holes_at_once(size, exact, noisy, grey):
    """What is known exactly it mends in three more evaluations, unless one is asked for."""
    config = fm.VelocityConfig(widths=(8, 8), blocks=(1, 1), size=size, crop=16)
    x = smooth_images(40, 3, 8, 8).float()
    stationary = StationaryGaussian.fit([x])
    prior = fm.ContinuousPrior(fm.build_velocity(config, 0), (3, 8, 8), stationary=stationary)
    for name, options, wanted in (
        ("inpaint", {"mask": "center:0.3"}, exact),
        ("inpaint", {"mask": "center:0.3", "sigma": 0.05}, noisy),
        ("denoise", {"sigma": 0.1}, 1),
        ("colorize", {}, grey),
        ("colorize", {"sigma": 0.05}, 1),
    ):
        task, seen = fm.make_task(name, (3, 8, 8), **options), []
        y = task.measure(x[:1], torch.Generator().manual_seed(0))
        watch = {"observe": lambda level, x, seen=seen: seen.append(level)}
        found = fm.solve(y, task.operator, prior, sigma=task.sigma, **watch)
        assert len(seen) == wanted == found.settings["steps"], name
    once = fm.solve(y, task.operator, prior, sigma=0.0, steps=1)
    known = known_coordinates(y, task.operator, quantisation_sigma(), x[0])
    assert torch.allclose(once.x, known.mean(prior).clamp(0.0, 1.0), atol=1e-5)


def test_a_network_of_crops_averages_draws_of_what_is_missing():
    """What its one evaluation says of a hole is poor, so that it is only where filling begins."""
    x = smooth_images(40, 3, 8, 8).float()
    stationary = StationaryGaussian.fit([x])
    config = fm.VelocityConfig(widths=(8, 8), blocks=(1, 1), crop=16)
    velocity = randomise(fm.build_velocity(config, 0), seed=1)
    prior = fm.ContinuousPrior(velocity, (3, 8, 8), stationary=stationary)
    task = fm.make_task("inpaint", (3, 8, 8), mask="center:0.3")
    y = task.measure(x[:1], torch.Generator().manual_seed(0))
    chance = {"generator": torch.Generator().manual_seed(1)}
    solution = fm.restore(y, task, prior, "posterior", steps=3, **chance)
    plain = stationary.to(torch.zeros(1).double())
    guidance = Guidance(y.double(), task.operator, quantisation_sigma(), plain)
    chance = {"generator": torch.Generator().manual_seed(1)}
    wanted = posterior(guidance, prior, evaluations=3, **chance).samples.mean(0)
    assert torch.allclose(solution.x, wanted.clamp(0.0, 1.0), atol=1e-3)
    once = fm.restore(y, task, prior, "splitting", steps=1)
    known = known_coordinates(y, task.operator, quantisation_sigma(), x[0].double())
    assert torch.allclose(once.x, known.mean(prior).clamp(0.0, 1.0), atol=1e-5)
    assert not torch.allclose(once.x, solution.x, atol=0.05)


def test_the_stationary_gaussian_is_kept_in_the_weights_file(tmp_path):
    config = fm.VelocityConfig(widths=(8,), blocks=(1,), crop=8)
    stationary = StationaryGaussian.fit([smooth_images(20, 3, 8, 8).float()])
    prior = fm.ContinuousPrior(fm.build_velocity(config, 0), stationary=stationary)
    fm.save(tmp_path / "p.safetensors", prior)
    found = fm.load(tmp_path / "p.safetensors")
    assert torch.equal(found.stationary.spectrum, stationary.spectrum)
    assert found.at_shape((3, 12, 10)).stationary.shape == (3, 12, 10)


def test_a_spectrum_of_another_size_forgets_nothing():
    prior = StationaryGaussian.fit([smooth_images(60, 3, 12, 10)])
    small, again = prior.at_size(7, 9), prior.at_size(40, 30).at_size(7, 9)
    assert torch.equal(small.spectrum, again.spectrum)
    double = prior.at_size(40, 30).to(torch.zeros(1).double()).at_size(7, 9)
    assert double.spectrum.dtype == torch.float64
    assert torch.allclose(double.spectrum.float(), small.spectrum)


def test_denoising_is_one_evaluation_of_the_network():
    prior = gaussian()
    task = fm.make_task("denoise", SHAPE, sigma=0.1)
    y = measured(task, 2)
    found = posterior(
        guidance(
            task, prior, y, known=known_coordinates(y, task.operator, task.sigma, prior.mean)
        ),
        prior,
        evaluations=3,
        draws=2,
        generator=torch.Generator().manual_seed(0),
    )
    expected, _ = closed_form(prior, task.operator, 0.1, y)
    assert torch.allclose(found.x, expected, atol=1e-8)
