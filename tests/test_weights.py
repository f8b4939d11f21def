"""Weights files: what is saved comes back, with its card, and is found by name."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from weights_cases import CARD, CONFIG, WHITENED, make, pictures, state_of

from flowmend import weights
from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig
from flowmend.weights import (
    find_weights,
    load_prior,
    pack_symmetric,
    parameter_count,
    save_prior,
    sha256_of,
    shipped_priors,
    unpack_symmetric,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prior.safetensors"


@pytest.fixture
def saved(path):
    return save_prior(path, make())


# What is saved comes back.
def test_single_precision_comes_back_exactly(path):
    prior = make()
    loaded = load_prior(save_prior(path, prior))
    wanted, found = state_of(prior), state_of(loaded)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert loaded.config == CONFIG
    assert loaded.card == CARD
    assert loaded.gaussian is None


def test_loaded_prior_computes_the_same(path):
    prior = make()
    loaded = load_prior(save_prior(path, prior))
    x = pictures(3).float() / 255.0
    with torch.no_grad():
        for found, wanted in zip(loaded.encode(x), prior.encode(x), strict=True):
            assert torch.equal(found, wanted)


def test_loaded_prior_is_frozen_and_evaluating(saved):
    loaded = load_prior(saved)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_half_precision_is_close_and_smaller(tmp_path):
    prior = make()
    full = save_prior(tmp_path / "full.safetensors", prior)
    half = save_prior(tmp_path / "half.safetensors", prior, half=True)
    weights_in_file = sum(value.nbytes for value in load_file(half).values())
    assert weights_in_file * 2 == sum(value.nbytes for value in load_file(full).values())
    found = load_prior(half)
    assert all(parameter.dtype == torch.float32 for parameter in found.parameters())
    for key, value in state_of(prior).items():
        torch.testing.assert_close(found.flow.state_dict()[key], value, rtol=1e-3, atol=1e-6)


def test_precision_of_the_prior_in_memory_does_not_matter(path):
    prior = make()
    wanted = state_of(prior)
    loaded = load_prior(save_prior(path, prior.double()))
    assert all(torch.equal(value, wanted[key]) for key, value in state_of(loaded).items())


def test_gaussian_comes_back(path):
    prior = make(WHITENED, with_gaussian=True)
    loaded = load_prior(save_prior(path, prior))
    assert torch.equal(loaded.gaussian.mean, prior.gaussian.mean)
    torch.testing.assert_close(
        loaded.gaussian.whitening.matrix, prior.gaussian.whitening.matrix, rtol=1e-3, atol=1e-6
    )
    matrix = loaded.gaussian.whitening.matrix
    assert torch.equal(matrix, matrix.T)
    x = pictures(3).float() / 255.0
    with torch.no_grad():
        back = loaded.decode(loaded.encode(x)[0])[0]
        torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
        torch.testing.assert_close(loaded.log_prob(x), prior.log_prob(x), rtol=1e-2, atol=0.5)


def test_gaussian_beside_a_flow_that_does_not_whiten(path):
    loaded = load_prior(save_prior(path, make(with_gaussian=True)))
    assert loaded.gaussian is not None
    assert loaded.gaussian.shape == CONFIG.shape


def test_saving_again_changes_nothing(tmp_path):
    first = save_prior(tmp_path / "a.safetensors", make(WHITENED, with_gaussian=True))
    second = save_prior(tmp_path / "b.safetensors", load_prior(first))
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_saving_leaves_the_prior_and_no_temporary_file(path):
    prior = make(WHITENED, with_gaussian=True)
    wanted = state_of(prior)
    save_prior(path, prior, half=True)
    assert all(torch.equal(value, wanted[key]) for key, value in state_of(prior).items())
    assert sorted(item.name for item in path.parent.iterdir()) == [
        "prior.json",
        "prior.safetensors",
    ]


def test_card_describes_the_file(saved):
    facts = json.loads(saved.with_suffix(".json").read_text())
    assert facts["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest() == sha256_of(saved)
    assert FlowConfig.from_dict(facts["config"]) == CONFIG
    assert facts["name"] == "test"


def test_card_can_be_left_out(path):
    save_prior(path, make(), card=False)
    assert not path.with_suffix(".json").exists()
    assert load_prior(path).card == CARD


def test_card_without_sha256_is_accepted(saved):
    saved.with_suffix(".json").write_text("{}")
    assert load_prior(saved).card == CARD


def test_missing_folders_are_made(tmp_path):
    path = save_prior(tmp_path / "a" / "b" / "prior.safetensors", make())
    assert load_prior(path.parent).config == CONFIG


def test_triangle_of_a_symmetric_matrix():
    matrix = torch.tensor([[1.0, 2.0, 4.0], [2.0, 3.0, 5.0], [4.0, 5.0, 6.0]])
    triangle = pack_symmetric(matrix)
    assert triangle.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert torch.equal(unpack_symmetric(triangle, 3), matrix)


def test_parameter_count_of_a_prior():
    prior = make(WHITENED, with_gaussian=True)
    assert parameter_count(prior) == sum(value.numel() for value in prior.flow.parameters())


# Where priors are looked for.
def test_prior_is_found_by_file_and_by_folder(saved):
    assert find_weights(saved) == saved
    assert find_weights(str(saved)) == saved
    assert find_weights(saved.parent) == saved


def test_missing_prior_is_refused_by_name(tmp_path):
    with pytest.raises(FlowmendError, match="no prior 'faces64'"):
        load_prior("faces64")
    with pytest.raises(FlowmendError, match=r"no prior '.*gone\.safetensors'"):
        load_prior(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("length", [300, 5000])
def test_overlong_name_is_refused(length):
    with pytest.raises(FlowmendError, match="no prior"):
        load_prior("a" * length)


def test_folder_without_prior_is_refused(tmp_path):
    with pytest.raises(FlowmendError, match="is its training finished"):
        load_prior(tmp_path)


def test_every_shipped_prior_is_found_by_name():
    folder = weights.resources.files("flowmend") / "priors"
    wanted = {item.name for item in folder.iterdir() if ".safetensors" in item.name}
    found = [find_weights(name).name for name in shipped_priors()]
    assert set(found) == wanted
    assert len(found) == len(wanted)


@pytest.mark.parametrize("name", ["natural", "faces32"])
def test_a_folder_called_like_a_shipped_prior_does_not_hide_it(name, tmp_path, saved, monkeypatch):
    (tmp_path / name).mkdir()
    shipped = find_weights(name)
    monkeypatch.chdir(tmp_path)
    assert find_weights(name) == shipped
    with pytest.raises(FlowmendError, match="is its training finished"):
        find_weights(f"./{name}")
    (tmp_path / name / "prior.safetensors").write_bytes(saved.read_bytes())
    assert find_weights(name) == shipped
    assert find_weights(f"./{name}") == find_weights(Path(name)) == Path(name, "prior.safetensors")


def test_shipped_prior_is_loaded_by_name(saved, monkeypatch):
    package = saved.parent / "package"
    save_prior(package / "priors" / "toy.safetensors", make())
    monkeypatch.setattr(weights.resources, "files", lambda name: package)
    assert shipped_priors() == ["toy"]
    assert load_prior("toy").config == CONFIG
    with pytest.raises(FlowmendError, match=r"no prior 'other'.*\(toy\)"):
        load_prior("other")
