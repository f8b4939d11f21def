"""Affine coupling and its networks, the paper's 1x1 coupling function among them.

Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
https://arxiv.org/abs/2110.13285, section 3.2, Eq. 9-12.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from .bijection import Bijection
from .layers import ActNorm
from .products import FEW_CHANNELS, chained, small_product

__all__ = ["AffineCoupling", "Conditioner"]


def _laid(h: Tensor) -> Tensor:
    """Channels last in bfloat16, where convolutions on a large map are faster in it."""
    if h.dtype == torch.bfloat16:
        return h.contiguous(memory_format=torch.channels_last)
    return h


class Conditioner(nn.Module):
    """The network of a coupling: from the untouched half to a scale and a shift per element.

    ``convolution, actnorm, ReLU, [1x1 convolution, actnorm, ReLU] ..., convolution``, the last
    one zero at the start and followed by a learned factor ``exp(3 v)`` per channel. Where the
    feature map is 4x4 or 2x2 the first and last convolution are unpadded and shrink it to 2x2 or
    1x1 with four times the channels, which a pixel shuffle brings back; where it is 1x1 they are
    1x1: the paper's 1x1 coupling functions.

    Args:
        channels: Channels of the untouched half.
        outputs: Channels to return (twice those of the changed half).
        hidden: Hidden channels.
        depth: Number of convolutions, at least 2.
        height: Height of the feature map.
        width: Width of the feature map.
        positional: Adds a learned map to the first layer, so that the network knows where on the
            image it is.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        hidden: int,
        depth: int,
        height: int,
        width: int,
        positional: bool,
    ) -> None:
        super().__init__()
        shrinks = (height, width) in ((4, 4), (2, 2))
        kernel = {(4, 4): 3, (2, 2): 2, (1, 1): 1}.get((height, width), 3)
        padding = 0 if shrinks or kernel == 1 else 1
        factor = 4 if shrinks else 1
        self.shuffle = 2 if shrinks else 1
        self.large = height * width >= 64
        self.small = shrinks or kernel == 1
        self.first = nn.Conv2d(channels, hidden * factor, kernel, padding=padding)
        self.middle = nn.ModuleList(nn.Conv2d(hidden, hidden, 1) for _ in range(depth - 2))
        self.norms = nn.ModuleList(ActNorm(hidden) for _ in range(depth - 1))
        self.last = nn.Conv2d(hidden, outputs * factor, kernel, padding=padding)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.log_gain = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        self.position = nn.Parameter(torch.zeros(1, hidden, height, width)) if positional else None

    def forward(self, h: Tensor) -> Tensor:
        """From (B, channels, H, W) to (B, outputs, H, W), in the precision of the weights."""
        h = h.to(self.first.weight.dtype)
        if self.small:
            return self._on_small(h)
        if not self.large:
            return self._on_middling(h)
        if h.shape[1] < FEW_CHANNELS and h.dtype != torch.bfloat16 and h.device.type == "cpu":
            return self._by_products(h)
        return self._by_convolutions(h)

    def _layers(self) -> Iterator[tuple[nn.Conv2d, Tensor, Tensor]]:
        """The convolutions but the last, with what is added after each and the factor of both."""
        for convolution, norm in zip((self.first, *self.middle), self.norms, strict=True):
            shift = norm.shift
            if convolution is self.first and self.position is not None:
                shift = shift + self.position
            yield convolution, shift, norm.log_scale.exp()

    @property
    def _gain(self) -> Tensor:
        """The factor (1, outputs, 1, 1) of what the last convolution makes."""
        return (3.0 * self.log_gain).exp()

    def _on_small(self, h: Tensor) -> Tensor:
        """Where weights outnumber activations by far: these take the actnorm."""
        for convolution, shift, gain in self._layers():
            h = small_product(h, convolution, self.shuffle if convolution is self.first else 1)
            shift, gain = (shift * gain).to(h.dtype), gain.to(h.dtype)
            h = functional.relu(torch.addcmul(shift, h, gain), inplace=True)
        return small_product(h, self.last, self.shuffle) * self._gain

    def _on_middling(self, h: Tensor) -> Tensor:
        """The same for maps between."""
        for convolution, shift, gain in self._layers():
            h = (convolution(h) + shift.to(h.dtype)) * gain.to(h.dtype)
            h = functional.relu(h, inplace=True)
        return self.last(h) * self._gain

    def _by_products(self, h: Tensor) -> Tensor:
        """Where activations outnumber weights: these take the actnorm."""
        layers = []
        for convolution, shift, gain in self._layers():
            added = (convolution.bias.view(1, -1, 1, 1) + shift) * gain
            layers.append((convolution.weight.flatten(1) * gain.view(-1, 1), added[0].flatten(1)))
        gain = self._gain
        h = chained(h, layers, self.last.weight * gain.view(-1, 1, 1, 1))
        return h + self.last.bias.view(1, -1, 1, 1) * gain

    def _by_convolutions(self, h: Tensor) -> Tensor:
        """The same in one convolution after the other."""
        for convolution, shift, gain in self._layers():
            added = (convolution.bias.view(1, -1, 1, 1) + shift) * gain
            everywhere = added.shape[2:] == (1, 1)
            weight = _laid(convolution.weight * gain.view(-1, 1, 1, 1))
            bias = added.flatten() if everywhere else None
            h = functional.conv2d(_laid(h), weight, bias, padding=convolution.padding)
            h = h if everywhere else h + added.to(h.dtype)
            h = functional.relu(h, inplace=True)
        gain = self._gain
        weight = _laid(self.last.weight * gain.view(-1, 1, 1, 1))
        bias = self.last.bias * gain.flatten()
        return functional.conv2d(h, weight, bias, padding=self.last.padding)

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        """Sets the inner actnorms from a batch."""
        for convolution, norm in zip((self.first, *self.middle), self.norms, strict=True):
            before = convolution(h)
            if convolution is self.first:
                before = functional.pixel_shuffle(before, self.shuffle)
                before = before if self.position is None else before + self.position
            h = functional.relu(norm.initialise(before))


class AffineCoupling(Bijection):
    """Changes one half of the channels by a scale and a shift computed from the other half.

    ``h1, h2 = swap(split(h))``; ``s, t = CNN(h1)``; ``h2' = h2 * scale(s) + t`` (Eq. 9-12). The
    swap costs nothing and needs no inverse: it says which half changes.

    Args:
        channels: Channels of the feature map, even.
        height: Its height.
        width: Its width.
        swap: Whether the first half changes, given the second, rather than the reverse.
        hidden: Hidden channels of the network.
        depth: Convolutions of the network.
        scale: ``"sigmoid"`` is the paper's ``sigmoid(s + 2)``; ``"bounded"`` is
            ``exp(2 tanh(s / 2))``, 1 at the start and within e^-2 and e^2.
        positional: See :class:`Conditioner`.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        swap: bool,
        hidden: int,
        depth: int,
        scale: str,
        positional: bool,
    ) -> None:
        super().__init__()
        half = channels // 2
        self.swap = swap
        self.scale = scale
        self.network = Conditioner(half, channels, hidden, depth, height, width, positional)

    def _halves(self, h: Tensor) -> tuple[Tensor, Tensor]:
        first, second = h.chunk(2, dim=1)
        return (second, first) if self.swap else (first, second)

    def _join(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((changed, kept) if self.swap else (kept, changed), dim=1)

    def _log_scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(kept).to(kept.dtype)
        s, t = outputs[:, 0::2], outputs[:, 1::2]
        if self.scale == "sigmoid":
            return functional.logsigmoid(s + 2.0), t
        return 2.0 * torch.tanh(0.5 * s), t

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._halves(x)
        log_scale, shift = self._log_scale_and_shift(kept)
        return self._join(kept, changed * log_scale.exp() + shift), log_scale.flatten(1).sum(1)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._halves(z)
        log_scale, shift = self._log_scale_and_shift(kept)
        changed = (changed - shift) * (-log_scale).exp()
        return self._join(kept, changed), -log_scale.flatten(1).sum(1)

    def initialise(self, x: Tensor) -> Tensor:
        self.network.initialise(self._halves(x)[0])
        return super().initialise(x)
