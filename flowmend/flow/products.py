"""Convolutions of a coupling as matrix products.

Between a few channels and many, and on maps of a few pixels, the convolutions of a CPU reach half
the rate of its matrix product and less. There patches are gathered before a product, or what it
makes is scattered after it, whichever is fewer values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FEW_CHANNELS", "chained", "small_product"]

FEW_CHANNELS = 16
"""Convolutions work on blocks of so many channels; products win where fewer come in."""
CACHED = 2**19
"""Values of a map that are made at a time: what the second level of a cache holds."""
MANY_ROWS = 64
"""From so many rows a product is as fast with the weights as its second factor."""
Layer = tuple[Tensor, Tensor]


def chained(h: Tensor, layers: Sequence[Layer], last: Tensor) -> Tensor:
    """Convolutions that keep the size of a map (B, C, H, W), from few to many channels and back.

    What the first needs is gathered, and what the last makes is scattered. It takes a few images
    at a time: then what lies between is read again before it has left the cache, and memory is
    not asked for in pieces that the system hands out anew, and cleared, each time.

    Args:
        h: The map.
        layers: All but the last, each followed by a ReLU: a matrix of kernels (O, C * k * k), the
            first with k odd and the others with k = 1, and what is added, (O, 1) or (O, H * W).
        last: Kernels (O, C, k, k) of the last, for the same k as the first; nothing is added.

    Returns:
        The map (B, O, H, W) of the last.
    """
    size, side = h.shape[2:], last.shape[-1]
    scattering = last.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)
    count = max(1, CACHED // (last.shape[1] * size.numel()))
    done = []
    for part in h.split(count):
        values = functional.unfold(part, side, padding=side // 2)
        for matrix, offset in layers:
            values = (matrix.expand(len(part), -1, -1) @ values).add_(offset)
            values = functional.relu(values, inplace=True)
        values = scattering.expand(len(part), -1, -1) @ values
        done.append(functional.fold(values, size, side, padding=side // 2))
    return torch.cat(done)


def small_product(h: Tensor, convolution: nn.Conv2d, shuffle: int) -> Tensor:
    """An unpadded convolution of a small map (B, C, H, W) and a pixel shuffle, as one product.

    Of few images the weights are the first factor, a product up to half as fast again, and the
    patches the second, transposed: then the gradient is a product with the weights as they lie.

    Args:
        h: The map.
        convolution: A convolution without padding.
        shuffle: The factor of the pixel shuffle.
    """
    weight, bias = convolution.weight.flatten(1), convolution.bias
    down, across = convolution.kernel_size
    rows, columns = h.shape[2] - down + 1, h.shape[3] - across + 1
    if down == across == 1:
        h = h.permute(0, 2, 3, 1)
    elif rows * columns > 1:
        corners = [(row, column) for row in range(rows) for column in range(columns)]
        parts = [h[:, :, row : row + down, column : column + across] for row, column in corners]
        h = torch.stack(parts, 1)
    patches = h.reshape(-1, weight.shape[1]).contiguous()
    if h.dtype == torch.bfloat16 or len(patches) >= MANY_ROWS:
        products = functional.linear(patches, weight, bias)
        products = products.view(len(h), rows, columns, -1).permute(0, 3, 1, 2)
    else:
        products = torch.addmm(bias[:, None], weight, patches.t())
        products = products.view(-1, len(h), rows, columns).transpose(0, 1)
    return functional.pixel_shuffle(products, shuffle) if shuffle > 1 else products
