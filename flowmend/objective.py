"""What a restoration minimises: a data term and a regulariser, one value an image.

Images are on the [0, 1] scale here. The paper works on [-1, 1], where a residual is twice as
large: its weights are halved (1-norm) or quartered (squared 2-norm) to mean the same.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from .errors import FlowmendError
from .flow import standard_normal_log_prob

__all__ = ["Objective", "latent_norm", "likelihood", "map_estimate", "negative_log_likelihood"]


def negative_log_likelihood(z: Tensor, logdet: Tensor) -> Tensor:
    """Eq. 8: ``L(z) = -log p_Z(z) + log|det J_{F^-1}(z)|``, which is ``-log p(x)`` of the image.

    Args:
        z: Latents (B, D).
        logdet: Log-determinant (B,) of decode at z, nats.

    Returns:
        Shape (B,), nats.
    """
    return logdet - standard_normal_log_prob(z)


@dataclass(frozen=True)
class Objective:
    """``data_weight * ||A x - y|| + weight * regulariser(z)``, each image on its own.

    Args:
        norm: ``"l1"`` (sum of absolute values) or ``"l2"`` (sum of squares) of the residual.
        regulariser: ``"likelihood"`` (Eq. 8, nats) or ``"latent"`` (``||z||^2``).
        weight: Weight of the regulariser.
        data_weight: Weight of the data term.

    Raises:
        FlowmendError: If a name is unknown or a weight is negative or not finite.
    """

    norm: str
    regulariser: str
    weight: float
    data_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in ("l1", "l2"):
            raise FlowmendError(f"Unknown norm '{self.norm}': choose l1 or l2.")
        if self.regulariser not in ("likelihood", "latent"):
            raise FlowmendError(
                f"Unknown regulariser '{self.regulariser}': choose likelihood or latent."
            )
        for name, value in (("weight", self.weight), ("data weight", self.data_weight)):
            if not (math.isfinite(value) and value >= 0):
                raise FlowmendError(f"The {name} of an objective must be at least 0, not {value}.")

    def terms(self, z: Tensor, logdet: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted data term and the weighted regulariser, each of shape (B,).

        Args:
            z: Latents (B, D).
            logdet: Log-determinant (B,) of decode at z.
            residual: ``A x - y`` (B, ...), on the [0, 1] scale.
        """
        residual = residual.flatten(1)
        data = residual.abs().sum(1) if self.norm == "l1" else residual.square().sum(1)
        if self.regulariser == "likelihood":
            penalty = negative_log_likelihood(z, logdet)
        else:
            penalty = z.square().sum(1)
        return self.data_weight * data, self.weight * penalty


def likelihood(alpha: float) -> Objective:
    """Eq. 7, the paper's: ``||A x - y||_1 + alpha L(z)``."""
    return Objective("l1", "likelihood", alpha)


def latent_norm(gamma: float) -> Objective:
    """Eq. 1, CSGM and GlowIP: ``||A x - y||^2 + gamma ||z||^2``."""
    return Objective("l2", "latent", gamma)


def map_estimate(sigma: float, beta: float = 1.0) -> Objective:
    """Eq. 2, MAP: ``||A x - y||^2 / (2 sigma^2) - beta log p(x)``, sigma on the [0, 1] scale.

    With beta = 1 this is the posterior density's maximum under Gaussian noise.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise FlowmendError(f"MAP needs the noise level: sigma must be above 0, not {sigma}.")
    return Objective("l2", "likelihood", beta, data_weight=1.0 / (2.0 * sigma**2))
