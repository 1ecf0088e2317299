"""The arrays that a caller gives: images to be read and labels to be written, on the host or on a GPU."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.array_exchange import device_array
from unetrt.runtime.cuda.device_array import DeviceArray
from unetrt.runtime.errors import FrameError
from unetrt.runtime.frames import as_array


class ArrayLike(Protocol):
    """What an image must offer: numpy arrays, memmaps, Zarr and HDF5 arrays do."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return the part of the image at `index`, as an array; () is the whole."""


def array_of(given: Any) -> Any:
    """Return a DeviceArray for what lies on a GPU, what has a shape unread as it is, and all else as a numpy array.

    Raises FrameError for an array on a GPU that cannot be read.
    """
    if not isinstance(given, np.ndarray) and (found := device_array(given)) is not None:
        return found
    # A memoryview of several axes gives no parts of itself.
    return given if hasattr(given, "shape") and not isinstance(given, memoryview) else as_array(given)


def labels_for(image: Any, out: Any, shape: tuple[int, ...]) -> NDArray[np.uint8] | DeviceArray:
    """Return where the labels of an image are written: `out`, or a new array on the host where that is None.

    Parameters
    ----------
    image, out
        What `array_of` returned.
    shape
        (..., H, W), of the labels.

    Raises
    ------
    FrameError
        `out` is not uint8 of that shape, cannot be written to, or shares memory with the image.
    """
    if out is None:
        return np.empty(shape, np.uint8)
    if isinstance(out, DeviceArray):
        _require_on_device(out, image, shape)
        return out
    if not isinstance(out, np.ndarray) and hasattr(out, "__dlpack__"):
        out = np.from_dlpack(out)  # the same memory
    if not isinstance(out, np.ndarray):
        raise FrameError(f"out is a {type(out).__name__}: give a numpy array, or an array on the segmenter's GPU")
    _require(out.shape == shape and out.dtype == np.uint8 and out.flags.writeable, out, shape)
    if isinstance(image, np.ndarray) and np.may_share_memory(out, image):
        raise _shared()
    labels: NDArray[np.uint8] = out
    return labels


def _require_on_device(out: DeviceArray, image: Any, shape: tuple[int, ...]) -> None:
    _require(out.shape == shape and out.dtype == np.uint8 and not out.read_only, out, shape)
    if (out.strides[-1] != 1 and shape[-1] > 1) or min(out.strides) < 0:
        raise FrameError("the rows of out are turned or have gaps between their pixels: give an array in C order")
    if isinstance(image, DeviceArray):
        (low, high), (begin, end) = out.bounds, image.bounds
        if low < end and begin < high:
            raise _shared()


def _require(fits: bool, out: Any, shape: tuple[int, ...]) -> None:
    if fits:
        return
    given = f"{out.dtype} {tuple(out.shape)}"
    how = "read-only" if given == f"uint8 {shape}" else given
    raise FrameError(f"out is {how}: give uint8 {shape} that can be written to")


def _shared() -> FrameError:
    return FrameError("out shares memory with the image, which is still read while labels are written: give another")
