"""Training pictures whose colours are lost, each turned, scaled and moved at random."""

import dataclasses
import math

import pytest
import torch
from conftest import smooth_images

from flowmend import flowmatching
from flowmend.chance import generator_at, grey_only, random_affine, time_maps
from flowmend.errors import FlowmendError
from flowmend.flow import VelocityConfig
from flowmend.flowmatching import MatchingRun
from flowmend.pixels import to_bytes
from flowmend.recipes import MatchingRecipe

CONFIG = VelocityConfig(channels=3, widths=(4, 4), blocks=(1, 1), size=(8, 8))
RECIPE = MatchingRecipe(epochs=1, batch=8, affine=0.2)
LARGER = to_bytes(smooth_images(24, 3, 24, 24))
IMAGES = to_bytes(smooth_images(24, 3, 8, 8))


def source(seed=0):
    return generator_at(seed, 9)


def ramps(count, height, width):
    """Pictures whose two channels tell where a pixel is, right and down."""
    right = torch.arange(width).expand(height, width)
    down = torch.arange(height).view(-1, 1).expand(height, width)
    return torch.stack([right, down]).to(torch.uint8).expand(count, -1, -1, -1)


def maps_of(moved, height, width):
    """The affine maps (B, 3, 2) that pictures of ramps went through, by least squares."""
    rows, columns = moved.shape[2:]
    y = (torch.arange(rows) + 0.5) * (height / rows) - height / 2
    x = (torch.arange(columns) + 0.5) * (width / columns) - width / 2
    middle = slice(rows // 4, -(rows // 4)), slice(columns // 4, -(columns // 4))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[middle].reshape(-1, 2)
    points = torch.cat([grid, torch.ones(len(grid), 1)], 1).expand(len(moved), -1, -1)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    seen = moved.float()[(slice(None), slice(None), *middle)].flatten(2).transpose(1, 2) - centre
    return torch.linalg.lstsq(points, seen).solution


@pytest.mark.parametrize(("height", "width"), [(120, 120), (120, 240)])
def test_pictures_are_turned_scaled_and_moved(height, width):
    size, affine = (height // 3, width // 3), 0.15
    moved = random_affine(ramps(300, height, width), size, affine, source())
    found = maps_of(moved, height, width)
    linear, shift = found[:, :2].transpose(1, 2), found[:, 2]
    scale = torch.linalg.det(linear).sqrt()
    turn = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    # nothing is stretched or sheared: a turn and a scale, and no more
    cosine, sine = scale * turn.cos(), scale * turn.sin()
    similar = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    errors = (linear - similar).abs().flatten(1).amax(1)
    # rounded levels are seen as a trace of a turn where there is none
    assert float(errors.median()) < 0.002
    assert float(errors.max()) < 0.03
    for values in (turn, scale.log(), *(shift / torch.tensor([width, height]) * 2).T):
        assert 0.9 * affine < float(values.max()) < 1.05 * affine
        assert -1.05 * affine < float(values.min()) < -0.9 * affine
        assert float(values.std()) == pytest.approx(affine / math.sqrt(3), rel=0.15)


def test_it_depends_on_the_generator_alone():
    moved = random_affine(LARGER, (8, 8), 0.2, source())
    assert moved.dtype == torch.uint8
    assert torch.equal(random_affine(LARGER, (8, 8), 0.2, source()), moved)
    assert not torch.equal(random_affine(LARGER, (8, 8), 0.2, source(1)), moved)


def test_a_still_picture_is_reduced_only():
    means = LARGER.float().unfold(2, 3, 3).unfold(3, 3, 3).mean((-1, -2))
    still = random_affine(LARGER, (8, 8), 0.0, source())
    assert float((still.float() - means).abs().max()) <= 0.51
    flat = torch.full((2, 3, 24, 24), 77, dtype=torch.uint8)
    assert torch.equal(random_affine(flat, (8, 8), 0.5, source()), flat[:, :, :8, :8])


def test_what_is_grey_only():
    t = torch.zeros(6, 3, 4, 5)
    t[0, 0] = 1.0  # the grey, exactly
    t[1, 0] = 0.9  # with noise
    t[2] = 1.0  # everything
    t[3, 0] = 1.0
    t[3, 2, 1, 1] = 0.1  # one colour as well
    t[4, 0] = 1.0
    t[4, 0, 0, 0] = 0.0  # a hole
    assert grey_only(t).tolist() == [True, True, False, False, False, False]


def test_a_run_moves_what_has_lost_its_colours(tmp_path, monkeypatch):
    seen = []

    def moved(images, size, affine, noise):
        seen.append((images, size, affine))
        return random_affine(images, size, affine, noise)

    monkeypatch.setattr(flowmatching, "random_affine", moved)
    recipe = dataclasses.replace(RECIPE, mixed=0.9, common=0.7, sure=1.0, flip=False)
    run = MatchingRun(tmp_path, CONFIG, recipe, IMAGES, IMAGES[:4], 0, "cpu", larger=LARGER)
    chosen = torch.arange(24)
    losses = [float(run.loss(chosen, source(seed)).detach()) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    grey = grey_only(time_maps((24, 3, 8, 8), source(), *run.shares))
    assert 3 < int(grey.sum()) < 20
    images, *rest = seen[0]
    assert torch.equal(images, LARGER[grey])
    assert rest == [(8, 8), 0.2]
    # the others stand still, without jitter
    still = random_affine(LARGER, (8, 8), 0.0, source())
    shown = run._shown(chosen, grey.view(-1, 1, 1, 1) * torch.tensor([1.0, 0, 0]).view(3, 1, 1),
                       source())  # fmt: skip
    difference = (shown.float() - still.float()).abs().flatten(1).amax(1)
    assert float(difference[~grey].max()) <= 12 < float(difference[grey].min())


def test_what_it_lacks_is_said(tmp_path):
    def run(config=CONFIG, images=IMAGES, **options):
        return MatchingRun(tmp_path, config, RECIPE, images, images[:4], 0, "cpu", **options)

    with pytest.raises(FlowmendError, match="Affine needs every training image in more pixels"):
        run()
    with pytest.raises(FlowmendError, match="Affine is for images of one size"):
        run(dataclasses.replace(CONFIG, size=None, crop=8), larger=LARGER)
    grey = dataclasses.replace(CONFIG, channels=1)
    with pytest.raises(FlowmendError, match="pictures with colours"):
        run(grey, IMAGES[:, :1], larger=LARGER[:, :1])
    for affine in (-0.1, 0.6, float("nan")):
        with pytest.raises(FlowmendError, match="largest turn"):
            MatchingRecipe(affine=affine)
