"""The noise of grey pictures and mosaics by a denoiser: against the likeliest level, and truth."""

import pytest
import skimage.data
import torch
from conftest import smooth_images, tiny_prior

import flowmend as fm
from flowmend import noise_level as module
from flowmend.noise_level import likeliest_level, noise_level
from flowmend.operators import Grey, Identity, Mask, OfGrey
from flowmend.photographs import photograph_task, restore_photograph
from flowmend.pixels import quantisation_sigma, round_to_bytes
from flowmend.sigma import estimate_sigma

SIZE = (96, 128)
LEVELS = (0.01, 0.05)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spectrum():
    """Variances of the frequencies of a rough stationary Gaussian, (H, W), float64."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in SIZE)
    distance = (rows[:, None].square() + columns.square()).sqrt()
    return 0.5 / (1.0 + (distance / 0.05).square()) ** 2.0


def wiener(y, level):
    """What the Gaussian of :func:`spectrum` makes of pictures: exact."""
    gain = spectrum() / (spectrum() + level**2)
    return torch.fft.ifft2(gain * torch.fft.fft2(y)).real


def rough(level, seed=0):
    """A picture of that Gaussian with noise, (1, 1, H, W)."""
    white = torch.randn(2, 1, *SIZE, generator=seeded(seed), dtype=torch.float64)
    x = torch.fft.ifft2(spectrum().sqrt() * torch.fft.fft2(white[:1])).real
    return x + level * white[1:]


def likeliest(y):
    """The level of greatest likelihood under the Gaussian, by trying many."""
    energy = torch.fft.fft2(y, norm="ortho").abs().square()
    tried = torch.logspace(-3, 0, 700, dtype=torch.float64)
    lack = [float(((spectrum() + s**2).log() + energy / (spectrum() + s**2)).sum()) for s in tried]
    return float(tried[min(range(len(lack)), key=lack.__getitem__)])


@pytest.mark.parametrize("level", [0.005, 0.02, 0.1])
def test_the_level_is_the_likeliest_under_a_gaussian(level):
    y = rough(level)
    found = likeliest_level(y, wiener, 4.0 * level)
    assert found == pytest.approx(likeliest(y), rel=0.04)
    assert found == pytest.approx(level, rel=0.08)


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_the_check_notices_another_denoiser(factor):
    y = rough(0.02)
    found = likeliest_level(y, lambda y, level: wiener(y, factor * level), 0.08)
    assert abs(found / likeliest(y) - 1.0) > 0.1


def test_a_first_level_that_is_too_low_is_kept():
    assert likeliest_level(rough(0.1), wiener, 0.05) == 0.05


def test_a_picture_without_noise_has_that_of_its_file():
    assert likeliest_level(rough(0.0), wiener, 0.05) == quantisation_sigma()


def test_what_was_clipped_does_not_count():
    y = (0.1 + rough(0.05)).clamp_min(0.0)
    assert float((y == 0.0).double().mean()) > 0.1
    centred = y - 0.1
    found = likeliest_level(centred, wiener, 0.058, lambda clean: clean + 0.1)
    assert found == pytest.approx(0.05, rel=0.1)
    assert likeliest_level(centred, wiener, 0.058) < 0.9 * found
    assert likeliest_level(centred, wiener, 0.058, lambda clean: clean - 10.0) is None


# Photographs


@pytest.fixture(scope="module")
def natural():
    return fm.load("natural")


def picture(name):
    """A textured photograph (1, 3, 128, 160); a grey one has three alike channels."""
    levels = torch.from_numpy(getattr(skimage.data, name)()[100:228, 100:260].copy()).float()
    x = levels.expand(3, 128, 160) if levels.ndim == 2 else levels.permute(2, 0, 1)
    return x[None] / 255.0


def measured(name, x, sigma, seed=0):
    task = photograph_task(name, (1, *x.shape[2:]), 3, sigma=sigma)
    return task, round_to_bytes(task.measure(x, seeded(seed)))


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize(
    ("name", "task", "most"),
    [("gravel", "denoise", 0.2), ("grass", "colorize", 0.85), ("chelsea", "demosaic", 0.3)],
)
def test_texture_is_not_taken_for_noise(name, task, most, sigma, natural):
    made, y = measured(task, picture(name), sigma)
    limits = made.limits(y)
    found = noise_level(y, made.operator, natural, None, limits)
    first = estimate_sigma(y, made.operator, None, limits=limits)
    assert found.shape == (1,)
    assert found.dtype == y.dtype
    assert float(found) <= float(first)
    assert abs(float(found) / sigma - 1.0) < most
    if sigma < 0.05:
        assert abs(float(first) / sigma - 1.0) > abs(float(found) / sigma - 1.0) + 0.1


@pytest.mark.parametrize("name", ["denoise", "demosaic"])
def test_restoring_gains_by_it(name, natural):
    x = picture("chelsea")[..., :96, :96] if name == "demosaic" else picture("gravel")
    task, y = measured(name, x, 0.01)
    unknown = photograph_task(name, (1, *x.shape[2:]), 3, sigma="auto")
    found = restore_photograph(y, unknown, natural, generator=seeded())
    first = float(estimate_sigma(y, task.operator, None, limits=task.limits(y)))
    other = restore_photograph(y, task.with_sigma(first), natural, generator=seeded())
    truth = x[:, : found.x.shape[1]]
    assert found.settings["sigma"] < first
    assert fm.psnr(found.x, truth)[0] > fm.psnr(other.x, truth)[0] + 0.5


def test_each_image_has_its_own_level(natural):
    x = torch.cat([picture("gravel"), picture("chelsea")])
    operator = Grey((3, 128, 160))
    noise = torch.randn(2, 1, 128, 160, generator=seeded())
    y = x.mean(1, keepdim=True) + torch.tensor([0.02, 0.06]).view(-1, 1, 1, 1) * noise
    y = round_to_bytes(y)
    limits = (0.0, 1.0)
    together = noise_level(y, operator, natural, None, limits)
    alone = torch.cat([noise_level(part, operator, natural, None, limits) for part in y.split(1)])
    assert torch.equal(together, alone)
    restored = fm.restore(
        y, fm.make_task("colorize", (3, 128, 160), sigma="auto"), natural.at_shape((3, 128, 160))
    )
    assert restored.settings["sigma"] == together.tolist()


def test_the_picture_is_left_alone_and_chance_too(natural):
    task, y = measured("demosaic", picture("chelsea")[..., :64, :96], 0.05)
    kept, state = y.clone(), torch.get_rng_state()
    first = noise_level(y, task.operator, natural, None, task.limits(y))
    assert torch.equal(y, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, noise_level(y, task.operator, natural, None, task.limits(y)))


@pytest.mark.parametrize(
    "case", ["coloured", "hidden", "coupling", "gaussian", "small", "clipped", "chequered"]
)
def test_elsewhere_it_is_the_first_estimate(case, natural, monkeypatch):
    def never(*arguments):
        raise AssertionError("the flow was asked")

    monkeypatch.setattr(module, "_corrected", never)
    if case != "small":
        monkeypatch.setattr(module, "SMALLEST", 16)
    shape, prior, gaussian = (3, 16, 16), tiny_prior(), None
    y = smooth_images(2, 1, *shape[1:]).float() + 0.05 * torch.randn(
        2, 1, 16, 16, generator=seeded()
    )
    operator = Grey(shape)
    limits = None
    if case == "coloured":
        operator, prior, y = Identity(shape), natural, y.expand(-1, 3, -1, -1)
    elif case == "hidden":
        seen = torch.ones(1, 16, 16)
        seen[:, 3:5] = 0.0
        operator, prior = OfGrey(Mask((1, 16, 16), seen), 3), natural
        y = y * seen
    elif case == "gaussian":
        gaussian, prior = prior.gaussian, natural
    elif case == "small":
        prior = natural
    elif case == "clipped":
        shape, prior, limits = (3, 40, 40), natural, (0.0, 1.0)
        operator, y = Grey(shape), torch.randn(1, 1, 40, 40, generator=seeded()).sign() / 2 + 0.5
    elif case == "chequered":
        shape, prior, limits = (3, 40, 40), natural, (0.0, 1.0)
        operator, y = Grey(shape), torch.rand(1, 1, 40, 40, generator=seeded())
        y[..., ::2, ::2] = y[..., 1::2, 1::2] = 0.0
    found = noise_level(y, operator, prior, gaussian, limits)
    assert torch.equal(found, estimate_sigma(y, operator, gaussian, limits=limits))
