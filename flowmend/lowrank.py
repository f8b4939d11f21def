"""A Gaussian of images too large for a dense covariance.

Its covariance is that of a few directions in which the images differ most and of a stationary
rest: ``U diag(v) U' + S``, S diagonal in the cosine transform. Nothing of D x D numbers is ever
formed.

Sources: Probabilistic Principal Component Analysis (Tipping and Bishop, 1999),
https://doi.org/10.1111/1467-9868.00196, whose rest is white; of the fit: Finding Structure with
Randomness (Halko, Martinsson and Tropp, 2011), https://arxiv.org/abs/0909.4061
"""

import torch
from torch import Tensor, nn

from .chance import generator_at
from .errors import FlowmendError
from .least_squares import HasAdjoint
from .lowrank_posterior import LowRankPosterior
from .lowrank_whitening import LowRankWhitening
from .pixels import dequantisation_variance, from_bytes
from .stationary import SMALLEST_VARIANCE, StationaryGaussian

__all__ = ["LowRankGaussian"]

RANK = 512
"""Most directions."""
IMAGES_EACH = 8
"""Images that a direction is found from, at least."""
LARGEST_FIT = 2**26
"""Values of all images that a fit takes into memory."""
EXTRA = 16
"""Directions that the randomised fit computes beyond those it keeps."""
CHUNK = 64


class LowRankGaussian(nn.Module):
    """``N(mean, U diag(v) U' + S)``, for images of one size.

    Args:
        mean: Mean image (C, H, W) on the [0, 1] scale.
        directions: Orthonormal images U', (R, C, H, W).
        variances: Variances v along them, beyond those of the rest, (R,), above 0.
        rest: The stationary rest; its mean does not count.

    Raises:
        FlowmendError: If the shapes do not fit or a variance is not above 0.
    """

    def __init__(
        self, mean: Tensor, directions: Tensor, variances: Tensor, rest: StationaryGaussian
    ) -> None:
        super().__init__()
        shapes = {tuple(mean.shape), tuple(directions.shape[1:]), rest.shape}
        if len(shapes) > 1 or tuple(variances.shape) != tuple(directions.shape[:1]):
            raise FlowmendError("Mean, directions and rest of a Gaussian must have one shape.")
        if not bool((variances > 0).all()):
            raise FlowmendError("The variances of a Gaussian must be above 0.")
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)
        self.register_buffer("variances", variances)
        self.rest = rest
        self._posterior: LowRankPosterior | None = None
        self._whitening: tuple[int, LowRankWhitening] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        return tuple(self.mean.shape)

    def as_stored(self) -> "LowRankGaussian":
        """The same as a weights file gives it back: its directions rounded to float16."""
        rounded = self.directions.to(torch.float16).to(self.mean)
        return LowRankGaussian(self.mean, rounded, self.variances, self.rest)

    def whitening(self, bits: int) -> LowRankWhitening:
        """The map of dequantised images of so many bits to white ones, and back; kept."""
        if self._whitening is None or self._whitening[0] != bits:
            parts = self.mean, self.directions, self.variances, self.rest
            self._whitening = bits, LowRankWhitening(*parts, dequantisation_variance(bits))
        return self._whitening[1]

    @classmethod
    def fit(
        cls, images: Tensor, flip: bool = True, rank: int = RANK, seed: int = 0
    ) -> "LowRankGaussian":
        """Fits it to uint8 images (N, C, H, W), or to some of them where they are many.

        Args:
            images: Training images; at least two.
            flip: Whether mirrored images are as likely.
            rank: Most directions; one needs eight images, and there are at most half as many as
                values.
            seed: Seed of the choice and of the randomised fit.

        Raises:
            FlowmendError: If there are fewer than two images.
        """
        size = images[0].numel() if len(images) else 1
        count = min(len(images), max(2, LARGEST_FIT // (size * (2 if flip else 1))))
        if count < 2:
            raise FlowmendError("A Gaussian needs at least two images.")
        generator = generator_at(seed, 9)
        x = from_bytes(images[torch.randperm(len(images), generator=generator)[:count]])
        x = torch.cat([x, x.flip(-1)]) if flip else x
        mean = x.mean(0)
        flat = (x - mean).flatten(1)
        del x
        rank = max(1, min(rank, count // IMAGES_EACH, size // 2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = min(rank + EXTRA, *flat.shape)
            _, lengths, found = torch.svd_lowrank(flat, q=width, niter=2)
        found = found[:, :rank].T
        rests = [part - (part @ found.T) @ found for part in flat.split(CHUNK)]
        white = sum(float(part.square().sum()) for part in rests) / (len(flat) * (size - rank))
        variances = lengths[:rank].square() / len(flat) - white
        kept = variances > SMALLEST_VARIANCE
        kept[0] = True
        variances = variances.clamp_min(SMALLEST_VARIANCE)
        rest = StationaryGaussian.fit(part.view(-1, *mean.shape) for part in rests)
        return cls(mean, found[kept].reshape(-1, *mean.shape).contiguous(), variances[kept], rest)

    @torch.no_grad()
    def posterior(self, operator: HasAdjoint, sigma: float) -> "LowRankPosterior":
        """What is known of x from y = A x + sigma n; the last one is kept.

        Args:
            operator: Anything with ``A`` and its adjoint ``A_adjoint``.
            sigma: Standard deviation of the noise on the [0, 1] scale, above 0.
        """
        if self._posterior is None or not self._posterior.serves(operator, sigma):
            self._posterior = LowRankPosterior(self, operator, sigma)
        return self._posterior
