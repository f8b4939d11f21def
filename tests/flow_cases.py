"""Small flows of every kind, for the tests of layers, couplings and whole flows."""

import math

import torch
from properties import randomise
from torch.nn import functional

from flowmend.flow import (
    ActNorm,
    AffineCoupling,
    Centre,
    Chain,
    FlowConfig,
    InvertibleConv1x1,
    MultiscaleFlow,
    Squeeze,
    Whitening,
    build_flow,
)
from flowmend.prior import FlowPrior, GaussianPrior

BATCH = 3


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def positive_definite(size, seed=0):
    factor = numbers(size, size, seed=seed)
    return factor @ factor.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def whitening(*shape):
    size = math.prod(shape)
    return Whitening(0.5 + 0.1 * numbers(*shape, seed=1), positive_definite(size, seed=2))


def gaussian(*shape):
    size = math.prod(shape)
    mean = 0.5 + 0.1 * numbers(*shape, seed=3)
    return GaussianPrior.from_covariance(mean, 0.1 * positive_definite(size, seed=4))


def small(**changes):
    values = {
        "height": 8,
        "width": 8,
        "channels": 1,
        "steps": (1, 2),
        "split": (False, False),
        "hidden": 3,
    }
    return FlowConfig(**(values | changes))


SPLIT = small(channels=3, steps=(1, 2, 1), split=(True, True, False))
GREY = small(width=16, steps=(1, 1, 1), split=(False, True, False), hidden=(2, 3, 4))
GLOW = small(channels=3, steps=(1, 1, 1), split=(False,) * 3, permutation="conv1x1")
OURS = small(
    steps=(2, 1, 1),
    split=(False,) * 3,
    hidden=(3, 4, 5),
    depth=3,
    permutation="conv1x1",
    scale="bounded",
    positional=True,
    whiten=True,
)
FOLDED = small(height=16, width=16, steps=(2,), split=(False,), depth=3, positional=True)
LAYERLESS = small(steps=(0, 0), split=(True, False))
COUPLING_MAPS = [
    (2, 8, 8),
    (2, 12, 6),
    (32, 8, 8),
    (4, 8, 4),
    (4, 4, 4),
    (4, 2, 4),
    (4, 2, 2),
    (8, 1, 1),
]


def coupling(shape, swap=False, depth=2, scale="sigmoid", positional=False, seed=0):
    channels, height, width = shape
    torch.manual_seed(seed)
    layer = AffineCoupling(
        channels, height, width, swap, hidden=4, depth=depth, scale=scale, positional=positional
    )
    return randomise(layer, seed, size=0.2)


def flow(config):
    return randomise(build_flow(config), seed=5)


def flow_prior(config, with_gaussian=True):
    return randomise(
        FlowPrior(build_flow(config), gaussian(*config.shape) if with_gaussian else None), seed=6
    )


def convolution(channels):
    torch.manual_seed(0)
    return randomise(InvertibleConv1x1(channels))


def chain():
    parts = [Squeeze(), ActNorm(8), InvertibleConv1x1(8)]
    parts += [coupling((8, 2, 2), swap=True), ActNorm(8), coupling((8, 2, 2), depth=3)]
    return randomise(Chain(parts), seed=7)


INSTANCES = {
    "actnorm": (lambda: randomise(ActNorm(3), size=0.7), (3, 3, 4)),
    "conv1x1": (lambda: convolution(4), (4, 3, 2)),
    "conv1x1 of one channel": (lambda: convolution(1), (1, 2, 3)),
    "squeeze": (Squeeze, (2, 4, 6)),
    "centre": (Centre, (3, 2, 4)),
    "whitening": (lambda: whitening(2, 3, 4), (2, 3, 4)),
    "chain": (chain, (2, 4, 4)),
    "empty chain": (lambda: Chain([]), (2, 3, 2)),
    "flow with splits": (lambda: flow(SPLIT), SPLIT.shape),
    "grey flow, not square": (lambda: flow(GREY), GREY.shape),
    "glow": (lambda: flow(GLOW), GLOW.shape),
    "bounded positional flow": (lambda: flow(OURS), OURS.shape),
    "flow with folded actnorms": (lambda: flow(FOLDED), FOLDED.shape),
    "flow without steps": (lambda: flow(LAYERLESS), LAYERLESS.shape),
    "gaussian prior": (lambda: gaussian(3, 4, 2), (3, 4, 2)),
    "flow prior": (lambda: flow_prior(SPLIT, False), SPLIT.shape),
    "whitened flow prior": (lambda: flow_prior(OURS), OURS.shape),
}


def instance(name):
    build, shape = INSTANCES[name]
    return build().double(), 0.5 + 0.3 * numbers(BATCH, *shape, seed=8)


def on_meta(config):
    with torch.device("meta"):
        return MultiscaleFlow(config)


def couplings(module):
    return [layer for layer in module.modules() if isinstance(layer, AffineCoupling)]


def hidden_values(network, h):
    """Independent of the library's forward: all values before a ReLU, and the output."""
    height, width = h.shape[2:]
    shrinks = (height, width) in ((4, 4), (2, 2))
    padding = 1 if not shrinks and (height, width) != (1, 1) else 0

    def convolve(layer, value, spatial):
        value = functional.conv2d(
            value, layer.weight, layer.bias, padding=padding if spatial else 0
        )
        return functional.pixel_shuffle(value, 2) if spatial and shrinks else value

    before = []
    value = convolve(network.first, h, True)
    value = value if network.position is None else value + network.position
    for index, norm in enumerate(network.norms):
        if index > 0:
            value = convolve(network.middle[index - 1], value.clamp(min=0.0), False)
        value = (value + norm.shift) * norm.log_scale.exp()
        before.append(value)
    output = convolve(network.last, value.clamp(min=0.0), True)
    return before, output * (3.0 * network.log_gain).exp()
