"""Frames and labels in GPU memory: measured, cut and stitched there, without a copy to the host.

`DeviceCall` is the counterpart of `HostCall`; source and sink of a frame are chosen separately, so that an image on the
host can have labels on the device and vice versa. A `SideStream` waits for the streams that made the arrays, and
measures grey values; lanes wait for it.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.arrays import DeviceArray
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.driver import Driver, Rows
from unetrt.runtime.errors import FrameError, InferenceError
from unetrt.runtime.geometry.plan import Tile
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import require_raw
from unetrt.runtime.pixels.normalisation import Affine
from unetrt.runtime.pixels.scores import NOT_FINITE
from unetrt.runtime.segment._host import (
    FramePass,
    HostSink,
    HostSource,
    Labels,
    TileJob,
    TileSink,
    TileSource,
    Written,
    into_labels,
    measured,
)
from unetrt.runtime.segment.kernels import COPIES, FOUND, Kernels, bins_shape, measure_counts, require_none
from unetrt.runtime.sessions import Lane, Session
from unetrt.runtime.sessions.cuda import CudaLane, CudaSession, Step
from unetrt.runtime.timings import Timings

# Bytes of the histograms of one uint16 channel.
BINS = COPIES[np.dtype(np.uint16)] * 65536 * 4

# Counts for `fixed` normalisation, which needs none.
NO_COUNTS = np.empty((0, 0), np.uint32)


class SideStream:
    """A CUDA stream of a segmenter, with memory for its measurements. Used by one thread at a time.

    Parameters
    ----------
    device
        The session's device.
    channels
        Channels of the model's frames.

    Attributes
    ----------
    kernels
        The kernels, loaded on the device.
    not_finite
        Device address of an int32 that kernels set where scores are not finite.
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
        self.not_finite = self._flag.handle

    @property
    def driver(self) -> Driver:
        """The device's driver."""
        return self._device.driver

    def close(self) -> None:
        """Wait for the stream, then free everything; idempotent."""
        with self._device.current():
            self._owned.close()

    def begin(self, arrays: Iterable[DeviceArray]) -> None:
        """Start a call: streams given to `let_wait` will wait for the streams that made these arrays."""
        with self._device.current() as driver:
            for array in arrays:
                if array.stream is not None:
                    driver.record(self._made.handle, array.stream)
                    self._stream.wait_for(self._made)
            driver.fill(self.not_finite, 0, np.dtype(np.int32).itemsize, self._stream.handle)
            self._ready.record(self._stream)

    def let_wait(self, stream: int) -> None:
        """Make a lane's stream wait until the call's arrays are ready; the device is current."""
        self.driver.wait_for(stream, self._ready.handle)

    def measured(self, spec: ModelSpec, frame: DeviceArray) -> Affine | None:
        """Return the normalisation of a frame (C, H, W): None where the graph normalises.

        For uint8 and uint16 it follows from histograms made on the device; for other dtypes it is measured on a copy on
        the host.

        Raises
        ------
        FrameError
            The frame does not fit the model.
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
            counts = NO_COUNTS if spec.normalisation.mode == "fixed" else self._counts(frame)
            return measure_counts(spec.normalisation, counts)

    def require_sound(self) -> None:
        """Raise InferenceError where a score of this call was not finite."""
        with self._device.current():
            if self._read(self.not_finite, (1,), np.int32)[0]:
                raise InferenceError(NOT_FINITE)

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
        """Copy from a device address, after the stream's earlier work; blocks."""
        host = np.empty(shape, dtype)
        self.driver.copy_out(host.ctypes.data, address, host.nbytes, self._stream.handle)
        self._stream.synchronize()
        return host


class DeviceSource(NamedTuple):
    """A frame on the device.

    Attributes
    ----------
    spec, side
        The model's spec, and the stream that lanes wait for before they read the frame.
    frame
        Raw grey values (C, H, W).
    affine
        The normalisation; None where the graph normalises.
    """

    spec: ModelSpec
    side: SideStream
    frame: DeviceArray
    affine: Affine | None

    def cut(self, tile: Tile, lane: Lane, slot: int) -> Step:
        """Return the step that cuts a tile and normalises it."""
        assert isinstance(lane, CudaLane)
        shape = (self.spec.channels, *self.spec.tile)
        target = _slot(lane.place.input, slot, shape, self.spec.input_dtype)

        def step(stream: int) -> None:
            self.side.let_wait(stream)
            self.side.kernels.cut(self.frame, tile, self.affine, target, stream)

        return step


class DeviceSink(NamedTuple):
    """Labels that stay on the device.

    Attributes
    ----------
    spec, side
        The model's spec, and the stream that lanes wait for before they write.
    labels
        uint8 (H, W).
    """

    spec: ModelSpec
    side: SideStream
    labels: DeviceArray

    def place(self, tile: Tile, lane: Lane, slot: int) -> Step:
        """Return the step that writes a slot of a lane's output to its place."""
        assert isinstance(lane, CudaLane)
        if self.spec.head == "labels":
            return partial(self._copy, tile, _slot(lane.place.output, slot, self.spec.core, np.uint8))
        scores = _slot(lane.place.output, slot, (len(self.spec.classes), *self.spec.core), np.float32)
        return partial(self._choose, tile, scores)

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Do nothing: the tile is written on the device."""

    def _copy(self, tile: Tile, core: DeviceArray, stream: int) -> None:
        rows, columns = tile.rows.core, tile.columns.core
        pitch, step = self.labels.strides
        target = Rows(self.labels.address + rows.start * pitch + columns.start * step, pitch)
        self.side.let_wait(stream)
        self.side.driver.copy_rows(
            target, Rows(core.address, core.strides[0]), columns.stop - columns.start, rows.stop - rows.start, stream
        )

    def _choose(self, tile: Tile, scores: DeviceArray, stream: int) -> None:
        self.side.let_wait(stream)
        not_finite = None if self.spec.precision == "fp32" else self.side.not_finite
        self.side.kernels.stitch_labels(scores, tile, self.labels, not_finite, stream)


@dataclass
class DeviceCall:
    """A call for labels whose frames, or labels, or both, are on the device.

    Attributes
    ----------
    spec, side
        The model's spec, and the stream that measures frames.
    image
        Frames (..., H, W) or (..., C, H, W), on the device or the host.
    labels
        uint8 (..., H, W), on the device or the host, to be written.
    timings
        The call's timings.
    written
        Called after each frame, on the calling thread.
    """

    spec: ModelSpec
    side: SideStream
    image: Any
    labels: DeviceArray | Labels
    timings: Timings = field(default_factory=Timings)
    written: Written | None = None

    def __len__(self) -> int:
        """Return the number of tiles of all frames."""
        return prod(self.labels.shape[:-2]) * len(self.spec.plan(self.labels.shape[-2:]))

    def jobs(self) -> Iterator[TileJob]:
        """Measure one frame after another, and yield the tiles of each."""
        self.side.begin([array for array in (self.image, self.labels) if isinstance(array, DeviceArray)])
        plan = self.spec.plan(self.labels.shape[-2:])
        for index in np.ndindex(self.labels.shape[:-2]):
            timings, begin = Timings(), time.perf_counter()
            self.timings.frames.append(timings)
            source, sink = self._source(index, timings), self._sink(index)
            last = partial(self._finish, index, timings, begin)
            frame_pass = FramePass(source, sink, len(plan), last, timings)
            yield from (TileJob(tile, frame_pass) for tile in plan)

    def _source(self, index: tuple[int, ...], timings: Timings) -> TileSource:
        if not isinstance(self.image, DeviceArray):
            return HostSource(*measured(self.spec, self.image[index], timings))
        with timings.phase("normalise"):
            frame = self.image[index].as_frame(self.spec.channels)
            return DeviceSource(self.spec, self.side, frame, self.side.measured(self.spec, frame))

    def _sink(self, index: tuple[int, ...]) -> TileSink:
        if isinstance(self.labels, DeviceArray):
            return DeviceSink(self.spec, self.side, self.labels[index])
        return HostSink(into_labels(self.spec, self.labels[index]))

    def _finish(self, index: tuple[int, ...], timings: Timings, begin: float) -> None:
        if self.spec.precision != "fp32" and isinstance(self.labels, DeviceArray):
            self.side.require_sound()
        timings.total = time.perf_counter() - begin
        if self.written is not None:
            self.written(index, None)


def require_same_device(session: Session, arrays: Iterable[DeviceArray]) -> CudaDevice:
    """Return the GPU of a session; raises FrameError where it computes on the CPU, or arrays lie on another GPU."""
    if not isinstance(session, CudaSession):
        raise FrameError(f"the image lies on a GPU, and the model on {session.name}: give tensor.cpu()")
    for array in arrays:
        if array.device not in (None, session.device):
            raise FrameError(
                f"the image lies on GPU {array.device}, and the model on GPU {session.device}: move one of them"
            )
    return session.cuda


def _slot(address: int, slot: int, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """Return one slot of a lane's input or output."""
    first = DeviceArray.packed(address, shape, dtype)
    return DeviceArray.packed(address + slot * first.nbytes, shape, dtype)
