"""A handful of tiny images, runs on them, and how they are interrupted."""

import dataclasses
import json

import torch
from safetensors.torch import load_file

from flowmend import checkpoint as checkpoint_module
from flowmend.flow import FlowConfig
from flowmend.train import RECIPES, Recipe, Run, train

SIZE = 8
CONFIG = FlowConfig(
    height=SIZE, width=SIZE, channels=1, steps=(1, 2), split=(True, False), hidden=6
)
GLOW = FlowConfig(
    **(CONFIG.to_dict() | {"permutation": "conv1x1", "scale": "bounded", "positional": True})
)
WHITENED = FlowConfig(**(GLOW.to_dict() | {"whiten": True}))
STRONG = Recipe(epochs=3, batch=16, warmup=3, learning_rate=2e-3, weight_decay=0.1, averaging=0.9)
PAPER = dataclasses.replace(RECIPES["paper"], epochs=3, batch=16, learning_rate=1e-3)
STEPS = 12


def blobs(count, seed=0, channels=1):
    """Smooth random images uint8 (N, C, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(SIZE) + 0.5
    place = SIZE * torch.rand(count, channels, 2, 1, 1, generator=generator)
    width = 2.0 + 2.0 * torch.rand(count, 1, 1, 1, generator=generator)
    distance = (axis[:, None] - place[:, :, 0]) ** 2 + (axis - place[:, :, 1]) ** 2
    return (20 + 200 * (-distance / (2 * width**2)).exp()).to(torch.uint8)


IMAGES, VALIDATION = blobs(64), blobs(12, seed=1)


def start(out, config=CONFIG, recipe=STRONG, images=IMAGES, **options):
    return train(images, VALIDATION, out, config, recipe, **options)


def run_in(out, config=CONFIG, recipe=STRONG, images=IMAGES, seed=0):
    return Run(out, config, recipe, images, VALIDATION, seed, "cpu")


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def result_of(out):
    """All that a run leaves but times and the machine it ran on."""
    card = json.loads((out / "prior.json").read_text())
    for key in ("made_with", "sha256", "name"):
        card.pop(key)
    with checkpoint_module.safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        values = json.loads(file.metadata()["values"])
    return {
        "card": card,
        "log": [{k: v for k, v in record.items() if k != "seconds"} for record in log_of(out)],
        "prior": load_file(out / "prior.safetensors"),
        "checkpoint": load_file(out / "checkpoint.safetensors"),
        "values": values,
        "samples": {path.name: path.read_bytes() for path in (out / "samples").iterdir()},
    }


def assert_same(found, wanted):
    for key in ("prior", "checkpoint"):
        one, other = found[key], wanted[key]
        assert one.keys() == other.keys()
        different = [name for name in one if not torch.equal(one[name], other[name])]
        assert different == [], f"{key} differs"
    for key in ("card", "log", "values", "samples"):
        assert found[key] == wanted[key]
