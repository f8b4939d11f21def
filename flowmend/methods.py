"""Every method in one table: the paper's, its rivals', the baselines it lacks, and ours."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .errors import FlowmendError
from .objective import Objective, latent_norm, likelihood, map_estimate

__all__ = ["METHODS", "Method", "default_settings", "find_method"]


@dataclass(frozen=True)
class Method:
    """A line of the table of methods.

    Args:
        name: Its name on the command line.
        title: What it is, in a sentence.
        start: Named start of the latent optimisation; None where there is none.
        objective: From (weight, sigma) to the objective; None where there is no latent
            optimisation.
        weight: Default weight of the regulariser, on the [0, 1] scale.
        learning_rate: Adam's default rate.
        steps: Default number of steps; 0 for a closed form.
        whitened: Whether it searches the coordinates that the Gaussian posterior whitens.
        needs_noise: Whether it only works with a noise level above 0.
        only_denoises: Whether it only fits the identity operator.
    """

    name: str
    title: str
    start: str | None = None
    objective: Callable[[float, float], Objective] | None = None
    weight: float = 0.0
    learning_rate: float = 5e-3
    steps: int = 0
    whitened: bool = False
    needs_noise: bool = False
    only_denoises: bool = False


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "fast-map",
            "the most probable image, from the LMMSE solution in whitened coordinates",
            learning_rate=0.05,
            steps=20,
            whitened=True,
        ),
        Method(
            "posterior",
            "the mean of the likely images and how far they scatter: std, samples",
            learning_rate=0.05,
            steps=40,
            whitened=True,
        ),
        Method(
            "splitting",
            "one picture by a continuous flow's denoiser, without draws: half-quadratic splitting",
            steps=10,
            whitened=True,
        ),
        Method(
            "likelihood",
            "the paper's solver, Eq. 7: 1-norm and the likelihood of the image",
            start="small",
            objective=lambda weight, sigma: likelihood(weight),
            weight=0.01,
            steps=1500,
        ),
        Method(
            "csgm",
            "Eq. 1 from a random start: 2-norm and the norm of the latent (Bora et al., 2017)",
            start="random",
            objective=lambda weight, sigma: latent_norm(weight),
            weight=0.0025,
            steps=1500,
        ),
        Method(
            "glowip",
            "Eq. 1 from the zero latent (Asim et al., 2020)",
            start="zero",
            objective=lambda weight, sigma: latent_norm(weight),
            steps=1500,
        ),
        Method(
            "map",
            "Eq. 2: Gaussian noise and the likelihood of the image (Whang et al., 2021)",
            start="small",
            objective=lambda weight, sigma: map_estimate(sigma, weight),
            weight=0.5,
            learning_rate=1.5e-3,
            steps=1500,
            needs_noise=True,
        ),
        Method("pinv", "the pseudo-inverse, no prior at all"),
        Method("lmmse", "the posterior mean under a Gaussian prior, closed form"),
        Method(
            "bm3d",
            "BM3D, the classical denoiser (Dabov et al., 2007)",
            needs_noise=True,
            only_denoises=True,
        ),
    )
}
"""Named methods; weights are on the [0, 1] scale (see :mod:`flowmend.objective`)."""


def find_method(name: str) -> Method:
    """A method by name; an unknown one raises :class:`FlowmendError`."""
    if name not in METHODS:
        raise FlowmendError(f"Unknown method '{name}': choose from {', '.join(METHODS)}.")
    return METHODS[name]


LMMSE_START: dict[str, object] = {
    "start": "lmmse",
    "steps": 100,
    "learning_rate": 3e-3,
    "cosine": True,
}
"""How a latent optimisation goes on from the closed-form solution of the Gaussian prior."""


def default_settings(method: str, start: str | Tensor | None = None) -> dict[str, object]:
    """Start, steps, learning rate, cosine and weight of a latent optimisation.

    They are the paper's. From the start ``lmmse`` it takes 100 short steps: near the zero latent,
    where the paper starts, a good flow finds images far likelier than any face, all of them
    smooth, and the gradient does not lead out again.

    Args:
        method: A name of :data:`METHODS` with an objective.
        start: The start the user asks for.
    """
    chosen = find_method(method)
    settings: dict[str, object] = {
        "start": chosen.start,
        "steps": chosen.steps,
        "learning_rate": chosen.learning_rate,
        "cosine": False,
        "weight": chosen.weight,
    }
    if isinstance(start, str) and start == "lmmse":
        settings |= LMMSE_START
    elif start is not None:
        settings["start"] = start
    return settings
