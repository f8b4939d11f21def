"""Operators of every kind."""

import itertools
import math

import pytest
import torch

from flowmend.decimation import Decimate, bicubic_kernel
from flowmend.operators import (
    BOUNDARIES,
    Blur,
    Downsample,
    FunctionOperator,
    Grey,
    Identity,
    LinearOperator,
    Mask,
    Sense,
)
from flowmend.tasks import TASKS, make_task

SHAPE = (3, 8, 12)
SIZE = math.prod(SHAPE)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_mask(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(channels, *SHAPE[1:], generator=generator) < 0.6).float()


KERNELS = {
    "box3": torch.full((3, 3), 1 / 9, dtype=torch.float64),
    "corner3": torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.1, 0.0], [0.1, 0.0, 0.0]]).double(),
    "single": torch.tensor([[2.0]]).double(),
    "sharp3": torch.tensor([[0.05, 0.1, 0.0], [0.2, 0.6, 0.02], [0.0, -0.05, 0.03]]).double(),
    "even2": torch.tensor([[0.1, 0.15], [-0.2, 0.9]]).double(),
    "even4x2": numbers(4, 2, seed=3),
    "wide3x6": numbers(3, 6, seed=4),
    "tall7x1": numbers(7, 1, seed=5),
}
BLURS = list(itertools.product(KERNELS, BOUNDARIES))


class Chirp(LinearOperator):
    """A user's operator that writes only A: weighted differences of neighbours, times a ramp."""

    def A(self, x):  # noqa: N802
        ramp = torch.linspace(0.5, 2.0, self.shape[2] - 1).to(x)
        return (x[..., 1:] - 0.5 * x[..., :-1]) * ramp


def shear(x):
    """A user's function: it writes into its argument, and mixes channels with weights it holds."""
    x[:, :, 2:4] = 0.0
    weights = torch.tensor([0.2, 0.3, 0.5]).to(x)
    return (x * weights[:, None, None]).sum(1)[:, 1:] - torch.roll(x, 1, -1)[:, 0, 1:]


OPERATORS = {
    "identity": Identity(SHAPE),
    "mask for all channels": Mask(SHAPE, random_mask(1)),
    "mask for each channel": Mask(SHAPE, random_mask(3, seed=1)),
    "grey": Grey(SHAPE),
    "downsample 1": Downsample(SHAPE, 1),
    "downsample 2": Downsample(SHAPE, 2),
    "downsample 4": Downsample(SHAPE, 4),
    "decimate, bicubic 2": Decimate(SHAPE, 2, bicubic_kernel(2)),
    "decimate, small filter": Decimate(SHAPE, 4, KERNELS["corner3"]),
    "decimate, no symmetry": Decimate(SHAPE, 2, numbers(5, 4, seed=6)),
    "sense": Sense(SHAPE, 40),
    "sense, one number": Sense(SHAPE, 1),
    "only A": Chirp(SHAPE),
    "function": FunctionOperator(SHAPE, shear),
    "function, vector": FunctionOperator(SHAPE, lambda x: x.flatten(1)[:, ::7].cumsum(1)),
    **{
        f"blur {kernel} {boundary}": Blur(SHAPE, KERNELS[kernel], boundary)
        for kernel, boundary in BLURS
    },
    **{f"task {name}": make_task(name, SHAPE).operator for name in TASKS},
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
