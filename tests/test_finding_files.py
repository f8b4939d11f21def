"""Which files of a folder are pictures."""

import os

import numpy as np
import pytest

from flowmend.errors import FlowmendError
from flowmend.files import PICTURES, find_pictures, read_image


# Finding pictures.
def make(folder, *names):
    """Empty files: finding does not open them."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_pictures_are_found_at_any_depth_in_order(tmp_path):
    wanted = make(tmp_path, "a.png", "b/a.JPG", "b/c/z.webp", "d.tiff")
    make(tmp_path, "notes.txt", "b/list.csv", "png", "e.gif.part")
    assert find_pictures([tmp_path]) == wanted
    assert find_pictures([str(tmp_path)]) == wanted


def test_every_known_ending_is_found(tmp_path):
    wanted = make(tmp_path, *sorted(f"picture{ending}" for ending in PICTURES))
    assert find_pictures([tmp_path]) == wanted


def test_hidden_files_are_passed_over(tmp_path):
    wanted = make(tmp_path, "a.png")
    make(tmp_path, ".b.png", "._a.png", ".c.png.x.part")
    assert find_pictures([tmp_path]) == wanted


def test_folder_named_like_a_picture_is_no_picture(tmp_path):
    wanted = make(tmp_path, "album.png/a.png")
    assert find_pictures([tmp_path]) == wanted


def test_named_files_are_taken_whatever_their_ending(tmp_path):
    named = make(tmp_path, "photo.dat", ".hidden.png")
    assert find_pictures(named) == named


def test_nothing_is_listed_twice(tmp_path):
    first, second = make(tmp_path, "a.png", "b.png")
    assert find_pictures([second, tmp_path, tmp_path]) == [second, first]


def test_missing_input_is_refused(tmp_path):
    good = make(tmp_path, "a.png")
    with pytest.raises(FlowmendError, match=r"gone\.png' does not exist"):
        find_pictures([*good, tmp_path / "gone.png"])


def test_folder_without_pictures_is_refused(tmp_path):
    make(tmp_path, "notes.txt", ".hidden.png", "values.npy")
    with pytest.raises(FlowmendError, match=r"holds no pictures \(\.png .*\.bmp\)"):
        find_pictures([tmp_path])


def test_arrays_are_found_when_asked_for(tmp_path):
    picture, array = make(tmp_path, "a.png", "b.npy")
    assert find_pictures([tmp_path]) == [picture]
    assert find_pictures([tmp_path], arrays=True) == [picture, array]


def test_array_stands_for_the_picture_beside_it(tmp_path):
    array, _, other, deep = make(tmp_path, "a.npy", "a.png", "b.png", "c/a.png")
    assert find_pictures([tmp_path], arrays=True) == [array, other, deep]
    assert find_pictures([tmp_path]) == [tmp_path / "a.png", other, deep]


def test_array_with_a_capital_ending_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.full((1, 2, 2), 0.5, np.float32))
    os.replace(tmp_path / "a.npy", tmp_path / "a.NPY")
    (found,) = find_pictures([tmp_path], arrays=True)
    assert read_image(found).tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
