"""What every bijection promises, of continuous flows, and checkers that notice a broken one."""

import math

import pytest
import torch
from continuous_cases import (
    FIXED,
    SHAPE,
    SIGMA,
    draws,
    flow,
    gaussian,
    images,
    numbers,
    worst,
)
from properties import (
    check_batch,
    check_gradients,
    check_logdet,
    check_pure,
    check_round_trip,
    check_shapes,
)
from torch import nn

from flowmend.errors import FlowmendError
from flowmend.flow import ContinuousFlow

# The numerical map of a network.
CHECKED = {
    "exact": lambda: flow(),
    "of one size": lambda: flow(config=FIXED, shape=SHAPE),
    "padded": lambda: flow(shape=(1, 4, 5)),
}


@pytest.mark.parametrize("build", CHECKED.values(), ids=CHECKED)
def test_flow_keeps_what_every_bijection_promises(build):
    bijection = build()
    x = images(shape=bijection.shape)
    check_round_trip(bijection, x, tolerance=1e-3)
    check_logdet(bijection, x[:1], tolerance=1e-4)
    check_pure(bijection, x)
    check_batch(bijection, x)
    check_shapes(bijection, x)


def test_every_parameter_learns_from_either_direction():
    check_gradients(flow(8, FIXED, SHAPE), images(shape=SHAPE))


def test_estimated_flow_keeps_the_other_promises(estimated):
    bijection, x = flow(8), images()
    check_pure(bijection, x)
    check_batch(bijection, x)
    check_shapes(bijection, x)
    check_gradients(flow(8, FIXED, SHAPE), images(shape=SHAPE))


def test_returned_logdet_approaches_that_of_the_numerical_map():
    x = images(1)
    found = []
    for evaluations in (20, 40, 80):
        bijection = flow(evaluations, size=0.1).requires_grad_(False)
        jacobian = torch.autograd.functional.jacobian(bijection.to_latent, x, vectorize=True)
        wanted = torch.linalg.slogdet(jacobian.view(16, 16))[1]
        found.append(worst(bijection.encode(x)[1], wanted))
    assert found[0] < 0.1
    assert found[0] > 8.0 * found[1] > 64.0 * found[2]


class WrongScale(ContinuousFlow):
    def encode(self, x, generator=None):
        z, logdet = super().encode(x, generator)
        return z, logdet + self.dimensions * math.log(self.sigma_data)


class WrongTrace(ContinuousFlow):
    def _slope(self, u, angle, speed, probe):
        value, trace = super()._slope(u, angle, speed, probe)
        return value, 1.05 * trace


class WrongSign(ContinuousFlow):
    def decode(self, z, generator=None):
        x, logdet = super().decode(z, generator)
        return x, -logdet


class OtherGrid(ContinuousFlow):
    """Decodes along a path that starts a little off."""

    def decode(self, z, generator=None):
        return super().decode(z * 1.01, generator)


class LooksAtItsNeighbours(ContinuousFlow):
    def _slope(self, u, angle, speed, probe):
        value, trace = super()._slope(u, angle, speed, probe)
        return value * (1.0 + 1e-4 * u.mean()), trace


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (WrongScale, check_logdet, "log-determinant of encode"),
        (WrongTrace, check_logdet, "log-determinant of encode"),
        (WrongSign, check_logdet, "log-determinant of decode"),
        (WrongSign, check_round_trip, "do not cancel"),
        (OtherGrid, check_round_trip, "is not x"),
        (LooksAtItsNeighbours, check_batch, "depends on its batch"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_checks_notice_a_broken_flow(broken, check, message):
    sound = flow(48, size=0.1)
    part = broken(sound.velocity, sound.shape, SIGMA, sound.evaluations)
    tolerance = {check_round_trip: 1e-3, check_logdet: 1e-4, check_batch: 1e-10}[check]
    x = images(2 if check is check_batch else 1)
    check(sound, x, tolerance=tolerance)
    with pytest.raises(AssertionError, match=message):
        check(part, x, tolerance=tolerance)


def test_values_alone_are_those_with_the_determinant():
    bijection, x = flow(8), images()
    z = bijection.encode(x)[0]
    torch.testing.assert_close(bijection.to_latent(x), z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bijection.to_data(z), bijection.decode(z)[0])


class Counted(nn.Module):
    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.times = velocity, []

    def forward(self, x_t, t):
        self.times += t[:1].tolist()
        return self.velocity(x_t, t)


@pytest.mark.parametrize("evaluations", [4, 12, 40])
def test_evaluations_are_as_many_as_asked_for_and_cover_the_path(evaluations):
    counted = Counted(gaussian())
    x = draws(counted.velocity)[0]
    bijection = ContinuousFlow(counted, SHAPE, SIGMA, evaluations)
    for function, first, last in ((bijection.to_latent, 1.0, 0.0), (bijection.to_data, 0.0, 1.0)):
        counted.times.clear()
        function(x if first else x.flatten(1))
        assert len(counted.times) == evaluations
        assert counted.times[0] == pytest.approx(first, abs=1e-12)
        assert counted.times[-1] == pytest.approx(last, abs=1e-12)
        assert all(0.0 <= t <= 1.0 for t in counted.times)


@pytest.mark.parametrize("evaluations", [0, -4, 6, 2.5, 8.0, None])
def test_impossible_evaluations_are_refused(evaluations):
    with pytest.raises(FlowmendError, match="positive multiple of 4"):
        ContinuousFlow(gaussian(), SHAPE, SIGMA, evaluations)


def test_gradient_of_the_determinant_through_the_path():
    bijection = flow(8, size=0.2)
    z, step = numbers(1, 16).requires_grad_(), 1e-5 * numbers(1, 16, seed=1)
    gradient = torch.autograd.grad(bijection.decode(z)[1].sum(), z)[0]
    with torch.no_grad():
        wanted = (bijection.decode(z + step)[1] - bijection.decode(z - step)[1]) / 2.0
    assert float(wanted.abs()) > 1e-8
    assert float((gradient * step).sum()) == pytest.approx(float(wanted), rel=1e-4)


def test_flow_works_in_inference_mode():
    bijection, x = flow(8).requires_grad_(False), images()
    wanted = bijection.encode(x)
    with torch.inference_mode():
        found = bijection.encode(images())
    for value, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(value.clone(), reference)
