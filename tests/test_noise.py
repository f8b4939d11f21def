"""Noise models: what they draw against their moments, likelihoods against scipy, gradients."""

import json
import math
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import SIDE
from torch.autograd.gradcheck import GradcheckError, gradcheck

from flowmend.errors import FlowmendError
from flowmend.files import read_image
from flowmend.noise import (
    AUTO,
    FAINTEST,
    NOISES,
    Gaussian,
    Noise,
    Poisson,
    SaltAndPepper,
    known_pixels,
    make_noise,
    parse_sigma,
)
from flowmend.pixels import quantisation_sigma, round_to_bytes

ROUNDING = quantisation_sigma()
MODELS = {
    "gaussian": Gaussian(0.1),
    "gaussian, weak": Gaussian(0.02),
    "poisson, dark": Poisson(3.0),
    "poisson": Poisson(30.0),
    "poisson, bright": Poisson(2000.0),
    "salt-pepper": SaltAndPepper(0.1),
    "salt-pepper, strong": SaltAndPepper(0.6),
}
every_model = pytest.mark.parametrize("noise", MODELS.values(), ids=MODELS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=0, low=0.05, high=0.95):
    return low + (high - low) * torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


# Checkers


def check_moments(noise, draws=40_000):
    """What is drawn about a level has the promised mean squared error, and the right mean."""
    for level in (0.05, 0.3, 0.5, 0.9):
        clean = torch.full((1, 1, draws // 100, 100), level, dtype=torch.float64)
        error = (noise.corrupt(clean, seeded(3)) - level).flatten()
        squares = error.square()
        doubt = 4.5 * squares.std() / math.sqrt(draws)
        promised = noise.variance(clean).flatten()
        assert bool((promised == promised[0]).all())
        difference = abs(float(squares.mean() - promised[0]))
        assert difference <= float(doubt), f"mean squared error at {level}: {difference:.3g} off"
        bias = 0.0
        if isinstance(noise, SaltAndPepper):
            bias = noise.share * (0.5 - level)
        shift = abs(float(error.mean()) - bias)
        assert shift <= 4.5 * float(error.std()) / math.sqrt(draws), (
            f"mean at {level}: {shift:.3g}"
        )


def log_density(noise, y, measured):
    """Reference log p(y | measured), value by value, from scipy."""
    y, measured = y.numpy(), measured.numpy()
    if isinstance(noise, Gaussian):
        return scipy.stats.norm.logpdf(y, measured, max(noise.sigma, ROUNDING))
    if isinstance(noise, Poisson):
        return scipy.stats.poisson.logpmf(np.round(y * noise.peak), noise.peak * measured)
    values = scipy.stats.laplace.logpdf(y, measured, ROUNDING / math.sqrt(2.0))
    return np.where(known_pixels(torch.from_numpy(y)).numpy(), values, 0.0)


def check_likelihood(noise):
    """Differences of the negative log-likelihood are those of scipy's, image by image."""
    clean = uniform(5, 3, 6, 7)
    y = noise.corrupt(clean, seeded(1))
    first, second = (0.04 * uniform(5, 3, 6, 7, seed=seed) + 0.95 * clean for seed in (4, 5))
    found = noise.negative_log_likelihood(first, y) - noise.negative_log_likelihood(second, y)
    wanted = log_density(noise, y, second) - log_density(noise, y, first)
    wanted = torch.from_numpy(wanted).flatten(1).sum(1)
    assert found.shape == (5,)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-8), "the likelihood is not scipy's"


def check_gradient(noise, low=-0.3, high=1.3):
    """Autograd's gradient is that of central differences, beyond [0, 1] too."""
    y = noise.corrupt(uniform(2, 3, 4, 5), seeded(2))
    measured = uniform(2, 3, 4, 5, seed=7, low=low, high=high).requires_grad_(True)
    (gradient,) = torch.autograd.grad(noise.negative_log_likelihood(measured, y).sum(), measured)
    assert gradcheck(
        lambda value: noise.negative_log_likelihood(value, y),
        measured,
        eps=1e-7,
        atol=1e-6 * float(gradient.abs().max()),
        rtol=1e-4,
    )
    assert bool((gradient[known_pixels(y).expand_as(y)] != 0).all())


@every_model
def test_moments_of_what_is_drawn(noise):
    check_moments(noise)


@every_model
def test_likelihood_is_scipys(noise):
    check_likelihood(noise)


@every_model
def test_gradients(noise):
    check_gradient(noise)


class Louder(Gaussian):
    """Draws more noise than it says."""

    def corrupt(self, clean, generator):
        return clean + 1.1 * (super().corrupt(clean, generator) - clean)


class Shifted(Poisson):
    """Draws a little too much light."""

    def corrupt(self, clean, generator):
        return super().corrupt(clean, generator) + 0.01


class Saltier(SaltAndPepper):
    """Draws nothing but salt."""

    def corrupt(self, clean, generator):
        y = super().corrupt(clean, generator)
        return torch.where(y == 0.0, 1.0, y)


class Doubled(Gaussian):
    """Forgets the half."""

    def negative_log_likelihood(self, measured, y):
        return 2.0 * super().negative_log_likelihood(measured, y)


class Squares(Poisson):
    """Takes Poisson noise for Gaussian."""

    def negative_log_likelihood(self, measured, y):
        return Gaussian(self.sigma).negative_log_likelihood(measured, y)


class Trusting(SaltAndPepper):
    """Takes lost pixels for measurements."""

    def negative_log_likelihood(self, measured, y):
        return (measured - y).abs().flatten(1).sum(1) * math.sqrt(2.0) / ROUNDING


class Detached(Gaussian):
    """Its gradient lacks a factor."""

    def negative_log_likelihood(self, measured, y):
        value = super().negative_log_likelihood(measured, y)
        return 0.9 * value + 0.1 * value.detach()


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (check_moments, Louder(0.1)),
        (check_moments, Shifted(30.0)),
        (check_moments, Saltier(0.1)),
        (check_likelihood, Doubled(0.1)),
        (check_likelihood, Squares(30.0)),
        (check_likelihood, Trusting(0.1)),
    ],
    ids=lambda part: getattr(part, "__name__", type(part).__name__),
)
def test_the_checkers_notice(check, broken):
    with pytest.raises(AssertionError):
        check(broken)


def test_the_gradient_check_notices():
    with pytest.raises(GradcheckError):
        check_gradient(Detached(0.1))


# Gaussian


def test_gaussian_noise_is_bit_for_bit_what_it_was():
    clean = uniform(2, 3, 4, 5).float()
    noise = torch.randn(clean.shape, generator=seeded(9), dtype=clean.dtype)
    assert torch.equal(Gaussian(0.07).corrupt(clean, seeded(9)), clean + 0.07 * noise)
    assert Gaussian(0.0).corrupt(clean, seeded(9)) is clean


def test_no_noise_leaves_rounding():
    clean = uniform(2, 3, 4, 5)
    assert torch.allclose(Gaussian(0.0).variance(clean), torch.full_like(clean, ROUNDING**2))
    far = Gaussian(0.0).negative_log_likelihood(clean + ROUNDING, clean)
    assert torch.allclose(far, torch.full((2,), 0.5 * 60, dtype=torch.float64))


# Poisson


def test_poisson_counts():
    y = Poisson(30.0).corrupt(uniform(2, 3, 8, 8), seeded()) * 30.0
    assert torch.allclose(y, y.round(), rtol=0, atol=1e-10)
    black = torch.zeros(1, 1, 4, 4)
    assert torch.equal(Poisson(30.0).corrupt(black, seeded()), black)
    assert torch.equal(Poisson(30.0).corrupt(black - 0.5, seeded()), black)
    assert Poisson(30.0).variance(black).unique().item() == pytest.approx(ROUNDING**2)


def test_poisson_sigma_is_that_of_mid_grey():
    noise = Poisson(50.0)
    assert noise.sigma == pytest.approx(0.1)
    assert noise.variance(torch.full((2,), 0.5)).sqrt().tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("peak", [1.0, 30.0, 2000.0])
def test_poisson_is_least_at_the_measurement_and_zero_there(peak):
    noise = Poisson(peak)
    y = noise.corrupt(uniform(4, 1, 5, 5), seeded(1))
    y = y.clamp_min(2.0 / peak)
    value = noise.negative_log_likelihood(y, y)
    assert torch.allclose(value, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert bool((noise.negative_log_likelihood(factor * y, y) > value).all())


@pytest.mark.parametrize("peak", [3.0, 30.0, 2000.0])
def test_poisson_at_and_below_black(peak):
    """Finite, convex and of continuous slope across the seams; it leads back to light."""
    noise = Poisson(peak)
    least = max(FAINTEST, (peak * ROUNDING) ** 2) / peak
    points = torch.linspace(-0.5, 3.0, 7001, dtype=torch.float64)
    for seam in (0.0, least):
        points = torch.cat([points, seam + torch.tensor([-1e-9, 1e-9], dtype=torch.float64)])
    points = points.sort().values
    for count in (0.0, 1.0, 7.0):
        y = torch.full((len(points), 1), count / peak, dtype=torch.float64)
        measured = points[:, None].clone().requires_grad_(True)
        value = noise.negative_log_likelihood(measured, y)
        (slope,) = torch.autograd.grad(value.sum(), measured)
        slope = slope[:, 0]
        assert bool(torch.isfinite(value).all())
        assert bool((slope[1:] >= slope[:-1] - 1e-9 * slope.abs().max()).all()), "not convex"
        for seam in (0.0, least):
            inside = (points - seam).abs() <= 1e-9 + 1e-15
            jump = slope[inside].max() - slope[inside].min()
            assert float(jump) <= 1e-5 * float(slope.abs().max())
        assert bool((slope[points < -2 * least] < 0).all())
        lowest = float(points[int(value.argmin())])
        assert abs(lowest - count / peak) <= max(2 * least, 1e-3)


def test_poisson_in_single_precision_and_for_measurements_below_black():
    y = torch.tensor([[-0.1, 0.0, 0.5, 1.0]])
    value = Poisson(1000.0).negative_log_likelihood(y.clamp_min(0.01), y)
    assert value.dtype == torch.float32
    assert bool(torch.isfinite(value).all())


# Salt and pepper


def test_salt_and_pepper_falls_on_whole_pixels():
    clean = uniform(8, 3, 32, 32)
    y = SaltAndPepper(0.2).corrupt(clean, seeded())
    known = known_pixels(y)
    assert known.shape == (8, 1, 32, 32)
    assert known.dtype == torch.bool
    assert torch.equal(y[known.expand_as(y)], clean[known.expand_as(y)])
    lost = y[(~known).expand_as(y)].reshape(3, -1)
    assert set(lost.unique().tolist()) == {0.0, 1.0}
    count = known.numel()
    doubt = 4.5 * math.sqrt(0.2 * 0.8 / count)
    assert float((~known).double().mean()) == pytest.approx(0.2, abs=doubt)
    salt = y[:, :1][~known].mean()
    assert float(salt) == pytest.approx(0.5, abs=4.5 * 0.5 / math.sqrt(0.2 * count))
    rounded = round_to_bytes(y)
    assert torch.equal(known_pixels(rounded), known)


def test_known_pixels_by_hand():
    y = torch.full((1, 3, 1, 5), 0.5)
    y[0, :, 0, 0] = 0.0
    y[0, :, 0, 1] = 1.0
    y[0, :, 0, 2] = torch.tensor([0.0, 1.0, 0.0])  # pure green is a colour
    y[0, :, 0, 3] = torch.tensor([0.0, 0.0, 0.5])
    assert known_pixels(y).tolist() == [[[[False, False, True, True, True]]]]
    assert known_pixels(torch.tensor([[0.0, 0.3, 1.0]])).tolist() == [[False, True, False]]


def test_lost_pixels_say_nothing():
    noise = SaltAndPepper(0.3)
    y = noise.corrupt(uniform(2, 3, 4, 5), seeded(2))
    measured = uniform(2, 3, 4, 5, seed=1)
    lost = ~known_pixels(y).expand_as(y)
    other = torch.where(lost, 1.0 - measured, measured)
    assert not torch.equal(other, measured)
    value = noise.negative_log_likelihood(measured, y)
    assert torch.equal(noise.negative_log_likelihood(other, y), value)
    measured.requires_grad_(True)
    (gradient,) = torch.autograd.grad(noise.negative_log_likelihood(measured, y).sum(), measured)
    assert bool((gradient[lost] == 0).all())
    size = math.sqrt(2.0) / ROUNDING
    assert torch.allclose(gradient[~lost].abs(), torch.full_like(gradient[~lost], size))


# What all promise


@every_model
def test_images_are_judged_on_their_own(noise):
    y, measured = noise.corrupt(uniform(3, 3, 4, 5), seeded(2)), uniform(3, 3, 4, 5, seed=1)
    together = noise.negative_log_likelihood(measured, y)
    for index in range(3):
        one = slice(index, index + 1)
        alone = noise.negative_log_likelihood(measured[one], y[one])
        assert torch.allclose(alone, together[one], rtol=1e-12)


@every_model
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (7,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_precision_and_arguments(noise, shape, dtype):
    clean = uniform(2, *shape).to(dtype)
    kept = clean.clone()
    y = noise.corrupt(clean, seeded(1))
    assert y.shape == clean.shape
    assert noise.variance(clean).shape == clean.shape
    assert noise.negative_log_likelihood(clean, y).shape == (2,)
    for value in (y, noise.variance(clean), noise.negative_log_likelihood(clean, y)):
        assert value.dtype == dtype
    assert bool((noise.variance(clean) > 0).all())
    assert torch.equal(clean, kept)
    assert torch.equal(y, noise.corrupt(clean, seeded(1)))
    assert not torch.equal(y, noise.corrupt(uniform(2, *shape, seed=2).to(dtype), seeded(1)))
    random = torch.random.get_rng_state()
    noise.corrupt(clean, seeded(1))
    assert torch.equal(random, torch.random.get_rng_state())


def test_models_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Gaussian(0.1).sigma = 0.2


def test_a_model_without_a_likelihood_is_none():
    @dataclass(frozen=True)
    class Half(Noise):
        sigma: float = 0.0

    with pytest.raises(TypeError, match="abstract"):
        Half()


# By name


def test_the_table():
    assert list(NOISES) == ["gaussian", "poisson", "salt-pepper"]
    assert make_noise() == Gaussian(0.1)
    assert make_noise("gaussian", sigma=0.3, peak=None) == Gaussian(0.3)
    assert make_noise("poisson", peak=12.0) == Poisson(12.0)
    assert make_noise("poisson") == Poisson(30.0)
    assert make_noise("salt-pepper", share=0.25) == SaltAndPepper(0.25)
    assert [kind().sigma for kind in NOISES.values()] == [0.1, math.sqrt(0.5 / 30), 0.0]


BAD = {
    "unknown": (("fog", {}), "Unknown noise 'fog': choose from gaussian, poisson, salt-pepper."),
    "empty": (("", {}), "Unknown noise ''"),
    "peak of gaussian": (("gaussian", {"peak": 3.0}), "no option peak: it belongs to the noise p"),
    "share of poisson": (
        ("poisson", {"share": 0.1}),
        "no option share: it belongs to the noise s",
    ),
    "sigma of salt": (
        ("salt-pepper", {"sigma": 0.1}),
        "no option sigma: it belongs to the noise g",
    ),
    "nobody's": (("poisson", {"colour": 1.0}), "no option colour."),
    "negative peak": (("poisson", {"peak": -3.0}), "peak of Poisson noise must be a number above"),
    "peak of zero": (("poisson", {"peak": 0.0}), "above 0, not 0.0"),
    "infinite peak": (("poisson", {"peak": math.inf}), "above 0, not inf"),
    "peak NaN": (("poisson", {"peak": math.nan}), "above 0, not nan"),
    "share of zero": (("salt-pepper", {"share": 0.0}), "between 0 and 1, not 0.0"),
    "share of all": (("salt-pepper", {"share": 1.0}), "between 0 and 1, not 1.0"),
    "share beyond": (("salt-pepper", {"share": 1.5}), "between 0 and 1, not 1.5"),
    "share NaN": (("salt-pepper", {"share": math.nan}), "between 0 and 1, not nan"),
    "negative sigma": (("gaussian", {"sigma": -0.1}), "number of at least 0, not -0.1"),
    "sigma NaN": (("gaussian", {"sigma": math.nan}), "number of at least 0, not nan"),
}


@pytest.mark.parametrize(("given", "phrase"), BAD.values(), ids=BAD)
def test_noises_that_cannot_be(given, phrase):
    name, options = given
    with pytest.raises(FlowmendError) as error:
        make_noise(name, **options)
    assert phrase in str(error.value)
    assert str(error.value).endswith(".")


def test_noise_levels_from_text():
    assert parse_sigma(None) is None
    assert parse_sigma(AUTO) == "auto"
    assert parse_sigma("0.25") == parse_sigma(0.25) == 0.25
    for text in ("loud", "", "Auto", "0,1"):
        with pytest.raises(FlowmendError, match=r"--sigma\) must be a number, auto, or a file"):
            parse_sigma(text)


# On the command line


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--noise", "poisson", "--peak", 20), {"noise": "poisson", "peak": 20.0, "share": None}),
        (("--noise", "salt-pepper"), {"noise": "salt-pepper", "share": 0.1, "sigma": 0.0}),
        (("--noise", "gaussian", "--sigma", "0.2"), {"noise": "gaussian", "sigma": 0.2}),
        ((), {"noise": "gaussian", "sigma": 0.1, "peak": None, "share": None}),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "",
)
def test_degrade_then_restore_with_noise(
    options, wanted, run, clean_folder, tiny_prior_path, tmp_path
):
    made, out = tmp_path / "made", tmp_path / "out"
    task = ("--task", "denoise", *options)
    outcome = run("degrade", clean_folder, *task, "--size", SIDE, "--out", made)
    assert outcome.code == 0, outcome.err
    facts = json.loads((made / "degrade.json").read_text())
    assert {name: facts[name] for name in wanted} == wanted
    y, x = (read_image(made / place) for place in ("measurement/a.npy", "reference/a.png"))
    if "poisson" in options:
        assert torch.allclose(y * 20, (y * 20).round(), rtol=0, atol=1e-4)
    if "salt-pepper" in options:
        known = known_pixels(y[None]).expand(1, *y.shape)[0]
        assert torch.allclose(y[known], x[known], rtol=0, atol=0.51 / 255)
        assert bool((~known).any())
    outcome = run(
        *("restore", made / "measurement", *task, "--prior", tiny_prior_path, "--out", out),
        *("--method", "lmmse", "--device", "cpu", "--json", tmp_path / "r.json"),
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["noise"] == wanted["noise"]


COMMANDS = {
    "--noise fog": "Unknown noise 'fog'",
    "--noise poisson --peak -3": "peak of Poisson noise",
    "--noise poisson --sigma 0.1": "no option sigma",
    "--noise salt-pepper --share 1.5": "between 0 and 1",
    "--noise salt-pepper --peak 3": "no option peak",
    "--peak 3": "the noise poisson",
    "--share 0.2": "the noise salt-pepper",
    "--sigma loud": "--sigma",
    "--noise poisson --sigma auto": "no option sigma",
}


@pytest.mark.parametrize("command", ["degrade", "restore"])
@pytest.mark.parametrize(("options", "phrase"), COMMANDS.items(), ids=COMMANDS)
def test_command_lines_that_cannot_be(
    command, options, phrase, run, clean_folder, tiny_prior_path, tmp_path
):
    place = {"degrade": ("--size", SIDE), "restore": ("--prior", tiny_prior_path)}[command]
    out = tmp_path / "out"
    outcome = run(
        command, clean_folder, "--task", "denoise", *options.split(), *place, "--out", out
    )
    assert outcome.code == 1
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert phrase in lines[0]
    assert not out.exists()


def test_degrade_cannot_guess_its_own_noise(run, clean_folder, tmp_path):
    out = tmp_path / "out"
    options = ("--task", "denoise", "--sigma", "auto", "--size", SIDE, "--out", out)
    outcome = run("degrade", clean_folder, *options)
    assert outcome.code == 1
    assert outcome.err.strip() == (
        "flowmend: degrade makes the noise, so it cannot be auto: give --sigma a number."
    )
    assert not out.exists()
