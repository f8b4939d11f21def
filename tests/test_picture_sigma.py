"""The noise level of a picture from itself: against known levels, and where it is blind."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch
from conftest import smooth_images

import flowmend as fm
from flowmend import picture_sigma as module
from flowmend.clipping import clipped_moments, mean_before
from flowmend.operators import Identity, Mask
from flowmend.picture_sigma import differences_sigma, patches_sigma, picture_sigma
from flowmend.pixels import quantisation_sigma
from flowmend.sigma import estimate_sigma

SHAPE = (3, 64, 56)
LEVELS = (0.01, 0.05, 0.2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def textured(count, shape=SHAPE):
    """Pictures whose grey is rough at every pixel, and whose colours are smooth."""
    return smooth_images(count, *shape) + 0.04 * noise((count, 1, *shape[1:]), 1)


def noisy(levels=LEVELS, shape=SHAPE):
    """Textured pictures, each with a noise level of its own."""
    level = torch.tensor(levels, dtype=torch.float64).view(-1, 1, 1, 1)
    return textured(len(levels), shape) + level * noise((len(levels), *shape), 2)


def worst(found, levels=LEVELS):
    return float((found / torch.tensor(levels, dtype=torch.float64) - 1.0).abs().max())


def test_texture_is_not_taken_for_noise():
    found = picture_sigma(noisy(), Identity(SHAPE))
    assert found.shape == (len(LEVELS),)
    assert found.dtype == torch.float64
    assert worst(found) < 0.05
    assert worst(differences_sigma(noisy(), Identity(SHAPE))) > 1.0
    assert picture_sigma(noisy().float(), Identity(SHAPE)).dtype == torch.float32


@pytest.mark.parametrize("broken", ["smallest", "mean"])
def test_the_check_notices_another_choice_of_eigenvalues(broken, monkeypatch):
    def other(patches):
        flat = patches.flatten(1) - patches.flatten(1).mean(0)
        values = torch.linalg.eigvalsh(flat.T @ flat / len(flat))
        return (values[0] if broken == "smallest" else values.mean()).sqrt()

    monkeypatch.setattr(module, "_noise", other)
    with pytest.raises(AssertionError):
        test_texture_is_not_taken_for_noise()


def test_weak_noise_beside_strong_texture_is_found():
    """A tenth of what differences find, but as strong at half the resolution: it is white."""
    shape = (3, 96, 96)
    y = (
        smooth_images(1, *shape)
        + 0.2 * noise((1, 1, *shape[1:]), 1)
        + 0.02 * noise((1, *shape), 2)
    )
    assert float(differences_sigma(y, Identity(shape))[0]) > 0.15
    assert float(picture_sigma(y, Identity(shape))[0]) == pytest.approx(0.02, rel=0.05)


def test_noise_of_fine_grey_and_coarse_colours_is_found_by_differences():
    """As a JPEG file of halved colours leaves it."""
    whole, half = noise((2, *SHAPE)), noise((2, 3, SHAPE[1] // 2, SHAPE[2] // 2), 1)
    grey = whole.mean(1, keepdim=True)
    colours = (half - half.mean(1, keepdim=True)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = smooth_images(2, *SHAPE) + 0.05 * (3**0.5 * grey + 0.5 * colours)
    found = picture_sigma(y, Identity(SHAPE))
    assert torch.equal(found, differences_sigma(y, Identity(SHAPE)))
    assert float(patches_sigma(y, Identity(SHAPE)).max()) < 0.0125


def test_noise_without_colour_is_found_by_differences():
    y = smooth_images(2, *SHAPE) + 0.05 * noise((2, 1, *SHAPE[1:]))
    found = picture_sigma(y, Identity(SHAPE))
    assert torch.equal(found, differences_sigma(y, Identity(SHAPE)))
    assert float((found / 0.05 - 1.0).abs().max()) < 0.1
    assert float(patches_sigma(y, Identity(SHAPE)).max()) < 0.005


def half_rough(shape):
    """A picture of one channel (1, 1, H, W) that is smooth at the left and rough at the right."""
    x = smooth_images(1, *shape)
    x[..., shape[2] // 3 :] += 0.1 * noise((1, *shape[:2], shape[2] - shape[2] // 3), 4)
    return x


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_the_calmest_cells_show_the_noise_of_one_channel(sigma):
    shape = (1, 160, 150)
    y = half_rough(shape) + sigma * noise((1, *shape))
    found = picture_sigma(y, Identity(shape))
    assert float(found[0]) == pytest.approx(sigma, rel=0.1)
    assert float(differences_sigma(y, Identity(shape))[0]) > 1.2 * sigma
    kept = (y + 0.3).clamp(0.0, 1.0)
    found = picture_sigma(kept, Identity(shape), (0.0, 1.0))
    assert float(found[0]) == pytest.approx(sigma, rel=0.15)


def test_the_choice_of_calm_cells_does_not_weaken_noise():
    shape = (1, 200, 200)
    y = 0.5 + 0.1 * noise((4, *shape))
    seen = torch.ones(shape, dtype=torch.bool)
    found = module.calm_sigma(y, seen, None, torch.full((4,), 0.1))
    assert float((found / 0.1 - 1.0).abs().max()) < 0.05


def test_calm_noise_that_is_not_white_is_not_believed():
    """As a strong JPEG leaves it: hardly any in the finest detail, more in the coarser."""
    shape = (1, 160, 150)
    coarse = noise((1, 1, 80, 75)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = smooth_images(1, *shape) + 0.03 * coarse + 0.005 * noise((1, *shape), 3)
    rough = differences_sigma(y, Identity(shape))
    assert bool(module._white_calm(y, Identity(shape), None, rough).isnan().all())


def test_one_channel_takes_the_smallest_estimate():
    shape = (1, 96, 90)
    y = smooth_images(2, *shape) + 0.1 * noise((2, *shape))
    rough = differences_sigma(y, Identity(shape))
    fine = patches_sigma(y, Identity(shape))
    calm = module._white_calm(y, Identity(shape), None, rough)
    assert float((fine / 0.1 - 1.0).abs().max()) < 0.05
    wanted = torch.fmin(torch.fmin(fine, rough), calm)
    assert torch.equal(picture_sigma(y, Identity(shape)), wanted)


def test_a_mosaic_is_no_noise():
    """Every second pixel of a mosaic is of another colour, which differences take for noise."""
    shape = (3, 161, 128)
    colours = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
    x = colours * half_rough((1, *shape[1:])).clamp(0.0, 1.0)
    task = fm.make_task("demosaic", shape, sigma=0.02)
    y = task.measure(x, seeded())
    assert float(differences_sigma(y, task.operator)[0]) > 0.06
    for limits in (None, (0.0, 1.0)):
        found = picture_sigma(y.clamp(0.0, 1.0), task.operator, limits)
        assert float(found[0]) == pytest.approx(0.02, rel=0.12)


@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_clipped_noise_is_found_as_it_was(sigma):
    y = smooth_images(2, *SHAPE) + sigma * noise((2, *SHAPE))
    clipped = y.clamp(0.0, 1.0)
    found = picture_sigma(clipped, Identity(SHAPE), (0.0, 1.0))
    assert float((found / sigma - 1.0).abs().max()) < 0.05
    if sigma > 0.2:
        without = picture_sigma(clipped, Identity(SHAPE))
        assert float((without / sigma - 1.0).abs().min()) > 0.05


def test_only_clipped_pictures_are_corrected():
    y = noisy((0.05, 0.05)).clamp(0.05, 0.95)
    y[1, 0, :8, :8] = 1.0
    plain = patches_sigma(y, Identity(SHAPE))
    found = patches_sigma(y, Identity(SHAPE), (0.0, 1.0))
    assert found[0] == plain[0]
    assert found[1] != plain[1]


@pytest.mark.parametrize("shift", [-1.2, 0.0, 0.7])
@pytest.mark.parametrize("limits", [(-0.5, 0.8), (-3.0, 0.1), (-math.inf, 0.4), (-0.2, math.inf)])
def test_what_clipping_makes_of_a_normal(limits, shift):
    low, high = limits
    normal = scipy.stats.norm(shift)
    below, above = normal.cdf(low), normal.sf(high)
    ends = [(end if math.isfinite(end) else 0.0) for end in limits]

    def moment(power):
        inside = scipy.integrate.quad(lambda n: n**power * normal.pdf(n), low, high)[0]
        return inside + ends[0] ** power * below + ends[1] ** power * above

    given = [torch.tensor([float(end)]).double() for end in (*limits, shift)]
    mean, variance, between = clipped_moments(*given)
    assert float(mean) == pytest.approx(moment(1), abs=1e-7)
    assert float(variance) == pytest.approx(moment(2) - moment(1) ** 2, abs=1e-7)
    assert float(between) == pytest.approx(1.0 - below - above)
    found = mean_before(given[0] - mean, given[1] - mean)
    assert float(found + mean) == pytest.approx(shift, abs=0.02)


def test_each_picture_on_its_own():
    y = noisy().clamp(0.0, 1.0)
    kept = y.clone()
    together = picture_sigma(y, Identity(SHAPE), (0.0, 1.0))
    for index in range(len(y)):
        alone = picture_sigma(y[index : index + 1], Identity(SHAPE), (0.0, 1.0))
        assert torch.equal(alone, together[index : index + 1])
    assert torch.equal(y, kept)


def test_hidden_pixels_do_not_count():
    mask = torch.ones(SHAPE)
    mask[:, 20:40, 10:30] = 0.0
    operator = Mask(SHAPE, mask)
    y = noisy()
    other = torch.where(mask > 0, y, 17.0)
    assert torch.equal(picture_sigma(other, operator), picture_sigma(y * mask, operator))
    assert worst(picture_sigma(other, operator)) < 0.06


def test_scattered_pixels_show_small_patches():
    shape = (3, 96, 90)
    y, mask = noisy((0.05, 0.2), shape), torch.rand(1, *shape[1:], generator=seeded())
    half = Mask(shape, (mask < 0.5).float())
    assert worst(picture_sigma(y, half), (0.05, 0.2)) < 0.15
    assert torch.equal(picture_sigma(y, half), patches_sigma(y, half))
    few = Mask(shape, (mask < 0.25).float())
    assert bool(patches_sigma(y, few).isnan().all())
    assert torch.equal(picture_sigma(y, few), differences_sigma(y, few))


@pytest.mark.parametrize("shape", [(3, 2, 40), (3, 8, 12), (1, 7, 500)])
def test_few_patches_are_no_estimate(shape):
    y = smooth_images(2, *shape) + 0.1 * noise((2, *shape))
    assert bool(patches_sigma(y, Identity(shape)).isnan().all())
    assert torch.equal(picture_sigma(y, Identity(shape)), differences_sigma(y, Identity(shape)))


@pytest.mark.parametrize("shape", [(3, 2, 60), (3, 3, 80), (3, 19, 30)])
def test_small_mosaics_are_no_trouble(shape):
    operator = fm.make_task("demosaic", shape).operator
    y = 0.5 + 0.1 * noise((2, 1, *shape[1:]))
    assert bool(torch.isfinite(picture_sigma(y, operator, (0.0, 1.0))).all())


def test_calm_cells_of_large_pictures_are_sampled(monkeypatch):
    shape = (1, 160, 150)
    y = half_rough(shape) + 0.05 * noise((1, *shape))
    seen, first = torch.ones(shape, dtype=torch.bool), torch.tensor([0.1])
    whole = module.calm_sigma(y, seen, None, first)
    monkeypatch.setattr(module, "MOST_CELLS", 700)
    part = module.calm_sigma(y, seen, None, first)
    assert whole != part
    assert float(part) == pytest.approx(0.05, rel=0.1)


def test_large_pictures_are_sampled(monkeypatch):
    whole = picture_sigma(noisy(), Identity(SHAPE))
    monkeypatch.setattr(module, "MOST_PATCHES", 900)
    part = picture_sigma(noisy(), Identity(SHAPE))
    assert not torch.equal(whole, part)
    assert worst(part) < 0.1


def test_flat_white_is_no_trouble():
    y = torch.ones(2, *SHAPE)
    y[1, :, :40] = 0.5 + 0.1 * noise((40, SHAPE[2])).float()
    found = picture_sigma(y, Identity(SHAPE), (0.0, 1.0))
    assert float(found[0]) == pytest.approx(quantisation_sigma())
    assert bool(torch.isfinite(found).all())


def test_no_noise_is_rounding():
    flat = torch.full((1, *SHAPE), 0.5)
    assert float(picture_sigma(flat, Identity(SHAPE))) == pytest.approx(quantisation_sigma())


def test_it_is_what_estimates_without_a_gaussian_are():
    y = noisy().clamp(0.0, 1.0)
    found = estimate_sigma(y, Identity(SHAPE), None, limits=(0.0, 1.0))
    assert torch.equal(found, picture_sigma(y, Identity(SHAPE), (0.0, 1.0)))


# Differences


def test_differences_find_white_noise():
    levels = torch.tensor([0.02, 0.3], dtype=torch.float64).repeat(20)
    y = smooth_images(40, 3, 32, 32) + levels[:, None, None, None] * noise((40, 3, 32, 32))
    found = differences_sigma(y, Identity((3, 32, 32)))
    assert found.shape == (40,)
    for level in (0.02, 0.3):
        error = found[levels == level] / level - 1.0
        assert abs(float(error.mean())) < 0.02
        assert float(error.abs().max()) < 0.1


def test_differences_would_notice_a_wrong_constant(monkeypatch):
    monkeypatch.setattr(module, "NORMAL_QUARTILE", 0.6)
    with pytest.raises(AssertionError):
        test_differences_find_white_noise()


def test_the_constant_is_the_normal_quartile():
    assert pytest.approx(scipy.stats.norm.ppf(0.75), rel=1e-14) == module.NORMAL_QUARTILE
