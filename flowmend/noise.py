"""Noise models: how measurements scatter about A x, to draw it and to judge it.

Measurements are on the [0, 1] scale. A model draws noise, knows its variance, and gives the
negative log-likelihood of measurements, which is the data term of an honest objective. To add one:
subclass :class:`Noise` and add a line to :data:`NOISES`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from .errors import FlowmendError
from .files import read_image
from .pixels import quantisation_sigma

__all__ = [
    "AUTO",
    "NOISES",
    "Gaussian",
    "GaussianMap",
    "Noise",
    "Poisson",
    "SaltAndPepper",
    "known_pixels",
    "make_noise",
    "parse_sigma",
]

AUTO = "auto"
"""What stands for a noise level that is to be estimated."""
FAINTEST = 0.1
"""Expected count below which the Poisson likelihood's logarithm goes on as a parabola."""


class Noise(ABC):
    """The distribution of measurements y (B, ...) about clean ones, each value on its own."""

    name: ClassVar[str]
    """Its name on the command line."""

    @property
    @abstractmethod
    def sigma(self) -> float:
        """The standard deviation, on the [0, 1] scale, for methods that know Gaussian noise."""

    @abstractmethod
    def corrupt(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Draws measurements (B, ...) from clean ones of the same shape."""

    @abstractmethod
    def variance(self, clean: Tensor) -> Tensor:
        """Mean squared error of every value, at least that of rounding to 8 bits.

        Args:
            clean: Clean measurements (B, ...), or estimates of them: the measurements themselves.
        """

    @abstractmethod
    def negative_log_likelihood(self, measured: Tensor, y: Tensor) -> Tensor:
        """``-log p(y | A x = measured)``, shape (B,), nats, up to a constant in ``measured``.

        Differentiable in ``measured``, and finite wherever that is.

        Args:
            measured: What the image would give without noise (B, ...), offset included.
            y: Measurements (B, ...).
        """


def _floor(variance: Tensor) -> Tensor:
    return variance.clamp_min(quantisation_sigma() ** 2)


@dataclass(frozen=True)
class Gaussian(Noise):
    """White Gaussian noise, y = clean + sigma n.

    Args:
        sigma: Standard deviation on the [0, 1] scale; 0 leaves the rounding of 8-bit files.

    Raises:
        FlowmendError: If sigma is negative or not finite.
    """

    sigma: float = 0.1
    name: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise FlowmendError(
                f"The noise level sigma must be a number of at least 0, not {self.sigma}."
            )

    def corrupt(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        if self.sigma == 0:
            return clean
        noise = torch.randn(
            clean.shape, generator=generator, dtype=clean.dtype, device=generator.device
        )
        return clean + self.sigma * noise.to(clean.device)

    def variance(self, clean: Tensor) -> Tensor:
        return _floor(torch.full_like(clean, self.sigma**2))

    def negative_log_likelihood(self, measured: Tensor, y: Tensor) -> Tensor:
        variance = max(self.sigma, quantisation_sigma()) ** 2
        return (measured - y).square().flatten(1).sum(1) / (2.0 * variance)


@dataclass(frozen=True)
class GaussianMap(Noise):
    """Gaussian noise of a level that differs from pixel to pixel, y = clean + levels n.

    Args:
        levels: Standard deviations (1, H, W) on the [0, 1] scale, as large as the measurements.

    Raises:
        FlowmendError: If it is no such map, or holds a negative level or one that is not finite.
    """

    levels: Tensor
    name: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        if self.levels.ndim != 3 or len(self.levels) != 1:
            raise FlowmendError("A map of noise levels must have one channel.")
        if not bool(((self.levels >= 0) & self.levels.isfinite()).all()):
            raise FlowmendError("A map of noise levels must hold finite numbers of at least 0.")

    @property
    def sigma(self) -> float:
        """The root mean square of the levels."""
        return float(self.levels.square().mean().sqrt())

    def part(self, rows: slice, columns: slice) -> "GaussianMap":
        """The noise of a part of the measurements."""
        return GaussianMap(self.levels[:, rows, columns])

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises :class:`FlowmendError` unless measurements (C, H, W) are as large as the map."""
        if len(shape) != 3 or tuple(shape[1:]) != tuple(self.levels.shape[1:]):
            height, width = self.levels.shape[1:]
            raise FlowmendError(
                f"The map of noise levels has {width} x {height} pixels, and does not fit "
                f"measurements of shape {tuple(shape)}."
            )

    def corrupt(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(
            clean.shape, generator=generator, dtype=clean.dtype, device=generator.device
        )
        return clean + self.levels.to(clean) * noise.to(clean.device)

    def variance(self, clean: Tensor) -> Tensor:
        return _floor(self.levels.to(clean).square().expand_as(clean))

    def negative_log_likelihood(self, measured: Tensor, y: Tensor) -> Tensor:
        return ((measured - y).square() / (2.0 * self.variance(y))).flatten(1).sum(1)


@dataclass(frozen=True)
class Poisson(Noise):
    """Counted light: y = Poisson(peak * clean) / peak.

    The likelihood is half the deviance, exact where at least :data:`FAINTEST` counts are expected
    (or as many as rounding to 8 bits hides, if that is more). Below, log(rate) goes on as a
    parabola of the same value, slope and curvature, and a negative rate costs its square, so that
    an iterate at or under black has a finite value and a continuous gradient that leads back.

    Args:
        peak: Expected count of a white pixel.

    Raises:
        FlowmendError: If the peak is not a positive number.
    """

    peak: float = 30.0
    name: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        if not 0 < self.peak < math.inf:
            raise FlowmendError(
                f"The peak of Poisson noise must be a number above 0, not {self.peak}."
            )

    @property
    def sigma(self) -> float:
        """The standard deviation at mid-grey."""
        return math.sqrt(0.5 / self.peak)

    def corrupt(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        rate = (self.peak * clean.clamp_min(0.0)).to(generator.device)
        return (torch.poisson(rate, generator=generator) / self.peak).to(clean)

    def variance(self, clean: Tensor) -> Tensor:
        return _floor(clean / self.peak)

    def negative_log_likelihood(self, measured: Tensor, y: Tensor) -> Tensor:
        rate, count = self.peak * measured, self.peak * y.clamp_min(0.0)
        least = max(FAINTEST, (self.peak * quantisation_sigma()) ** 2)
        step = (rate - least).clamp_max(0.0) / least
        logarithm = rate.clamp_min(least).log() + step - 0.5 * step.square()
        terms = rate - count * logarithm - count + torch.special.xlogy(count, count)
        terms = terms + rate.clamp_max(0.0).square() / (2.0 * least)
        return terms.flatten(1).sum(1)


@dataclass(frozen=True)
class SaltAndPepper(Noise):
    """A share of the pixels is lost: all their channels become 0, or all 1, with equal chance.

    Pixels that are 0 or 1 in all channels count as lost and say nothing (see
    :func:`known_pixels`); of the others the likelihood is Laplace's, the 1-norm of the paper's
    objective, with the standard deviation of rounding to 8 bits: a pixel that is wrong in another
    way pulls no harder than the rest.

    Args:
        share: Share of the pixels, between 0 and 1.

    Raises:
        FlowmendError: If the share is not between 0 and 1.
    """

    share: float = 0.1
    name: ClassVar[str] = "salt-pepper"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise FlowmendError(
                f"The share of salt-and-pepper noise must be between 0 and 1, not {self.share}."
            )

    @property
    def sigma(self) -> float:
        """Zero: what is known is exact."""
        return 0.0

    def corrupt(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(clean), 1, *clean.shape[2:]) if clean.ndim == 4 else clean.shape
        draw = torch.rand(
            shape, generator=generator, dtype=torch.float64, device=generator.device
        ).to(clean.device)
        salt, lost = draw < self.share / 2, draw < self.share
        return torch.where(lost, salt.to(clean), clean)

    def variance(self, clean: Tensor) -> Tensor:
        return _floor(self.share / 2 * (clean.square() + (1.0 - clean).square()))

    def negative_log_likelihood(self, measured: Tensor, y: Tensor) -> Tensor:
        distance = torch.where(known_pixels(y), (measured - y).abs(), 0.0)
        return distance.flatten(1).sum(1) * (math.sqrt(2.0) / quantisation_sigma())


def known_pixels(y: Tensor) -> Tensor:
    """Where measurements are neither salt nor pepper: True unless all channels are 0 or all 1.

    Args:
        y: Measurements (B, C, H, W), or (B, m) where every value is on its own.

    Returns:
        Mask (B, 1, H, W), or (B, m); bool.
    """
    black, white = y == 0.0, y == 1.0
    if y.ndim == 4:
        black, white = black.all(1, keepdim=True), white.all(1, keepdim=True)
    return ~(black | white)


NOISES: dict[str, type[Noise]] = {kind.name: kind for kind in (Gaussian, Poisson, SaltAndPepper)}
"""Noise models by name; their fields are the options ``--sigma``, ``--peak`` and ``--share``."""


def make_noise(name: str = "gaussian", **options: float | None) -> Noise:
    """Builds a noise model by name.

    Args:
        name: A name of :data:`NOISES`.

    Keyword Args:
        options: Values of ``sigma``, ``peak`` or ``share``; None takes the model's own.

    Raises:
        FlowmendError: If the name is unknown, or an option is wrong or not one of the model's.
    """
    if name not in NOISES:
        raise FlowmendError(f"Unknown noise '{name}': choose from {', '.join(NOISES)}.")
    given = {option: value for option, value in options.items() if value is not None}
    known = {field.name for field in fields(NOISES[name])}
    for option in given:
        if option not in known:
            owners = [n for n, k in NOISES.items() if option in {f.name for f in fields(k)}]
            hint = f": it belongs to the noise {owners[0]}" if owners else ""
            raise FlowmendError(f"The noise {name} has no option {option}{hint}.")
    return NOISES[name](**given)


def parse_sigma(text: float | str | Tensor | None) -> float | str | Tensor | None:
    """A noise level from what a user gives: a number, the text of one, :data:`AUTO`, or a map.

    Args:
        text: The number; or a picture or ``.npy`` file of the measurements' size, or a tensor
            (H, W) or (C, H, W), with a level for every pixel, of which that of the channels is
            averaged.

    Returns:
        The number, ``auto``, or the map (1, H, W).

    Raises:
        FlowmendError: If it is another text, or the file cannot be read.
    """
    if text is None or (isinstance(text, str) and text == AUTO):
        return text
    if not isinstance(text, Tensor):
        try:
            return float(text)
        except ValueError as error:
            if not Path(text).is_file():
                raise FlowmendError(
                    f"The noise level (--sigma) must be a number, {AUTO}, or a file with a level "
                    f"for every pixel, not '{text}'."
                ) from error
            text = read_image(text)
    levels = text if text.ndim == 3 else text[None]
    if levels.ndim != 3:
        raise FlowmendError("A map of noise levels must be a picture.")
    return levels.float().mean(0, keepdim=True)
