"""Affine coupling and its networks, the paper's 1x1 coupling function among them.

Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
https://arxiv.org/abs/2110.13285, section 3.2, Eq. 9-12.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .bijection import Bijection
from .layers import ActNorm

__all__ = ["AffineCoupling", "Conditioner"]


def _as_product(h: Tensor, convolution: nn.Conv2d) -> Tensor:
    """An unpadded convolution of (B, C, H, W) as one matrix product over its patches."""
    weight, bias = convolution.weight.flatten(1), convolution.bias
    down, across = convolution.kernel_size
    rows, columns = h.shape[2] - down + 1, h.shape[3] - across + 1
    corners = [(row, column) for row in range(rows) for column in range(columns)]
    patches = [h[:, :, row : row + down, column : column + across] for row, column in corners]
    patches = torch.stack(patches, 1).flatten(2)
    products = functional.linear(patches, weight, bias)
    return products.transpose(1, 2).reshape(len(h), -1, rows, columns)


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
        self.folds = height * width >= 64
        self.dense = height * width <= 16
        self.first = nn.Conv2d(channels, hidden * factor, kernel, padding=padding)
        self.middle = nn.ModuleList(nn.Conv2d(hidden, hidden, 1) for _ in range(depth - 2))
        self.norms = nn.ModuleList(ActNorm(hidden) for _ in range(depth - 1))
        self.last = nn.Conv2d(hidden, outputs * factor, kernel, padding=padding)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.log_gain = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        self.position = nn.Parameter(torch.zeros(1, hidden, height, width)) if positional else None

    def _normed(self, convolution: nn.Conv2d, norm: ActNorm, h: Tensor, shuffle: int) -> Tensor:
        """``relu(norm(position + shuffle(convolution(h))))`` at the least cost.

        On large maps the actnorm is folded into the convolution's weights, on small ones the
        weights outnumber the activations and it is applied to these.
        """
        position = self.position if convolution is self.first else None
        gain = norm.log_scale.exp()
        shift = norm.shift if position is None else norm.shift + position
        if self.folds:
            weight = convolution.weight * gain.view(-1, 1, 1, 1)
            bias = (convolution.bias + norm.shift.flatten()) * gain.flatten()
            h = functional.conv2d(h, self._laid(weight), bias, padding=convolution.padding)
            h = h if position is None else h + (position * gain).to(h.dtype)
        else:
            h = self._shuffled(convolution, h, shuffle)
            h = (h + shift.to(h.dtype)) * gain.to(h.dtype)
        return functional.relu(h, inplace=True)

    def _shuffled(self, convolution: nn.Conv2d, h: Tensor, shuffle: int) -> Tensor:
        """``pixel_shuffle(convolution(h))`` on a small map: where it can be, a matrix product.

        There the weights outnumber the activations by far, and the convolution kernels are
        several times slower than gathering the few patches and multiplying.
        """
        if self.dense and convolution.padding == (0, 0):
            h = _as_product(h, convolution)
        else:
            h = convolution(h)
        return functional.pixel_shuffle(h, shuffle) if shuffle > 1 else h

    @staticmethod
    def _laid(h: Tensor) -> Tensor:
        """Channels last in bfloat16, where convolutions on a large map are faster in it."""
        if h.dtype == torch.bfloat16:
            return h.contiguous(memory_format=torch.channels_last)
        return h

    def forward(self, h: Tensor) -> Tensor:
        """From (B, channels, H, W) to (B, outputs, H, W), in the precision of the weights."""
        h = h.to(self.first.weight.dtype)
        h = self._laid(h) if self.folds else h
        h = self._normed(self.first, self.norms[0], h, self.shuffle)
        for convolution, norm in zip(self.middle, self.norms[1:], strict=True):
            h = self._normed(convolution, norm, h, 1)
        gain = (3.0 * self.log_gain).exp()
        if self.folds:
            weight = self.last.weight * gain.view(-1, 1, 1, 1)
            bias = self.last.bias * gain.flatten()
            return functional.conv2d(h, self._laid(weight), bias, padding=self.last.padding)
        return self._shuffled(self.last, h, self.shuffle) * gain

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        """Sets the inner actnorms from a batch."""
        for convolution, norm in zip((self.first, *self.middle), self.norms, strict=True):
            shuffle = self.shuffle if convolution is self.first else 1
            before = self._shuffled(convolution, h, shuffle)
            if convolution is self.first and self.position is not None:
                before = before + self.position
            norm.initialise(before)
            h = self._normed(convolution, norm, h, shuffle)


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
