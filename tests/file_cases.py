"""Pictures that the tests of files share."""

import numpy as np

from flowmend.files import read_image
from flowmend.pixels import to_bytes


def colours(height=6, width=5, seed=0):
    """A smooth RGB picture, uint8 (H, W, 3)."""
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([40 * rows, 40 * columns, 20 * (rows + columns)], -1) + 10 * seed
    return (base % 256).astype(np.uint8)


def greys(height=6, width=5):
    return colours(height, width)[..., 2]


def levels(path):
    """The picture as the library reads it, uint8 (C, H, W)."""
    return to_bytes(read_image(path)).numpy()
