"""Weights files that are damaged, foreign or hostile get one sentence."""

import json
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from weights_cases import CONFIG, WHITENED, make, state_of

from flowmend import weights
from flowmend.errors import FlowmendError
from flowmend.flow import build_flow
from flowmend.weights import FORMAT, load_prior, pack_symmetric, save_prior


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prior.safetensors"


@pytest.fixture
def saved(path):
    return save_prior(path, make())


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
