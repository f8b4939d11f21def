"""The estimated log-determinant of a continuous flow: without bias, and exact where it can be."""

import math

import pytest
import torch
from continuous_cases import (
    SHAPE,
    SIGMA,
    SIZE,
    GaussianVelocity,
    flow,
    gaussian,
    images,
    source,
)

from flowmend.flow import ContinuousFlow
from flowmend.flow import continuous as module


# The estimate of the trace.
class WrongSigns(ContinuousFlow):
    def _probe(self, like, generator):
        return 1.05 * super()._probe(like, generator)


def estimates(kind, velocity, shape, count, monkeypatch):
    """The exact log-determinant of one image and ``count`` estimates, each with its own signs."""
    x = images(1, shape)
    exact = ContinuousFlow(velocity, shape, SIGMA, 8).encode(x)[1]
    monkeypatch.setattr(module, "EXACT_DIMENSIONS", 0)
    bijection = kind(velocity, shape, SIGMA, 8)
    return exact, bijection.encode(x.expand(count, *shape), source(11))[1]


def is_unbiased(exact, found):
    """Whether the mean lies within 4 standard errors of the exact value."""
    deviation = float(found.std()) / math.sqrt(len(found))
    assert 1e-3 < deviation < 0.2
    return abs(float(found.mean() - exact)) < 4.0 * deviation


@pytest.mark.parametrize("kind", [ContinuousFlow, WrongSigns], ids=["sound", "broken"])
def test_mean_of_the_estimates_is_the_exact_determinant(monkeypatch, kind):
    found = estimates(kind, gaussian(0.1), SHAPE, 4000, monkeypatch)
    assert is_unbiased(*found) == (kind is ContinuousFlow)


def test_estimates_of_a_network_are_unbiased_too(monkeypatch):
    velocity = flow(size=0.1).velocity.requires_grad_(False)
    assert is_unbiased(*estimates(ContinuousFlow, velocity, (1, 4, 4), 1000, monkeypatch))


def test_estimate_is_exact_where_signs_cannot_matter(monkeypatch):
    """An isotropic Jacobian has no off-diagonal part for the signs to see."""
    velocity = GaussianVelocity(
        torch.zeros(SHAPE).double(), 0.09 * torch.eye(SIZE, dtype=torch.float64)
    )
    exact, found = estimates(ContinuousFlow, velocity, SHAPE, 3, monkeypatch)
    torch.testing.assert_close(found, exact.expand(3), rtol=1e-10, atol=1e-10)


def test_signs_come_from_the_generator_and_stay_along_the_path(estimated):
    bijection, x = flow(8, size=0.2).requires_grad_(False), images(2)
    first, again, other = (bijection.encode(x, source(seed))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-6)
    fixed = bijection.encode(x)[1]
    assert torch.equal(fixed, bijection.encode(x)[1])
    same = torch.cat([x[:1], x[:1]])
    apart = bijection.encode(same, source(3))[1]
    assert abs(float(apart[0] - apart[1])) > 1e-6
    together = bijection.encode(same)[1]
    assert float(together[0]) == pytest.approx(float(together[1]), rel=1e-12)
