"""Images in .npy files, good and damaged."""

import os

import numpy as np
import pytest
import torch

from flowmend.errors import FlowmendError
from flowmend.files import read_image, save_array


# Arrays.
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_array_is_read_as_it_is(tmp_path, dtype):
    values = np.linspace(-0.25, 1.25, 24).reshape(2, 3, 4).astype(dtype)
    np.save(tmp_path / "values.npy", values)
    found = read_image(tmp_path / "values.npy")
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), values.astype(np.float32))


def test_array_stored_by_columns_is_read_the_same(tmp_path):
    values = np.asfortranarray(np.random.default_rng(0).random((3, 4, 5), np.float32))
    np.save(tmp_path / "values.npy", values)
    assert np.array_equal(read_image(tmp_path / "values.npy").numpy(), values)


def test_saved_array_comes_back_exactly(tmp_path):
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    path = save_array(tmp_path / "deep" / "values.npy", values)
    assert torch.equal(read_image(path), values.detach())
    assert [item.name for item in path.parent.iterdir()] == ["values.npy"]


ARRAYS = {
    "nan": (np.array([0.5, np.nan]), "NaN"),
    "inf": (np.array([0.5, np.inf], np.float32), "infinite"),
    "minus inf": (np.array([-np.inf, 0.5], np.float16), "infinite"),
    "too large for float32": (np.array([1e300, 0.5]), "infinite"),
    "object": (np.array([{}, 1], dtype=object), "no plain array"),
    "complex": (np.array([1j]), "no real numbers"),
    "text": (np.array(["a"]), "no real numbers"),
    "records": (np.zeros(2, [("a", "f4")]), "no real numbers"),
    "integer": (np.arange(4), "floating-point.*int64"),
    "bytes": (np.arange(4, dtype=np.uint8), "floating-point.*uint8"),
    "bool": (np.array([True]), "floating-point.*bool"),
    "empty": (np.zeros((0, 3, 4), np.float32), "empty"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ARRAYS)
def test_unsuitable_array_is_refused(tmp_path, name):
    values, message = ARRAYS[name]
    path = tmp_path / "values.npy"
    np.save(path, values, allow_pickle=True)
    with pytest.raises(FlowmendError, match=rf"values\.npy.*{message}"):
        read_image(path)


def damaged_arrays():
    good = b"\x93NUMPY\x01\x00v\x00"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
    huge = header.replace(b"(2,)", b"(2000000000, 2000000)")
    whole = good + header.ljust(117) + b"\n" + bytes(8)
    return {
        "empty": b"",
        "text": b"0.5 0.25\n",
        "cut in the header": whole[:40],
        "cut in the data": whole[:-3],
        "open bracket": whole.replace(b"(2,)", b"(2, "),
        "no dictionary": whole.replace(b"{", b"["),
        "huge shape": good + huge.ljust(117) + b"\n" + bytes(8),
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle": b"\x80\x04K\x01.",
    }


@pytest.mark.parametrize("name", damaged_arrays())
def test_damaged_array_is_refused(tmp_path, name):
    path = tmp_path / "values.npy"
    path.write_bytes(damaged_arrays()[name])
    with pytest.raises(FlowmendError, match=r"values\.npy"):
        read_image(path)


def test_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "values.npz", a=np.zeros(3))
    os.replace(tmp_path / "values.npz", tmp_path / "values.npy")
    with pytest.raises(FlowmendError, match=r"values\.npy"):
        read_image(tmp_path / "values.npy")


def test_missing_array_is_refused(tmp_path):
    with pytest.raises(FlowmendError, match=r"gone\.npy"):
        read_image(tmp_path / "gone.npy")
