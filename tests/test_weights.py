"""Weights files: what is saved comes back, and whatever is damaged, foreign or too large is
refused with one sentence before it can do harm."""

import hashlib
import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flowmend import weights
from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig, build_flow
from flowmend.prior import FlowPrior, GaussianPrior
from flowmend.weights import (
    FORMAT,
    find_weights,
    load_prior,
    pack_symmetric,
    parameter_count,
    save_prior,
    sha256_of,
    shipped_priors,
    unpack_symmetric,
)

CONFIG = FlowConfig(
    height=8,
    width=8,
    channels=1,
    steps=(1, 2),
    split=(True, False),
    hidden=(3, 4),
    depth=3,
    permutation="conv1x1",
    scale="bounded",
    positional=True,
)
WHITENED = FlowConfig(**(CONFIG.to_dict() | {"whiten": True}))
CARD = {"name": "test", "val_bits_per_dim": 2.5, "recipe": {"epochs": 3}}


def pictures(count=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 1, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(small, (8, 8), mode="bilinear")
    noise = 0.02 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


def make(config=CONFIG, with_gaussian=False, card=None):
    generator = torch.Generator().manual_seed(1)
    gaussian = GaussianPrior.fit(pictures()) if with_gaussian else None
    prior = FlowPrior(build_flow(config, seed=1), gaussian, CARD if card is None else card)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return prior


def state_of(prior):
    return {key: value.clone() for key, value in prior.flow.state_dict().items()}


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


# Files that are no weights.


def make_empty(path):
    path.write_bytes(b"")


def make_random(path):
    path.write_bytes(np.random.default_rng(0).bytes(4096))


def make_text(path):
    path.write_text("weights\n" * 100)


def make_picture(path):
    Image.new("RGB", (8, 8)).save(path, format="PNG")


class Trap:
    """Marks a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path.with_name("trapped")), "w")


def make_pickle(path):
    path.write_bytes(pickle.dumps(Trap(path)))


def make_torch_file(path):
    torch.save({"weights": torch.zeros(3), "trap": Trap(path)}, path)


def make_huge_header(path):
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


def make_bad_header(path):
    path.write_bytes((8).to_bytes(8, "little") + b"{{{{{{{{")


@pytest.mark.parametrize(
    "write",
    [
        make_empty,
        make_random,
        make_text,
        make_picture,
        make_pickle,
        make_torch_file,
        make_huge_header,
        make_bad_header,
    ],
    ids=lambda write: write.__name__.removeprefix("make_"),
)
def test_file_that_is_no_safetensors_is_refused(path, write):
    write(path)
    with pytest.raises(FlowmendError, match="not a readable safetensors file"):
        load_prior(path)
    assert not path.with_name("trapped").exists()


@pytest.mark.parametrize("kept", [4, 100, 0.5, -1])
def test_truncated_file_is_refused(saved, kept):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(kept * len(data))] if kept == 0.5 else data[:kept])
    with pytest.raises(FlowmendError, match="truncated"):
        load_prior(saved)


def test_foreign_safetensors_is_refused(path):
    for metadata in (None, {"format": "pt"}, {"format": "flowmend.prior.9"}):
        save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(FlowmendError, match="not one of flowmend's priors"):
            load_prior(path)


def test_changed_weights_are_noticed(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    with pytest.raises(FlowmendError, match=r"sha256 differs.*prior\.json"):
        load_prior(saved)
    saved.with_suffix(".json").unlink()
    assert load_prior(saved).config == CONFIG


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[]", b"null", b'"text"', b"\xff\xfe\x00"],
    ids=["cut", "empty", "list", "null", "text", "bytes"],
)
def test_unreadable_card_is_refused(saved, content):
    saved.with_suffix(".json").write_bytes(content)
    with pytest.raises(FlowmendError, match=r"card '.*prior\.json' is not readable"):
        load_prior(saved)


@pytest.mark.parametrize("sha256", ["", "0" * 64, 3, []], ids=["empty", "other", "number", "list"])
def test_card_of_another_file_is_refused(saved, sha256):
    saved.with_suffix(".json").write_text(json.dumps({"sha256": sha256}))
    with pytest.raises(FlowmendError, match="sha256 differs"):
        load_prior(saved)


# Files whose parts disagree.


def write_file(path, config=..., tensors=None, card="{}", **changes):
    """A file of the right format with a chosen configuration, tensors and card."""
    values = (CONFIG.to_dict() | changes) if config is ... else config
    if tensors is None:
        tensors = {f"flow.{key}": value for key, value in build_flow(CONFIG).state_dict().items()}
    metadata = {"format": FORMAT, "config": json.dumps(values), "card": card}
    save_file(tensors, path, metadata=metadata)
    return path


def tensors_of(prior):
    return {f"flow.{key}": value for key, value in state_of(prior).items()}


def gaussian_of(prior):
    matrix = prior.gaussian.whitening.matrix
    return {
        "gaussian.mean": prior.gaussian.mean,
        "gaussian.whitening": pack_symmetric(matrix).contiguous(),
    }


def test_hand_written_file_is_accepted(path):
    """So that the refusals below have one reason each."""
    prior = make(WHITENED, with_gaussian=True)
    assert load_prior(write_file(path)).config == CONFIG
    tensors = tensors_of(prior) | gaussian_of(prior)
    assert load_prior(write_file(path, tensors=tensors, whiten=True)).config == WHITENED


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 5},
        {"steps": (1, 3)},
        {"steps": (1, 1)},
        {"split": (False, False)},
        {"channels": 3},
        {"height": 16},
        {"depth": 2},
        {"positional": False},
        {"permutation": "swap"},
    ],
    ids=str,
)
def test_configuration_that_disagrees_with_the_weights_is_refused(path, changes):
    write_file(path, **changes)
    with pytest.raises(FlowmendError, match="do not fit the configuration"):
        load_prior(path)


def test_missing_extra_and_misshapen_weights_are_refused(path):
    good = tensors_of(make())
    key = "flow.scales.0.layers.1.shift"
    broken = [
        {name: value for name, value in good.items() if name != key},
        good | {"flow.scales.9.weight": torch.zeros(2)},
        good | {key: torch.zeros(1, 5, 1, 1)},
        good | {key: torch.zeros(4)},
        {},
    ]
    for tensors in broken:
        write_file(path, tensors=tensors)
        with pytest.raises(FlowmendError, match="do not fit the configuration"):
            load_prior(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 10**6},
        {"hidden": 10**12},
        {"hidden": 10**18},
        {"hidden": 10**30},
        {"channels": 10**9},
        {"height": 2**60, "width": 2**60},
        {"steps": (10**9, 1)},
        {"steps": (1,) * 2000, "split": (False,) * 2000, "height": 2**2000, "width": 2**2000},
        {"depth": 10**9},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_gigantic_configuration_is_refused_at_once(path, changes, monkeypatch):
    write_file(path, **changes)

    limit = 5000
    made = []
    build = torch.nn.Conv2d.__init__

    def counted(self, *arguments, **options):
        made.append(1)
        if len(made) > limit:
            raise AssertionError(f"more than {limit} convolutions were built")
        build(self, *arguments, **options)

    monkeypatch.setattr(torch.nn.Conv2d, "__init__", counted)
    begun = time.monotonic()
    with pytest.raises(FlowmendError):
        load_prior(path)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "config",
    [
        [],
        None,
        3,
        "paper",
        {"steps": None},
        {"steps": 3},
        {"hidden": "many"},
        {"hidden": [[3], [4]]},
        {"height": "8"},
        {"height": None},
        {"bits": [5]},
        {"depth": 2.5},
        {"channels": 1.5},
        {"steps": [1.5, 2]},
    ],
    ids=str,
)
def test_configuration_of_the_wrong_kind_is_refused(path, config):
    write_file(path, config=CONFIG.to_dict() | config if isinstance(config, dict) else config)
    with pytest.raises(FlowmendError, match=r"prior\.safetensors"):
        load_prior(path)


def test_impossible_configuration_names_the_file_and_the_reason(path):
    write_file(path, bits=99)
    with pytest.raises(FlowmendError, match=r"prior\.safetensors.*bits"):
        load_prior(path)
    write_file(path, config=CONFIG.to_dict() | {"colour": 1})
    with pytest.raises(FlowmendError, match=r"prior\.safetensors.*colour"):
        load_prior(path)


def test_missing_and_broken_metadata_are_refused(path):
    tensors = tensors_of(make())
    for metadata in (
        {"format": FORMAT},
        {"format": FORMAT, "config": "{"},
        {"format": FORMAT, "config": json.dumps(CONFIG.to_dict()), "card": "{"},
        {"format": FORMAT, "config": json.dumps(CONFIG.to_dict()), "card": "[1]"},
        {"format": FORMAT, "config": json.dumps(CONFIG.to_dict()), "card": "null"},
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(FlowmendError, match="configuration stored in"):
            load_prior(path)


def test_whitened_flow_without_gaussian_is_refused(path):
    write_file(path, whiten=True)
    with pytest.raises(FlowmendError, match="lacks the Gaussian"):
        load_prior(path)


def test_incomplete_and_misshapen_gaussians_are_refused(path):
    prior = make(WHITENED, with_gaussian=True)
    good = gaussian_of(prior)
    for part in (
        {"gaussian.mean": good["gaussian.mean"]},
        {"gaussian.whitening": good["gaussian.whitening"]},
        good | {"gaussian.mean": torch.zeros(1, 4, 16)},
        good | {"gaussian.mean": torch.zeros(64)},
        good | {"gaussian.whitening": torch.zeros(64)},
    ):
        write_file(path, tensors=tensors_of(prior) | part, whiten=True)
        with pytest.raises(FlowmendError, match="Gaussian"):
            load_prior(path)


# Weights that are not finite.


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_not_saved(path, value):
    prior = make()
    with torch.no_grad():
        prior.flow.scales[1].layers[1].shift[0, 2] = value
    with pytest.raises(FlowmendError, match=r"scales\.1\.layers\.1\.shift.*not finite"):
        save_prior(path, prior)
    assert list(path.parent.iterdir()) == []


def test_weights_too_large_for_half_precision_are_not_saved(path):
    prior = make()
    with torch.no_grad():
        prior.flow.scales[1].layers[1].shift[0, 2] = 1e5
    with pytest.raises(FlowmendError, match="not finite"):
        save_prior(path, prior, half=True)
    assert load_prior(save_prior(path, prior)).config == CONFIG


def test_failed_save_keeps_the_older_file(saved):
    before = saved.read_bytes()
    prior = make()
    with torch.no_grad():
        prior.flow.scales[0].layers[1].shift.fill_(torch.nan)
    with pytest.raises(FlowmendError, match="refusing"):
        save_prior(saved, prior)
    assert saved.read_bytes() == before
    assert load_prior(saved).config == CONFIG


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_loaded(path, value):
    tensors = tensors_of(make())
    tensors["flow.scales.0.layers.2.weight"][1, 1] = value
    write_file(path, tensors=tensors)
    with pytest.raises(FlowmendError, match=r"not finite.*scales\.0\.layers\.2\.weight"):
        load_prior(path)


def test_gaussian_that_is_not_finite_is_not_loaded(path):
    prior = make(WHITENED, with_gaussian=True)
    good = gaussian_of(prior)
    good["gaussian.whitening"][5] = torch.nan
    write_file(path, tensors=tensors_of(prior) | good, whiten=True)
    with pytest.raises(FlowmendError, match=r"not finite.*gaussian\.whitening"):
        load_prior(path)


# The file system.


def test_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FlowmendError, match=r"Cannot write '.*prior\.safetensors'"):
        save_prior(tmp_path / "file" / "prior.safetensors", make())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("full")])
def test_full_disk_keeps_the_older_file(saved, monkeypatch, error):
    before = sorted((item.name, item.read_bytes()) for item in saved.parent.iterdir())

    def fail(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(FlowmendError, match=r"Cannot write.*(No space|full)"):
        save_prior(saved, make(WHITENED, with_gaussian=True))
    after = sorted((item.name, item.read_bytes()) for item in saved.parent.iterdir())
    assert after == before


def test_prior_loaded_in_inference_mode_decodes(saved):
    with torch.inference_mode():
        loaded = load_prior(saved)
        sample = loaded.sample(2, generator=torch.Generator().manual_seed(0))
    wanted = load_prior(saved).sample(2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample.clone(), wanted)
