"""Arrays that claim to lie in GPU memory: the protocols are real, the memory is the host's."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.runtime.cuda.fake_gpu.host_driver import on_device
from unetrt.runtime.cuda.arrays import LEGACY_STREAM, DeviceArray, device_array
from unetrt.runtime.errors import FrameError

FRAME = np.arange(24, dtype=np.uint16).reshape(4, 6)


class Described:
    """What Numba and CuPy hand out, for host memory."""

    def __init__(self, **words):
        self.__cuda_array_interface__ = {
            "shape": (4, 6), "typestr": "<u2", "data": (4096, False), "strides": None, "version": 3, **words
        }  # fmt: skip


class Exported:
    """A real capsule, of a numpy array, from a producer that says its device is a GPU."""

    def __init__(self, array, kind=2, index=1):
        self.array, self.device, self.streams = array, (kind, index), []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, max_version=None):
        self.streams.append((stream, max_version))
        return self.array.__dlpack__(max_version=max_version)


class Old(Exported):
    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        return self.array.__dlpack__()


class Refusing(Exported):
    def __dlpack__(self, *, stream=None, max_version=None):
        raise BufferError("not the current\n device")


class Torn(Described):
    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("requires grad")

    @__cuda_array_interface__.setter
    def __cuda_array_interface__(self, words):
        pass


@pytest.mark.parametrize("image", [FRAME, torch.zeros(2, 3), [[1, 2]], 3, None, Exported(FRAME, kind=3)])
def test_what_lies_on_the_host(image):
    assert device_array(image) is None


def test_a_device_array_is_one():
    array = on_device(FRAME)
    assert device_array(array) is array


def test_an_interface_without_strides_is_in_c_order():
    image = Described(data=(4096, True))
    array = device_array(image)
    assert array == DeviceArray(4096, (4, 6), (12, 2), np.dtype(np.uint16), read_only=True)
    assert array is not None
    assert array.owner is image


def test_an_interface_may_have_strides_of_either_sign():
    array = device_array(Described(strides=(-12, 4), shape=(4, 3), typestr="|b1"))
    assert array is not None
    assert (array.strides, array.dtype) == ((-12, 4), bool)


@pytest.mark.parametrize(
    ("words", "stream"),
    [({}, None), ({"stream": None}, None), ({"stream": 1}, 1), ({"stream": 2}, 2), ({"stream": 1 << 40}, 1 << 40),
     ({"version": 2}, LEGACY_STREAM)],
)  # fmt: skip
def test_the_stream_to_wait_for(words, stream):
    array = device_array(Described(**words))
    assert array is not None
    assert array.stream == stream


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"stream": 0}, "stream 0, which is ambiguous"),
        ({"version": 1}, "version 1 of the CUDA Array Interface: use version 2 or 3"),
        ({"mask": object()}, "masked"),
        ({"typestr": "<V2"}, r"is \|V2: use one of bool, uint8"),
        ({"typestr": "nonsense"}, "invalid, TypeError"),
        ({"typestr": ">f4"}, "is >f4: use one of"),
        ({"strides": (2,)}, r"strides \(2,\)"),
        ({"data": None}, "of a Described is invalid"),
        ({"shape": 3}, "of a Described is invalid"),
        ({"shape": None}, "of a Described is invalid"),
        ({"data": (4097, False)}, "has address 4097"),
    ],
)
def test_interfaces_that_cannot_be_read(words, message):
    with pytest.raises(FrameError, match=message) as caught:
        device_array(Described(**words))
    assert "\n" not in str(caught.value)


def test_an_interface_that_is_no_dict():
    with pytest.raises(FrameError, match="invalid"):
        device_array(SimpleNamespace(__cuda_array_interface__=3))


def test_an_interface_that_is_refused_says_why_and_what_to_do():
    with pytest.raises(FrameError, match=r"requires grad.*tensor.detach\(\)"):
        device_array(Torn())


@pytest.mark.parametrize("kind", [2, 13])
def test_dlpack_tells_the_device_and_the_producer_the_stream(kind):
    image = Exported(FRAME, kind)
    array = device_array(image, stream=99)
    assert image.streams == [(99, (1, 0))]
    assert array is not None
    assert (array.address, array.shape, array.strides) == (on_device(FRAME).address, (4, 6), (12, 2))
    assert array.stream == 99


def test_a_producer_from_before_version_1_is_asked_without_versions():
    image = Old(FRAME)
    assert device_array(image) is not None
    assert image.streams == [LEGACY_STREAM]


def test_dlpack_is_asked_first_and_the_interface_where_it_refuses():
    image = Exported(FRAME)
    image.__cuda_array_interface__ = Described().__cuda_array_interface__
    array = device_array(image)
    assert array is not None
    assert array.address == on_device(FRAME).address
    image = Refusing(FRAME)
    image.__cuda_array_interface__ = Described().__cuda_array_interface__
    array = device_array(image)
    assert array is not None
    assert array.address == 4096


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Refusing(FRAME), r"Refusing does not export its memory \(not the current device\)"),
        (Exported(FRAME, kind=10), r"not a CUDA GPU \(DLPack type 10\): copy it to the host"),
        (Exported(SimpleNamespace(__dlpack__=lambda max_version: "text")), "a str without an unconsumed tensor"),
        (Exported(torch.zeros(3, requires_grad=True)), r"require gradient, use tensor.detach\(\)"),
    ],
)
def test_what_dlpack_cannot_give(image, message):
    with pytest.raises(FrameError, match=message) as caught:
        device_array(image)
    assert "\n" not in str(caught.value)


def test_an_array_is_held_as_long_as_it_is_read():
    frame = FRAME.copy()
    before = sys.getrefcount(frame)
    array = device_array(Exported(frame))
    assert array is not None
    part = array[1]
    del array
    assert sys.getrefcount(frame) == before + 1
    del part
    assert sys.getrefcount(frame) == before


def test_results_go_to_others_by_the_interface():
    for image in (on_device(FRAME[::-1, ::2]), Described(stream=5), Described(data=(8, True))):
        array = device_array(image)
        assert array is not None
        assert device_array(SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__)) == array
