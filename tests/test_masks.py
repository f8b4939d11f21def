"""Masks from texts, files and arrays."""

import numpy as np
import pytest
import torch
from conftest import save_png
from PIL import Image
from task_cases import SHAPE

from flowmend.errors import FlowmendError
from flowmend.tasks import make_task, parse_mask


# Masks
def hole(mask):
    rows = torch.nonzero((mask == 0).any(-1).flatten()).flatten()
    columns = torch.nonzero((mask == 0).any(-2).flatten()).flatten()
    assert float((1 - mask).sum()) == len(rows) * len(columns), "the hole must be a rectangle"
    return [(int(side.min()), int(side.max())) for side in (rows, columns)]


def test_the_papers_hole_at_32_pixels():
    mask = parse_mask("center:0.4", (3, 32, 32))
    assert mask.shape == (1, 32, 32)
    assert hole(mask) == [(9, 21), (9, 21)]
    assert int((mask == 0).sum()) == 169
    assert torch.equal(make_task("inpaint", (3, 32, 32)).operator.mask, mask)


@pytest.mark.parametrize(
    ("share", "shape", "wanted"),
    [
        ("0.4", (3, 64, 64), [(19, 43), (19, 43)]),
        ("0.5", (3, 16, 24), [(4, 11), (6, 17)]),
        ("0.4", (1, 10, 20), [(3, 6), (6, 13)]),
        ("0.25", (3, 32, 32), [(12, 19), (12, 19)]),
    ],
)
def test_holes_of_other_sizes(share, shape, wanted):
    assert hole(parse_mask(f"center:{share}", shape)) == wanted


@pytest.mark.parametrize("shape", [SHAPE, (3, 32, 32), (1, 5, 7)])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 0.9999])
def test_random_masks_hide_a_share(shape, share):
    mask = parse_mask(f"random:{share}", shape)
    size = shape[1] * shape[2]
    assert mask.shape == (1, *shape[1:])
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    wanted = min(size - 1, max(1, share * size))
    assert float((mask == 0).sum()) == pytest.approx(wanted, abs=0.5)
    operator = make_task("inpaint", shape, mask=f"random:{share}").operator
    assert torch.equal(operator.mask, mask)


def test_a_random_mask_is_the_same_every_time_and_spread():
    random = torch.random.get_rng_state()
    mask = parse_mask("random:0.5", (3, 32, 32))
    assert torch.equal(parse_mask("random:0.5", (1, 32, 32)), mask)
    assert torch.equal(random, torch.random.get_rng_state())
    assert mask[0, :2, :6].tolist() == [[0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]]
    quarters = mask.reshape(2, 16, 2, 16).mean((1, 3))
    assert float((quarters - 0.5).abs().max()) < 4 * 0.5 / 16
    neighbours = (mask[:, :, 1:] == mask[:, :, :-1]).double().mean()
    assert float(neighbours) == pytest.approx(0.5, abs=4 * 0.5 / 31)


def test_a_mask_file_is_white_where_the_image_is_known(tmp_path):
    picture = torch.zeros(1, 16, 24)
    picture[:, 2:5, 7:20] = 1.0
    picture[:, 6, 6] = 130 / 255
    picture[:, 7, 7] = 126 / 255
    grey = parse_mask(str(save_png(tmp_path / "grey.png", picture)), SHAPE)
    colour = parse_mask(str(save_png(tmp_path / "rgb.png", picture.expand(3, -1, -1))), SHAPE)
    np.save(tmp_path / "mask.npy", picture[0].numpy())
    array = parse_mask(str(tmp_path / "mask.npy"), SHAPE)
    wanted = (picture > 0.5).float()
    for mask in (grey, colour, array):
        assert torch.equal(mask, wanted)
    assert float(wanted.sum()) == 3 * 13 + 1


def test_a_one_bit_mask(tmp_path):
    levels = np.zeros((16, 24), dtype=bool)
    levels[3, 4] = True
    Image.fromarray(levels).save(tmp_path / "bit.png")
    mask = parse_mask(str(tmp_path / "bit.png"), SHAPE)
    assert torch.nonzero(mask).tolist() == [[0, 3, 4]]


def test_masks_that_cannot_be_used(tmp_path):
    for text in ("center:0", "center:1", "center:-0.4", "center:nan", "center:2"):
        with pytest.raises(FlowmendError, match="between 0 and 1"):
            parse_mask(text, SHAPE)
    for text in ("random:0", "random:1", "random:1.5", "random:-0.5", "random:nan"):
        with pytest.raises(FlowmendError, match="missing pixels must be between 0 and 1"):
            parse_mask(text, SHAPE)
    for text in ("center:", "center:half", "random:", "random:half"):
        with pytest.raises(FlowmendError, match="not a number"):
            parse_mask(text, SHAPE)
    other = save_png(tmp_path / "other.png", torch.ones(1, 24, 16))
    with pytest.raises(FlowmendError, match="16 x 24 pixels; the images have 24 x 16"):
        parse_mask(str(other), SHAPE)
    black = save_png(tmp_path / "black.png", torch.zeros(1, 16, 24))
    with pytest.raises(FlowmendError, match="all black"):
        make_task("inpaint", SHAPE, mask=str(black))
    with pytest.raises(FlowmendError, match="nowhere"):
        parse_mask(str(tmp_path / "nowhere.png"), SHAPE)
    with pytest.raises(FlowmendError, match="height and width"):
        make_task("inpaint", SHAPE, mask=torch.ones(1, 24, 16))


def test_a_mask_array_of_one_dimension_is_refused(tmp_path):
    np.save(tmp_path / "line.npy", np.ones(24, dtype=np.float32))
    with pytest.raises(FlowmendError, match=r"line\.npy"):
        parse_mask(str(tmp_path / "line.npy"), SHAPE)
