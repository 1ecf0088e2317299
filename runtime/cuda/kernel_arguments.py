"""The structs that the kernels of kernels.cu take, field by field as there."""

from ctypes import Structure, c_float, c_int64, c_uint64

import numpy as np

from unetrt.runtime.cuda.device_array import DeviceArray

# `enum Dtype` of kernels.cu.
CODES = {
    np.dtype(name): code
    for code, name in enumerate(
        ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
    )
} | {np.dtype(bool): 0}


class Plane(Structure):
    """One channel of an array: height and width in pixels, strides in bytes."""

    _fields_ = (
        ("address", c_uint64),
        ("height", c_int64),
        ("width", c_int64),
        ("row_stride", c_int64),
        ("column_stride", c_int64),
        ("dtype", c_int64),
    )


class Cut(Structure):
    """Argument of `cut`."""

    _fields_ = (
        ("frame", Plane),
        ("slot", Plane),
        ("top", c_int64),
        ("left", c_int64),
        ("symmetric", c_int64),
        ("offset", c_float),
        ("scale", c_float),
    )


class Histogram(Structure):
    """Argument of `histogram`."""

    _fields_ = (("channel", Plane), ("bins", c_uint64), ("copies", c_int64), ("values", c_int64))


class StitchLabels(Structure):
    """Argument of `stitch_labels`."""

    _fields_ = (
        ("scores", Plane),
        ("class_stride", c_int64),
        ("classes", c_int64),
        ("labels", Plane),
        ("spoilt", c_uint64),
    )


class NotFinite(Structure):
    """Argument of `not_finite`."""

    _fields_ = (("channel", Plane), ("found", c_uint64), ("start", c_uint64))


def plane(array: DeviceArray) -> Plane:
    """Return an array (H, W) as kernels take it."""
    return Plane(array.address, *array.shape, *array.strides, CODES[array.dtype])
