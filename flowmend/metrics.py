"""How close a restoration is to the truth, as an 8-bit file would show it; one value an image."""

import numpy as np
from torch import Tensor

from .pixels import to_bytes

__all__ = ["psnr", "ssim"]


def _levels(images: Tensor) -> np.ndarray:
    return to_bytes(images.detach().cpu()).permute(0, 2, 3, 1).numpy()


def psnr(x: Tensor, reference: Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB, ``20 log10(255 / RMSE)`` over all values of an image.

    Args:
        x: Images (B, C, H, W) in [0, 1].
        reference: The truth, of the same shape.

    Returns:
        One value an image; infinite for identical images.
    """
    from skimage.metrics import peak_signal_noise_ratio

    pairs = zip(_levels(reference), _levels(x), strict=True)
    with np.errstate(divide="ignore"):
        return [float(peak_signal_noise_ratio(a, b, data_range=255)) for a, b in pairs]


def ssim(x: Tensor, reference: Tensor) -> list[float]:
    """Structural similarity: 11x11 Gaussian window of 1.5 pixels, mean over the channels.

    Images with a side below 11 pixels take the largest odd uniform window that fits.

    Source: Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et
    al., 2004), https://doi.org/10.1109/TIP.2003.819861

    Args:
        x: Images (B, C, H, W) in [0, 1].
        reference: The truth, of the same shape.
    """
    from skimage.metrics import structural_similarity

    side = min(x.shape[-2:])
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    if side < 11:
        window = {"win_size": side - 1 + side % 2, "use_sample_covariance": False}
    pairs = zip(_levels(reference), _levels(x), strict=True)
    return [
        float(structural_similarity(a, b, data_range=255, channel_axis=2, **window))
        for a, b in pairs
    ]
