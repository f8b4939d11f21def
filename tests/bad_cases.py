"""Pictures, commands and the one sentence that the tests of bad input share."""

import numpy as np
import torch
from conftest import SIDE, save_png, smooth_images
from safetensors.torch import save_file

SHAPE = (3, SIDE, SIDE)
CLOSED = ("--method", "pinv", "--device", "cpu")


def images(count=3):
    return smooth_images(count, *SHAPE, seed=5)


def everything(folder):
    """Every file under a folder, with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sentences(outcome):
    """What was said on stderr, checked to be plain speech."""
    assert "Traceback" not in outcome.err, outcome.err
    assert "Error:" not in outcome.err, outcome.err
    return [line for line in outcome.err.splitlines() if line.strip()]


def check_one_message(outcome, phrase):
    """Exactly one sentence on stderr, and for wrong usage a hint where to read on."""
    lines = sentences(outcome)
    assert outcome.code in (1, 2), outcome.err
    if outcome.code == 2 and lines[-1].startswith("Try '"):
        lines.pop()
    if "training and" in lines[0]:  # train says how many pictures it has read
        lines.pop(0)
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("flowmend: ")
    assert outcome.code == 2 or lines[0].endswith((".", "?"))
    assert phrase in lines[0]


def filled(folder, tiny_prior_path):
    """The folder, with everything that the bad command lines name."""
    for name, image in zip(("a", "b", "c"), images(), strict=True):
        save_png(folder / "in" / f"{name}.png", image)
    save_png(folder / "twin" / "a.png", images(1)[0])
    (folder / "in" / "deep").mkdir()
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("hello")
    (folder / "file").write_text("I am in the way")
    save_png(folder / "black.png", torch.zeros(1, SIDE, SIDE))
    save_png(folder / "small.png", torch.ones(1, 8, 8))
    np.save(folder / "zeros.npy", np.zeros((3, 3)))
    np.save(folder / "nan.npy", np.full((3, 3), np.nan))
    np.save(folder / "negative.npy", np.array([[1.0, -2.0]]))
    np.save(folder / "line.npy", np.ones(SIDE))
    (folder / "corrupt.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0" + b"x" * 50)
    (folder / "hollow.safetensors").write_bytes(b"")
    save_file({"weight": torch.ones(2)}, folder / "foreign.safetensors")
    content = tiny_prior_path.read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    torch.save({"weight": torch.ones(2)}, folder / "pickled.pt")
    (folder / "changed.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    card = tiny_prior_path.with_suffix(".json").read_text()
    (folder / "changed.json").write_text(card)
    (folder / "prior.safetensors").write_bytes(content)
    return folder


RESTORE = "restore in --out out --prior prior.safetensors"
