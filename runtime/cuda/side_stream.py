"""What a segmenter does on a GPU beside its lanes: it waits for whoever made an array, and measures frames."""

from collections.abc import Iterable
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.contract import Driver
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.device_array import DeviceArray
from unetrt.runtime.cuda.kernels import Kernels
from unetrt.runtime.cuda.measure import COPIES, FOUND, bins_shape, measure_counts, require_none
from unetrt.runtime.errors import InferenceError
from unetrt.runtime.frames import require_raw
from unetrt.runtime.normalisation import Affine
from unetrt.runtime.scores import SPOILT
from unetrt.runtime.spec import ModelSpec

# The largest bins, for one channel: those of uint16.
BINS = COPIES[np.dtype(np.uint16)] * 65536 * 4

# The counts that fixed constants are measured from.
NOTHING = np.empty((0, 0), np.uint32)


class SideStream:
    """A stream of a segmenter's own, with memory for what is measured there. Used by one thread at a time.

    Parameters
    ----------
    device
        The session's.
    channels
        Of the model's frames.

    Attributes
    ----------
    kernels
        Loaded on the device.
    spoilt
        Address of an int32 on the device that kernels set where scores are not finite.
    """

    def __init__(self, device: CudaDevice, channels: int) -> None:
        self._device = device
        with ExitStack() as owned, device.current():
            self.kernels = owned.enter_context(closing(Kernels(device)))
            self._stream = owned.enter_context(device.stream())
            self._made, self._ready = (owned.enter_context(device.event()) for _ in range(2))
            self._bins = owned.enter_context(device.buffer(channels * BINS))
            self._found = owned.enter_context(device.buffer(FOUND.itemsize))
            self._flag = owned.enter_context(device.buffer(np.dtype(np.int32).itemsize))
            owned.callback(self._stream.synchronize)
            self._owned = owned.pop_all()
        self.spoilt = self._flag.handle

    @property
    def driver(self) -> Driver:
        """The device's."""
        return self._device.driver

    def close(self) -> None:
        """Wait for the stream, then free everything; idempotent."""
        with self._device.current():
            self._owned.close()

    def begin(self, arrays: Iterable[DeviceArray]) -> None:
        """Start a call: whoever `let_wait` lets wait, waits for whoever made these arrays."""
        with self._device.current() as driver:
            for array in arrays:
                if array.stream is not None:
                    driver.record(self._made.handle, array.stream)
                    self._stream.wait_for(self._made)
            driver.fill(self.spoilt, 0, np.dtype(np.int32).itemsize, self._stream.handle)
            self._ready.record(self._stream)

    def let_wait(self, stream: int) -> None:
        """Let a lane's stream wait until the call's arrays can be used; the device is current."""
        self.driver.wait_for(stream, self._ready.handle)

    def measured(self, spec: ModelSpec, frame: DeviceArray) -> Affine | None:
        """Return how to normalise a frame (C, H, W): None where the graph does.

        The grey values of uint8 and uint16 frames are counted on the device. For other dtypes, percentiles, means and
        deviations are measured on a copy on the host.

        Raises
        ------
        FrameError
            The network cannot take it.
        """
        with self._device.current():
            if frame.dtype.kind == "f":
                self.kernels.not_finite(frame, self._found.handle, self._stream.handle)
                require_none(self._read(self._found.handle, (1,), FOUND)[0], frame)
            if spec.takes_raw:
                require_raw(frame.dtype, spec.input_dtype)
                return None
            if spec.normalisation.mode != "fixed" and frame.dtype not in COPIES:
                return spec.normalisation.measure(self._on_host(frame))
            counts = NOTHING if spec.normalisation.mode == "fixed" else self._counts(frame)
            return measure_counts(spec.normalisation, counts)

    def require_sound(self) -> None:
        """Raise InferenceError where a score of this call was not finite."""
        with self._device.current():
            if self._read(self.spoilt, (1,), np.int32)[0]:
                raise InferenceError(SPOILT)

    def _counts(self, frame: DeviceArray) -> NDArray[np.uint32]:
        shape = bins_shape(frame)
        self.kernels.histogram(frame, DeviceArray.packed(self._bins.handle, shape, np.uint32), self._stream.handle)
        counts: NDArray[np.uint32] = self._read(self._bins.handle, shape, np.uint32)
        return counts

    def _on_host(self, frame: DeviceArray) -> NDArray[Any]:
        low, high = frame.bounds
        content = self._read(low, (high - low,), np.uint8)
        return np.ndarray(frame.shape, frame.dtype, content.data, frame.address - low, frame.strides)

    def _read(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return what the stream has left at an address; blocks."""
        host = np.empty(shape, dtype)
        self.driver.copy_out(host.ctypes.data, address, host.nbytes, self._stream.handle)
        self._stream.synchronize()
        return host
