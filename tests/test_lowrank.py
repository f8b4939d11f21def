"""Gaussians of low rank: the fit, the posterior against dense matrices, and what it is for."""

import dataclasses
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import flowmend as fm
from flowmend.continuous import ContinuousPrior
from flowmend.flow import build_flow, preset
from flowmend.flowmatching import MatchingRun
from flowmend.gaussian import GaussianPosterior
from flowmend.least_squares import conjugate_gradients
from flowmend.lowrank import LowRankGaussian
from flowmend.lowrank_posterior import LowRankPosterior
from flowmend.recipes import RECIPES, MatchingRecipe
from flowmend.solver import default_method
from flowmend.stationary import StationaryGaussian
from flowmend.thin_root import thin_root
from flowmend.train import Run
from flowmend.weights import load_prior, save_prior

SHAPE = (3, 8, 6)
SIZE = 144
TASKS = {
    "denoise": {},
    "deblur": {"sigma": 0.01},
    "inpaint": {"mask": "random:0.5"},
    "colorize": {},
    "sense": {"measurements": 0.5},
}


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def stationary(shape):
    """Falling variances, and channels that are alike."""
    channels, height, width = shape
    frequency = torch.arange(height)[:, None] + torch.arange(width).double()
    variance = 0.002 / (1.0 + frequency) ** 2 + 1e-4
    mixing = 0.8 * torch.ones(channels, channels).double() + 0.2 * torch.eye(channels)
    spectrum = variance[..., None, None] * mixing
    return StationaryGaussian(torch.zeros(shape, dtype=torch.float64), spectrum)


def gaussian(rank=5, shape=SHAPE):
    size = torch.Size(shape).numel()
    basis = torch.linalg.qr(torch.randn(size, rank, generator=source(1)).double())[0]
    mean = 0.5 + 0.1 * torch.randn(shape, generator=source(2)).double()
    variances = torch.linspace(2.0, 0.05, rank).double()
    return LowRankGaussian(mean, basis.T.reshape(-1, *shape), variances, stationary(shape))


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_the_root_of_a_thin_matrix_is_the_matrix_root(scale):
    thin = scale * torch.randn(3, 7, generator=source()).double()
    thin[2] = 0.0
    along, roots = thin_root(thin)
    whole = torch.eye(7).double() + thin.T @ thin
    root = torch.eye(7) + along.T @ torch.diag(1.0 / (1.0 + roots)) @ along
    torch.testing.assert_close(root @ root, whole)
    inverse = torch.eye(7) - along.T @ torch.diag(1.0 / (roots * (1.0 + roots))) @ along
    torch.testing.assert_close(inverse @ root, torch.eye(7).double())
    torch.testing.assert_close(roots.prod().square(), torch.linalg.det(whole))


def dense(low):
    """Its covariance as a matrix."""
    size = low.mean.numel()
    eye = torch.eye(size, dtype=torch.float64).view(-1, *low.shape)
    rest = low.rest.apply(eye, lambda v: v).flatten(1)
    wide = low.directions.flatten(1)
    return rest + wide.T @ (low.variances[:, None] * wide)


def closed_form(low, operator, sigma):
    """The dense posterior of the same Gaussian."""
    values, vectors = torch.linalg.eigh(dense(low))
    root = (vectors * values.sqrt()) @ vectors.T
    return GaussianPosterior(low.mean, root, operator, sigma)


def basis_of(posterior):
    """L as a matrix."""
    eye = torch.eye(SIZE, dtype=torch.float64)
    return posterior.colour(eye).flatten(1).T


def task_of(name):
    return fm.make_task(name, SHAPE, **TASKS[name])


def level(task):
    return max(task.sigma, 0.003)


@pytest.mark.parametrize("name", TASKS)
def test_its_mean_is_that_of_the_dense_gaussian(name):
    low, task = gaussian(), task_of(name)
    y = task.operator.A(torch.rand(3, *SHAPE, generator=source(3)).double())
    found = LowRankPosterior(low, task.operator, level(task), tolerance=1e-10)
    wanted = closed_form(low, task.operator, level(task))
    torch.testing.assert_close(found.mean(y), wanted.mean(y), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.gain(y), wanted.gain(y), rtol=0, atol=1e-6)
    # no image depends on another
    torch.testing.assert_close(found.mean(y[1:2]), found.mean(y)[1:2], rtol=0, atol=1e-9)
    other = LowRankPosterior(gaussian(rank=4), task.operator, level(task), tolerance=1e-10)
    assert float((other.mean(y) - wanted.mean(y)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", TASKS)
def test_its_coordinates_are_nearly_white(name):
    """The posterior's covariance, seen in them, is nearly the identity, or exactly."""
    low, task = gaussian(), task_of(name)
    posterior = LowRankPosterior(low, task.operator, level(task))
    root = basis_of(closed_form(low, task.operator, level(task)))
    seen = torch.linalg.solve(basis_of(posterior), root)
    scales = torch.linalg.svdvals(seen)
    plain = torch.linalg.svdvals(root)
    most = 1.0 + 1e-6 if name in ("denoise", "colorize") else 8.0
    assert float(scales[0] / scales[-1]) < most < float(plain[0] / plain[-1])
    assert 0.8 < float(scales.log().mean().exp()) < 1.2


@pytest.mark.parametrize("name", TASKS)
def test_its_coordinates_have_the_gradients_of_autograd(name):
    task = task_of(name)
    posterior = LowRankPosterior(gaussian(), task.operator, level(task), tolerance=1e-12)
    w = torch.randn(2, SIZE, generator=source(11)).double().requires_grad_()
    (found,) = torch.autograd.grad((posterior.colour(w) ** 2).sum(), w)
    matrix = basis_of(posterior)
    torch.testing.assert_close(found, 2.0 * w @ matrix.T @ matrix, rtol=1e-6, atol=1e-8)


def test_what_is_known_exactly_hardly_moves():
    task = task_of("inpaint")
    posterior = LowRankPosterior(gaussian(), task.operator, 1e-3)
    moved = posterior.colour(torch.randn(50, SIZE, generator=source(4)).double())
    seen = task.operator.A(torch.ones(1, *SHAPE)).bool().expand_as(moved)
    assert float(moved[seen].std()) < 2e-3 < 10e-3 < float(moved[~seen].std())


def test_the_preconditioner_spares_iterations():
    low, task = gaussian(rank=20), task_of("denoise")
    gain = LowRankPosterior(low, task.operator, 0.1)._gain
    b = torch.rand(2, *SHAPE, generator=source(5)).double()
    wanted = conjugate_gradients(gain.system, b, 1000, 1e-12)

    def error(precondition):
        found = conjugate_gradients(gain.system, b, 6, 1e-12, precondition)
        return float((found - wanted).norm() / wanted.norm())

    assert error(gain.precondition) < 1e-3 < error(None)


def test_the_fit_finds_a_known_covariance():
    true = gaussian(rank=4)
    count = 6000
    wide = true.directions.flatten(1)
    along = torch.randn(count, 4, generator=source(6)).double() * true.variances.sqrt()
    white = torch.randn(count, *SHAPE, generator=source(7)).double()
    x = true.rest.apply(white, torch.sqrt) + (along @ wide).view_as(white)
    levels = (255.0 * (0.5 + 0.1 * x)).round().clamp(0, 255).to(torch.uint8)
    found = LowRankGaussian.fit(levels, flip=False, rank=4)
    assert len(found.variances) == 4
    found = found.double()
    found.rest = found.rest.to(found.mean)
    wanted = 0.01 * dense(true)
    assert float((dense(found) - wanted).norm() / wanted.norm()) < 0.06
    assert torch.equal(LowRankGaussian.fit(levels, False, 4).mean.double(), found.mean)
    mirrored = LowRankGaussian.fit(levels, rank=4)
    torch.testing.assert_close(mirrored.mean, mirrored.mean.flip(-1))
    few = LowRankGaussian.fit(levels[:20])
    assert len(few.variances) <= 2
    same = LowRankGaussian.fit(levels[:1].expand(20, -1, -1, -1), flip=False)
    assert len(same.variances) == 1
    with pytest.raises(fm.FlowmendError, match="at least two"):
        LowRankGaussian.fit(levels[:1])


def test_one_that_makes_no_sense_is_refused():
    low = gaussian()
    with pytest.raises(fm.FlowmendError, match="one shape"):
        LowRankGaussian(low.mean, low.directions, low.variances[:-1], low.rest)
    with pytest.raises(fm.FlowmendError, match="one shape"):
        LowRankGaussian(low.mean[:, :-1], low.directions, low.variances, low.rest)
    with pytest.raises(fm.FlowmendError, match="above 0"):
        LowRankGaussian(low.mean, low.directions, -low.variances, low.rest)


def test_the_last_posterior_is_kept_while_it_serves():
    low, task = gaussian(), task_of("deblur")
    first = low.posterior(task.operator, 0.01)
    assert low.posterior(task.operator, 0.01) is first
    assert low.posterior(task.operator, 0.02) is not first
    assert low.posterior(task_of("deblur").operator, 0.02) is not first


# Flows of large images


def pictures(count):
    """Ramps of 40 x 36 pixels, each of a colour of its own, with a little noise."""
    ramp = torch.linspace(0.0, 1.0, 36).expand(3, 40, 36)
    tone = torch.rand(count, 3, 1, 1, generator=source(8))
    x = 0.2 + 0.6 * tone * ramp + 0.02 * torch.randn(count, 3, 40, 36, generator=source(9))
    return (255.0 * x).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small flow of images of 40 x 36 pixels, more values than a dense Gaussian is fitted to."""
    config = dataclasses.replace(
        preset("glow", height=40, width=36, steps=(1, 1), split=(False, False), hidden=8, bits=8)
    )
    levels = pictures(64)
    recipe = dataclasses.replace(RECIPES["strong"], epochs=1, batch=16)
    run = Run(tmp_path_factory.mktemp("large"), config, recipe, levels, levels[:8], 0, "cpu")
    return run.kept().eval(), levels[:3].float() / 255.0


@pytest.mark.parametrize("method", ["fast-map", "posterior"])
@pytest.mark.parametrize("name", ["denoise", "inpaint"])
def test_large_images_are_restored_in_whitened_coordinates(trained, method, name):
    prior, x = trained
    assert isinstance(prior.gaussian, LowRankGaussian)
    task = fm.make_task(name, prior.shape)
    y = task.measure(x, source(10))
    found = fm.restore(y, task, prior, method=method, steps=4, precision="float32")
    linear = fm.restore(y, task, prior, method="lmmse")
    seen = task.operator.A_adjoint(y)
    for solution in (found, linear):
        assert float((solution.x - x).square().mean()) < 0.5 * float((seen - x).square().mean())
    assert not torch.equal(found.x, linear.x)
    assert default_method(prior) == "fast-map"
    if method == "posterior":
        assert found.std.shape == x.shape
        assert float(found.std.min()) > 0
    one = fm.restore(y[1:2], task, prior, method=method, steps=4, precision="float32")
    torch.testing.assert_close(one.x, found.x[1:2], rtol=0, atol=2e-4)


def test_an_exact_measurement_is_met(trained):
    prior, x = trained
    task = fm.make_task("colorize", prior.shape, sigma=0.0)
    y = task.operator.A(x) + 1e-5  # on no grid of 8 bits
    found = fm.solve(y, task.operator, prior, steps=2)
    assert float((task.operator.A(found.x) - y).abs().max()) < 2e-3


def test_weights_keep_it(trained, tmp_path):
    prior, _ = trained
    found = load_prior(save_prior(tmp_path / "large.safetensors", prior)).gaussian
    stored = prior.gaussian.as_stored()
    assert torch.equal(found.directions, stored.directions)
    assert torch.equal(found.variances, prior.gaussian.variances)
    assert torch.equal(found.rest.spectrum, prior.gaussian.rest.spectrum)
    broken = fm.FlowPrior(build_flow(prior.config, 0), gaussian(shape=SHAPE).float())
    path = save_prior(tmp_path / "broken.safetensors", broken)
    with pytest.raises(fm.FlowmendError, match="does not fit its configuration"):
        load_prior(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("spectrum", None, "incomplete"),
        ("variances", None, "incomplete"),
        ("variances", torch.neg, "cannot be one: The variances"),
        ("directions", lambda part: part[:, :, 1:], "cannot be one: Mean, directions"),
        ("spectrum", lambda part: part[1:], "cannot be one: A spectrum"),
        ("mean", lambda part: part[0], "incomplete"),
    ],
)
def test_a_broken_one_is_one_sentence(trained, tmp_path, name, change, message):
    path = save_prior(tmp_path / "large.safetensors", trained[0], card=False)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    part = tensors.pop(f"gaussian.{name}")
    if change is not None:
        tensors[f"gaussian.{name}"] = change(part).contiguous()
    save_file(tensors, path, metadata)
    with pytest.raises(fm.FlowmendError, match=message):
        load_prior(path)


# Whitening


def test_whitening_makes_its_own_covariance_the_identity():
    low, bits = gaussian(), 5
    mapped = low.whitening(bits)
    eye = torch.eye(SIZE, dtype=torch.float64).view(-1, *SHAPE)
    matrix = mapped.encode(low.mean + eye)[0].flatten(1)
    covariance = dense(low) + torch.eye(SIZE, dtype=torch.float64) / (12.0 * 4.0**bits)
    torch.testing.assert_close(
        matrix.T @ covariance @ matrix, torch.eye(SIZE).double(), rtol=0, atol=1e-8
    )
    wrong = gaussian()
    wrong.variances *= 1.1
    wrong = wrong.whitening(bits).encode(low.mean + eye)[0].flatten(1)
    assert float((wrong.T @ covariance @ wrong - torch.eye(SIZE)).abs().max()) > 1e-2


def test_whitening_knows_its_volume_and_its_inverse():
    low = gaussian()
    mapped, x = low.whitening(8), torch.rand(2, *SHAPE, generator=source(3)).double()
    z, logdet = mapped.encode(x)
    jacobian = torch.func.jacrev(lambda v: mapped.encode(v[None])[0][0].flatten())(x[0])
    found = torch.linalg.slogdet(jacobian.reshape(SIZE, SIZE))[1]
    torch.testing.assert_close(logdet, found.expand(2), rtol=1e-9, atol=1e-8)
    back, inverse = mapped.decode(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    assert torch.equal(inverse, -logdet)
    assert low.whitening(8) is mapped
    assert low.whitening(5) is not mapped


def test_whitening_in_float32_goes_there_and_back():
    low = gaussian().float()
    x = torch.rand(2, *SHAPE, generator=source(3))
    z = low.whitening(8).encode(x)[0]
    assert z.dtype == torch.float32
    torch.testing.assert_close(low.whitening(8).decode(z)[0], x, rtol=0, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low.whitening(8).encode(x)[0], z)


def test_whitening_moves_with_its_flow():
    config = preset("whitened", height=8, width=8, steps=(1,), split=(False,), hidden=32)
    prior = fm.FlowPrior(build_flow(config, 0), gaussian(shape=(3, 8, 8)).float()).eval()
    first = prior.chain.layers[0]
    assert prior.at_precision("bfloat16").chain.layers[0] is first
    x = torch.rand(2, 3, 8, 8, generator=source(3))
    z = prior.encode(x)[0].double()
    moved = prior.double()
    torch.testing.assert_close(moved.encode(x.double())[0], z, rtol=0, atol=2e-3)
    kept = first.rest
    assert kept.mean.dtype == torch.float64
    moved.decode(z)
    assert first.rest is kept


def test_a_flow_of_large_images_stands_on_it(tmp_path):
    config = preset(
        "whitened", height=40, width=36, steps=(1, 1), split=(False, False), hidden=8, bits=8
    )
    levels = pictures(64)
    recipe = dataclasses.replace(RECIPES["strong"], epochs=1, batch=16)
    run = Run(tmp_path / "run", config, recipe, levels, levels[:8], 0, "cpu")
    prior = run.kept().eval()
    x = levels[:2].float() / 255.0
    torch.testing.assert_close(prior.decode(prior.encode(x)[0])[0], x, rtol=0, atol=1e-3)
    bits = run.results(run.measure() | {"train_bits_per_dim": 0.0})
    assert abs(bits["val_bits_per_dim"] - bits["gaussian_val_bits_per_dim"]) < 0.5
    # the Gaussian knows the colour of a ramp, which independent pixels do not
    deviation = float(levels.double().std(0).mean())
    assert bits["gaussian_val_bits_per_dim"] < math.log2(
        deviation * math.sqrt(2 * math.pi * math.e)
    )
    loaded = load_prior(save_prior(tmp_path / "large.safetensors", prior))
    torch.testing.assert_close(loaded.encode(x), prior.encode(x), rtol=1e-4, atol=1e-3)
    task = fm.make_task("inpaint", prior.shape)
    found = fm.restore(task.measure(x, source(10)), task, loaded, steps=2)
    assert float((found.x - x).square().mean()) < 0.01


def test_continuous_flows_of_large_images_start_from_it(tmp_path):
    config = fm.VelocityConfig(widths=(4, 4), blocks=(1, 1), size=(40, 36))
    tone = torch.rand(64, 3, 1, 1, generator=source(8))
    x = 0.2 + 0.6 * tone * torch.linspace(0.0, 1.0, 36).expand(3, 40, 36)
    levels = (255.0 * x).round().to(torch.uint8)
    recipe = MatchingRecipe(epochs=1, batch=16)
    prior = MatchingRun(tmp_path, config, recipe, levels, levels[:8], 0, "cpu").kept().eval()
    assert isinstance(prior.gaussian, LowRankGaussian)
    task = fm.make_task("deblur", prior.shape, sigma=0.05)
    y = task.measure(x[:3], source(12))
    found = fm.restore(y, task, prior, steps=2)
    plain = ContinuousPrior(prior.velocity, prior.shape, stationary=prior.stationary)
    error, without = (
        float((solution.x - x[:3]).square().mean())
        for solution in (found, fm.restore(y, task, plain, steps=2))
    )
    assert error < 0.5 * without
    one = fm.restore(y[1:2], task, prior, steps=2)
    torch.testing.assert_close(one.x, found.x[1:2], rtol=0, atol=2e-3)
