"""Other libraries' arrays in GPU memory, taken as they lie there, without a copy.

Two protocols exist. DLPack names the device and makes the producer synchronise; the CUDA Array Interface names no
device, and no stream before its version 3, which torch does not speak. So DLPack is asked first; torch, CuPy and JAX
offer both.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from unetrt.runtime.cuda import dlpack
from unetrt.runtime.cuda.device_array import DeviceArray, packed_strides, require_dtype
from unetrt.runtime.errors import FrameError

# CU_STREAM_LEGACY of cuda.h; the protocols number it alike.
LEGACY_STREAM = 1
# DLDeviceType of dlpack.h: kDLCPU and kDLCUDAHost (pinned); kDLCUDA and kDLCUDAManaged.
HOST = (1, 3)
CUDA = (2, 13)
# What producers raise for arrays that they do not hand out, such as tensors that require a gradient.
REFUSALS = (BufferError, RuntimeError, TypeError, ValueError)


def device_array(image: Any, stream: int = LEGACY_STREAM) -> DeviceArray | None:
    """Return another library's array as it lies in GPU memory, or None where it lies on the host.

    Parameters
    ----------
    image
        Any object; one that speaks neither protocol counts as on the host.
    stream
        The CUDA stream that is going to read the array, by its handle. A producer that speaks DLPack makes it wait;
        the result's `stream` is then this one, and only others must still wait for it.

    Raises
    ------
    FrameError
        Dtype, alignment or device are none that can be read, or the protocol is broken or refused.
    """
    if isinstance(image, DeviceArray):
        return image
    kind, number = _dlpack_device(image)
    if kind in HOST:
        return None
    if kind is not None and kind not in CUDA:
        raise FrameError(f"the image lies on a device that is no CUDA GPU, type {kind} of DLPack: copy it to the host")
    try:
        capsule = None if kind is None else _capsule(image, stream)
    except REFUSALS as error:
        # Such as torch, for a device that is not its current one.
        if (described := from_interface(image)) is not None:
            return replace(described, device=number)
        raise _refused(image, error) from error
    return from_interface(image) if capsule is None else dlpack.take(capsule, stream)


def from_interface(image: Any) -> DeviceArray | None:
    """Return an array by its `__cuda_array_interface__`, version 2 or 3; None where it has none.

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
            f"the __cuda_array_interface__ of a {type(image).__name__} is broken, {type(error).__name__} ({error}): "
            "give an array of torch, CuPy, JAX or Numba"
        ) from error


def _described(described: dict[str, Any], owner: object) -> DeviceArray:
    version = described["version"]
    if version not in (2, 3):
        raise FrameError(f"the image speaks version {version} of the CUDA Array Interface: 2 and 3 can be read")
    if described.get("mask") is not None:
        raise FrameError("the image on the GPU is masked: fill the masked pixels first")
    dtype = require_dtype(str(np.dtype(described["typestr"])))
    shape = tuple(map(int, described["shape"]))
    strides = described.get("strides")
    strides = packed_strides(shape, dtype.itemsize) if strides is None else tuple(map(int, strides))
    if len(strides) != len(shape):
        raise FrameError(
            f"the image on the GPU has shape {shape} but strides {strides}: one stride an axis is the rule"
        )
    (address, read_only), stream = described["data"], _stream(described, version)
    return DeviceArray(int(address or 0), shape, strides, dtype, None, stream, bool(read_only), owner)


def _stream(described: dict[str, Any], version: int) -> int | None:
    if version < 3:
        # Nothing is said of streams: the one that libraries work on unless told otherwise.
        return LEGACY_STREAM
    stream = described.get("stream")
    if stream == 0:
        raise FrameError("the image on the GPU names stream 0, which is ambiguous: 1 is the legacy default stream")
    return None if stream is None else int(stream)


def _dlpack_device(image: Any) -> tuple[int | None, int | None]:
    """Return type and number of the DLPack device that an array lies on, None where it does not speak DLPack."""
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
        return image.__dlpack__(stream=stream, max_version=(dlpack.MAJOR_VERSION, 0))
    except TypeError:  # a producer from before version 1
        return image.__dlpack__(stream=stream)


def _refused(image: Any, error: Exception) -> FrameError:
    return FrameError(
        f"the {type(image).__name__} does not give its pixels away ({' '.join(str(error).split())}): "
        "give a plain array, such as tensor.detach()"
    )
