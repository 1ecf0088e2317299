"""Arrays in GPU memory, without a copy: `DeviceArray`, and other libraries' arrays as `DeviceArray`.

Two protocols exist for arrays of torch, CuPy, JAX and others. DLPack names the device and makes the producer
synchronise; the CUDA Array Interface names no device, and no stream before its version 3, which torch does not
implement. So `device_array` asks for DLPack first.

The DLPack structs are those of dlpack.h, before version 1 and of version 1. The consumer of a tensor renames its
capsule, so that the capsule no longer frees it, and calls the tensor's deleter once when done.
"""

import ctypes
import weakref
from ctypes import PYFUNCTYPE, Structure, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from ctypes import c_void_p as address
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from unetrt.runtime.errors import FrameError, one_line

NAMES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"
)  # fmt: skip
DTYPES = tuple(map(np.dtype, NAMES))
# CU_STREAM_LEGACY of cuda.h; both protocols use the same number.
LEGACY_STREAM = 1
# DLDeviceType of dlpack.h: kDLCPU and kDLCUDAHost (pinned); kDLCUDA and kDLCUDAManaged.
HOST = (1, 3)
CUDA = (2, 13)
# DLDataTypeCode of dlpack.h; bfloat and complex are named in errors only.
KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
# DLPACK_FLAG_BITMASK_READ_ONLY of dlpack.h.
READ_ONLY = 1
MAJOR_VERSION = 1
# Exceptions of producers that do not export an array, such as a tensor that requires a gradient.
REFUSALS = (BufferError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class DeviceArray:
    """An array in the memory of a CUDA device.

    Attributes
    ----------
    address
        Address of the first element.
    shape
        Number of elements along each axis.
    strides
        Bytes from one element to the next along each axis, positive or negative.
    dtype
        One of DTYPES.
    device
        CUDA's index of the device; None where the protocol does not state it.
    stream
        The CUDA stream whose work so far must complete before the array is read; None: no stream.
    read_only
        Whether it must not be written to.
    owner
        Object that keeps the memory alive.

    Raises
    ------
    FrameError
        The dtype is not one of DTYPES, or elements are not aligned to their size, as GPUs require.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int | None = None
    stream: int | None = None
    read_only: bool = False
    owner: object = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_dtype(str(self.dtype))
        steps = (stride for stride, length in zip(self.strides, self.shape, strict=True) if length > 1)
        if any(place % self.dtype.itemsize for place in (self.address, *steps)):
            raise FrameError(
                f"the image on the GPU has address {self.address} and strides {self.strides}: for {self.dtype} all "
                f"must be multiples of {self.dtype.itemsize} bytes; copy it"
            )

    @classmethod
    def packed(cls, address: int, shape: tuple[int, ...], dtype: Any, owner: object = None) -> "DeviceArray":
        """Return the C-contiguous array at `address`."""
        dtype = np.dtype(dtype)
        return cls(address, shape, packed_strides(shape, dtype.itemsize), dtype, owner=owner)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, without gaps between them."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest address of an element byte, and one past the highest; equal where the array is empty."""
        if 0 in self.shape:
            return self.address, self.address
        reaches = [stride * (length - 1) for stride, length in zip(self.strides, self.shape, strict=True)]
        low, high = sum(min(reach, 0) for reach in reaches), sum(max(reach, 0) for reach in reaches)
        return self.address + low, self.address + high + self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA Array Interface, for torch, CuPy, Numba and others."""
        data = (self.address, self.read_only)
        words = {"shape": self.shape, "strides": self.strides, "typestr": self.dtype.str, "data": data, "version": 3}
        return words if self.stream is None else {**words, "stream": self.stream}

    def __getitem__(self, index: int | tuple[int, ...]) -> "DeviceArray":
        """Return a view at an index, 0 ... n - 1, of each of the first axes; () is the whole array."""
        at = index if isinstance(index, tuple) else (index,)
        if len(at) > len(self.shape) or not all(0 <= i < length for i, length in zip(at, self.shape, strict=False)):
            raise IndexError(f"{at} lies outside shape {self.shape}")
        offset = sum(i * stride for i, stride in zip(at, self.strides, strict=False))
        return self._at(self.address + offset, self.shape[len(at) :], self.strides[len(at) :], self.dtype)

    def as_frame(self, channels: int) -> "DeviceArray":
        """Return a frame (H, W), or (C, H, W), as (C, H, W); bool as uint8, as `frames.as_frame` does."""
        dtype = np.dtype(np.uint8) if self.dtype == bool else self.dtype
        if channels == 1 and len(self.shape) == 2:
            return self._at(self.address, (1, *self.shape), (self.nbytes, *self.strides), dtype)
        return self._at(self.address, self.shape, self.strides, dtype)

    def _at(
        self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]
    ) -> "DeviceArray":
        return DeviceArray(address, shape, strides, dtype, self.device, self.stream, self.read_only, self.owner)


def require_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of DTYPES with this name; raises FrameError for any other."""
    if name not in map(str, DTYPES):
        raise FrameError(f"the image on the GPU is {name}: use one of {', '.join(map(str, DTYPES))}")
    return np.dtype(name)


def packed_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the strides of a C-contiguous array, in bytes."""
    return tuple(itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape)))


def device_array(image: Any, stream: int = LEGACY_STREAM) -> DeviceArray | None:
    """Return another library's array in GPU memory, or None for an array on the host.

    Parameters
    ----------
    image
        Any object; one without either protocol is on the host.
    stream
        Handle of the CUDA stream that will read the array. A producer of DLPack makes it wait for the array; the
        result's `stream` is then this one, and only other streams must wait for it.

    Raises
    ------
    FrameError
        Dtype, alignment or device are not supported, or the producer violates or refuses the protocol.
    """
    if isinstance(image, DeviceArray):
        return image
    kind, number = _dlpack_device(image)
    if kind in HOST:
        return None
    if kind is not None and kind not in CUDA:
        raise FrameError(f"the image is on a device that is not a CUDA GPU (DLPack type {kind}): copy it to the host")
    try:
        capsule = None if kind is None else _capsule(image, stream)
    except REFUSALS as error:
        # torch refuses a device that is not its current one.
        if (described := from_interface(image)) is not None:
            return replace(described, device=number)
        raise _refused(image, error) from error
    return from_interface(image) if capsule is None else take(capsule, stream)


def from_interface(image: Any) -> DeviceArray | None:
    """Return an array by its `__cuda_array_interface__`, version 2 or 3; None where it does not have it.

    Raises FrameError as `device_array` does.
    """
    try:
        described = getattr(image, "__cuda_array_interface__", None)
    except REFUSALS as error:
        raise _refused(image, error) from error
    if described is None:
        return None
    try:
        return _described(described, image)
    except (AttributeError, KeyError, TypeError) as error:
        raise FrameError(
            f"the __cuda_array_interface__ of a {type(image).__name__} is invalid, {type(error).__name__} ({error}): "
            "give an array of torch, CuPy, JAX or Numba"
        ) from error


def _described(described: dict[str, Any], owner: object) -> DeviceArray:
    version = described["version"]
    if version not in (2, 3):
        raise FrameError(f"the image has version {version} of the CUDA Array Interface: use version 2 or 3, or DLPack")
    if described.get("mask") is not None:
        raise FrameError("the image on the GPU is masked: fill the masked pixels first")
    dtype = require_dtype(str(np.dtype(described["typestr"])))
    shape = tuple(map(int, described["shape"]))
    strides = described.get("strides")
    strides = packed_strides(shape, dtype.itemsize) if strides is None else tuple(map(int, strides))
    if len(strides) != len(shape):
        raise FrameError(
            f"the image on the GPU has shape {shape} but strides {strides}: it needs one stride for each axis"
        )
    (address, read_only), stream = described["data"], _stream(described, version)
    return DeviceArray(int(address or 0), shape, strides, dtype, None, stream, bool(read_only), owner)


def _stream(described: dict[str, Any], version: int) -> int | None:
    if version < 3:
        # Version 2 has no stream: assume the default stream.
        return LEGACY_STREAM
    stream = described.get("stream")
    if stream == 0:
        raise FrameError("the image on the GPU names stream 0, which is ambiguous: 1 is the legacy default stream")
    return None if stream is None else int(stream)


def _dlpack_device(image: Any) -> tuple[int | None, int | None]:
    """Return type and index of an array's DLPack device; None where it does not implement DLPack."""
    ask = getattr(image, "__dlpack_device__", None)
    if ask is None or not hasattr(image, "__dlpack__"):
        return None, None
    try:
        kind, number = ask()
        return int(kind), int(number)
    except REFUSALS as error:
        raise _refused(image, error) from error


def _capsule(image: Any, stream: int) -> Any:
    try:
        return image.__dlpack__(stream=stream, max_version=(MAJOR_VERSION, 0))
    except TypeError:  # a producer from before version 1
        return image.__dlpack__(stream=stream)


def _refused(image: Any, error: Exception) -> FrameError:
    return FrameError(
        f"the {type(image).__name__} does not export its memory ({one_line(error)}): "
        "give a plain array, such as tensor.detach()"
    )


class _Tensor(Structure):
    """DLTensor, with DLDevice and DLDataType inlined; strides are in elements, and may be null."""

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


# Private prototypes: the functions of ctypes.pythonapi are shared by the whole process.
_is_valid = PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = PYFUNCTYPE(address, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_rename = PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
# Called with the GIL, as a capsule's own destructor is.
_Deleter = PYFUNCTYPE(None, address)

# Capsule name -> its struct, and the name of a consumed capsule. A capsule stores the pointer to its name.
CAPSULES: dict[bytes, tuple[Any, bytes]] = {
    b"dltensor": (_Managed, b"used_dltensor"),
    b"dltensor_versioned": (_ManagedVersioned, b"used_dltensor_versioned"),
}


def take(capsule: Any, stream: int | None = None) -> DeviceArray:
    """Consume the tensor in a capsule, on any device; it is freed with the last array that holds its owner.

    `stream` is the CUDA stream that was passed to the producer.

    Raises
    ------
    FrameError
        It is not an unconsumed DLPack capsule, or its version or dtype is unknown.
    """
    for name, (struct, used) in CAPSULES.items():
        if _is_valid(capsule, name):
            place = _pointer(capsule, name)
            _rename(capsule, used)
            managed = struct.from_address(place)
            return _array(managed, _Owner(place, managed.deleter), stream)
    raise FrameError(
        f"__dlpack__ returned a {type(capsule).__name__} without an unconsumed tensor: pass the array itself"
    )


class _Owner:
    """Frees a tensor with its last reference, or at interpreter exit."""

    def __init__(self, place: int, deleter: int | None) -> None:
        if deleter:
            weakref.finalize(self, _Deleter(deleter), place)


def _array(managed: Any, owner: _Owner, stream: int | None) -> DeviceArray:
    if getattr(managed, "major", MAJOR_VERSION) != MAJOR_VERSION:
        raise FrameError(f"the image has DLPack {managed.major}.{managed.minor}: use version {MAJOR_VERSION}.x")
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
