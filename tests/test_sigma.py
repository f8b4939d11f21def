"""The noise level from the measurement: against drawn truth, the exact likelihood, real faces."""

import functools
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from conftest import smooth_images

import flowmend as fm
from flowmend import sigma as module
from flowmend.errors import FlowmendError
from flowmend.faces import sample_faces
from flowmend.operators import (
    Blur,
    Downsample,
    FunctionOperator,
    Grey,
    Identity,
    LinearOperator,
    Mask,
    Sense,
)
from flowmend.picture_sigma import differences_sigma
from flowmend.pixels import quantisation_sigma
from flowmend.sigma import estimate_sigma

ROOT = Path(__file__).parents[1]
SHAPE = (3, 8, 12)
SIZE = math.prod(SHAPE)
COUNT = 400


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hidden(share, seed=0):
    return (torch.rand(1, *SHAPE[1:], generator=seeded(seed)) >= share).float()


@functools.cache
def gaussian(white=0.0):
    """A prior whose smallest variances are far below noise, plus as much in every direction."""
    distance = torch.arange(12).double()
    line = torch.exp(-0.5 * ((distance[:, None] - distance[None]) / 2.5) ** 2)
    colours = torch.full((3, 3), 0.8, dtype=torch.float64) + 0.2 * torch.eye(3)
    smooth = torch.kron(colours, torch.kron(line[:8, :8], line))
    covariance = 0.04 * smooth + (1e-6 + white) * torch.eye(SIZE, dtype=torch.float64)
    return fm.GaussianPrior.from_covariance(smooth_images(1, *SHAPE)[0], covariance)


def draw(prior, count=COUNT, seed=0):
    """Images of a prior with contrasts from a half to double: the square root of s."""
    noise = torch.randn(count, SIZE, generator=seeded(seed), dtype=torch.float64)
    contrast = 2.0 ** (2.0 * torch.rand(count, 1, generator=seeded(seed + 1)).double() - 1.0)
    root = prior.whitening.unwhitening.double()
    return (contrast * (noise @ root)).reshape(-1, *SHAPE) + prior.mean


def roll(x):
    return 0.5 * (x + torch.roll(x, 3, dims=-1))[..., ::2]


OPERATORS = {
    "identity": Identity(SHAPE),
    "blur": Blur(SHAPE, torch.full((3, 3), 1 / 9)),
    "hole": Mask(SHAPE, fm.tasks.parse_mask("center:0.5", SHAPE)),
    "scattered": Mask(SHAPE, hidden(0.5)),
    "channels": Mask(SHAPE, (torch.arange(3) != 1).float()[:, None, None].expand(SHAPE)),
    "grey": Grey(SHAPE),
    "downsample": Downsample(SHAPE, 2),
    "sense": Sense(SHAPE, 144),
    "function": FunctionOperator(SHAPE, roll),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def check_estimator(estimator, operator, levels=(0.02, 0.1, 0.4), spread=0.15):
    """Estimates scatter about the truth, without bias, each image with a level of its own."""
    prior = gaussian()
    clean = operator.A(draw(prior))
    noise = torch.randn(clean.shape, generator=seeded(5), dtype=torch.float64)
    true = torch.tensor(levels, dtype=torch.float64).repeat(COUNT)[:COUNT]
    y = clean + true.reshape(-1, *[1] * (clean.ndim - 1)) * noise
    found = estimator(y, operator, prior, white=0.0)
    assert found.shape == (COUNT,)
    assert found.dtype == y.dtype
    for level in levels:
        error = found[true == level] / level - 1.0
        doubt = 4.5 * float(error.std()) / math.sqrt(len(error))
        bias = abs(float(error.mean()))
        # The maximum of a likelihood is biased by about its variance.
        assert bias <= doubt + float(error.var()), f"biased by {bias:.3g} at {level}"
        assert float(error.abs().median()) <= spread, f"scattered at {level}"


@every_operator
def test_estimates_of_images_of_the_prior(operator):
    check_estimator(estimate_sigma, operator)


@pytest.mark.parametrize("limit", [48, 100])
def test_blocks_do_nearly_as_well(limit, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_BLOCK", limit)
    check_estimator(estimate_sigma, OPERATORS["identity"])
    check_estimator(estimate_sigma, OPERATORS["hole"])


def louder(y, operator, prior, white):
    return 1.05 * estimate_sigma(y, operator, prior, white)


def one_for_all(y, operator, prior, white):
    return estimate_sigma(y, operator, prior, white).mean().expand(len(y)).clone()


def all_that_scatters(y, operator, prior, white):
    return (y - operator.A(prior.mean[None])).flatten(1).std(1)


def known_contrast(y, operator, prior, white):
    """The likelihood without the unknown contrast: on a grid, s = 1."""
    basis = torch.linalg.eigh(prior.covariance())
    energies = ((y - prior.mean).flatten(1) @ basis.eigenvectors).square()
    grid = torch.logspace(-3, 0, 400, dtype=torch.float64)
    spread = basis.eigenvalues + grid.square()[:, None]
    value = energies @ spread.reciprocal().T + spread.log().sum(1)
    return grid[value.argmin(1)]


@pytest.mark.parametrize("broken", [louder, one_for_all, all_that_scatters])
def test_the_check_notices(broken):
    with pytest.raises(AssertionError, match=r"biased|scattered"):
        check_estimator(broken, OPERATORS["identity"])


def test_the_check_notices_hidden_pixels():
    """Black pixels, which no noise has reached, would make noise look weaker."""

    class Open(Mask):
        """Forgets that what it hides tells nothing: a trace of it is seen."""

        def A(self, x):  # noqa: N802
            return super().A(x) + 1e-12 * x

    def estimator(y, operator, prior, white):
        masked = y * operator.mask
        return estimate_sigma(masked, Open(SHAPE, operator.mask), prior, white)

    with pytest.raises(AssertionError, match=r"biased|scattered"):
        check_estimator(estimator, OPERATORS["scattered"])


def test_the_unknown_contrast_matters():
    """Without it flat and busy images are mistaken, most where noise is weak."""
    clean = draw(gaussian(white=1e-4))
    y = clean + 0.01 * torch.randn(clean.shape, generator=seeded(5), dtype=torch.float64)
    prior = gaussian(white=1e-4)
    with_contrast = (estimate_sigma(y, Identity(SHAPE), prior, 0.0) / 0.01 - 1.0).abs()
    without = (known_contrast(y, Identity(SHAPE), prior, 0.0) / 0.01 - 1.0).abs()
    assert float(without.median()) > 1.5 * float(with_contrast.median())


def negative_log_likelihood(parameters, residual, covariance):
    scale, level = np.exp(parameters)
    total = scale * covariance + level**2 * np.eye(len(covariance))
    return -scipy.stats.multivariate_normal.logpdf(residual, np.zeros(len(residual)), total)


@pytest.mark.parametrize("name", ["sense", "grey", "downsample"])
def test_the_estimate_is_the_maximum_of_the_likelihood(name):
    """Against a direct search over contrast and level in the dense likelihood of scipy."""
    operator, prior = OPERATORS[name], gaussian()
    clean = operator.A(draw(prior, count=3))
    y = clean + 0.07 * torch.randn(clean.shape, generator=seeded(2), dtype=torch.float64)
    units = torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)
    dense = operator.A(units).flatten(1).T.numpy()
    covariance = dense @ prior.covariance().numpy() @ dense.T
    residual = (y - operator.A(prior.mean.double()[None])).flatten(1).numpy()
    found = estimate_sigma(y, operator, prior, white=0.0)
    for index in range(3):
        best = scipy.optimize.minimize(
            negative_log_likelihood,
            np.log([1.0, 0.1]),
            args=(residual[index], covariance),
            method="Nelder-Mead",
            options={"xatol": 1e-6, "fatol": 1e-8, "maxiter": 2000},
        )
        assert float(found[index]) == pytest.approx(math.exp(best.x[1]), rel=2e-3)


def test_the_white_part_of_a_prior_is_not_of_images():
    """A prior with 1e-3 more in every direction than its images have."""
    images = draw(gaussian())
    y = images + 0.02 * torch.randn(images.shape, generator=seeded(5), dtype=torch.float64)
    fitted = gaussian(white=1e-3)
    without = estimate_sigma(y, Identity(SHAPE), fitted, white=0.0)
    with_it = estimate_sigma(y, Identity(SHAPE), fitted, white=1.0)
    assert float((with_it / 0.02 - 1.0).abs().median()) < 0.1
    assert float((without / 0.02 - 1.0).abs().median()) > 0.2


@every_operator
def test_each_image_on_its_own(operator):
    clean = operator.A(draw(gaussian(), count=4))
    y = clean + 0.1 * torch.randn(clean.shape, generator=seeded(3), dtype=torch.float64)
    kept = y.clone()
    together = estimate_sigma(y, operator, gaussian())
    for index in range(4):
        alone = estimate_sigma(y[index : index + 1], operator, gaussian())
        assert torch.allclose(alone, together[index : index + 1], rtol=1e-9)
    assert torch.equal(y, kept)
    assert estimate_sigma(y.float(), operator, gaussian()).dtype == torch.float32


@pytest.mark.parametrize("name", ["hole", "scattered", "channels"])
def test_hidden_pixels_do_not_matter(name):
    operator = OPERATORS[name]
    y = draw(gaussian(), count=3)
    y = y + 0.1 * torch.randn(y.shape, generator=seeded(3), dtype=torch.float64)
    other = torch.where(operator.mask.expand(y.shape) > 0, y, 17.0)
    assert not torch.equal(other, y)
    for estimator in (estimate_sigma, differences_sigma):
        rest = (gaussian(),) if estimator is estimate_sigma else ()
        assert torch.equal(estimator(other, operator, *rest), estimator(y, operator, *rest))


def test_no_noise_is_rounding():
    for prior in (gaussian(), gaussian(white=1e-3)):
        y = prior.mean.double()[None].repeat(2, 1, 1, 1)
        y[1] = 0.5
        found = estimate_sigma(y, Identity(SHAPE), prior)
        assert bool(torch.isfinite(found).all())
        assert float(found[0]) == pytest.approx(quantisation_sigma())
    flat = torch.full((1, *SHAPE), 0.5)
    assert float(differences_sigma(flat, Identity(SHAPE))) == pytest.approx(quantisation_sigma())


def test_a_white_prior_takes_everything_for_noise():
    prior = fm.GaussianPrior.from_covariance(
        torch.full(SHAPE, 0.5), 0.01 * torch.eye(SIZE, dtype=torch.float64)
    )
    y = 0.5 + 0.3 * torch.randn(50, *SHAPE, generator=seeded(), dtype=torch.float64)
    found = estimate_sigma(y, Identity(SHAPE), prior)
    assert torch.allclose(found, (y - 0.5).flatten(1).square().mean(1).sqrt(), rtol=1e-6)


class Nothing(LinearOperator):
    """Measures nothing."""

    def A(self, x):  # noqa: N802
        return 0.0 * x


def test_an_operator_that_sees_nothing_is_refused():
    with pytest.raises(FlowmendError, match="makes nothing of any image"):
        estimate_sigma(torch.rand(1, *SHAPE), Nothing(SHAPE), gaussian())


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 32, 32), (3, 40, 7), (3, 1, 2000), (2000,), (5000, 1, 1), (60, 80)]
)
def test_blocks_hold_every_measurement_once(shape):
    blocks = module._blocks(shape)
    assert torch.equal(torch.cat(blocks).sort().values, torch.arange(math.prod(shape)))
    assert max(map(len, blocks)) <= module.LARGEST_BLOCK
    assert min(map(len, blocks)) >= 0.4 * max(map(len, blocks))
    if len(shape) == 3 and shape[0] == 3:
        pixels = shape[1] * shape[2]
        for block in blocks:
            places, counts = (block % pixels).unique(return_counts=True)
            assert bool((counts == 3).all())
            rows, columns = places // shape[2], places % shape[2]
            area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert int(area) == len(places)


# Real faces


def test_the_page_of_errors_is_what_its_script_writes():
    path = ROOT / "benchmarks" / "sigma_auto.py"
    if not path.is_file():
        pytest.skip("no benchmarks beside this package")
    specification = importlib.util.spec_from_file_location("sigma_auto", path)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    results = path.parent / "results"
    values = json.loads((results / "sigma_auto.json").read_text())
    assert (results / "sigma_auto.md").read_text() == script.page(values)
    assert values["white"] == module.WHITE_SHARE
    values["records"][1]["gaussian"]["median"] *= 1.5
    assert (results / "sigma_auto.md").read_text() != script.page(values)


@pytest.fixture(scope="module")
def faces():
    return fm.load("faces32").gaussian, sample_faces()


@pytest.mark.parametrize(
    ("name", "options", "sigma", "tolerance"),
    [
        ("denoise", {}, 0.1, 0.04),
        ("inpaint", {"mask": "random:0.5"}, 0.05, 0.08),
        ("colorize", {}, 0.1, 0.08),
        ("sense", {}, 0.2, 0.08),
    ],
)
def test_faces(name, options, sigma, tolerance, faces):
    prior, x = faces
    task = fm.make_task(name, prior.shape, sigma=sigma, **options)
    y = task.measure(x, seeded())
    error = estimate_sigma(y - task.offset, task.operator, prior) / sigma - 1.0
    assert float(error.abs().median()) <= tolerance
    assert abs(float(error.median())) <= tolerance


# Without a Gaussian


@pytest.mark.parametrize("name", ["identity", "blur", "hole", "grey", "downsample"])
def test_without_a_gaussian_small_pictures_go_by_their_differences(name):
    operator = OPERATORS[name]
    y = operator.A(draw(gaussian(), count=2))
    assert torch.equal(estimate_sigma(y, operator, None), differences_sigma(y, operator))


def test_without_a_gaussian_other_measurements_are_refused():
    with pytest.raises(FlowmendError, match=r"only be estimated from pictures.*give sigma"):
        estimate_sigma(torch.rand(2, 144), OPERATORS["sense"], None)
    few = torch.zeros(1, *SHAPE[1:])
    few[:, :3, :3] = 1.0
    with pytest.raises(FlowmendError, match="Too little of the picture"):
        estimate_sigma(torch.rand(2, *SHAPE), Mask(SHAPE, few), None)
