"""Tiny images and photographs, runs of flow matching on them, and how they are interrupted."""

import dataclasses
import json

import torch
from conftest import save_png, smooth_images

from flowmend import flowmatching
from flowmend.flow import VelocityConfig
from flowmend.flowmatching import MatchingRun, match
from flowmend.matching_loss import matching_loss
from flowmend.recipes import MatchingRecipe

SIZE = 8
FIXED = VelocityConfig(channels=1, widths=(6, 8), blocks=(1, 1), size=(SIZE, SIZE))
CROPS = dataclasses.replace(FIXED, size=None, crop=SIZE)
RECIPE = MatchingRecipe(epochs=3, batch=8, learning_rate=5e-3, warmup=2, averaging=0.9)


def levels(count, height=SIZE, width=SIZE, channels=1, seed=0):
    """Smooth images uint8 (N, C, H, W)."""
    images = smooth_images(count, channels, height, width, seed)
    return (255.0 * images).round().to(torch.uint8)


IMAGES, VALIDATION = levels(32), levels(6, seed=1)
PHOTOGRAPHS = [levels(1, 8 + 3 * k, 24 - 2 * k, seed=k)[0] for k in range(4)]
CASES = {
    "one size": (FIXED, IMAGES, VALIDATION),
    "crops": (CROPS, [*PHOTOGRAPHS, *IMAGES[:13]], [PHOTOGRAPHS[0], VALIDATION[0]]),
}


def start(out, case="one size", recipe=RECIPE, **options):
    config, images, validation = CASES[case]
    return match(images, validation, out, config, recipe, **options)


def run_in(out, case="one size", recipe=RECIPE, seed=0):
    config, images, validation = CASES[case]
    return MatchingRun(out, config, recipe, images, validation, seed, "cpu")


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def batches_of(run, monkeypatch, epochs=1):
    seen = []
    loss = matching_loss
    monkeypatch.setattr(
        flowmatching,
        "matching_loss",
        lambda velocity, x, t, noise, linear, drop: (
            seen.append((x, t, noise)) or loss(velocity, x, t, noise, linear)
        ),
    )
    for _ in range(epochs * run.steps_per_epoch):
        run.advance()
    monkeypatch.undo()
    return [torch.cat(parts) for parts in zip(*seen, strict=True)]


def photographs_in(folder):
    """The folder, with photographs of many sizes, one of them too small."""
    for index, (height, width) in enumerate(
        [(9, 20), (16, 8), (30, 31), (8, 8), (12, 9), (7, 40)]
    ):
        save_png(folder / f"{index}.png", smooth_images(1, 3, height, width, seed=index)[0])
    return folder
