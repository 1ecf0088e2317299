import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.cuda.fake_gpu.host_driver import on_device
from unetrt.runtime.cuda.arrays import DTYPES, DeviceArray
from unetrt.runtime.errors import FrameError
from unetrt.runtime.pixels.frames import require_raw, split_axes


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(DTYPES), st.data())
def test_parts_lie_where_numpys_do(shape, dtype, data):
    array = np.empty([2 * side for side in shape], dtype)[tuple(slice(None, None, -2) for _ in shape)]
    index = tuple(data.draw(st.integers(0, side - 1)) for side in shape[: data.draw(st.integers(0, len(shape)))])
    part, expected = on_device(array)[index], on_device(array[(*index, ...)])
    assert (part.address, part.shape, part.strides, part.dtype) == (
        expected.address,
        expected.shape,
        expected.strides,
        expected.dtype,
    )
    assert part.owner is array
    low, high = np.lib.array_utils.byte_bounds(array[(*index, ...)])
    assert part.bounds == (low, high)


@pytest.mark.parametrize("index", [3, -1, (0, 0, 0)])
def test_a_part_that_is_not_there(index):
    with pytest.raises(IndexError, match="outside shape"):
        DeviceArray.packed(0, (3, 4), np.uint8)[index]


def test_an_empty_array_touches_nothing():
    assert DeviceArray.packed(64, (0, 4), np.float32).bounds == (64, 64)


def test_frames_get_an_axis_for_their_channel_and_bool_counts_as_uint8():
    frame = DeviceArray.packed(0, (5, 7), bool).as_frame(1)
    assert (frame.shape, frame.strides, frame.dtype) == ((1, 5, 7), (35, 7, 1), np.uint8)
    assert DeviceArray.packed(0, (2, 5, 7), np.int8).as_frame(2).shape == (2, 5, 7)
    assert DeviceArray.packed(0, (1, 5, 7), np.int8).as_frame(1).shape == (1, 5, 7)


def test_what_checks_frames_on_the_host_checks_them_here():
    array = DeviceArray.packed(0, (9, 5, 7), np.uint16)
    assert split_axes(array.shape, 1) == ((9,), (5, 7))
    with pytest.raises(FrameError, match="raw uint8"):
        require_raw(array.dtype, "uint8")


@pytest.mark.parametrize(
    ("address", "strides", "dtype", "message"),
    [
        (2, (8, 4), "float32", "has address 2.*multiples of 4 bytes"),
        (0, (9, 2), "uint16", r"strides \(9, 2\).*for uint16 all must be multiples of 2 bytes"),
        (0, (32, 16), "complex128", "is complex128: use one of bool, uint8"),
        (0, (8, 2), ">u2", "is >u2: use one of"),
    ],
)
def test_arrays_that_kernels_cannot_read(address, strides, dtype, message):
    with pytest.raises(FrameError, match=message):
        DeviceArray(address, (2, 2), strides, np.dtype(dtype))


def test_strides_along_axes_of_one_pixel_say_nothing():
    assert DeviceArray(0, (1, 2), (3, 2), np.dtype(np.uint16)).shape == (1, 2)
