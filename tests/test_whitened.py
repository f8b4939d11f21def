"""Fast MAP and the variational posterior against the closed forms of a Gaussian prior."""

import math
import subprocess
import sys

import pytest
import torch
from conftest import smooth_images, tiny_prior

import flowmend as fm
from flowmend.gaussian import GaussianPosterior
from flowmend.pixels import quantisation_sigma
from flowmend.whitened import (
    BETAS,
    EPSILON,
    PATIENCE,
    Whitened,
    _Descent,
    fast_map,
    variational,
)

SHAPE = (1, 8, 6)


def gaussian_prior():
    images = (smooth_images(80, *SHAPE) * 255).round().to(torch.uint8)
    return fm.GaussianPrior.fit(images, flip=False).double()


class GaussianFlow:
    """A Gaussian that stands where a flow is expected."""

    def __init__(self, prior, bits=5):
        self.prior, self.bits = prior, bits
        self.dimensions, self.shape = prior.dimensions, prior.shape
        self.config = type("Config", (), {"bits": bits})

    def log_prob(self, x):
        return self.prior.log_prob(x)


def tasks():
    return (
        fm.make_task("denoise", SHAPE, sigma=0.1),
        fm.make_task("deblur", SHAPE, sigma=0.02),
        fm.make_task("inpaint", SHAPE, sigma=0.05),
        fm.make_task("upscale", SHAPE, sigma=0.0),
    )


def closed_form(prior, task, y, sigma):
    """Mean and covariance of the posterior, written out with the matrix of the operator."""
    size = prior.dimensions
    matrix = task.operator.A(torch.eye(size).double().reshape(-1, *SHAPE)).flatten(1).T
    covariance = prior.covariance()
    inner = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix)).double()
    gain = torch.linalg.solve(inner, matrix @ covariance).T
    mean = prior.mean.flatten()
    found = mean + (y.flatten(1) - matrix @ mean) @ gain.T
    return found.reshape(-1, *SHAPE), covariance - gain @ matrix @ covariance


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)
def test_the_gaussian_posterior_is_the_closed_form(task):
    prior = gaussian_prior()
    sigma = max(task.sigma, quantisation_sigma())
    y = task.measure(smooth_images(3, *SHAPE, seed=4).double(), torch.Generator().manual_seed(0))
    mean, covariance = closed_form(prior, task, y, sigma)
    posterior = GaussianPosterior(prior.mean, prior.whitening.unwhitening, task.operator, sigma)
    assert torch.allclose(posterior.mean(y), mean, atol=1e-8)
    factor = posterior.colour(torch.eye(prior.dimensions).double()).flatten(1).T
    assert torch.allclose(factor @ factor.T, covariance, atol=1e-8)
    other = posterior.at_noise(3 * sigma)
    assert torch.allclose(other.mean(y), closed_form(prior, task, y, 3 * sigma)[0], atol=1e-8)
    assert torch.allclose(posterior.mean(y), mean, atol=1e-8)


def test_the_posterior_is_kept_and_made_anew_when_operator_or_noise_changes():
    prior = gaussian_prior()
    task = fm.make_task("inpaint", SHAPE)
    kept = prior.posterior(task.operator, 0.1)
    assert prior.posterior(task.operator, 0.1) is kept
    assert prior.posterior(task.operator, 0.2) is not kept
    again = prior.posterior(task.operator, 0.2)
    task.operator.mask[..., :4, :] = 0.0  # a user's operator that changed in place
    assert prior.posterior(task.operator, 0.2) is not again
    assert not torch.equal(prior.posterior(task.operator, 0.2)._seen, again._seen)


def problem(task, y, exact=False, bits=30):
    prior = gaussian_prior()
    sigma = max(task.sigma, quantisation_sigma())
    return Whitened(
        y,
        task.operator,
        GaussianFlow(prior, bits),
        prior.posterior(task.operator, sigma),
        lambda measured, y: (measured - y).square().flatten(1).sum(1) / (2 * sigma**2),
        torch.full((len(y),), exact),
        torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)
def test_with_a_gaussian_the_start_is_the_answer_and_stays(task):
    y = task.measure(smooth_images(3, *SHAPE, seed=4).double(), torch.Generator().manual_seed(0))
    sigma = max(task.sigma, quantisation_sigma())
    mean, _ = closed_form(gaussian_prior(), task, y, sigma)
    x, trace, status = fast_map(problem(task, y), steps=30)
    assert float((x - mean).abs().max()) < 1e-4
    assert trace["objective"].shape[1] == 3
    assert all(text.startswith(("finished", "settled")) for text in status)


def test_from_a_wrong_start_it_finds_the_closed_form():
    """The search works at all: moved away from the solution, it returns."""
    task = tasks()[1]
    y = task.measure(smooth_images(2, *SHAPE, seed=4).double(), torch.Generator().manual_seed(0))
    mean, _ = closed_form(gaussian_prior(), task, y, task.sigma)
    moved = problem(task, y)
    moved.first = moved.first + moved.posterior.colour(torch.ones(2, moved.dimensions).double())
    assert float((moved.first - mean).abs().max()) > 0.01
    x, _, _ = fast_map(moved, steps=300, learning_rate=0.1)
    assert float((x - mean).abs().max()) < 2e-3


@pytest.mark.parametrize("task", tasks()[:3], ids=lambda task: task.name)
def test_the_variational_posterior_of_a_gaussian_is_exact(task):
    y = task.measure(smooth_images(2, *SHAPE, seed=4).double(), torch.Generator().manual_seed(0))
    mean, covariance = closed_form(gaussian_prior(), task, y, task.sigma)
    found = variational(problem(task, y), steps=300, samples=3)
    std = covariance.diagonal().sqrt().reshape(SHAPE)
    assert float((found.x - mean).abs().max()) < 0.02 * float(std.max())
    ratio = found.std / std
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.12)  # it starts at 0.7
    assert found.samples.shape == (3, 2, *SHAPE)
    scatter = (found.samples - found.x).square().mean().sqrt() / std.square().mean().sqrt()
    assert float(scatter) == pytest.approx(1.0, abs=0.15)


def test_exact_measurements_are_kept():
    prior = tiny_prior()
    task = fm.make_task("inpaint", prior.shape, sigma=0.0)
    x = smooth_images(2, *prior.shape, seed=2).float() * 0.5 + 0.25
    y = task.measure(x, torch.Generator().manual_seed(0))
    solution = fm.solve(y, task.operator, prior, method="fast-map", steps=5)
    assert float((task.operator.A(solution.x) - y).abs().max()) < quantisation_sigma()
    loose = problem(tasks()[3], tasks()[3].operator.A(x[:, :1, :8, :6]).double())
    moved = loose.first + 0.01
    assert torch.equal(loose.consistent(moved), moved)
    loose.exact = torch.tensor([True, False])
    kept = loose.consistent(moved)
    assert float((loose.operator.A(kept[:1]) - loose.y[:1]).abs().max()) < 1e-4
    assert torch.equal(kept[1], moved[1])


def test_measurements_of_eight_bits_are_not_exact():
    from flowmend.pixels import on_byte_grid, round_to_bytes

    y = smooth_images(3, *SHAPE, seed=2).float() * 0.9
    y[1] = round_to_bytes(y[1:2])[0]
    assert on_byte_grid(y).tolist() == [False, True, False]


def test_the_descent_is_adam_along_a_cosine():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, 5, generator=generator).double()
    gradients = torch.randn(12, 3, 5, generator=generator).double()
    ours, theirs = first.clone(), first.clone().requires_grad_(True)
    descent = _Descent([ours], 12, 0.05)
    adam = torch.optim.Adam([theirs], lr=0.05, betas=BETAS, eps=EPSILON)
    for step, gradient in enumerate(gradients):
        assert descent.take(step, torch.full((3,), -float(step)), [gradient])
        adam.param_groups[0]["lr"] = 0.05 * 0.5 * (1.0 + math.cos(math.pi * step / 12))
        theirs.grad = gradient.clone()
        adam.step()
    assert torch.allclose(ours, theirs, rtol=0.0, atol=1e-12)
    assert not torch.allclose(ours, first, atol=0.05)


def test_an_image_that_stopped_stays_where_it_was():
    w = torch.zeros(2, 4)
    descent = _Descent([w], 30, 0.05)
    for step in range(30):
        descent.take(step, torch.tensor([0.0, -float(step)]), [torch.ones(2, 4)])
        if descent.status[0] == "finished":
            last = w.detach().clone()
    assert descent.status == [f"settled at step {PATIENCE}", "finished"]
    assert torch.equal(w[0], last[0])
    assert not torch.allclose(w[1], last[1], atol=0.05)


def test_the_descent_does_not_wait_for_the_compiler():
    lines = (
        "import sys, torch",
        "from flowmend.whitened import _Descent",
        "before = set(sys.modules)",
        "_Descent([torch.zeros(1, 2)], 2, 0.1).take(0, torch.zeros(1), [torch.ones(1, 2)])",
        "print(sorted(name for name in set(sys.modules) - before if 'torch' in name))",
    )
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert process.stdout == "[]\n"


def test_an_image_that_stops_being_finite_leaves_the_others_alone():
    prior = tiny_prior()
    task = fm.make_task("denoise", prior.shape, sigma=0.1)
    x = smooth_images(3, *prior.shape).float()
    y = task.measure(x, torch.Generator().manual_seed(0))

    def data(measured, y):
        value = (measured - y).square().flatten(1).sum(1) / 0.02
        return torch.where(torch.tensor([False, True, False]), math.nan, value)

    solution = fm.solve(y, task.operator, prior, method="fast-map", sigma=0.1, data_term=data)
    assert solution.status[1].startswith("not finite at step 0")
    assert not solution.finished
    lmmse = fm.solve(y, task.operator, prior, method="lmmse", sigma=0.1).x
    assert torch.allclose(solution.x[1], lmmse[1], atol=1e-5)
    assert bool(torch.isfinite(solution.x).all())
    assert not torch.allclose(solution.x[0], lmmse[0], atol=1e-4)


@pytest.mark.parametrize("method", ["fast-map", "posterior"])
def test_an_image_does_not_depend_on_the_others(method):
    prior = tiny_prior()
    task = fm.make_task("denoise", prior.shape, sigma=0.1)
    y = task.measure(smooth_images(3, *prior.shape), torch.Generator().manual_seed(0))
    other = y.clone()
    other[1:] = 1.0 - other[1:]
    one, two, alone = (
        fm.solve(m, task.operator, prior, method=method, sigma=0.1, steps=4).x[0]
        for m in (y, other, y[:1])
    )
    assert torch.allclose(one, two, atol=1e-6)
    assert torch.allclose(one, alone, atol=1e-5)


def test_the_posterior_says_how_sure_it_is():
    prior = tiny_prior()
    task = fm.make_task("inpaint", prior.shape, sigma=0.02)
    y = task.measure(smooth_images(2, *prior.shape), torch.Generator().manual_seed(0))
    solution = fm.solve(
        y, task.operator, prior, method="posterior", sigma=0.02, steps=6, samples=3
    )
    assert solution.samples.shape == (3, *y.shape)
    hole = (task.operator.mask == 0).expand(2, 3, -1, -1)
    assert float(solution.std[hole].mean()) > 1.2 * float(solution.std[~hole].mean())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weight": 0.1}, "takes no weight"),
        ({"start": "zero"}, "takes no start"),
        ({"steps": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "above 0"),
    ],
)
def test_wrong_settings_get_a_sentence(changes, sentence):
    prior = tiny_prior()
    task = fm.make_task("denoise", prior.shape, sigma=0.1)
    y = torch.full((1, *prior.shape), 0.5)
    with pytest.raises(fm.FlowmendError, match=sentence):
        fm.solve(y, task.operator, prior, method="fast-map", sigma=0.1, **changes)


def test_a_prior_without_a_gaussian_is_refused():
    prior = tiny_prior()
    bare = fm.FlowPrior(prior.flow) if not prior.config.whiten else None
    if bare is None:
        pytest.skip("the tiny prior whitens")
    task = fm.make_task("denoise", prior.shape, sigma=0.1)
    with pytest.raises(fm.FlowmendError, match="holds none"):
        fm.solve(
            torch.full((1, *prior.shape), 0.5), task.operator, bare, method="fast-map", sigma=0.1
        )


@pytest.mark.parametrize("method", ["fast-map", "likelihood"])
def test_reversible_memory_changes_no_image(method):
    prior = tiny_prior()
    task = fm.make_task("deblur", prior.shape, sigma=0.02)
    y = task.measure(smooth_images(2, *prior.shape).float(), torch.Generator().manual_seed(0))
    one, two = (
        fm.solve(y, task.operator, prior, method=method, sigma=0.02, steps=5, memory=memory).x
        for memory in ("autograd", "reversible")
    )
    assert torch.allclose(one, two, atol=1e-4)
    with pytest.raises(fm.FlowmendError, match="Unknown memory"):
        fm.solve(y, task.operator, prior, method=method, sigma=0.02, memory="endless")


def test_the_factorisation_is_shared_by_batches_and_precisions():
    prior = tiny_prior()
    task = fm.make_task("denoise", prior.shape, sigma=0.1)
    y = task.measure(smooth_images(2, *prior.shape).float(), torch.Generator().manual_seed(0))
    settings = {"method": "fast-map", "sigma": 0.1, "steps": 1, "precision": "bfloat16"}
    fm.solve(y, task.operator, prior, **settings)
    kept = prior.gaussian.posterior(task.operator, 0.1)
    assert prior.at_precision("bfloat16").gaussian is prior.gaussian
    fm.solve(y, task.operator, prior, **settings)
    assert prior.gaussian.posterior(task.operator, 0.1) is kept
