"""The noise level of a picture, from the picture alone: where no Gaussian prior knows better.

Sources: An Efficient Statistical Method for Image Noise Level Estimation (Chen, Zhu and Heng,
2015),
https://openaccess.thecvf.com/content_iccv_2015/html/Chen_An_Efficient_Statistical_ICCV_2015_paper.html;
of the differences: Ideal spatial adaptation by wavelet shrinkage (Donoho and Johnstone, 1994),
https://doi.org/10.1093/biomet/81.3.425
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .clipping import Limits, at_limits, clipped_moments, mean_before
from .errors import FlowmendError
from .operators import Bayer, LinearOperator
from .pixels import quantisation_sigma

__all__ = ["calm_sigma", "differences_sigma", "patches_sigma", "picture_sigma"]

FEWEST_DIFFERENCES = 16
ROUNDS = 6
"""How often the noise is found again once what was clipped is known better."""
CLEAR = 1.0
"""Standard deviations of the noise that keep a square of four pixels clear of clipping."""
NORMAL_QUARTILE = 0.6744897501960817
"""Median of |n| of a standard normal n."""
SIDES, GREY_SIDE = (4, 3, 2), 8
"""Sides of the patches of pictures with several channels, the first of which enough are seen
whole, and with one."""
MOST_PATCHES, PATCHES_EACH = 20_000, 18
"""Most patches of a picture, and the fewest for each value that a patch has."""
LEAST_SHARE = 0.25
"""Share of the differences' estimate from which on that of colour patches is believed."""
WHITE = 1.2
"""How much more noise, for its pixels, a picture of half the resolution may have where the noise
is white."""
CELL, CALM, FEWEST_CALM, MOST_CELLS = 8, 0.02, 40, 100_000
"""Side of the cells whose calmest show the noise of a picture of one channel, their share, the
fewest of them, and about the most cells that are looked at."""
WHITE_CALM = 1.4
"""As :data:`WHITE`, in the calmest cells."""


@torch.no_grad()
def picture_sigma(y: Tensor, operator: LinearOperator, limits: Limits | None = None) -> Tensor:
    """Standard deviation of white Gaussian noise in pictures, of every image on its own.

    That of :func:`patches_sigma`, which texture hardly misleads where a picture has colours:
    their finest detail is alike in all of them, and noise is not. But a JPEG file has smoothed
    the finest noise of colours away, and left that of grey. So where far less is found in colour
    patches than by :func:`differences_sigma`, and more at half the resolution, the latter counts;
    and where patches are too few. For a picture of one channel it is the smaller of both, or what
    its calmest parts show (:func:`calm_sigma`) where that is less and the noise there is white.

    Args:
        y: Measurements (B, C, H, W), without the operator's offset.
        operator: Anything with ``A``; without a ``shape`` no pixel counts as hidden.
        limits: Lowest and highest value that y can have, see :mod:`flowmend.clipping`; None for
            no limits.

    Returns:
        Shape (B,), at least the rounding of an 8-bit file, in y's precision.

    Raises:
        FlowmendError: As :func:`differences_sigma`.
    """
    rough = differences_sigma(y, operator, limits)
    fine = patches_sigma(y, operator, limits)
    if y.shape[1] == 1:
        return torch.fmin(torch.fmin(fine, rough), _white_calm(y, operator, limits, rough))
    seen = _seen(y, operator)
    half = functional.avg_pool2d(y * seen, 2)
    known = functional.avg_pool2d(seen[None].to(y.dtype), 2)[0] == 1.0
    coarse = 2.0 * _patches_sigma(half, known, None)
    believed = (fine >= LEAST_SHARE * rough) | (coarse <= WHITE * fine)
    return torch.where(believed, fine, rough)


@torch.no_grad()
def patches_sigma(y: Tensor, operator: LinearOperator, limits: Limits | None = None) -> Tensor:
    """Standard deviation of the noise of pictures, from the covariance of their patches.

    Patches of a picture fill few of their dimensions, white noise fills all of them: of the
    covariance's eigenvalues the smallest, as many as have a mean that is their median, are the
    noise's variance. Given limits, what clipping at them has taken from the noise is made up for:
    how much that is follows from the patches' means.

    Args:
        y: Measurements (B, C, H, W).
        operator: See :func:`picture_sigma`.
        limits: Likewise.

    Returns:
        Shape (B,), at least the rounding of an 8-bit file; NaN where fewer patches are seen
        whole than 18 for each of their values, however small they are.
    """
    return _patches_sigma(y, _seen(y, operator), limits)


def _patches_sigma(y: Tensor, seen: Tensor, limits: Limits | None) -> Tensor:
    """:func:`patches_sigma`, given which values (C, H, W) are seen."""
    chosen = _whole_patches(seen)
    if chosen is None:
        return y.new_full((len(y),), math.nan)
    side, step, whole = chosen

    def patches(images: Tensor) -> Tensor:
        """Of (1, C, H, W) those that are seen whole: (patches, C, values), float64."""
        found = functional.unfold(images, side, stride=step)[0].T[whole]
        return found.reshape(len(found), images.shape[1], side**2).double()

    found = torch.stack([_noise(patches(image[None])) for image in y]).to(y)
    if limits is not None:
        low, high = (torch.as_tensor(limit).to(y).expand(y.shape) for limit in limits)
        clipped = torch.stack(at_limits(y, limits)).flatten(2).any(2).any(0)
        for index in torch.nonzero(clipped).flatten().tolist():
            cut = slice(index, index + 1)
            room = (y[cut] - low[cut], high[cut] - y[cut])
            down, up = (patches(away).mean(2) for away in room)
            first = found[index].double()
            found[index] = _noise_before_clipping(patches(y[cut]), down, up, first)
    return found.clamp_min(quantisation_sigma())


@torch.no_grad()
def calm_sigma(y: Tensor, seen: Tensor, limits: Limits | None, first: Tensor) -> Tensor:
    """Standard deviation of the noise of pictures, from the finest differences in calm cells.

    The calmest cells are those in which the means of squares of four pixels vary least. White
    noise in these means is independent of that in the differences of the same pixels, so the
    choice does not make the noise seem weaker. The channels show each cells of their own.

    Args:
        y: Measurements (B, C, H, W).
        seen: Which of their values an image can change, (C, H, W).
        limits: See :func:`picture_sigma`; cells within a standard deviation of them do not count.
        first: A first estimate (B,).

    Returns:
        Shape (B,); NaN where there are fewer than twice as many cells as are to be chosen at
        least.
    """
    height, width = (size - size % 2 for size in y.shape[2:])
    step = CELL // 4
    while height * width > MOST_CELLS * 4 * step**2:
        step += 1

    def cells(images: Tensor) -> Tensor:
        """Of squares (C, H/2, W/2): (cells, squares)."""
        found = functional.unfold(images[:, None], CELL // 2, stride=step)
        return found.transpose(1, 2).flatten(0, 1)

    def squares(images: Tensor) -> list[Tensor]:
        """The four pixels of every square, of images (..., H, W)."""
        return [images[..., i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]

    if min(height, width) < CELL:
        return y.new_full((len(y),), math.nan)
    whole = cells(torch.stack(squares(seen)).all(0).to(y.dtype)).amin(1) == 1.0
    low, high = (-math.inf, math.inf) if limits is None else limits
    low, high = (torch.as_tensor(limit).to(y).expand(y.shape) for limit in (low, high))
    found = []
    for image, least, most, sigma in zip(y, low, high, first, strict=True):
        a, b, c, d = squares(image)
        means = cells((a + b + c + d) / 2.0)[whole].double()
        differences = cells((a - b - c + d) / 2.0)[whole].double()
        down, up = (
            cells(sum(squares(away)) / 4.0)[whole].double().mean(1)
            for away in (image - least, most - image)
        )
        found.append(_calmest(means.var(1), differences.square().mean(1), down, up, sigma))
    return torch.stack(found).to(y)


def _calmest(activity: Tensor, energy: Tensor, down: Tensor, up: Tensor, sigma: Tensor) -> Tensor:
    """The noise of the calmest of cells: how busy each is, the energy of its differences and how
    far its mean keeps from the limits, (N,) each."""
    sigma = sigma.double()
    for _ in range(ROUNDS):
        clear = torch.minimum(down, up) > CLEAR * sigma
        count = max(FEWEST_CALM, round(CALM * int(clear.sum())))
        if int(clear.sum()) < 2 * FEWEST_CALM:
            return sigma.new_tensor(math.nan)
        chosen = torch.where(clear, activity, math.inf).argsort()[:count]
        low, high = -down[chosen] / sigma, up[chosen] / sigma
        kept = clipped_moments(low, high, mean_before(low, high))[1].mean()
        sigma = (energy[chosen].mean() / kept).sqrt().clamp_min(quantisation_sigma())
    return sigma


def _white_calm(
    y: Tensor, operator: LinearOperator, limits: Limits | None, first: Tensor
) -> Tensor:
    """:func:`calm_sigma` of pictures of one channel, (B,); NaN where the noise is not white."""
    seen = _seen(y, operator)
    if isinstance(operator, Bayer):
        # each place of the pattern shows a picture of its own
        even = (slice(None),) * (y.ndim - 2) + tuple(slice(n - n % 2) for n in y.shape[2:])
        if limits is not None:
            low, high = (torch.as_tensor(limit).to(y).expand(y.shape) for limit in limits)
            limits = tuple(functional.pixel_unshuffle(limit[even], 2) for limit in (low, high))
        y = functional.pixel_unshuffle(y[even], 2)
        seen = torch.ones(y.shape[1:], dtype=torch.bool, device=y.device)
    fine = calm_sigma(y, seen, limits, first)
    if bool(fine.isnan().all()):
        return fine
    known = functional.avg_pool2d(seen[None].to(y.dtype), 2)[0] == 1.0
    half = functional.avg_pool2d(y * seen, 2)
    coarse = 2.0 * calm_sigma(half, known, None, first)
    return torch.where(coarse <= WHITE_CALM * fine, fine, math.nan)


def _whole_patches(seen: Tensor) -> tuple[int, int, Tensor] | None:
    """Side and spacing of patches, and which of them, row by row, are seen whole (C, H, W)."""
    channels = len(seen)
    # a mosaic has its colours at every second pixel
    sides, stride = ((GREY_SIDE,), 2) if channels == 1 else (SIDES, 1)
    hidden = (~seen).float()[None]
    for side in sides:
        if min(seen.shape[1:]) < side:
            continue
        whole = functional.max_pool2d(hidden, side, stride)[0].amax(0) == 0
        if int(whole.sum()) < PATCHES_EACH * channels * side**2:
            continue
        every = 1
        while int(whole[::every, ::every].sum()) > MOST_PATCHES:
            every += 1
        return side, stride * every, whole[::every, ::every].flatten()
    return None


def _noise(patches: Tensor) -> Tensor:
    """Standard deviation of the noise in patches (N, C, values)."""
    flat = patches.flatten(1)
    flat = flat - flat.mean(0)
    values = torch.linalg.eigvalsh(flat.T @ flat / len(flat)).clamp_min(0.0)
    count = torch.arange(1, len(values) + 1).to(values)
    means = values.cumsum(0) / count
    # the most of the smallest values of which no more lie below their mean than above it
    below = (values < means[:, None]).sum(1)
    above = count - (values <= means[:, None]).sum(1)
    return means[(below <= above).nonzero().max()].sqrt()


def _noise_before_clipping(patches: Tensor, down: Tensor, up: Tensor, sigma: Tensor) -> Tensor:
    """The same before clipping, given how far (N, C) the patches' means keep from the limits."""
    found, sigma = _noise(patches), sigma.clamp_min(quantisation_sigma())
    for _ in range(ROUNDS):
        low, high = -down / sigma, up / sigma
        kept = clipped_moments(low, high, mean_before(low, high))[1].mean()
        sigma = (found / kept.sqrt()).clamp_min(quantisation_sigma())
    return sigma


@torch.no_grad()
def differences_sigma(y: Tensor, operator: LinearOperator, limits: Limits | None = None) -> Tensor:
    """Standard deviation of the noise of pictures, from the finest diagonal differences.

    The median of ``|a - b - c + d| / 2`` over all squares of four neighbouring pixels, by what it
    is for a standard normal; no prior is needed. Valid for measurements that are pictures, with
    noise of their own in every pixel: denoise, deblur, inpaint (squares without a hidden pixel),
    colorize, upscale. The picture's own texture counts as noise where it is not blurred away.
    Given limits, only squares whose mean keeps a standard deviation of the noise away from them
    count, where there are enough.

    Args:
        y: Measurements (B, C, H, W).
        operator: Anything with ``A``; without a ``shape`` no pixel counts as hidden.
        limits: See :func:`picture_sigma`.

    Returns:
        Shape (B,), at least the rounding of an 8-bit file.

    Raises:
        FlowmendError: If the measurements are no picture, or too little of it is known.
    """
    if y.ndim != 4:
        raise FlowmendError(
            "Without a Gaussian in the prior the noise level can only be estimated from pictures, "
            "and these measurements are none: give sigma."
        )
    seen = _seen(y, operator)
    known = seen[:, :-1, :-1] & seen[:, :-1, 1:] & seen[:, 1:, :-1] & seen[:, 1:, 1:]
    if int(known.sum()) < FEWEST_DIFFERENCES:
        raise FlowmendError(
            "Too little of the picture is known to estimate its noise level without a Gaussian in "
            "the prior: give sigma."
        )
    difference = 0.5 * (y[..., :-1, :-1] - y[..., :-1, 1:] - y[..., 1:, :-1] + y[..., 1:, 1:])
    size = difference[:, known].abs()
    sigma = size.median(1).values / NORMAL_QUARTILE
    if limits is None:
        return sigma.clamp_min(quantisation_sigma())
    below, above = at_limits(y, limits)
    clipped = (below | above).flatten(1).any(1)
    if bool(clipped.any()):
        low, high = (torch.as_tensor(limit).to(y) for limit in limits)
        room = [functional.avg_pool2d(away, 2, 1)[:, known] for away in (y - low, high - y)]
        room = torch.minimum(*room)
        for _ in range(ROUNDS):
            inside = room > CLEAR * sigma[:, None]
            enough = clipped & (inside.sum(1) >= FEWEST_DIFFERENCES)
            found = torch.where(inside, size, torch.nan).nanmedian(1).values / NORMAL_QUARTILE
            sigma = torch.where(enough, found, sigma)
    return sigma.clamp_min(quantisation_sigma())


def _seen(y: Tensor, operator: LinearOperator) -> Tensor:
    """Which values of pictures (B, C, H, W) an image can change: (C, H, W)."""
    if (shape := getattr(operator, "shape", None)) is None:
        return torch.ones(y.shape[1:], dtype=torch.bool, device=y.device)
    probe = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(y)
    return (operator.A(probe) != 0).any(0)
