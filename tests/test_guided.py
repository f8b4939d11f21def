"""The solver of continuous flows against the closed forms of a Gaussian prior."""

import dataclasses

import pytest
import torch
from conftest import smooth_images
from properties import randomise

import flowmend as fm
from flowmend.coordinates import known_coordinates
from flowmend.cosines import cosine_matrix
from flowmend.guided import (
    LINEAR_NOISE,
    MOST_RISE,
    RISE,
    TRUST,
    Guidance,
    levels,
    posterior,
    sample_posterior,
    splitting,
)
from flowmend.least_squares import conjugate_gradients
from flowmend.pixels import quantisation_sigma
from flowmend.stationary import StationaryGaussian

SHAPE = (2, 8, 6)


def gaussian(shape=SHAPE):
    return StationaryGaussian.fit([smooth_images(60, *shape)]).to(torch.zeros(1).double())


def dense(prior):
    """Covariance (D, D), column by column."""
    unit = torch.eye(prior.mean.numel()).double().reshape(-1, *prior.shape)
    return prior.apply(unit, lambda v: v).flatten(1).T


def tasks():
    return (
        fm.make_task("deblur", SHAPE, sigma=0.02),
        fm.make_task("inpaint", SHAPE, sigma=0.01),
        fm.make_task("upscale", SHAPE, sigma=0.05),
        fm.make_task("colorize", SHAPE, sigma=0.03),
    )


def closed_form(prior, operator, sigma, y):
    size = prior.mean.numel()
    covariance = dense(prior)
    matrix = operator.A(torch.eye(size).double().reshape(-1, *SHAPE)).flatten(1).T
    inner = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix)).double()
    gain = torch.linalg.solve(inner, matrix @ covariance).T
    mean = prior.mean.flatten()
    found = mean + (y.flatten(1) - matrix @ mean) @ gain.T
    return found.reshape(-1, *SHAPE), covariance - gain @ matrix @ covariance


def guidance(task, prior, y, **changes):
    return Guidance(
        y, task.operator, task.sigma, prior, **({"steps": 500, "tolerance": 1e-12} | changes)
    )


def measured(task, count=3, seed=4):
    x = smooth_images(count, *SHAPE, seed=seed).double()
    return task.measure(x, torch.Generator().manual_seed(0))


def own_noise(seed=0):
    """Noise of its own for each of a batch, to make statistics over it."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


# The stationary Gaussian


def test_the_cosine_matrix_is_orthonormal_and_that_of_scipy():
    from scipy.fft import dct

    for size in (5, 8):
        matrix = cosine_matrix(size)
        assert torch.allclose(matrix @ matrix.T, torch.eye(size).double(), atol=1e-12)
        x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        assert torch.allclose(matrix @ x, torch.as_tensor(dct(x.numpy(), norm="ortho")))


def test_the_fit_finds_a_known_spectrum():
    true = gaussian()
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(40_000, *SHAPE, generator=generator, dtype=torch.float64)
    x = true.mean + true.apply(draws, torch.sqrt)
    found = StationaryGaussian.fit(x.split(5000))
    scale = dense(true).norm()
    wide = found.to(torch.zeros(1).double())
    assert float((dense(wide) - dense(true)).norm() / scale) < 0.03
    assert float((wide.mean - true.mean).abs().max()) < 0.01


def test_functions_of_the_covariance_are_those_of_the_dense_matrix():
    prior = gaussian()
    covariance, size = dense(prior), prior.mean.numel()
    x = smooth_images(2, *SHAPE, seed=9).double()
    left = torch.linalg.inv(torch.linalg.inv(covariance) + torch.eye(size) / 0.1**2)
    assert torch.allclose(prior.remaining(x, 0.1).flatten(1), x.flatten(1) @ left, atol=1e-8)
    identity = fm.make_task("denoise", SHAPE).operator
    mean, _ = closed_form(prior, identity, 0.1, x)
    assert torch.allclose(prior.denoise(x, 0.1), mean, atol=1e-8)


def test_another_size_has_the_same_density_of_variance():
    prior = gaussian((1, 16, 16))
    larger = prior.at_size(32, 24)
    assert larger.shape == (1, 32, 24)
    assert float(larger.variance.mean()) == pytest.approx(float(prior.variance.mean()), rel=0.4)
    assert prior.at_size(16, 16) is prior
    # the same frequency, in cycles a pixel, has the same variance
    assert float(larger.spectrum[8, 6]) == pytest.approx(float(prior.spectrum[4, 4]), rel=1e-6)


def test_a_spectrum_that_does_not_fit_is_refused():
    with pytest.raises(fm.FlowmendError, match="does not fit"):
        StationaryGaussian(torch.zeros(1, 4, 4), torch.zeros(4, 5, 1, 1))
    with pytest.raises(fm.FlowmendError, match="finite"):
        StationaryGaussian(torch.zeros(1, 4, 4), torch.full((4, 4, 1, 1), torch.nan))
    with pytest.raises(fm.FlowmendError, match="at least two"):
        StationaryGaussian.fit([torch.zeros(1, 1, 4, 4)])


def test_conjugate_gradients_solve_each_system_on_its_own():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(12)
    b = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    b[1] = 0.0
    x = conjugate_gradients(lambda v: v @ matrix, b, 100, 1e-12)
    assert torch.allclose(x @ matrix, b, atol=1e-9)
    assert torch.equal(x[1], torch.zeros(12))
    alone = conjugate_gradients(lambda v: v @ matrix, b[:1], 100, 1e-12)
    assert torch.allclose(alone[0], x[0], atol=1e-12)


# The solver


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)
@pytest.mark.parametrize("level", [2.0, 0.1, 0.01])
def test_at_every_level_the_mean_is_the_closed_form(task, level):
    """Given both a noisy image and a measurement, as if they were one measurement."""
    prior, y = gaussian(), measured(task)
    x = smooth_images(3, *SHAPE, seed=4).double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    noisy = x + level * noise
    found = guidance(task, prior, y).mean(prior, noisy, level)

    class Both:
        def A(self, x):  # noqa: N802
            return torch.cat(
                [task.operator.A(x).flatten(1) / task.sigma, x.flatten(1) / level], dim=1
            )

    both = torch.cat([y.flatten(1) / task.sigma, noisy.flatten(1) / level], dim=1)
    expected, _ = closed_form(prior, Both(), 1.0, both)
    assert torch.allclose(found, expected, atol=1e-6)
    broken = dataclasses.replace(guidance(task, prior, y), sigma=3 * task.sigma)
    assert not torch.allclose(broken.mean(prior, noisy, level), expected, atol=1e-4)


def test_two_noisy_images_are_as_good_as_one():
    prior = gaussian()
    task = fm.make_task("denoise", SHAPE, sigma=0.1)
    y = measured(task)
    x = y.flip(0)
    general = guidance(task, prior, y).mean(prior, x, 0.2)
    special = guidance(
        task, prior, y, known=known_coordinates(y, task.operator, task.sigma, prior.mean)
    ).mean(prior, x, 0.2)
    assert torch.allclose(general, special, atol=1e-6)


@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_samples_are_those_of_the_posterior(churn):
    prior, task = gaussian(), tasks()[2]
    y = measured(task, 1).expand(600, -1, -1, -1)
    expected, covariance = closed_form(prior, task.operator, task.sigma, y[:1])
    x = sample_posterior(
        guidance(task, prior, y),
        prior,
        evaluations=120,
        churn=churn,
        normal=own_noise(),
    )[0]
    std = covariance.diagonal().sqrt()
    bias = (x.mean(0) - expected[0]).flatten() / std
    assert float(bias.abs().max()) < 6 / 600**0.5
    ratio = x.flatten(1).std(0) / std
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.08)


def test_forgetting_the_noise_ends_nearer_to_the_mean():
    prior, task = gaussian(), tasks()[1]
    y = measured(task, 1).expand(100, -1, -1, -1)
    spread = [
        float(
            sample_posterior(
                guidance(task, prior, y),
                prior,
                evaluations=40,
                churn=churn,
                normal=own_noise(),
            )[0]
            .std(0)
            .mean()
        )
        for churn in (0.0, 1.0)
    ]
    assert spread[1] < 0.8 * spread[0]


def test_levels_fall_from_all_noise_to_rounding():
    path = levels(10)
    assert path == sorted(path, reverse=True)
    assert path[0] == pytest.approx(1.0)
    assert path[-1] == pytest.approx(0.004)
    assert levels(1) == [1.0]


def test_mean_and_spread_of_draws_are_those_of_the_posterior():
    prior, task = gaussian(), tasks()[2]
    y = measured(task, 2)
    expected, covariance = closed_form(prior, task.operator, task.sigma, y)
    seen = []
    found = posterior(
        guidance(task, prior, y),
        prior,
        evaluations=30,
        churn=0.5,
        draws=60,
        generator=torch.Generator().manual_seed(0),
        observe=lambda step, mean: seen.append((step, mean)),
    )
    std = covariance.diagonal().sqrt().reshape(SHAPE)
    assert float(((found.x - expected) / std).abs().max()) < 5 / 60**0.5
    assert float((found.std / std).mean()) == pytest.approx(1.0, abs=0.2)
    assert torch.allclose(found.samples.mean(0), found.x)
    assert [step for step, _ in seen] == list(range(30))
    assert torch.allclose(seen[-1][1], found.x)
    assert found.status == ["finished", "finished"]


def test_an_image_does_not_depend_on_the_others():
    prior, task = gaussian(), tasks()[0]
    y = measured(task, 3)

    def first(y):
        return posterior(
            guidance(task, prior, y),
            prior,
            evaluations=4,
            draws=2,
            generator=torch.Generator().manual_seed(0),
        ).x[0]

    other = torch.cat([y[:1], 1.0 - y[1:]])
    assert torch.allclose(first(y), first(other), atol=1e-9)
    assert torch.allclose(first(y), first(y[:1]), atol=1e-9)


def test_what_is_not_finite_is_said_so():
    prior, task = gaussian(), tasks()[0]
    y = measured(task, 2)
    y[1] = torch.nan
    found = posterior(
        guidance(task, prior, y),
        prior,
        evaluations=3,
        draws=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert found.status[0] == "finished"
    assert found.status[1].startswith("not finite")
    assert bool(torch.isfinite(found.x[0]).all())


def test_draws_begin_at_the_gaussian_that_knows_the_images_best():
    from flowmend.gaussian import GaussianPosterior

    prior, task = gaussian(), tasks()[3]
    y = measured(task, 1).expand(4000, -1, -1, -1)
    covariance = 2.0 * dense(prior)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    better = GaussianPosterior(prior.mean, root, task.operator, task.sigma)
    found = guidance(task, prior, y, gaussian=better).draw(own_noise())
    factor = better.colour(torch.eye(prior.mean.numel()).double()).flatten(1).T
    std = (factor @ factor.T).diagonal().sqrt().reshape(SHAPE)
    assert float((found.mean(0) - better.mean(y[:1])[0]).abs().max() / std.max()) < 0.1
    assert float((found.std(0) / std).mean()) == pytest.approx(1.0, abs=0.05)


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
    monkeypatch.setattr("flowmend.guided.LEAST_NOISE", 0.0)
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
    monkeypatch.setattr("flowmend.guided.LEAST_NOISE", 0.0)
    shape = (1, 40, 400)
    prior = StationaryGaussian.fit([smooth_images(60, 1, 12, 12)]).at_size(*shape[1:])
    kernel = {"kernel": f"motion:{length}:0", "boundary": "valid"}
    operator = fm.make_task("deblur", shape, sigma=0.02, **kernel).operator
    y = torch.zeros(1, *operator.measurement_shape)
    corner = Guidance(y, operator, 0.02, prior).first_level()
    monkeypatch.setattr("flowmend.guided.CORNER", 400)
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
