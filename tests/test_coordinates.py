"""Measurements of single coordinates against the closed form of a Gaussian prior."""

import pytest
import torch
from conftest import smooth_images

import flowmend as fm
from flowmend.coordinates import known_coordinates
from flowmend.cosines import mix_channels, unmix_channels

SHAPE = (3, 4, 6)
SIZE = 72
SIGMA = 0.05


class DenseGaussian:
    """A Gaussian that denoises with a noise level for every colour coordinate."""

    def __init__(self):
        x = smooth_images(200, *SHAPE).double().flatten(1)
        self.mean = x.mean(0)
        self.covariance = torch.cov(x.T) + 1e-4 * torch.eye(SIZE).double()
        self.mix = mix_channels(torch.eye(SIZE).double().reshape(-1, *SHAPE)).flatten(1).T

    def denoise(self, y, sigma):
        sigma = torch.as_tensor(sigma, dtype=y.dtype)
        sigma = sigma.expand(y.shape) if sigma.ndim in (0, 4) else sigma.view(-1, 1, 1, 1)
        rows = []
        for values, deviation in zip(y, sigma.expand(y.shape), strict=True):
            precision = self.mix.T @ torch.diag(deviation.flatten() ** -2) @ self.mix
            inverse = torch.linalg.inv(self.covariance)
            shown = inverse @ self.mean + precision @ values.flatten()
            rows.append(torch.linalg.solve(inverse + precision, shown).reshape(SHAPE))
        return torch.stack(rows)

    def closed_form(self, matrix, sigma, y):
        """E[x | y = matrix x + sigma n], computed without precisions; sigma one or (m,)."""
        noise = torch.as_tensor(sigma, dtype=y.dtype).expand(len(matrix)) ** 2
        inner = matrix @ self.covariance @ matrix.T + torch.diag(noise)
        gain = torch.linalg.solve(inner, matrix @ self.covariance).T
        return (self.mean + (y.flatten(1) - matrix @ self.mean) @ gain.T).reshape(-1, *SHAPE)


def matrix_of(operator):
    return operator.A(torch.eye(SIZE).double().reshape(-1, *SHAPE)).flatten(1).T


def holes():
    mask = (torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.6).double()
    return fm.operators.Mask(SHAPE, mask)


OPERATORS = {
    "identity": lambda: fm.operators.Identity(SHAPE),
    "holes": holes,
    "grey": lambda: fm.operators.Grey(SHAPE),
    "grey with holes": lambda: fm.FunctionOperator(
        SHAPE, lambda x: 2.0 * x.mean(1, keepdim=True)[..., :4]
    ),
}


def measured(operator):
    x = smooth_images(3, *SHAPE, seed=5).double()
    y = operator.A(x)
    return y + SIGMA * torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("name", OPERATORS)
def test_the_mean_is_that_of_the_measurement(name):
    operator, prior = OPERATORS[name](), DenseGaussian()
    y = measured(operator)
    known = known_coordinates(y, operator, SIGMA, prior.mean.reshape(SHAPE))
    wanted = prior.closed_form(matrix_of(operator), SIGMA, y)
    torch.testing.assert_close(known.mean(prior), wanted, rtol=1e-7, atol=1e-7)
    wrong = known_coordinates(y, operator, 2 * SIGMA, prior.mean.reshape(SHAPE))
    assert not torch.allclose(wrong.mean(prior), wanted, atol=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_mean_with_a_noisy_image_is_that_of_both(name):
    operator, prior, level = OPERATORS[name](), DenseGaussian(), 0.2
    y = measured(operator)
    x = smooth_images(3, *SHAPE, seed=6).double()
    matrix = torch.cat([matrix_of(operator), torch.eye(SIZE).double()])
    noise = torch.full((len(matrix),), SIGMA).double()
    noise[-SIZE:] = level
    both = torch.cat([y.flatten(1), x.flatten(1)], dim=1)
    known = known_coordinates(y, operator, SIGMA, prior.mean.reshape(SHAPE))
    found = known.mean_with(prior, x, level)
    wanted = prior.closed_form(matrix, noise, both)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


def test_equal_noise_is_asked_for_as_one_number():
    asked = []

    class Watch:
        def denoise(self, y, sigma):
            asked.append(sigma)
            return y

    operator = fm.operators.Identity(SHAPE)
    y = measured(operator)
    known = known_coordinates(y, operator, SIGMA, torch.zeros(SHAPE).double())
    torch.testing.assert_close(known.mean(Watch()), y)
    assert asked == [pytest.approx(SIGMA)]


@pytest.mark.parametrize("task", ["deblur", "upscale", "sense"])
def test_measurements_that_mix_coordinates_are_left_alone(task):
    shape = (3, 8, 8)
    made = fm.make_task(task, shape)
    y = made.operator.A(smooth_images(2, *shape).double())
    assert known_coordinates(y, made.operator, 0.1, torch.zeros(shape).double()) is None


def test_colour_coordinates_keep_distances_and_know_grey():
    x = smooth_images(2, *SHAPE).double()
    u = mix_channels(x)
    torch.testing.assert_close(u.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    torch.testing.assert_close(u[:, 0], x.sum(1) / 3**0.5)
    torch.testing.assert_close(unmix_channels(u), x)
