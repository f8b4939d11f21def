"""The methods of photographs.py: ours and its peers, each from one measurement to an image.

BM3D by its authors' package; the Wiener filter of the prior's own stationary Gaussian; total
variation and half-quadratic splitting (DPIR's settings) by deepinv, the latter with our network as
its denoiser; and Flower's algorithm on our network. Beside them the paper's kind of flow, of small
patches. Where pixels are missing DPIR begins with what the Wiener filter finds: with black it ends
nowhere.

Sources: Flower: A Flow-Matching Solver for Inverse Problems (Pourya et al., 2026),
https://arxiv.org/abs/2509.26287; Plug-and-Play Image Restoration with Deep Denoiser Prior (Zhang
et al., 2021), https://arxiv.org/abs/2008.13751
"""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import flowmend as fm
from flowmend import baselines
from flowmend.chance import generator_at
from flowmend.device import default_precision
from flowmend.guidance import Guidance
from flowmend.least_squares import conjugate_gradients
from flowmend.photographs import restore_photograph
from flowmend.tasks import Task

PATCHES = Path(__file__).resolve().parent.parent / "weights" / "patches8.safetensors"
OF_PATCHES = "flow of patches"
TV_WEIGHTS = {"deblur": 3e-4, "inpaint": 3e-2, "upscale": 3e-3}
Method = Callable[[Tensor, Task, fm.ContinuousPrior], Tensor]
"""From one measurement (1, c, h, w) to an image of the operator's shape."""


def ours(
    y: Tensor, task: Task, prior: fm.ContinuousPrior, evaluations: int | None = None
) -> Tensor:
    """What ``flowmend restore`` does."""
    precision = default_precision(torch.device("cpu"))
    return restore_photograph(y, task, prior, steps=evaluations, precision=precision).x


def turned(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """The same with ``--turns 8``."""
    return ours(y, task, prior.with_turns(8))


def bm3d(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """BM3D by its authors' package."""
    return baselines.bm3d(y, task.sigma)


def wiener(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """The posterior mean of the prior's stationary Gaussian, by conjugate gradients."""
    gaussian = prior.at_shape(task.operator.shape).stationary
    sigma = max(task.sigma, 1e-3)
    return Guidance(y, task.operator, sigma, gaussian, steps=300, tolerance=1e-3).linear(1.0)


def flower(
    y: Tensor, task: Task, prior: fm.ContinuousPrior, steps: int = 100, runs: int = 1
) -> Tensor:
    """Flower: where the velocity leads, a proximal step towards the data, new noise."""
    local = prior.at_shape(task.operator.shape).at_precision("bfloat16")
    sigma, operator = max(task.sigma, 1e-3), task.operator
    mean = torch.zeros(1, *operator.shape)
    for run in range(runs):
        generator = generator_at(0, 11, run)
        x = None
        for index in range(steps):
            t = (index + 0.5) / steps
            noise = torch.randn(1, *operator.shape, generator=generator)
            level = (1.0 - t) / (2.0 * t)
            noisy = 0.5 + level * noise if x is None else x + level * noise
            with torch.no_grad():
                target = local.denoise(noisy, level)
            # on the range [-1, 1] the covariance is (1 - t)^2 / (t^2 + (1 - t)^2)
            spread = 0.5 * (1.0 - t) / (t**2 + (1.0 - t) ** 2) ** 0.5
            x = proximal(y, operator, sigma, target, spread)
        mean = mean + x / runs
    return mean


def proximal(y: Tensor, operator: object, sigma: float, target: Tensor, spread: float) -> Tensor:
    """The minimum of ``|A x - y|^2 / sigma^2 + |x - target|^2 / spread^2``."""
    ratio = sigma**2 / spread**2

    def normal(v: Tensor) -> Tensor:
        return operator.A_adjoint(operator.A(v)) + ratio * v

    back = operator.A_adjoint(y - operator.A(target))
    return target + conjugate_gradients(normal, back, 100, 1e-4)


def _physics(task: Task) -> object:
    """Our operator as a deepinv physics."""
    import deepinv

    return deepinv.physics.LinearPhysics(
        A=lambda x, **_: task.operator.A(x), A_adjoint=lambda y, **_: task.operator.A_adjoint(y)
    )


def _start(y: Tensor, task: Task) -> Tensor:
    """The adjoint, divided by what it makes of white; the middle grey where nothing is known."""
    seen = task.operator.A_adjoint(task.operator.A(torch.ones(1, *task.operator.shape)))
    found = task.operator.A_adjoint(y) / seen.clamp_min(1e-3)
    return torch.where(seen > 1e-3, found, torch.full_like(found, 0.5))


def total_variation(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """Total variation by deepinv: accelerated proximal gradient descent."""
    import deepinv

    weight = TV_WEIGHTS[task.name]
    model = deepinv.optim.optimizers.optim_builder(
        iteration="FISTA",
        prior=deepinv.optim.prior.TVPrior(n_it_max=10),
        data_fidelity=deepinv.optim.data_fidelity.L2(),
        max_iter=150,
        early_stop=False,
        params_algo={"stepsize": 1.0, "lambda": weight, "a": 3.0},
        custom_init=lambda y, physics: {"est": (_start(y, task), _start(y, task))},
    )
    return model(y, _physics(task))


def dpir(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """Half-quadratic splitting as deepinv's DPIR sets it, with our network as the denoiser."""
    import deepinv

    local = prior.at_shape(task.operator.shape).at_precision("bfloat16")

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, **_: object) -> Tensor:
            return local.denoise(x, float(sigma))

    model = deepinv.optim.DPIR(sigma=max(task.sigma, 1e-3), device="cpu", denoiser=Network())
    begin = {"init": wiener(y, task, prior)} if task.name == "inpaint" else {}
    with torch.no_grad():
        return model(y, _physics(task), **begin)


@functools.cache
def patches() -> fm.PatchPrior:
    """The flow of patches."""
    return fm.PatchPrior(fm.load(PATCHES))


def of_patches(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """What ``flowmend restore`` does with a flow of patches."""
    return restore_photograph(y, task, patches()).x


DENOISERS: dict[str, Method] = {
    "flowmend": ours,
    "flowmend, 8 turns": turned,
    "BM3D": bm3d,
    OF_PATCHES: of_patches,
}
SOLVERS: dict[str, Method] = {
    "flowmend": ours,
    "Wiener": wiener,
    "TV (deepinv)": total_variation,
    "DPIR (deepinv), our denoiser": dpir,
    "Flower, our network": flower,
    OF_PATCHES: of_patches,
}

WITHOUT_PRIOR = ("BM3D", "TV (deepinv)")
"""Methods whose lines hold whatever the prior is."""
