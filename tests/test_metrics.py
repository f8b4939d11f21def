"""PSNR and SSIM against formulas written here, and against known values."""

import math

import numpy as np
import pytest
import torch
from conftest import smooth_images

import flowmend as fm


def noisy_pairs(count=3, channels=3, height=20, width=27, sigma=0.1):
    x = smooth_images(count, channels, height, width)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    sizes = sigma * torch.arange(1, count + 1).reshape(-1, 1, 1, 1)
    return (x + sizes * noise).float(), x.float()


def levels(image):
    """An image (C, H, W) in [0, 1] as a file would keep it, in float64."""
    return np.floor(np.clip(image.double().numpy(), 0, 1) * 255 + 0.5)


def psnr_by_hand(x, reference):
    error = levels(x) - levels(reference)
    return 20 * math.log10(255 / math.sqrt(np.mean(error**2)))


def ssim_by_hand(x, reference, k1=0.01, k2=0.03, side=11, sigma=1.5):
    """Wang et al. (2004), Eq. 13, averaged over the places where the window fits."""
    line = np.exp(-0.5 * ((np.arange(side) - side // 2) / sigma) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (k1 * 255) ** 2, (k2 * 255) ** 2
    found = []
    for a, b in zip(levels(x), levels(reference), strict=True):
        patches = [
            np.lib.stride_tricks.sliding_window_view(values, (side, side)) for values in (a, b)
        ]
        mean_a, mean_b = (np.sum(window * p, axis=(-2, -1)) for p in patches)
        apart = [
            p - mean[..., None, None] for p, mean in zip(patches, (mean_a, mean_b), strict=True)
        ]
        variance_a, variance_b = (np.sum(window * d**2, axis=(-2, -1)) for d in apart)
        together = np.sum(window * apart[0] * apart[1], axis=(-2, -1))
        top = (2 * mean_a * mean_b + c1) * (2 * together + c2)
        bottom = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
        found.append(np.mean(top / bottom))
    return float(np.mean(found))


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_the_formula(channels):
    x, reference = noisy_pairs(channels=channels)
    found = fm.psnr(x, reference)
    wanted = [psnr_by_hand(a, b) for a, b in zip(x, reference, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-9)
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("step", [1, 5, 51])
def test_psnr_of_a_constant_error(step):
    reference = torch.full((1, 3, 8, 12), 100 / 255)
    x = torch.full((1, 3, 8, 12), (100 + step) / 255)
    assert fm.psnr(x, reference)[0] == pytest.approx(20 * math.log10(255 / step), abs=1e-9)


def test_psnr_extremes():
    black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert fm.psnr(white, black) == [pytest.approx(0.0, abs=1e-12)]
    assert fm.psnr(white, white) == [math.inf]
    assert fm.psnr(white + 5.0, white) == [math.inf], "a file holds nothing above white"
    assert fm.psnr(white - 0.4 / 255, white) == [math.inf], "a file holds whole levels"
    assert fm.psnr(white - 0.6 / 255, white)[0] == pytest.approx(20 * math.log10(255))


def test_psnr_is_not_the_author_of_the_papers():
    """His code takes the root twice: 20 log10(255 / sqrt(RMSE)), which is (48.13 + ours) / 2."""
    x, reference = noisy_pairs()
    for a, b, ours in zip(x, reference, fm.psnr(x, reference), strict=True):
        rmse = math.sqrt(np.mean((levels(a) - levels(b)) ** 2))
        his = 20 * math.log10(255 / math.sqrt(rmse))
        assert his - ours > 5.0
        assert 2 * his - 48.1308 == pytest.approx(ours, abs=1e-4)


def test_psnr_is_an_images_own():
    x, reference = noisy_pairs()
    together = fm.psnr(x, reference)
    alone = [fm.psnr(x[i : i + 1], reference[i : i + 1])[0] for i in range(3)]
    assert together == alone
    pooled = 20 * math.log10(
        1 / math.sqrt(float((x.clamp(0, 1) - reference).double().square().mean()))
    )
    assert abs(sum(together) / 3 - pooled) > 0.5, "the mean is not the PSNR of the pooled error"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_ssim_is_wang_et_al(channels, sigma):
    x, reference = noisy_pairs(channels=channels, sigma=sigma)
    wanted = [ssim_by_hand(a, b) for a, b in zip(x, reference, strict=True)]
    assert fm.ssim(x, reference) == pytest.approx(wanted, abs=1e-6)
    assert wanted[0] > wanted[1] > wanted[2]


@pytest.mark.parametrize("change", [{"k2": 0.05}, {"side": 9}, {"sigma": 1.3}])
def test_the_formula_of_ssim_notices_other_constants(change):
    x, reference = noisy_pairs()
    assert abs(fm.ssim(x, reference)[0] - ssim_by_hand(x[0], reference[0], **change)) > 1e-5


def test_ssim_of_the_smallest_image_for_the_window():
    x, reference = noisy_pairs(height=11, width=11)
    wanted = [ssim_by_hand(a, b) for a, b in zip(x, reference, strict=True)]
    assert fm.ssim(x, reference) == pytest.approx(wanted, abs=1e-6)


def test_ssim_extremes():
    x, reference = noisy_pairs()
    assert fm.ssim(reference, reference) == pytest.approx([1.0] * 3, abs=1e-12)
    assert fm.ssim(1.0 - reference, reference)[0] < 0.2
    assert fm.ssim(x, reference) == pytest.approx(fm.ssim(reference, x), abs=1e-12)


@pytest.mark.parametrize("side", [2, 3, 4, 7, 8, 10])
def test_ssim_of_images_below_the_window(side):
    x, reference = noisy_pairs(height=side, width=side + 3)
    found = fm.ssim(x, reference)
    assert all(-1.0 <= value < 1.0 for value in found)
    assert fm.ssim(reference, reference) == pytest.approx([1.0] * 3, abs=1e-12)


def test_metrics_leave_their_arguments_alone():
    x, reference = noisy_pairs()
    x.requires_grad_(True)
    kept = x.detach().clone()
    fm.psnr(x, reference)
    fm.ssim(x, reference)
    assert torch.equal(x, kept)
    assert x.requires_grad
