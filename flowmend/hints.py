"""The Gaussian's velocities for the mixed times of a training batch, at a bearable cost."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .chance import MIXED, SURE, generator_at, time_maps
from .flow import GaussianVelocity

__all__ = ["HintBank"]

MAPS = 24
"""Maps of times that are at hand at any step; no fewer than there may be folds."""
EVERY = 20
"""Steps after which the oldest map gives way to a new one: each costs a large factorisation."""


class HintBank:
    """A moving window over random maps of times, each with the Gaussian's gain for it.

    Step s sees the maps numbered from ``s // 20`` on; a map depends on the seed and its number
    alone, so that a resumed run sees the same.

    Where there are several Gaussians, map s is for images of fold ``s % K`` alone, and so is
    Gaussian ``s % K``, which was fitted without them: on images that it has seen a Gaussian is
    better than on others, and a network that learns from it would trust it too much.

    Args:
        gaussians: The Gaussian, or K of them, one for each fold of the images.
        seed: Seed of the run.
        mixed: Share of the images with times of several kinds, here and below as
            :func:`flowmend.chance.time_maps` has it.
        focused: Share of the single times where noise is about the usual.
        sure: How often a map says that values are known exactly, or not at all.
        common: Share of the maps that are met most.
    """

    def __init__(
        self,
        gaussians: Sequence[GaussianVelocity],
        seed: int,
        mixed: float = MIXED,
        focused: float = 0.0,
        sure: float = SURE,
        common: float = 0.0,
    ) -> None:
        self.gaussians, self.seed = list(gaussians), seed
        self.mixed, self.focused, self.sure, self.common = mixed, focused, sure, common
        self._maps: dict[int, tuple[Tensor, Tensor]] = {}

    def prepare(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Times (C, H, W) and gains (D, D), float32, that a step may use."""
        first = step // EVERY
        wanted = range(first, first + MAPS)
        self._maps = {number: kept for number, kept in self._maps.items() if number in wanted}
        for number in wanted:
            if number not in self._maps:
                times = self._times(number)
                gaussian = self.gaussians[number % len(self.gaussians)]
                self._maps[number] = times, gaussian.gain(times).float()
        return [self._maps[number] for number in wanted]

    def _times(self, number: int) -> Tensor:
        """A map that is not even."""
        generator = generator_at(self.seed, 8, number)
        while True:
            maps = time_maps(
                (16, *self.gaussians[0].mean.shape),
                generator,
                sure=self.sure,
                common=self.common,
            )
            for times in maps:
                if float(times.min()) < float(times.max()):
                    return times

    def draw(
        self, owners: Tensor, step: int, generator: torch.Generator
    ) -> tuple[Tensor, "Hints"]:
        """Times (B, C, H, W) as :func:`flowmend.chance.time_maps`, the mixed ones of the window.

        Args:
            owners: Numbers (B,) of the images; image i belongs to fold ``i % K``.
            step: Step of the run.
            generator: Source of all that is random.

        Returns:
            The times and what gives the Gaussian's velocities of points at them.
        """
        maps, folds = self.prepare(step), len(self.gaussians)
        shape = len(owners), *self.gaussians[0].mean.shape
        times = time_maps(shape, generator, self.mixed, self.focused)
        flat = times.flatten(1)
        even = flat.amin(1) == flat.amax(1)
        which = torch.randint(len(maps) // folds, (len(owners),), generator=generator)
        which = folds * which + (owners - step // EVERY) % folds
        which = torch.where(even, -1, which)
        chosen = torch.stack([maps[k][0] if k >= 0 else times[i] for i, k in enumerate(which)])
        return chosen, Hints(self.gaussians, maps, owners % folds, which)


class Hints:
    """The Gaussians' velocities for one batch; see :class:`HintBank`."""

    def __init__(
        self,
        gaussians: Sequence[GaussianVelocity],
        maps: list[tuple[Tensor, Tensor]],
        folds: Tensor,
        which: Tensor,
    ) -> None:
        self.gaussians, self.maps, self.folds, self.which = gaussians, maps, folds, which

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocities (B, C, H, W) of points (B, C, H, W) at times (B, C, H, W)."""
        x = x_t.float()
        found = torch.empty_like(x)
        for fold, k in torch.stack([self.folds, self.which], dim=1).unique(dim=0).tolist():
            gaussian = self.gaussians[fold]
            rows = torch.nonzero((self.folds == fold) & (self.which == k)).flatten()
            if k < 0:
                gaussian.basis()
                found[rows] = gaussian(x[rows], t[rows].flatten(1)[:, 0])
                continue
            times, gain = self.maps[k]
            seen = (x[rows] - times.to(x) * gaussian.mean.to(x)).flatten(1)
            found[rows] = (seen @ gain.to(x).T).view(-1, *x.shape[1:]) + gaussian.mean.to(x)
        return found
