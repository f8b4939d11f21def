"""Counts and shares of measurements, and the noise that falls on them."""

import math

import pytest
import torch
from conftest import smooth_images
from task_cases import SHAPE

from flowmend.errors import FlowmendError
from flowmend.kernels import parse_measurements
from flowmend.noise import Gaussian, Poisson, SaltAndPepper, known_pixels
from flowmend.tasks import TASKS, make_task


# Numbers of measurements
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (7, 7),
        ("7", 7),
        (" 768 ", 768),
        (0.25, 288),
        ("0.25", 288),
        ("25%", 288),
        ("12.5%", 144),
        ("100%", 1152),
        (1.0, 1152),
        ("1", 1),
        ("1e-9%", 1),
        (0, 0),
        ("-3", -3),
    ],
)
def test_counts_and_shares(given, wanted):
    assert parse_measurements(given, 1152) == wanted
    if wanted > 0:
        assert make_task("sense", SHAPE, measurements=given).measurement_shape == (wanted,)


@pytest.mark.parametrize(
    "given", ["many", "", "%", "0%", "101%", "1.5", 1.5, "-0.5", "nan", "0.0"]
)
def test_no_counts_and_no_shares(given):
    with pytest.raises(FlowmendError, match="must be a count such as 768, or a share such as"):
        make_task("sense", SHAPE, measurements=given)


# Noise
@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("name", TASKS)
def test_gaussian_measurements_are_bit_for_bit_what_they_were(name, sigma):
    x = smooth_images(2, *SHAPE).float()
    task = make_task(name, SHAPE, sigma=sigma)
    wanted = task.operator.A(x) + task.offset
    if sigma > 0:
        generator = torch.Generator().manual_seed(4)
        wanted = wanted + sigma * torch.randn(wanted.shape, generator=generator)
    found = task.measure(x, torch.Generator().manual_seed(4))
    assert torch.equal(found, wanted)
    named = make_task(name, SHAPE, sigma=sigma, noise="gaussian")
    assert torch.equal(named.measure(x, torch.Generator().manual_seed(4)), wanted)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "sense"])
def test_poisson_measurements(name):
    task = make_task(name, SHAPE, noise="poisson", peak=20)
    assert task.noise == Poisson(20)
    assert task.sigma == pytest.approx(math.sqrt(0.5 / 20))
    y = task.measure(smooth_images(2, *SHAPE), torch.Generator().manual_seed(0))
    assert torch.allclose(20 * y, (20 * y).round(), rtol=0, atol=1e-9)
    assert y.shape[1:] == task.measurement_shape


def test_noise_falls_on_the_offset_too():
    """Beyond the paper's border lies mid-grey light, and it is counted like any other."""
    x = torch.full((1, *SHAPE), 0.5)
    task = make_task("deblur", SHAPE, boundary="paper", noise="poisson", peak=1e4)
    y = task.measure(x, torch.Generator().manual_seed(0))
    assert torch.allclose(y, x, rtol=0, atol=5 * math.sqrt(0.5 / 1e4))


@pytest.mark.parametrize("name", TASKS)
def test_salt_and_pepper_measurements(name):
    task = make_task(name, SHAPE, noise="salt-pepper", share=0.4)
    assert task.noise == SaltAndPepper(0.4)
    assert task.sigma == 0.0
    x = smooth_images(2, *SHAPE)
    clean, y = task.operator.A(x), task.measure(x, torch.Generator().manual_seed(0))
    known = known_pixels(y).expand_as(y)
    assert torch.equal(y[known], clean[known])
    assert float(known_pixels(y).double().mean()) < 0.75


def test_the_noise_of_a_task_by_default():
    assert make_task("denoise", SHAPE).noise == Gaussian(0.1)
    assert make_task("deblur", SHAPE).noise == Gaussian(0.0)
    assert make_task("deblur", SHAPE, sigma="0.25").noise == Gaussian(0.25)
    assert make_task("deblur", SHAPE, noise="poisson").noise == Poisson(30.0)
    assert make_task("deblur", SHAPE, noise="salt-pepper").noise == SaltAndPepper(0.1)


NO_NOISE = {
    "unknown": ({"noise": "fog"}, "Unknown noise 'fog'"),
    "no name": ({"noise": ""}, "Unknown noise ''"),
    "negative peak": ({"noise": "poisson", "peak": -1.0}, "peak of Poisson noise"),
    "share beyond 1": ({"noise": "salt-pepper", "share": 1.2}, "between 0 and 1"),
    "peak alone": ({"peak": 3.0}, "gaussian has no option peak: it belongs to the noise poisson"),
    "share alone": ({"share": 0.3}, "gaussian has no option share"),
    "sigma of poisson": ({"noise": "poisson", "sigma": 0.1}, "poisson has no option sigma"),
    "auto of salt": ({"noise": "salt-pepper", "sigma": "auto"}, "salt-pepper has no option sigma"),
    "peak of auto": ({"sigma": "auto", "peak": 3.0}, "gaussian has no option peak"),
    "text": ({"sigma": "loud"}, "a number, auto, or a file"),
}


@pytest.mark.parametrize(("given", "phrase"), NO_NOISE.values(), ids=NO_NOISE)
def test_noises_that_cannot_be(given, phrase):
    with pytest.raises(FlowmendError) as error:
        make_task("denoise", SHAPE, **given)
    assert phrase in str(error.value)


def test_poisson_noise_needs_light():
    with pytest.raises(FlowmendError, match="measurements of the task sense can be negative"):
        make_task("sense", SHAPE, noise="poisson")
