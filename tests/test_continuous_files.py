"""Continuous flows in weights files: what comes back, and what is refused."""

import json

import pytest
import torch
from continuous_cases import FIXED, TINY, pictures, prior
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowmend.continuous import ContinuousPrior
from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig, VelocityConfig, build_flow
from flowmend.prior import FlowPrior
from flowmend.weights import load_prior, save_prior


# Weights files.
@pytest.fixture
def path(tmp_path):
    return tmp_path / "prior.safetensors"


@pytest.mark.parametrize("config", [TINY, FIXED], ids=["every size", "one size"])
def test_what_is_saved_comes_back(path, config):
    saved = prior(config)
    loaded = load_prior(save_prior(path, saved))
    assert isinstance(loaded, ContinuousPrior)
    assert (loaded.config, loaded.card, loaded.shape) == (config, saved.card, saved.shape)
    wanted = saved.velocity.state_dict()
    found = loaded.velocity.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())
    x = pictures(saved)
    assert torch.equal(loaded.denoise(x, 0.1), saved.denoise(x, 0.1))
    facts = json.loads(path.with_suffix(".json").read_text())
    assert VelocityConfig.from_dict(facts["config"]) == config


def test_gaussian_and_half_precision_come_back(path):
    saved = prior(FIXED, with_gaussian=True)
    loaded = load_prior(save_prior(path, saved, half=True))
    assert torch.equal(loaded.gaussian.mean, saved.gaussian.mean)
    for key, value in saved.velocity.state_dict().items():
        found = loaded.velocity.state_dict()[key]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-6)


def coupling():
    config = FlowConfig(height=8, width=8, channels=1, steps=(1,), split=(False,), hidden=3)
    return FlowPrior(build_flow(config), card={"name": "old"})


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def rewritten(path, **changes):
    """The same file with other metadata; None takes an entry away."""
    metadata = {k: v for k, v in (metadata_of(path) | changes).items() if v is not None}
    save_file(load_file(path), path, metadata=metadata)
    path.with_suffix(".json").unlink(missing_ok=True)
    return path


def test_files_say_their_kind_and_old_ones_are_coupling_flows(path):
    assert metadata_of(save_prior(path, prior()))["kind"] == "continuous"
    assert metadata_of(save_prior(path, coupling()))["kind"] == "coupling"
    loaded = load_prior(rewritten(path, kind=None))
    assert isinstance(loaded, FlowPrior)
    assert loaded.card == {"name": "old"}


@pytest.mark.parametrize("kind", ["", "diffusion", "Continuous", "[]"])
def test_unknown_kind_is_refused(path, kind):
    save_prior(path, prior())
    with pytest.raises(FlowmendError, match=r"kind '.*coupling, continuous"):
        load_prior(rewritten(path, kind=kind))


@pytest.mark.parametrize("kind", ["coupling", None])
def test_continuous_flow_under_the_wrong_kind_is_refused(path, kind):
    save_prior(path, prior())
    with pytest.raises(FlowmendError, match="Unknown flow setting"):
        load_prior(rewritten(path, kind=kind))
    save_prior(path, coupling())
    with pytest.raises(FlowmendError, match="Unknown network setting"):
        load_prior(rewritten(path, kind="continuous"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (6, 9)}, "do not fit the configuration"),
        ({"widths": (6, 8, 8), "blocks": (1, 1, 1)}, "do not fit the configuration"),
        ({"blocks": (2, 1)}, "do not fit the configuration"),
        ({"size": None}, "do not fit the configuration"),
        ({"size": (8, 8)}, "do not fit the configuration"),
        ({"channels": 3}, "do not fit the configuration"),
        ({"widths": (2**14,) * 8, "blocks": (64,) * 8}, "do not fit the configuration"),
        ({"widths": (10**30, 8)}, "widths"),
        ({"widths": [[6], [8]]}, "widths"),
        ({"widths": 6}, "not readable"),
        ({"blocks": None}, "prior.safetensors"),
        ({"size": (2**60, 2**60)}, "size"),
        ({"sigma_data": 0}, "sigma_data"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_hostile_configuration_is_refused(path, changes, message):
    save_prior(path, prior())
    config = FIXED.to_dict() | changes
    with pytest.raises(FlowmendError, match=message):
        load_prior(rewritten(path, config=json.dumps(config)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(path, value):
    broken = prior()
    save_prior(path, broken)
    tensors = load_file(path)
    tensors["flow.network.first.weight"][0, 0, 0, 0] = value
    save_file(tensors, path, metadata=metadata_of(path))
    path.with_suffix(".json").unlink()
    with pytest.raises(FlowmendError, match="not finite"):
        load_prior(path)
    broken.velocity.network.first.weight[0, 0, 0, 0] = value
    with pytest.raises(FlowmendError, match="not finite"):
        save_prior(path.with_name("other.safetensors"), broken)
    assert not path.with_name("other.safetensors").exists()
