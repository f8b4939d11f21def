"""Restores measurements of a task: finds the noise, picks the settings, solves."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .continuous import ContinuousPrior
from .methods import default_settings, find_method
from .noise import Gaussian, GaussianMap, SaltAndPepper, known_pixels
from .noise_level import noise_level
from .operators import LinearOperator
from .patches import PatchPrior
from .pixels import quantisation_sigma
from .prior import GaussianPrior, Prior
from .solution import Solution
from .solver import Progress, default_method, solve
from .tasks import Task

__all__ = ["restore"]

LONGEST_STRIDE = 0.05
"""Largest learning rate that :func:`restore` chooses when it is given few steps."""
SMOOTH = 5
"""Side in pixels of the squares whose mean tells how much light, and so noise, a pixel has."""
SIGMA_STEP = 1.05
"""Estimated noise levels within this factor of each other are restored as one."""


class _Weighted(LinearOperator):
    """An operator whose measurements of one image count differently.

    Args:
        inner: The operator.
        weight: What every measurement is multiplied with, of a shape that fits them: 0 where it
            is lost.
    """

    def __init__(self, inner: LinearOperator, weight: Tensor) -> None:
        super().__init__(inner.shape)
        self.inner, self.weight = inner, weight

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return self.inner.A(x) * self.weight.to(x)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return self.inner.A_adjoint(y * self.weight.to(y))


def restore(
    y: Tensor,
    task: Task,
    prior: Prior,
    method: str | None = None,
    *,
    weight: float | None = None,
    steps: int | None = None,
    start: str | Tensor | None = None,
    precision: str = "float32",
    memory: str = "autograd",
    generator: torch.Generator | None = None,
    samples: int = 8,
    progress: Progress | None = None,
) -> Solution:
    """Restores measurements of a task with settings that fit it.

    The methods of the paper take the settings it gives for the task. Noise of unknown level is
    estimated from every measurement; of salt-and-pepper noise every image has measurements of its
    own left; counted light is judged by its own likelihood where the method can. Measurements that
    are pictures within [0, 1] count as clipped to it, of which our methods know
    (:mod:`flowmend.clipping`).

    Args:
        y: Measurements (B, ...) on the [0, 1] scale.
        task: The task, from :func:`~flowmend.tasks.make_task`.
        prior: What is known about the images.
        method: A name of :data:`~flowmend.methods.METHODS`; None takes
            :func:`~flowmend.solver.default_method`.

    Keyword Args:
        weight: Weight of the regulariser on the [0, 1] scale; None takes the paper's.
        steps: Steps; None takes the method's. A latent optimisation of fewer than the paper's
            1500 raises its learning rate in proportion (to 0.05 at most) and lets it fall along a
            cosine.
        start: See :func:`~flowmend.methods.default_settings`.
        precision: See :func:`~flowmend.solver.solve`.
        memory: Likewise.
        generator: Source of starts and noise.
        samples: Draws from the posterior to return, for ``posterior``.
        progress: Called with (step, steps, what).

    Returns:
        The solution; ``settings["sigma"]`` is the noise level, or a list of one for each image
        where these were estimated.

    Raises:
        FlowmendError: As :func:`~flowmend.solver.solve`.
    """
    method = default_method(prior) if method is None else method
    offset = task.offset_like(y)
    moved, limits = y - offset, task.limits(y)
    options: dict[str, object] = {
        "method": method,
        "precision": precision,
        "memory": memory,
        "generator": generator,
        "samples": samples,
        "progress": progress,
        **_settings(task, method, weight, steps, start),
    }
    if limits is not None:
        options["limits"] = limits
    if isinstance(task.noise, SaltAndPepper):
        parts = []
        for index, (image, measured) in enumerate(zip(y.split(1), moved.split(1), strict=True)):
            seen = known_pixels(image).to(y)
            operator = _Weighted(task.operator, seen)
            options["progress"] = _part(progress, index, len(y))
            parts.append(solve(measured * seen, operator, prior, sigma=0.0, **options))
        return _merge(parts, [[index] for index in range(len(y))])
    if task.noise is None:
        gaussian = getattr(prior, "gaussian", None)
        gaussian = gaussian if isinstance(gaussian, GaussianPrior) else None
        sigma = noise_level(moved, task.operator, prior, gaussian, limits)
        return _at_levels(moved, task, prior, sigma, options)
    if isinstance(task.noise, Gaussian):
        return solve(moved, task.operator, prior, sigma=task.sigma, **options)
    noise = task.noise
    by_denoiser = isinstance(prior, ContinuousPrior | PatchPrior)
    if y.ndim == 4 and (isinstance(noise, GaussianMap) or by_denoiser):
        return _at_pixels(y, moved, task, prior, options)
    if find_method(method).whitened and not by_denoiser:
        options["data_term"] = lambda measured, y: noise.negative_log_likelihood(
            measured + offset, y + offset
        )
    sigma = noise.variance(y).flatten(1).mean(1).sqrt()
    return _at_levels(moved, task, prior, sigma, options)


def _part(progress: Progress | None, index: int, count: int) -> Progress | None:
    """Makes the progress of one of several solves that of all."""
    if progress is None:
        return None
    return lambda done, total, what: progress(index * total + done, count * total, what)


def _settings(
    task: Task,
    method: str,
    weight: float | None,
    steps: int | None,
    start: str | Tensor | None,
) -> dict[str, object]:
    """What the user said, and for a latent optimisation what the paper gives."""
    settings: dict[str, object] = {"steps": steps, "start": start}
    if find_method(method).objective is not None:
        usual = default_settings(method, start)
        if steps is not None and 0 < steps < usual["steps"] and not usual["cosine"]:
            longer = usual["learning_rate"] * usual["steps"] / steps
            settings |= {"learning_rate": min(LONGEST_STRIDE, longer), "cosine": True}
        settings |= task.spec.presets.get(method, {})
    if weight is not None:
        settings["weight"] = weight
    return settings


def _at_levels(
    y: Tensor, task: Task, prior: Prior, sigma: Tensor, options: dict[str, object]
) -> Solution:
    """Restores images of different noise levels, those of nearly the same one together.

    Args:
        y: Measurements (B, ...), the offset taken off.
        task: The task.
        prior: The prior.
        sigma: Standard deviation of the noise of every image (B,).
        options: Of :func:`~flowmend.solver.solve`.
    """
    floor = quantisation_sigma()
    groups: dict[int, list[int]] = {}
    for index, level in enumerate(sigma.tolist()):
        step = round(math.log(max(level, floor) / floor) / math.log(SIGMA_STEP))
        groups.setdefault(step, []).append(index)
    parts = []
    progress = options.pop("progress")
    for index, (step, members) in enumerate(groups.items()):
        options["progress"] = _part(progress, index, len(groups))
        level = floor * SIGMA_STEP**step
        parts.append(solve(y[members], task.operator, prior, sigma=level, **options))
    whole = _merge(parts, list(groups.values()))
    whole.settings["sigma"] = sigma.tolist()
    return whole


def _at_pixels(
    y: Tensor, moved: Tensor, task: Task, prior: Prior, options: dict[str, object]
) -> Solution:
    """Restores images whose noise differs from pixel to pixel, and is known or follows from y.

    Every measurement is divided by the standard deviation of its noise, which makes it white. That
    is the same for all channels of a pixel: the mean of their variances.
    """
    sigma, parts = [], []
    progress, limits = options.pop("progress"), options.pop("limits")
    for index, (image, measured) in enumerate(zip(y.split(1), moved.split(1), strict=True)):
        smooth = functional.avg_pool2d(image, SMOOTH, 1, SMOOTH // 2, count_include_pad=False)
        variance = task.noise.variance(smooth).mean(1, keepdim=True)
        sigma.append(float(variance.mean().sqrt()))
        weight = sigma[-1] / variance.sqrt()
        operator = _Weighted(task.operator, weight)
        options["progress"] = _part(progress, index, len(y))
        options["limits"] = tuple(limit * weight for limit in limits)
        parts.append(solve(measured * weight, operator, prior, sigma=sigma[-1], **options))
    whole = _merge(parts, [[index] for index in range(len(y))])
    whole.settings["sigma"] = sigma
    return whole


def _merge(parts: list[Solution], members: list[list[int]]) -> Solution:
    """One solution of several; part k holds the images ``members[k]``."""
    order = [index for group in members for index in group]
    back = torch.tensor(order).argsort()

    def rows(tensors: list[Tensor | None], dim: int = 0) -> Tensor | None:
        if any(tensor is None for tensor in tensors):
            return None
        return torch.cat(tensors, dim).index_select(dim, back.to(tensors[0].device))

    trace = {}
    for name in parts[0].trace:
        values = [part.trace[name] for part in parts]
        length = max(map(len, values))
        # the objective of a group that ended earlier stays where it was
        values = [torch.cat([v, v[-1:].expand(length - len(v), -1)]) for v in values]
        trace[name] = rows(values, 1)
    status = [text for part in parts for text in part.status]
    return Solution(
        rows([part.x for part in parts]),
        rows([part.z for part in parts]),
        trace,
        [status[index] for index in back.tolist()],
        sum(part.seconds for part in parts),
        parts[0].method,
        dict(parts[0].settings),
        rows([part.std for part in parts]),
        rows([part.samples for part in parts], 1),
        rows([part.mean_error for part in parts]),
    )
