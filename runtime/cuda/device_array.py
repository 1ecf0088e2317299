"""Arrays in GPU memory, as values: where their elements are, what must be waited for, who owns them."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from unetrt.runtime.errors import FrameError

DTYPES = tuple(
    np.dtype(name)
    for name in "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class DeviceArray:
    """An array in the memory of a CUDA device.

    Attributes
    ----------
    address
        Of its first element.
    shape
        Elements along each axis.
    strides
        Bytes from one element to the next along each axis, of either sign.
    dtype
        One of DTYPES.
    device
        The device's number, as CUDA counts; None where the protocol does not say.
    stream
        The CUDA stream whose work so far must be waited for before the array is read; None where nothing must be.
    read_only
        Whether it must not be written to.
    owner
        Kept alive, and with it the memory.

    Raises
    ------
    FrameError
        The dtype is none of DTYPES, or an element does not lie at a multiple of its size, which no GPU reads.
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
                f"the image on the GPU begins at byte {self.address} and has strides {self.strides}: for {self.dtype} "
                f"all must be multiples of its {self.dtype.itemsize} bytes; copy it"
            )

    @classmethod
    def packed(cls, address: int, shape: tuple[int, ...], dtype: Any, owner: object = None) -> "DeviceArray":
        """Return the array in C order without gaps that begins at `address`."""
        dtype = np.dtype(dtype)
        return cls(address, shape, packed_strides(shape, dtype.itemsize), dtype, owner=owner)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, gaps between them not counted."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest address that it touches, and the one after the highest; both its own where it is empty."""
        if 0 in self.shape:
            return self.address, self.address
        reaches = [stride * (length - 1) for stride, length in zip(self.strides, self.shape, strict=True)]
        low, high = sum(min(reach, 0) for reach in reaches), sum(max(reach, 0) for reach in reaches)
        return self.address + low, self.address + high + self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the protocol, for torch, CuPy, Numba and the like."""
        data = (self.address, self.read_only)
        words = {"shape": self.shape, "strides": self.strides, "typestr": self.dtype.str, "data": data, "version": 3}
        return words if self.stream is None else {**words, "stream": self.stream}

    def __getitem__(self, index: int | tuple[int, ...]) -> "DeviceArray":
        """Return the part at an index, 0 ... n - 1, of each of the first axes; () is the whole. Nothing is copied."""
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
    """Return the dtype of DTYPES of this name; raises FrameError, which names them, for any other."""
    if name not in map(str, DTYPES):
        raise FrameError(f"the image on the GPU is {name}: use one of {', '.join(map(str, DTYPES))}")
    return np.dtype(name)


def packed_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the strides, in bytes, of an array in C order without gaps."""
    return tuple(itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape)))
