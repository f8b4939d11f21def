"""The methods without a flow: pseudo-inverse, the Gaussian prior's posterior mean, BM3D."""

import torch
from torch import Tensor

from .errors import FlowmendError
from .lowrank import LowRankGaussian
from .operators import LinearOperator
from .pixels import quantisation_sigma
from .prior import GaussianPrior

__all__ = ["bm3d", "lmmse", "pinv"]


def pinv(y: Tensor, operator: LinearOperator) -> Tensor:
    """The pseudo-inverse A^+ y: images (B, C, H, W)."""
    return operator.A_dagger(y)


@torch.no_grad()
def lmmse(
    y: Tensor, operator: LinearOperator, prior: GaussianPrior | LowRankGaussian, sigma: float
) -> Tensor:
    """The mean of p(x | y) under a Gaussian prior, in closed form.

    It is the best linear estimate, and the MAP too; see
    :class:`~flowmend.gaussian.GaussianPosterior` and, for one of low rank,
    :class:`~flowmend.lowrank_posterior.LowRankPosterior`. Computed in float64 on
    the CPU; sigma is at least the rounding of an 8-bit file.

    Args:
        y: Measurements (B, ...).
        operator: Anything with ``A``.
        prior: The Gaussian.
        sigma: Standard deviation of the noise on the [0, 1] scale.

    Returns:
        Images (B, C, H, W).
    """
    return prior.posterior(operator, max(sigma, quantisation_sigma())).mean(y)


def bm3d(y: Tensor, sigma: float) -> Tensor:
    """BM3D through its authors' package, one image at a time, colour as CBM3D.

    Source: Image Denoising by Sparse 3-D Transform-Domain Collaborative Filtering (Dabov et al.,
    2007), https://doi.org/10.1109/TIP.2007.901238

    Raises:
        FlowmendError: If the package is not installed.
    """
    try:
        from bm3d import bm3d as denoise
        from bm3d import bm3d_rgb
    except ImportError as error:
        raise FlowmendError(
            "The method bm3d needs its package: pip install 'flowmend[bm3d]' (free for "
            "non-commercial use)."
        ) from error
    if min(y.shape[-2:]) < 9:
        raise FlowmendError("The method bm3d needs images of at least 9 x 9 pixels.")
    images = []
    for image in y.detach().cpu().double():
        values = image.permute(1, 2, 0).numpy()
        result = bm3d_rgb(values, sigma) if image.shape[0] == 3 else denoise(values, sigma)
        images.append(torch.as_tensor(result).reshape(values.shape).permute(2, 0, 1))
    return torch.stack(images).to(y)
