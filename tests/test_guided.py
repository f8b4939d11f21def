"""The posterior of continuous flows against the closed forms of a Gaussian."""

import dataclasses

import pytest
import torch
from conftest import smooth_images
from guided_cases import SHAPE, closed_form, dense, gaussian, guidance, measured, tasks

import flowmend as fm
from flowmend.coordinates import known_coordinates
from flowmend.cosines import cosine_matrix
from flowmend.guided import levels, posterior, sample_posterior
from flowmend.least_squares import conjugate_gradients
from flowmend.stationary import StationaryGaussian


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


@pytest.mark.parametrize("draws", [3, 12])
def test_the_error_of_a_mean_of_few_draws_is_what_it_is_said_to_be(draws):
    prior, task = gaussian(), tasks()[0]
    y = measured(task, 1)
    expected, _ = closed_form(prior, task.operator, task.sigma, y)
    found = [
        posterior(
            guidance(task, prior, y),
            prior,
            evaluations=12,
            draws=draws,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in range(40)
    ]
    actual = torch.stack([each.x - expected for each in found]).square().mean().sqrt()
    said = torch.stack([each.mean_error for each in found])
    assert said.shape == (40, 1)
    assert float(said.square().mean().sqrt()) == pytest.approx(float(actual), rel=0.1)


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
