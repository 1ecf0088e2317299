"""Real capsules, of numpy and torch; they hold host memory, which the parser does not mind."""

import ctypes
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.cuda.fake_gpu.host_driver import on_device
from unetrt.runtime.cuda import arrays
from unetrt.runtime.cuda.arrays import DTYPES
from unetrt.runtime.errors import FrameError

VERSIONS = (None, (1, 0))


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.sampled_from([1, -1, 2]),
    st.sampled_from(VERSIONS),
)
def test_a_capsule_of_numpy_is_the_array(dtype, shape, step, version):
    array = np.zeros([2 * side for side in shape], dtype)[tuple(slice(None, None, step) for _ in shape)]
    taken, expected = arrays.take(array.__dlpack__(max_version=version), stream=5), on_device(array)
    assert (taken.address, taken.shape, taken.dtype) == (expected.address, expected.shape, dtype)
    if array.size > 1:
        assert taken.bounds == expected.bounds
        assert taken.strides == expected.strides
    assert (taken.device, taken.stream, taken.read_only) == (0, 5, False)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float16, torch.float64])
def test_a_capsule_of_torch_is_the_tensor(dtype, version):
    tensor = torch.zeros(4, 6, 8, dtype=dtype)[1:, :, ::2].transpose(0, 2)
    taken = arrays.take(tensor.__dlpack__(max_version=version))
    assert (taken.address, taken.shape, str(taken.dtype)) == (
        tensor.data_ptr(), tuple(tensor.shape), str(dtype).removeprefix("torch.")
    )  # fmt: skip
    assert taken.strides == tuple(stride * tensor.element_size() for stride in tensor.stride())


def test_only_version_1_tells_that_an_array_is_read_only():
    array = np.zeros(3)
    array.flags.writeable = False
    assert arrays.take(array.__dlpack__(max_version=(1, 0))).read_only


@pytest.mark.parametrize("version", VERSIONS)
def test_the_deleter_runs_once_when_the_last_array_goes(version):
    array = np.zeros((3, 4))
    before = sys.getrefcount(array)
    capsule = array.__dlpack__(max_version=version)
    taken = arrays.take(capsule)
    part = taken[1]
    del capsule, taken
    assert sys.getrefcount(array) == before + 1
    del part
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_a_capsule_is_taken_once(version):
    capsule = np.zeros(3).__dlpack__(max_version=version)
    taken = arrays.take(capsule)
    with pytest.raises(FrameError, match="PyCapsule without an unconsumed tensor: pass the array itself"):
        arrays.take(capsule)
    assert "used_dltensor" in repr(capsule)
    del taken


@pytest.mark.parametrize(
    ("tensor", "name"),
    [(torch.zeros(2, dtype=torch.bfloat16), "bfloat16"), (torch.zeros(2, dtype=torch.complex64), "complex64")],
)
def test_dtypes_that_no_frame_has_are_named_and_freed(tensor, name):
    with pytest.raises(FrameError, match=f"is {name}: use one of bool, uint8"):
        arrays.take(tensor.__dlpack__())
    freed = np.zeros(2, np.complex128)
    before = sys.getrefcount(freed)
    with pytest.raises(FrameError):
        arrays.take(freed.__dlpack__())
    assert sys.getrefcount(freed) == before


def changed(array, version, **fields):
    """A capsule of numpy whose struct says something else."""
    capsule = array.__dlpack__(max_version=version)
    name = b"dltensor_versioned" if version else b"dltensor"
    managed = arrays.CAPSULES[name][0].from_address(arrays._pointer(capsule, name))
    for field, value in fields.items():
        setattr(managed if hasattr(managed, field) else managed.tensor, field, value)
    return capsule


@pytest.mark.parametrize(
    ("version", "fields", "message"),
    [
        (None, {"lanes": 4}, "is float32 x 4: use"),
        (None, {"code": 17}, "is DLPack type 17, 32: use"),
        (None, {"bits": 4}, "is float4: use"),
        (None, {"code": 6}, "is bool32: use"),
        ((1, 0), {"major": 2}, r"DLPack 2\.\d+: use version 1\.x"),
    ],
)
def test_tensors_that_cannot_be_read_are_freed(version, fields, message):
    array = np.zeros((3, 4), np.float32)
    before = sys.getrefcount(array)
    with pytest.raises(FrameError, match=message):
        arrays.take(changed(array, version, **fields))
    assert sys.getrefcount(array) == before


def test_strides_may_be_missing_and_data_may_begin_later():
    array = np.zeros((3, 4), np.float32)
    taken = arrays.take(changed(array, None, strides=ctypes.POINTER(ctypes.c_int64)(), byte_offset=8))
    assert (taken.strides, taken.address) == ((16, 4), on_device(array).address + 8)
