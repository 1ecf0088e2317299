"""DLPack: takes over the tensor that a producer hands out in a capsule.

The structs are those of dlpack.h, before version 1 and of version 1. Who takes a tensor renames its capsule, so that
the capsule no longer frees it, and calls the tensor's deleter once when done.
"""

import ctypes
import weakref
from ctypes import PYFUNCTYPE, Structure, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from ctypes import c_void_p as address
from typing import Any

from unetrt.runtime.cuda.device_array import DeviceArray, packed_strides, require_dtype
from unetrt.runtime.errors import FrameError

# DLDataTypeCode of dlpack.h; bfloat and complex are named only to be refused by name.
KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
# DLPACK_FLAG_BITMASK_READ_ONLY of dlpack.h.
READ_ONLY = 1
MAJOR_VERSION = 1


class _Tensor(Structure):
    """DLTensor, with DLDevice and DLDataType in line: strides count elements, and may be missing."""

    _fields_ = (
        ("data", address),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", address), ("deleter", address))


class _ManagedVersioned(Structure):
    """DLManagedTensorVersioned; another major version changes what follows `deleter`."""

    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", address),
        ("deleter", address),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


# Prototypes of our own: those that ctypes.pythonapi hands out are shared with everybody in the process.
_is_valid = PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = PYFUNCTYPE(address, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_rename = PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
# Called with Python's lock held, as when a capsule that nobody took is freed.
_Deleter = PYFUNCTYPE(None, address)

# By the capsule's name: its struct, and the name of a capsule that was taken. A capsule keeps the pointer to its name.
CAPSULES: dict[bytes, tuple[Any, bytes]] = {
    b"dltensor": (_Managed, b"used_dltensor"),
    b"dltensor_versioned": (_ManagedVersioned, b"used_dltensor_versioned"),
}


def take(capsule: Any, stream: int | None = None) -> DeviceArray:
    """Take over the tensor in a capsule, on whatever device; it is freed with the last array that holds its owner.

    `stream` is the CUDA stream that the producer was told of.

    Raises
    ------
    FrameError
        This is no capsule of DLPack or one that was taken before, or its version or dtype is unknown.
    """
    for name, (struct, used) in CAPSULES.items():
        if _is_valid(capsule, name):
            place = _pointer(capsule, name)
            _rename(capsule, used)
            managed = struct.from_address(place)
            return _array(managed, _Owner(place, managed.deleter), stream)
    raise FrameError(f"__dlpack__ gives a {type(capsule).__name__} that holds no tensor: give the array itself again")


class _Owner:
    """Frees a tensor when nobody holds this any more, or when Python ends."""

    def __init__(self, place: int, deleter: int | None) -> None:
        if deleter:
            weakref.finalize(self, _Deleter(deleter), place)


def _array(managed: Any, owner: _Owner, stream: int | None) -> DeviceArray:
    if getattr(managed, "major", MAJOR_VERSION) != MAJOR_VERSION:
        raise FrameError(f"the image comes as DLPack {managed.major}.{managed.minor}: {MAJOR_VERSION}.x can be read")
    tensor = managed.tensor
    dtype = require_dtype(_dtype_name(tensor))
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = packed_strides(shape, dtype.itemsize)
    if tensor.strides:
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides[: tensor.ndim])
    place = (tensor.data or 0) + tensor.byte_offset
    read_only = bool(getattr(managed, "flags", 0) & READ_ONLY)
    return DeviceArray(place, shape, strides, dtype, tensor.device_id, stream, read_only, owner)


def _dtype_name(tensor: _Tensor) -> str:
    name = KINDS.get(tensor.code, f"DLPack type {tensor.code}, ")
    lanes = f" x {tensor.lanes}" if tensor.lanes != 1 else ""
    return (name if name == "bool" and tensor.bits == 8 else f"{name}{tensor.bits}") + lanes
