"""The checkers themselves: each passes on a sound part and fails on a deliberately broken one."""

import pytest
import torch
from properties import (
    check_adjoint,
    check_batch,
    check_gradients,
    check_logdet,
    check_pure,
    check_round_trip,
    check_shapes,
    randomise,
)
from torch import nn

from flowmend.flow import Bijection

SHAPE = (3, 2, 3, 2)


class Affine(Bijection):
    """``z = x * exp(log_scale) + shift`` per channel: sound, and easy to break."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1, SHAPE[1], 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, SHAPE[1], 1, 1))

    def logdet(self, x):
        return (self.log_scale.sum() * x.shape[2] * x.shape[3]).expand(len(x))

    def encode(self, x):
        return x * self.log_scale.exp() + self.shift, self.logdet(x)

    def decode(self, z):
        return (z - self.shift) * (-self.log_scale).exp(), -self.logdet(z)


class WrongLogdet(Affine):
    def logdet(self, x):
        return -7.0 * super().logdet(x)


class WrongInEncode(Affine):
    def encode(self, x):
        z, logdet = super().encode(x)
        return z, -7.0 * logdet


class WrongInDecode(Affine):
    def decode(self, z):
        x, logdet = super().decode(z)
        return x, -7.0 * logdet


class ForgetsShift(Affine):
    def decode(self, z):
        return z * (-self.log_scale).exp(), -self.logdet(z)


class ScalarLogdet(Affine):
    def logdet(self, x):
        return self.log_scale.sum() * x.shape[2] * x.shape[3]


class SingleColumn(Affine):
    def logdet(self, x):
        return super().logdet(x)[:, None]


class CastsToSingle(Affine):
    def encode(self, x):
        z, logdet = super().encode(x.float())
        return z.float(), logdet


class CastsLogdet(Affine):
    def logdet(self, x):
        return super().logdet(x).float()


class LosesPrecision(Affine):
    def encode(self, x):
        z, logdet = super().encode(x)
        return z.float().double(), logdet


class Flattens(Affine):
    def decode(self, z):
        x, logdet = super().decode(z)
        return x.flatten(1), logdet


class ChangesArgument(Affine):
    def encode(self, x):
        return x.mul_(self.log_scale.exp()).add_(self.shift), self.logdet(x)


class ChangesLatent(Affine):
    def decode(self, z):
        return z.sub_(self.shift).mul_((-self.log_scale).exp()), -self.logdet(z)


class ChangesState(Affine):
    """Sets itself from the first batch it sees, as many an actnorm does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def encode(self, x):
        self.seen.add_(1)
        return super().encode(x)


class ChangesStateWhenTraining(ChangesState):
    def encode(self, x):
        return super().encode(x) if self.training else Affine.encode(self, x)


class ChangesHiddenBuffer(Affine):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def decode(self, z):
        self.count.add_(1)
        return super().decode(z)


class Drifts(Affine):
    """Keeps its state outside the state dictionary."""

    calls = 0

    def encode(self, x):
        self.calls += 1
        z, logdet = super().encode(x)
        return z + 1e-6 * self.calls, logdet


class DrawsNumbers(Affine):
    def encode(self, x):
        torch.rand(1)
        return super().encode(x)


class NormalisesByBatch(Affine):
    def encode(self, x):
        z, logdet = super().encode(x)
        return z - x.mean(0, keepdim=True), logdet


class AveragesLogdet(Affine):
    def encode(self, x):
        z, logdet = super().encode(x)
        return z, logdet + x.mean()


class LeaksWhenDecoding(Affine):
    def decode(self, z):
        x, logdet = super().decode(z)
        return x + 1e-6 * z.sum(), logdet


class HasUnusedParameter(Affine):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class CutsGradient(Affine):
    def encode(self, x):
        return x * self.log_scale.exp() + self.shift.detach(), self.logdet(x)


class CutsGradientWhenDecoding(Affine):
    def decode(self, z):
        return (z - self.shift.detach()) * (-self.log_scale).exp(), -self.logdet(z)


class MultipliesByZero(Affine):
    def encode(self, x):
        return x * self.log_scale.exp() + 0.0 * self.shift, self.logdet(x)


class GivesNan(Affine):
    def encode(self, x):
        z, logdet = super().encode(x)
        return z * torch.nan, logdet


CHECKS = [
    check_round_trip,
    check_logdet,
    check_shapes,
    check_pure,
    check_batch,
    check_gradients,
]

BROKEN = [
    (check_round_trip, ForgetsShift),
    (check_round_trip, WrongInEncode),
    (check_round_trip, LosesPrecision),
    (check_round_trip, GivesNan),
    (check_logdet, WrongLogdet),
    (check_logdet, WrongInEncode),
    (check_logdet, WrongInDecode),
    (check_shapes, ScalarLogdet),
    (check_shapes, SingleColumn),
    (check_shapes, CastsToSingle),
    (check_shapes, CastsLogdet),
    (check_shapes, Flattens),
    (check_pure, ChangesArgument),
    (check_pure, ChangesLatent),
    (check_pure, ChangesState),
    (check_pure, ChangesStateWhenTraining),
    (check_pure, ChangesHiddenBuffer),
    (check_pure, Drifts),
    (check_pure, DrawsNumbers),
    (check_batch, NormalisesByBatch),
    (check_batch, AveragesLogdet),
    (check_batch, LeaksWhenDecoding),
    (check_gradients, HasUnusedParameter),
    (check_gradients, CutsGradient),
    (check_gradients, CutsGradientWhenDecoding),
    (check_gradients, MultipliesByZero),
]


def build(kind):
    torch.manual_seed(0)
    return randomise(kind(), seed=1, size=0.5), torch.randn(SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sound_bijection_passes(check):
    check(*build(Affine))


@pytest.mark.parametrize(
    ("check", "kind"), BROKEN, ids=[f"{check.__name__}-{kind.__name__}" for check, kind in BROKEN]
)
def test_broken_bijection_fails(check, kind):
    bijection, x = build(kind)
    with pytest.raises(AssertionError):
        check(bijection, x)


def test_logdet_check_refuses_single_precision():
    bijection, x = build(Affine)
    with pytest.raises(AssertionError, match="float64"):
        check_logdet(bijection.float(), x.float())


def test_batch_check_refuses_one_image():
    bijection, x = build(Affine)
    with pytest.raises(AssertionError, match="two images"):
        check_batch(bijection, x[:1])


def test_randomise_moves_every_parameter_and_is_reproducible():
    first, second = randomise(Affine(), seed=3), randomise(Affine(), seed=3)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert bool((one != 0).all())
        assert one.dtype == torch.float64


X_SHAPE, Y_SHAPE = (2, 3, 5, 4), (2, 7)
MATRIX = torch.randn(7, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def apply(x):
    return x.flatten(1) @ MATRIX.T


def transpose(y):
    return (y @ MATRIX).reshape(-1, *X_SHAPE[1:])


def test_sound_adjoint_passes():
    check_adjoint(apply, transpose, X_SHAPE, Y_SHAPE)


@pytest.mark.parametrize(
    ("operator", "adjoint"),
    [
        (apply, lambda y: 1.05 * transpose(y)),
        (apply, lambda y: transpose(y) + 0.05 * transpose(y).roll(1, -1)),
        (apply, lambda y: -transpose(y)),
        (apply, lambda y: transpose(y).flip(-1)),
        (apply, lambda y: transpose(y.flip(0))),
        (lambda x: apply(x) + 0.1, transpose),
        (lambda x: apply(x.float().double()), transpose),
        (lambda x: apply(x).float(), transpose),
        (lambda x: apply(x) * torch.nan, transpose),
        (lambda x: 0.0 * apply(x), lambda y: 0.0 * transpose(y)),
        (lambda x: apply(x)[:1], transpose),
        (apply, lambda y: transpose(y).transpose(-1, -2)),
    ],
    ids=[
        "5 % too large",
        "5 % of a shift",
        "sign",
        "mirrored",
        "other image",
        "constant added",
        "rounded to float32",
        "float32",
        "nan",
        "all zero",
        "measurement shape",
        "image shape",
    ],
)
def test_broken_adjoint_fails(operator, adjoint):
    with pytest.raises(AssertionError):
        check_adjoint(operator, adjoint, X_SHAPE, Y_SHAPE)
