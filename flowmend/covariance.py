"""Mean and covariance of images, regularised so that images not seen are likely too."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .pixels import dequantisation_variance, dequantise

__all__ = ["cross_fitted", "fit_covariance"]


def fit_covariance(
    images: Tensor, bits: int, flip: bool, smoothing: float | None, shrinkage: float | None
) -> tuple[Tensor, Tensor]:
    """Mean (C, H, W) and covariance (D, D), float64; see :meth:`flowmend.GaussianPrior.fit`.

    Args:
        images: Training images (N, C, H, W), uint8.
        bits: Bits per channel.
        flip: Whether mirrored images count too.
        smoothing: Weight of the shifted images, in [0, 1]; None chooses it.
        shrinkage: Weight of the identity, in [0, 1]; None chooses it.
    """
    shape = tuple(images.shape[1:])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    tenth = len(images) // 10
    held, rest = images[order[:tenth]], images[order[tenth:]]
    moments = _Moments.of(rest, bits, flip)
    if tenth and (smoothing is None or shrinkage is None):
        second = _Moments.of(held, bits, flip).second_about(moments.mean)
        smoothing, shrinkage = _likeliest(
            moments.covariance, second, shape, bits, smoothing, shrinkage
        )
    elif smoothing is None or shrinkage is None:
        smoothing, shrinkage = smoothing or 0.0, 0.5 if shrinkage is None else shrinkage
    moments = _Moments.of(images, bits, flip)
    covariance = _regularised(moments.covariance, shape, bits, smoothing, shrinkage)
    return moments.mean.reshape(shape), covariance


def cross_fitted(
    images: Tensor, bits: int, flip: bool, folds: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean (C, H, W) and covariance (D, D), float64, of all images but those of each fold.

    What they say of an image of that fold is what they will say of images never seen. They are
    regularised alike, such that the first fold is likeliest.

    Args:
        images: Training images (N, C, H, W), uint8; image i belongs to fold ``i % folds``.
        bits: Bits per channel.
        flip: Whether mirrored images count too.
        folds: Their number, at least 2.
    """
    shape = tuple(images.shape[1:])
    parts = [_Moments.of(images[fold::folds], bits, flip) for fold in range(folds)]
    shares = None
    for fold, part in enumerate(parts):
        others = _Moments.together(parts[:fold] + parts[fold + 1 :])
        if shares is None:
            second = part.second_about(others.mean)
            shares = _likeliest(others.covariance, second, shape, bits, None, None)
        yield others.mean.reshape(shape), _regularised(others.covariance, shape, bits, *shares)


class _Moments:
    """How many images, their mean (D,) and covariance (D, D), in float64."""

    def __init__(self, count: int, mean: Tensor, covariance: Tensor) -> None:
        self.count, self.mean, self.covariance = count, mean, covariance

    @classmethod
    def of(cls, images: Tensor, bits: int, flip: bool) -> "_Moments":
        """Those of uint8 images, a thousand at a time."""
        parts = images.split(1024)
        count = len(images) * (2 if flip else 1)
        mean = sum(cls._values(part, bits, flip).sum(0) for part in parts) / count
        covariance = mean.new_zeros(len(mean), len(mean))
        for part in parts:
            x = cls._values(part, bits, flip) - mean
            covariance.addmm_(x.T, x)
        return cls(count, mean, covariance.div_(count))

    @classmethod
    def together(cls, parts: Sequence["_Moments"]) -> "_Moments":
        """Those of all the images that several were found from."""
        count = sum(part.count for part in parts)
        mean = sum(part.mean * (part.count / count) for part in parts)
        covariance = torch.zeros_like(parts[0].covariance)
        for part in parts:
            covariance.add_(part.second_about(mean), alpha=part.count / count)
        return cls(count, mean, covariance)

    @staticmethod
    def _values(images: Tensor, bits: int, flip: bool) -> Tensor:
        x = dequantise(images.double() / 255.0, bits)
        return (torch.cat([x, x.flip(-1)]) if flip else x).flatten(1)

    def second_about(self, centre: Tensor) -> Tensor:
        """Second moment (D, D) about another centre (D,)."""
        step = self.mean - centre
        return self.covariance + torch.outer(step, step)


def _regularised(
    covariance: Tensor,
    shape: tuple[int, int, int],
    bits: int,
    smoothing: float,
    shrinkage: float,
) -> Tensor:
    """The covariance that :func:`fit_covariance` describes."""
    if smoothing:
        covariance = covariance.lerp(_average_over_shifts(covariance, shape), smoothing)
    scale = covariance.diagonal().mean()
    covariance = covariance * (1.0 - shrinkage)
    covariance.diagonal().add_(shrinkage * scale + dequantisation_variance(bits))
    return covariance


def _likeliest(
    covariance: Tensor,
    second: Tensor,
    shape: tuple[int, int, int],
    bits: int,
    smoothing: float | None,
    shrinkage: float | None,
) -> tuple[float, float]:
    """The shares under which held-out images with that second moment are likeliest."""

    def surprise(shares: tuple[float, float]) -> float:
        try:
            factor = torch.linalg.cholesky(_regularised(covariance, shape, bits, *shares))
        except torch.linalg.LinAlgError:
            return math.inf
        spread = torch.cholesky_solve(second, factor).diagonal().sum()
        return float(2.0 * factor.diagonal().log().sum() + spread)

    first = 0.0 if shrinkage is None else shrinkage
    candidates = (0.0, 0.3, 0.6, 0.9) if smoothing is None else (smoothing,)
    smoothing = min(candidates, key=lambda share: surprise((share, first)))
    candidates = (0.0, 1e-3, 1e-2, 1e-1, 0.5) if shrinkage is None else (shrinkage,)
    return smoothing, min(candidates, key=lambda share: surprise((smoothing, share)))


def _average_over_shifts(covariance: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The covariance (D, D) of images shifted by a pixel, mean over the eight directions.

    Pixels that a shift uncovers repeat the edge.
    """
    channels, height, width = shape
    index = torch.arange(channels * height * width).reshape(shape)
    total = torch.zeros_like(covariance)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if down or right:
                rows = (torch.arange(height) + down).clamp(0, height - 1)
                columns = (torch.arange(width) + right).clamp(0, width - 1)
                taken = index[:, rows][:, :, columns].flatten()
                total += covariance[taken][:, taken]
    return total / 8.0
