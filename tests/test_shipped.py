"""The prior inside the package: what its card promises, checked on real faces."""

import json
import os
import tarfile
from pathlib import Path

import pytest
import torch

import flowmend as fm
from flowmend.faces import names, sample_faces
from flowmend.files import read_picture, resize_and_crop
from flowmend.photographs import photograph_task, restore_photograph
from flowmend.pixels import dequantise
from flowmend.weights import find_weights, sha256_of, shipped_priors

DATA = Path(os.environ.get("FLOWMEND_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def prior():
    return fm.load("faces32")


def test_package_ships_three_priors_of_bounded_size():
    assert shipped_priors() == ["faces32", "faces32-continuous", "natural"]
    assert find_weights("faces32").stat().st_size < 30_000_000
    assert find_weights("faces32-continuous").stat().st_size < 30_000_000
    assert find_weights("natural").stat().st_size < 15_000_000


def test_natural_has_a_card_and_takes_every_size():
    natural, path = fm.load("natural"), find_weights("natural")
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == sha256_of(path)
    assert "BSDS500" in card["data"]
    assert "non-commercial" in card["licence"]
    assert natural.config.size is None
    assert natural.stationary is not None


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_natural_denoises_a_photograph_it_has_never_seen_better_than_a_gaussian(sigma):
    from skimage import data

    x = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None, :, 40:136, 120:216] / 255.0
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(sigma))
    y = x + sigma / 255.0 * noise
    natural = fm.load("natural")
    task = photograph_task("denoise", tuple(x.shape[1:]), 3, sigma=sigma / 255.0)
    found = restore_photograph(y, task, natural).x
    linear = natural.stationary.at_size(96, 96).denoise(y, sigma / 255.0)
    assert fm.psnr(found, x)[0] > fm.psnr(linear.clamp(0.0, 1.0), x)[0]


def test_card_has_the_sha256_the_data_and_the_licence(prior):
    path = find_weights("faces32")
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == sha256_of(path)
    assert card["config"] == json.loads(json.dumps(prior.config.to_dict()))
    assert "CelebA" in card["data"]
    assert "non-commercial" in card["licence"]
    assert card["val_bits_per_dim"] < 1.80


def test_eight_sample_faces_of_32_pixels_with_their_sources():
    assert sample_faces().shape == (8, 3, 32, 32)
    sources = (Path(fm.__file__).parent / "faces" / "SOURCES.md").read_text()
    assert all(f"| {name} |" in sources for name in names())


def test_round_trip_of_the_sample_faces(prior):
    x = dequantise(sample_faces(), 5, torch.Generator().manual_seed(0))
    z, logdet = prior.encode(x)
    back, back_logdet = prior.decode(z)
    assert (back - x).abs().max() <= 1e-4
    assert ((logdet + back_logdet).abs() / logdet.abs()).max() <= 1e-4


def test_faces_are_likelier_than_scrambled_faces(prior):
    x = sample_faces()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert (prior.log_prob(x) > prior.log_prob(x[:, :, order])).all()


def test_flow_restores_noisy_faces(prior):
    x = sample_faces()[:4]
    task = fm.make_task("denoise", prior.shape)
    y = task.measure(x, torch.Generator().manual_seed(0))
    solution = fm.restore(y, task, prior, steps=60)
    before, after = fm.psnr(task.picture(y), x), fm.psnr(solution.x, x)
    assert sum(after) / 4 > sum(before) / 4 + 4.0


def test_bits_per_dim_on_held_out_faces_is_what_the_card_says(prior):
    archive = DATA / "celeba.tar"
    if not archive.is_file():
        pytest.skip("needs the CelebA archive (set FLOWMEND_DATA to its folder)")
    images = []
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if "/val/" in m.name and m.name.endswith(".jpg")]
        for member in sorted(members, key=lambda member: member.name)[:64]:
            picture = read_picture(tar.extractfile(member))
            images.append(resize_and_crop(picture, 32, 32))
    x = torch.stack(images)
    with torch.no_grad():
        bits = prior.bits_per_dim(x, 5, torch.Generator().manual_seed(0))
        back = prior.decode(prior.encode(dequantise(x, 5))[0])[0]
    assert abs(float(bits.mean()) - prior.card["val_bits_per_dim"]) < 0.04
    assert (back - dequantise(x, 5)).abs().max() <= 1e-4
