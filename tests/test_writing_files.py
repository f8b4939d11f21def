"""Writing results so that no disk and no interruption leaves half of one."""

import errno
import os

import numpy as np
import pytest
import torch
from file_cases import levels
from PIL import Image

from flowmend.errors import FlowmendError
from flowmend.files import atomic_path, read_image, save_array, save_image
from flowmend.pixels import grid, to_bytes


# Writing.
@pytest.mark.parametrize("channels", [1, 3])
def test_saved_image_comes_back(tmp_path, channels):
    values = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0))
    path = save_image(tmp_path / "new" / "folder" / "image.png", values.requires_grad_())
    assert torch.equal(to_bytes(read_image(path)), to_bytes(values))
    assert [item.name for item in path.parent.iterdir()] == ["image.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == ("L" if channels == 1 else "RGB")


def test_saved_image_clamps_values(tmp_path):
    path = save_image(tmp_path / "image.png", torch.tensor([[[-1.0, 0.5, 2.0]]]))
    assert levels(path).tolist() == [[[0, 128, 255]]]


def test_saved_file_has_ordinary_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        path = save_image(tmp_path / "image.png", torch.zeros(1, 2, 2))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def break_writing(monkeypatch, error):
    """Every writer writes something and then fails."""

    def fail_image(self, path, format=None):
        path.write_bytes(b"half a picture")
        raise error

    def fail_array(file, values):
        file.write(b"half an array")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail_image)
    monkeypatch.setattr(np, "save", fail_array)


@pytest.mark.parametrize("save", [save_image, save_array])
def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, save):
    break_writing(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(FlowmendError, match=r"Cannot write '.*result': No space left on device"):
        save(tmp_path / "result", torch.zeros(1, 2, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [save_image, save_array])
def test_failed_write_keeps_the_older_file(tmp_path, monkeypatch, save):
    path = save(tmp_path / "result", torch.zeros(1, 2, 2))
    before = path.read_bytes()
    break_writing(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(FlowmendError):
        save(path, torch.ones(1, 2, 2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("save", [save_image, save_array])
def test_interruption_while_writing_leaves_nothing_behind(tmp_path, monkeypatch, save):
    break_writing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "result", torch.zeros(1, 2, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [save_image, save_array])
def test_place_that_cannot_be_written_is_one_sentence(tmp_path, save):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "result", tmp_path / "file" / "deep" / "result"):
        with pytest.raises(FlowmendError, match=r"Cannot write '.*result': "):
            save(path, torch.zeros(1, 2, 2))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FlowmendError, match=r"Cannot write '.*folder'"):
        save(tmp_path / "folder", torch.zeros(1, 2, 2))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]


def test_atomic_path_shows_the_file_only_when_all_went_well(tmp_path):
    path = tmp_path / "result.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
    assert path.read_text() == "done"
    assert list(tmp_path.iterdir()) == [path]


# Sheets.
def test_grid_places_images_row_by_row():
    images = torch.stack([torch.full((1, 2, 3), 0.1 * index) for index in range(5)])
    sheet = grid(images, columns=3, gap=1)
    assert sheet.shape == (1, 2 * 3 + 1, 3 * 4 + 1)
    wanted = torch.ones(7, 13)
    for index in range(5):
        top, left = 1 + 3 * (index // 3), 1 + 4 * (index % 3)
        wanted[top : top + 2, left : left + 3] = 0.1 * index
    assert torch.equal(sheet[0], wanted)


def test_grid_enlarges_and_clamps():
    images = torch.tensor([[[[-1.0, 2.0]]], [[[0.25, 0.5]]]])
    sheet = grid(images, columns=2, gap=0, scale=2)
    assert sheet.tolist() == [[[0.0, 0.0, 1.0, 1.0, 0.25, 0.25, 0.5, 0.5]] * 2]


def test_grid_of_colour_images_without_gap_is_their_row():
    images = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grid(images, columns=3, gap=0), torch.cat(list(images), -1))
    assert grid(images, columns=8).shape == (3, 8, 58)
