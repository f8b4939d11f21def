"""The author's network, written from what its layout is known to be, and states for it."""

import math

import torch
from torch.nn import functional

from flowmend.flow import FlowConfig

HIDDEN = 6
CLOSE = 1e-4
"""Largest distance of two float32 images that count as one."""
FIRST = "layers.2.norm.bias"
TENSORS = (
    "norm.bias",
    "norm.log_s",
    "layer.NN.conv1.weight",
    "layer.NN.conv1.bias",
    "layer.NN.norm1.bias",
    "layer.NN.norm1.log_s",
    "layer.NN.conv2.weight",
    "layer.NN.conv2.bias",
    "layer.NN.log_s",
)


def small(size=32, channels=3, repeats=2, hidden=HIDDEN):
    """The author's architecture, narrow, written out by hand."""
    few, many = repeats, 2 * repeats
    steps, split = {
        32: ((few, few, few, many, many), (False, False, True, True, False)),
        64: ((few, few, few, few, many), (False, False, False, True, False)),
    }[size]
    return FlowConfig(
        height=size, width=size, channels=channels, steps=steps, split=split, hidden=hidden
    )


def outline(size=32, channels=3, repeats=2):
    """The author's modules in order: ``("squeeze" | "step" | "split", channels, side)``."""
    modules, side = ["levels"], size
    for scale in range(5):
        channels, side = 4 * channels, side // 2
        modules.append("squeeze")
        modules += [("step", channels, side)] * (repeats if side >= 4 else 2 * repeats)
        if side <= 4 and scale < 4:
            modules.append("split")
            channels //= 2
    return modules


def random_state(size=32, channels=3, repeats=2, hidden=HIDDEN, seed=0):
    """A checkpoint's weights, all of them random and none zero, of a flow that stays tame."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale):
        return scale * torch.randn(*shape, generator=generator)

    state = {}
    for index, module in enumerate(outline(size, channels, repeats)):
        if not isinstance(module, tuple):
            continue
        _, width, side = module
        kernel = {1: 1, 2: 2}.get(side, 3)
        factor = 4 if side in (2, 4) else 1
        step, net = f"layers.{index}.norm.", f"layers.{index}.layer.NN."
        fan = width // 2 * kernel**2
        state[step + "bias"] = draw(1, width, 1, 1, scale=0.1)
        state[step + "log_s"] = draw(1, width, 1, 1, scale=0.1)
        state[net + "log_s"] = draw(width, 1, 1, scale=0.1)
        state[net + "conv1.weight"] = draw(
            hidden * factor, width // 2, kernel, kernel, scale=fan**-0.5
        )
        state[net + "conv1.bias"] = draw(hidden * factor, scale=0.3)
        state[net + "norm1.bias"] = draw(1, hidden, 1, 1, scale=0.3)
        state[net + "norm1.log_s"] = draw(1, hidden, 1, 1, scale=0.3)
        state[net + "conv2.weight"] = draw(
            width * factor, hidden, kernel, kernel, scale=0.2 / (kernel * hidden**0.5)
        )
        state[net + "conv2.bias"] = draw(width * factor, scale=0.2)
    return state


class Reference:
    """The author's network as plain functions of tensors, float64.

    ``broken`` names one deliberate misreading of the layout.
    """

    def __init__(self, state, size=32, channels=3, repeats=2, broken=""):
        self.state = {name: value.double() for name, value in state.items()}
        self.modules = outline(size, channels, repeats)
        self.shape = (channels, size, size)
        self.broken = broken
        steps = [i for i, module in enumerate(self.modules) if isinstance(module, tuple)]
        start = 1 if broken == "halves" else 0
        self.second_changes = {i: (n + start) % 2 == 1 for n, i in enumerate(steps)}

    def squeeze(self, x):
        """Channel 4c + 2i + j is channel c at the pixels of row i and column j of each block."""
        corners = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        if self.broken == "squeeze":
            return torch.cat(corners, dim=1)
        return torch.stack(corners, dim=2).flatten(1, 2)

    def unsqueeze(self, y):
        count, channels, height, width = y.shape
        x = y.new_zeros(count, channels // 4, 2 * height, 2 * width)
        for corner in range(4):
            part = slice(corner, None, 4)
            if self.broken == "squeeze":
                part = slice(corner * channels // 4, (corner + 1) * channels // 4)
            x[:, :, corner // 2 :: 2, corner % 2 :: 2] = y[:, part]
        return x

    def log_scale_and_shift(self, index, kept):
        net = f"layers.{index}.layer.NN."
        s = self.state
        side = kept.shape[-1]
        padding = 1 if side >= 8 else 0

        def grown(h):
            # The true order of a pixel shuffle, whatever ``broken`` says of the squeeze.
            return functional.pixel_shuffle(h, 2) if side in (2, 4) else h

        h = grown(
            functional.conv2d(
                kept, s[net + "conv1.weight"], s[net + "conv1.bias"], padding=padding
            )
        )
        h = (h + s[net + "norm1.bias"]) * s[net + "norm1.log_s"].exp()
        h = grown(
            functional.conv2d(
                h.clamp_min(0), s[net + "conv2.weight"], s[net + "conv2.bias"], padding=padding
            )
        )
        gain = 1.0 if self.broken == "gain" else 3.0
        h = h * (gain * s[net + "log_s"]).exp()
        scale, shift = h[:, ::2], h[:, 1::2]
        if self.broken == "outputs":
            scale, shift = h.chunk(2, dim=1)
        return -torch.log1p(torch.exp(-scale - 2.0)), shift

    def norm(self, index):
        bias, log_s = (self.state[f"layers.{index}.norm.{name}"] for name in ("bias", "log_s"))
        return bias, -log_s if self.broken == "sign" else log_s

    def coupled(self, index, h, forward):
        half = h.shape[1] // 2
        low, high = h[:, :half], h[:, half:]
        second = self.second_changes[index]
        kept, changed = (low, high) if second else (high, low)
        log_scale, shift = self.log_scale_and_shift(index, kept)
        if forward:
            changed = changed * log_scale.exp() + shift
        else:
            changed = (changed - shift) / log_scale.exp()
        total = log_scale.sum(dim=(1, 2, 3))
        return torch.cat([kept, changed] if second else [changed, kept], dim=1), total

    def encode(self, u):
        """From images u (B, C, H, W) in [-1, 1]: flat latents (B, D) and logdet (B,)."""
        h, logdet, latents = u.double(), 0.0, []
        for index, module in enumerate(self.modules):
            if module == "squeeze":
                h = self.squeeze(h)
            elif module == "split":
                half = h.shape[1] // 2
                latents.append(h[:, half:].flatten(1))
                h = h[:, :half]
            elif isinstance(module, tuple):
                bias, log_s = self.norm(index)
                h = (h + bias) * log_s.exp()
                h, part = self.coupled(index, h, forward=True)
                logdet = logdet + part + log_s.sum() * h.shape[2] * h.shape[3]
        return torch.cat([*latents, h.flatten(1)], dim=1), logdet

    def decode(self, z):
        """From flat latents (B, D): images (B, C, H, W) in [-1, 1] and logdet (B,)."""
        channels, side, _ = self.shape
        sizes = []
        for module in self.modules:
            if module == "squeeze":
                channels, side = 4 * channels, side // 2
            elif module == "split":
                channels //= 2
                sizes.append((channels, side, side))
        sizes.append((channels, side, side))
        flat = z.double().split([math.prod(size) for size in sizes], dim=1)
        latents = [part.reshape(-1, *size) for part, size in zip(flat, sizes, strict=True)]
        h, logdet = latents.pop(), 0.0
        for index, module in reversed(list(enumerate(self.modules))):
            if module == "squeeze":
                h = self.unsqueeze(h)
            elif module == "split":
                h = torch.cat([h, latents.pop()], dim=1)
            elif isinstance(module, tuple):
                pixels = h.shape[2] * h.shape[3]
                h, part = self.coupled(index, h, forward=False)
                bias, log_s = self.norm(index)
                h = h / log_s.exp() - bias
                logdet = logdet - part - log_s.sum() * pixels
        return h, logdet


def latents(count=3, size=32, channels=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(count, channels * size * size, generator=generator)


def images(count=3, size=32, channels=3, seed=2):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def distance(prior, reference):
    """Largest difference of images in [0, 1] from the same latents."""
    channels, size, _ = reference.shape
    z = latents(size=size, channels=channels)
    return float((prior.decode(z)[0] - (reference.decode(z)[0] + 1.0) / 2.0).abs().max())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
