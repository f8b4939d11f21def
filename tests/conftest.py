"""Fixtures shared by the tests: a tiny prior, clean pictures, and the program run in process."""

import math
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

import flowmend as fm
from flowmend.cli import main
from flowmend.flow import continuous

SIDE = 16
NAMES = ("a", "b", "inside/c")
QUICK = ("--steps", 3, "--device", "cpu", "--precision", "float32")
"""Side of the images that the tiny prior knows."""


def pytest_configure():
    """One thread: what the tests compute is too small for more, which only wait for each other."""
    torch.set_num_threads(1)


def smooth_images(count, channels, height, width, seed=0):
    """Images (count, C, H, W) in [0, 1] made of a few low frequencies; float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(0.0, 1.0, height, dtype=torch.float64)[:, None]
    columns = torch.linspace(0.0, 1.0, width, dtype=torch.float64)[None, :]
    images = torch.zeros(count, channels, height, width, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            wave = torch.cos(math.pi * row * rows) * torch.cos(math.pi * column * columns)
            amount = torch.randn(count, channels, 1, 1, generator=generator, dtype=torch.float64)
            shared = torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)
            images += (0.05 * amount + 0.1 * shared) / (1.0 + row + column) * wave
    return (0.5 + images).clamp(0.0, 1.0)


def save_png(path, image):
    """Writes an image (C, H, W) in [0, 1] as PNG without the library's help."""
    levels = (image * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(path)
    return path


def tiny_prior(channels=3, seed=0):
    """A flow prior on small images whose couplings are not the identity; float32."""
    config = fm.preset(
        "whitened",
        height=SIDE,
        width=SIDE,
        channels=channels,
        steps=(2, 2),
        split=(False, False),
        hidden=8,
    )
    images = (smooth_images(64, channels, SIDE, SIDE, seed) * 255.0).round().to(torch.uint8)
    flow = fm.build_flow(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    prior = fm.FlowPrior(flow, fm.GaussianPrior.fit(images), {"name": "tiny"})
    return prior.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_prior_path(tmp_path_factory):
    """Weights file of a tiny prior on 3 x 16 x 16 images."""
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    return fm.save(path, tiny_prior())


@pytest.fixture
def clean_folder(tmp_path):
    """A folder of three clean colour pictures of 24 x 20 pixels, one of them in a sub-folder."""
    folder = tmp_path / "clean"
    for name, image in zip(
        ("a.png", "b.png", "inside/c.png"), smooth_images(3, 3, 20, 24, seed=7), strict=True
    ):
        save_png(folder / name, image)
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs ``flowmend ARGUMENTS`` in this process; an escaping exception counts as a traceback."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "dumb")
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        capsys.readouterr()
        escaped, code = "", 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            code, escaped = 1, traceback.format_exc()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err + escaped)

    return call


@pytest.fixture
def estimated(monkeypatch):
    """Traces of a continuous flow are estimated, whatever its size."""
    monkeypatch.setattr(continuous, "EXACT_DIMENSIONS", 0)


class Interrupted(Exception):  # noqa: N818
    """Raised where a test interrupts a training."""


def interrupt_at(step):
    """A progress function that interrupts after a step."""

    def progress(done, total, what):
        if done == step:
            raise Interrupted

    return progress


def leftovers(*folders):
    """Temporary and hidden files under folders: nothing may leave any."""
    return [
        str(path)
        for folder in map(Path, folders)
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.name.startswith(".") or path.name.endswith((".part", ".tmp"))
    ]
