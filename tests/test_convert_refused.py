"""Checkpoints that are damaged, foreign or hostile; and the command convert."""

import math
import pickle

import pytest
import torch
from author_cases import CLOSE, FIRST, HIDDEN, Reference, distance, random_state, same, small
from conftest import leftovers
from safetensors.torch import load_file, save_file

from flowmend import convert
from flowmend.convert import from_author, read_author_checkpoint, save_author_checkpoint
from flowmend.errors import FlowmendError
from flowmend.weights import load_prior, save_prior


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def prior(state):
    return from_author(state, small())


@pytest.fixture(scope="module")
def reference(state):
    return Reference(state)


# States that are wrong.
def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def poisoned(value, bad):
    value = value.clone()
    value.view(-1)[-1] = bad
    return value


WRONG = {
    "empty": (lambda s: {}, "dictionary of tensors"),
    "missing": (lambda s: without(s, "layers.21.layer.NN.conv2.bias"), "lacks 'layers.21"),
    "missing first": (lambda s: without(s, FIRST), "layers.2.norm.bias|first step"),
    "missing second": (lambda s: without(s, "layers.3.norm.bias"), "checkpoint"),
    "extra": (lambda s: s | {"layers.22.norm.bias": torch.zeros(1)}, "holds 'layers.22"),
    "shape": (lambda s: s | {"layers.5.norm.bias": torch.zeros(48)}, r"shape \(48,\)"),
    "size": (lambda s: s | {"layers.5.norm.log_s": torch.zeros(1, 9, 1, 1)}, r"\(1, 9, 1, 1\)"),
    "flat first": (lambda s: s | {FIRST: torch.zeros(12)}, "shape|first step"),
    "NaN": (lambda s: s | {FIRST: poisoned(s[FIRST], math.nan)}, "not finite"),
    "infinite": (lambda s: s | {FIRST: poisoned(s[FIRST], math.inf)}, "not finite"),
    "too large": (lambda s: s | {FIRST: poisoned(s[FIRST].double(), 1e60)}, "not finite"),
    "integers": (lambda s: s | {FIRST: s[FIRST].long()}, "no floating-point tensor"),
    "complex": (lambda s: s | {FIRST: s[FIRST] * 1j}, "no floating-point tensor"),
    "sparse": (lambda s: s | {FIRST: s[FIRST].to_sparse()}, "no floating-point tensor"),
    "expanded": (
        lambda s: s | {FIRST: torch.zeros(1).expand(2**50)},
        "no floating-point tensor",
    ),
    "number": (lambda s: s | {FIRST: 1.0}, "no floating-point tensor"),
    "name": (lambda s: s | {3: torch.zeros(1)}, "no floating-point tensor"),
    "list": (lambda s: [1, 2], "dictionary of tensors"),
}


@pytest.mark.parametrize(("damage", "phrase"), WRONG.values(), ids=WRONG)
def test_wrong_states_are_refused(state, tmp_path, damage, phrase):
    wrong = damage(state)
    with pytest.raises(FlowmendError, match=phrase):
        from_author(wrong, small())
    path = tmp_path / "model-1.pth"
    torch.save({"state_dict_net": wrong}, path)
    with pytest.raises(FlowmendError, match=r"model-1\.pth") as raised:
        read_author_checkpoint(path)
    assert "\n" not in str(raised.value)


def test_state_of_another_size_is_refused(state):
    with pytest.raises(FlowmendError, match="checkpoint"):
        from_author(state, small(repeats=1))
    with pytest.raises(FlowmendError, match="shape"):
        from_author(state, small(hidden=HIDDEN + 1))


# Files.
@pytest.fixture
def checkpoint(state, tmp_path):
    """A file as the author's trainer writes it, its optimizer's state included."""
    path = tmp_path / "model-100.pth"
    moment = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}
    optimizer = {"state": {0: moment}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"state_dict_net": state, "opt_model": optimizer}, path)
    return path


def test_checkpoint_is_read(checkpoint, state):
    assert same(read_author_checkpoint(checkpoint), state)
    assert same(read_author_checkpoint(str(checkpoint)), state)


@pytest.mark.parametrize("name", ["a.pth", "b.safetensors", "new/folder/c.pt"])
def test_what_is_written_is_read(state, tmp_path, name):
    path = save_author_checkpoint(tmp_path / name, state)
    assert same(read_author_checkpoint(path), state)
    assert leftovers(tmp_path) == []


def test_written_checkpoint_has_the_author_s_key(state, tmp_path):
    path = save_author_checkpoint(tmp_path / "model-1.pth", state)
    assert same(torch.load(path, weights_only=True)["state_dict_net"], state)


def test_unwritable_place_is_refused(state, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FlowmendError, match="Cannot write"):
        save_author_checkpoint(tmp_path / "file" / "model-1.pth", state)


class Trap:
    """Marks a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path.with_name("trapped")), "w")


def hostile_pickle(path, state):
    path.write_bytes(pickle.dumps({"state_dict_net": Trap(path)}))


def hostile_checkpoint(path, state):
    torch.save({"state_dict_net": state, "opt_model": Trap(path)}, path)


def hostile_old_format(path, state):
    content = {"state_dict_net": state, "opt_model": Trap(path)}
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [hostile_pickle, hostile_checkpoint, hostile_old_format])
def test_hostile_pickle_is_refused_and_not_run(state, tmp_path, write):
    path = tmp_path / "model.pth"
    write(path, state)
    with pytest.raises(FlowmendError, match="never unpickled") as raised:
        read_author_checkpoint(path)
    assert not (tmp_path / "trapped").exists()
    assert "weights_only" not in str(raised.value)
    if write is hostile_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "trapped").exists()  # the trap works where it is sprung


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_truncated_file_is_refused(state, tmp_path, name, kept):
    path = save_author_checkpoint(tmp_path / name, state)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(FlowmendError, match="truncated"):
        read_author_checkpoint(path)


def test_text_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    path.write_text("weights\n" * 100)
    with pytest.raises(FlowmendError, match="no checkpoint"):
        read_author_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {"weights": torch.zeros(2)}, torch.zeros(2)], ids=str)
def test_other_torch_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(FlowmendError, match="no 'state_dict_net'"):
        read_author_checkpoint(tmp_path / "model.pth")


def test_our_own_weights_are_no_checkpoint(prior, tmp_path):
    path = save_prior(tmp_path / "prior.safetensors", prior)
    with pytest.raises(FlowmendError, match="no FSGF network"):
        read_author_checkpoint(path)


@pytest.mark.parametrize("name", ["gone.pth", "", "a" * 5000])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(FlowmendError, match="is no file"):
        read_author_checkpoint(tmp_path / name)


@pytest.mark.parametrize("version", ["2.5.1", "2.5.0+cpu"])
def test_torch_with_a_leaking_reader_is_not_trusted(checkpoint, state, monkeypatch, version):
    monkeypatch.setattr(convert.torch, "__version__", version)
    with pytest.raises(FlowmendError, match=r"install torch 2\.6"):
        read_author_checkpoint(checkpoint)
    path = save_author_checkpoint(checkpoint.with_suffix(".safetensors"), state)
    assert same(read_author_checkpoint(path), state)


# The command.
def test_command_converts_and_comes_back(run, checkpoint, state, reference, tmp_path):
    outcome = run("convert", checkpoint, "--out", tmp_path / "v1.2")
    assert outcome.code == 0, outcome.err
    path = tmp_path / "v1.2.safetensors"
    assert distance(load_prior(path), reference) < CLOSE
    assert load_prior(path).card["file"] == "model-100.pth"
    assert load_prior(path).config.bits == 5
    outcome = run("convert", path, "--to-author", "--out", tmp_path / "back.pth")
    assert outcome.code == 0, outcome.err
    assert f"--K 2 --hid_dim {HIDDEN} --img_size 32 --img_ch 3" in outcome.err
    assert same(read_author_checkpoint(tmp_path / "back.pth"), state)
    assert leftovers(tmp_path) == []


def test_converted_prior_samples_and_scores(run, checkpoint, clean_folder, tmp_path):
    path = tmp_path / "author.safetensors"
    assert run("convert", checkpoint, "--out", path, "--bits", 6).code == 0
    assert load_prior(path).config.bits == 6
    assert run("sample", path, "--out", tmp_path / "s.png", "-n", 2, "--device", "cpu").code == 0
    assert run("score", path, clean_folder, "--device", "cpu").code == 0


def test_command_refuses_in_one_sentence(run, checkpoint, tiny_prior_path, tmp_path):
    save_file(load_file(tiny_prior_path), tmp_path / "other.safetensors")
    for arguments in (
        ("gone.pth", "--out", "x"),
        (tmp_path / "other.safetensors", "--out", "x"),
        (tiny_prior_path, "--to-author", "--out", "x.pth"),
        (checkpoint, "--to-author", "--out", "x.pth"),
        (checkpoint, "--out", tmp_path / "none" / ("a" * 300)),
    ):
        outcome = run("convert", *arguments)
        assert outcome.code == 1, arguments
        assert outcome.err.startswith("flowmend: ")
        assert outcome.err.count("\n") == 1
        assert "Traceback" not in outcome.err


def test_command_does_not_overwrite_its_source(run, prior, tmp_path):
    path = save_prior(tmp_path / "prior.safetensors", prior)
    before = path.read_bytes()
    assert run("convert", path, "--to-author", "--out", path).code == 1
    assert run("convert", path, "--out", tmp_path / "prior").code == 1
    assert path.read_bytes() == before


def test_command_has_help_with_examples(run):
    outcome = run("convert", "--help")
    assert outcome.code == 0
    assert outcome.out.count("Example: flowmend") == 3
