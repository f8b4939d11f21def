"""What is random in training, each from a generator that is passed."""

import torch
from torch import Tensor
from torch.nn import functional

from .pixels import from_bytes, path_time, to_bytes

__all__ = [
    "MIXED",
    "SURE",
    "dropped",
    "generator_at",
    "grey_only",
    "mirrored",
    "random_affine",
    "random_crop",
    "random_parts",
    "stratified_times",
    "time_maps",
]

MIXED = 2.0 / 3.0
"""Share of the images whose values have times of several kinds, unless a recipe says so."""
SURE = 0.6
"""How often, of images with times of several kinds, what is known is known exactly; and how often
of the rest nothing is."""
COMMON_HOLES, OFF_MIDDLE = (0.3, 0.5), 0.1
"""Least and largest side of the holes that are met most, and how far from the middle they may lie,
as shares of the image's side."""
USUAL_NOISE, NOISE_SPREAD = 0.08, 1.0
"""Median of the noise that restoring photographs meets, on the [0, 1] scale, and the standard
deviation of its logarithm."""


def generator_at(seed: int, *place: int) -> torch.Generator:
    """A generator that depends on the seed and a place in the run, so that resuming is exact."""
    value = seed
    for number in place:
        value = (value * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(value)


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W), each left as it is or turned left to right, with equal chances."""
    turned = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(turned, images.flip(-1), images)


def dropped(h: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Features with a share of their values at 0, at random, the others enlarged to make up.

    Source: Dropout: A Simple Way to Prevent Neural Networks from Overfitting (Srivastava et al.,
    2014), https://jmlr.org/papers/v15/srivastava14a.html
    """
    kept = torch.empty(h.shape).bernoulli_(1.0 - share, generator=generator)
    return h * (kept / (1.0 - share)).to(h)


def random_crop(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square (C, side, side) at a random place of an image (C, H, W) that is not smaller."""
    top, left = (
        int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape[1:]
    )
    return image[:, top : top + side, left : left + side]


def random_parts(
    images: Tensor, size: tuple[int, int], jitter: float, generator: torch.Generator
) -> Tensor:
    """Of every image uint8 (B, C, H, W) a part at a random place, reduced to a size.

    The part is smaller than the image by a share between 0 and ``jitter``, the same in height and
    width: pictures of things that stand a little elsewhere and are a little larger.
    """
    chances = torch.rand(len(images), 3, generator=generator).tolist()
    parts = []
    for image, (shrink, down, right) in zip(images, chances, strict=True):
        height, width = (max(1, round(side * (1.0 - jitter * shrink))) for side in image.shape[1:])
        top = round(down * (image.shape[1] - height))
        left = round(right * (image.shape[2] - width))
        part = image[None, :, top : top + height, left : left + width].float()
        parts.append(functional.interpolate(part, size, mode="bilinear", antialias=True))
    return torch.cat(parts).round().clamp(0, 255).to(torch.uint8)


def random_affine(
    images: Tensor, size: tuple[int, int], affine: float, generator: torch.Generator
) -> Tensor:
    """Every image uint8 (B, C, H, W) turned, scaled and moved at random, reduced to a size.

    What lies beyond an edge is what the edge mirrors.

    Source: Training Generative Adversarial Networks with Limited Data (Karras et al., 2020),
    https://arxiv.org/abs/2006.06676

    Args:
        images: The images.
        size: Height and width of what is returned; they divide those of the images.
        affine: Largest angle in radians, largest |logarithm of the scale|, and largest shift down
            and to the right as a share of half a side; each uniform.
        generator: Source of all that is random.
    """
    angle, scale, right, down = affine * (
        2.0 * torch.rand(4, len(images), generator=generator) - 1.0
    )
    cosine, sine = scale.exp() * angle.cos(), scale.exp() * angle.sin()
    aspect = images.shape[2] / images.shape[3]
    rows = (
        torch.stack([cosine, -sine * aspect, right], 1),
        torch.stack([sine / aspect, cosine, down], 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(
        from_bytes(images), grid, padding_mode="reflection", align_corners=False
    )
    return to_bytes(functional.interpolate(moved, size, mode="area"))


def stratified_times(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Times (count,), uniform in [0, 1], one in each of ``count`` equal parts, in order.

    Args:
        count: How many.
        generator: Source of the place in each part; None takes the middle.
    """
    place = 0.5 if generator is None else torch.rand(count, generator=generator)
    return (torch.arange(count) + place) / count


def time_maps(
    shape: tuple[int, int, int, int],
    generator: torch.Generator,
    mixed: float = MIXED,
    focused: float = 0.0,
    sure: float = SURE,
    common: float = 0.0,
) -> Tensor:
    """Times of every value of images (B, C, H, W), in the colour coordinates of a network.

    Some images have one time, uniform in [0, 1], or such that the logarithm of the noise is
    normal about that of :data:`USUAL_NOISE`: the flow. Of the others some values are known,
    exactly or with noise of 0.002 to 0.3 on the [0, 1] scale, and the rest unknown, or noisier:
    all but a rectangle, a rectangle, scattered cells of 1, 2 or 4 pixels, the grey of a picture,
    or some of these at once.

    Source, of the normal logarithms: Scaling Rectified Flow Transformers for High-Resolution Image
    Synthesis (Esser et al., 2024), https://arxiv.org/abs/2403.03206

    Args:
        shape: Shape of the images.
        generator: Source of all that is random.
        mixed: Share of the images with times of several kinds.
        focused: Share of the single times where noise is about the usual.
        sure: How often what is known is known exactly; and how often of the rest nothing is.
        common: Of the images with times of several kinds, the share of those that are met most:
            a picture of which only the grey is known, or all but a hole about the middle.
    """
    batch = shape[0]

    def chances() -> Tensor:
        return torch.rand(batch, 1, 1, 1, generator=generator)

    places = stratified_times(batch, generator)[torch.randperm(batch, generator=generator)]
    usual = path_time(USUAL_NOISE * (NOISE_SPREAD * torch.special.ndtri(places)).exp())
    times = torch.where(chances().flatten() < focused, usual, places)
    even = times.view(-1, 1, 1, 1).expand(shape)
    known = _known_values(shape, generator)
    if common > 0:
        known = torch.where(chances() < common, _commonly_known(shape, generator), known)
    high = torch.where(chances() < sure, 1.0, path_time(0.002 * 150.0 ** chances()))
    low = torch.where(chances() < sure, 0.0, chances() * high)
    some = known.flatten(1).any(1) & ~known.flatten(1).all(1)
    mixed = (chances() < mixed) & some.view(-1, 1, 1, 1)
    return torch.where(mixed, torch.where(known, high, low), even).contiguous()


def grey_only(t: Tensor) -> Tensor:
    """Of which images (B,) nothing is known but the grey, by times (B, C, H, W)."""
    return (t[:, 0] > 0).flatten(1).all(1) & (t[:, 1:] == 0).flatten(1).all(1)


def _known_values(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Which values (B, C, H, W) are known: at some places all of them, grey, or some colours."""
    batch, channels, height, width = shape
    kind = torch.rand(batch, 1, 1, 1, generator=generator)
    hole = _rectangle(batch, height, width, generator)
    scattered = _scattered(batch, height, width, generator)
    places = torch.where(kind < 0.5, ~hole, torch.where(kind < 0.6, hole, scattered))
    everywhere = torch.rand(batch, 1, 1, 1, generator=generator) < 0.3
    some = torch.rand(batch, channels, 1, 1, generator=generator) < 0.5
    grey = (torch.arange(channels) == 0).view(1, -1, 1, 1)
    # of whole pictures mostly their grey is known, of places mostly everything
    kind = torch.rand(batch, 1, 1, 1, generator=generator)
    limits = torch.where(everywhere, 0.0, 0.7), torch.where(everywhere, 0.75, 0.9)
    colours = torch.where(kind < limits[0], True, torch.where(kind < limits[1], grey, some))
    return (places | everywhere) & colours


def _commonly_known(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """The grey of a picture, or all of it but a hole about the middle, alike often."""
    batch, channels, height, width = shape
    chances = torch.rand(batch, 4, 1, 1, 1, generator=generator)
    share = COMMON_HOLES[0] + chances[:, 0] * (COMMON_HOLES[1] - COMMON_HOLES[0])
    hole = torch.ones(batch, 1, height, width, dtype=torch.bool)
    for size, view, chance in (
        (height, (1, 1, height, 1), chances[:, 1]),
        (width, (1, 1, 1, width), chances[:, 2]),
    ):
        length = (share * size).round()
        first = ((size - length) / 2 + (2.0 * chance - 1.0) * OFF_MIDDLE * size).round()
        place = torch.arange(size).view(view)
        hole = hole & (place >= first) & (place < first + length)
    grey = (torch.arange(channels) == 0).view(1, -1, 1, 1)
    return torch.where(chances[:, 3] < 0.5, grey, ~hole).expand(shape)


def _rectangle(batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Rectangles of every size and place: (B, 1, H, W)."""
    inside = torch.ones(batch, 1, height, width, dtype=torch.bool)
    for size, view in ((height, (batch, 1, height, 1)), (width, (batch, 1, 1, width))):
        size_and_place = torch.rand(batch, 2, 1, generator=generator)
        length = 1 + (size_and_place[:, 0] * (size - 1)).long()
        first = (size_and_place[:, 1] * (size - length + 1)).long()
        place = torch.arange(size)
        inside = inside & ((place >= first) & (place < first + length)).view(view)
    return inside


def _scattered(batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random cells of 1, 2 or 4 pixels, each image with a density of its own: (B, 1, H, W)."""
    share = torch.rand(batch, 1, 1, 1, generator=generator)
    masks = []
    for cell in (1, 2, 4):
        rows, columns = -(-height // cell), -(-width // cell)
        known = torch.rand(batch, 1, rows, columns, generator=generator) < share
        known = known.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
        masks.append(known[:, :, :height, :width])
    which = torch.randint(3, (batch, 1, 1, 1), generator=generator)
    return torch.where(which == 0, masks[0], torch.where(which == 1, masks[1], masks[2]))
