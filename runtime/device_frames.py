"""Frames in GPU memory: measured, cut and stitched there, without passing the host."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from unetrt.runtime.cuda.contract import Rows
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.device_array import DeviceArray
from unetrt.runtime.cuda.side_stream import SideStream
from unetrt.runtime.errors import FrameError
from unetrt.runtime.frame_pass import FramePass, Sink, Source
from unetrt.runtime.host_frames import HostSink, HostSource, Labels, into_labels, measured, plan_of
from unetrt.runtime.loop import Job
from unetrt.runtime.normalisation import Affine
from unetrt.runtime.plan import Tile
from unetrt.runtime.sessions.cuda import CudaSession
from unetrt.runtime.sessions.cuda_lane import CudaLane
from unetrt.runtime.sessions.protocol import Lane, Session, Step
from unetrt.runtime.spec import ModelSpec
from unetrt.runtime.timings import Timings


class DeviceSource(NamedTuple):
    """A frame on the device.

    Attributes
    ----------
    spec, side
        The model's spec, and what lanes wait for before they read the frame.
    frame
        Raw grey values (C, H, W).
    affine
        How to normalise them; None where the graph does.
    """

    spec: ModelSpec
    side: SideStream
    frame: DeviceArray
    affine: Affine | None

    def cut(self, tile: Tile, lane: Lane, slot: int) -> Step:
        """Return what cuts a tile and normalises it."""
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
        The model's spec, and what lanes wait for before they write.
    labels
        uint8 (H, W).
    """

    spec: ModelSpec
    side: SideStream
    labels: DeviceArray

    def place(self, tile: Tile, lane: Lane, slot: int) -> Step:
        """Return what takes a slot of a lane's output to its place."""
        assert isinstance(lane, CudaLane)
        if self.spec.head == "labels":
            return partial(self._copy, tile, _slot(lane.place.output, slot, self.spec.core, np.uint8))
        scores = _slot(lane.place.output, slot, (len(self.spec.classes), *self.spec.core), np.float32)
        return partial(self._choose, tile, scores)

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Do nothing: the tile is in its place."""

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
        spoilt = None if self.spec.precision == "fp32" else self.side.spoilt
        self.side.kernels.stitch_labels(scores, tile, self.labels, spoilt, stream)


@dataclass
class DeviceCall:
    """One call for labels whose frames, or labels, or both, are on the device.

    Attributes
    ----------
    spec, side
        The model's spec, and where frames are measured.
    image
        Frames (..., H, W) or (..., C, H, W), on the device or the host.
    labels
        uint8 (..., H, W), on the device or the host, to be written.
    timings
        The call's.
    """

    spec: ModelSpec
    side: SideStream
    image: Any
    labels: DeviceArray | Labels
    timings: Timings = field(default_factory=Timings)

    def __len__(self) -> int:
        """Count the tiles of all frames."""
        return prod(self.labels.shape[:-2]) * len(plan_of(self.spec, self.labels.shape[-2:]))

    def jobs(self) -> Iterator[Job]:
        """Measure one frame after the other, and yield the tiles of each."""
        self.side.begin([array for array in (self.image, self.labels) if isinstance(array, DeviceArray)])
        plan = plan_of(self.spec, self.labels.shape[-2:])
        for index in np.ndindex(self.labels.shape[:-2]):
            timings, begin = Timings(), time.perf_counter()
            self.timings.frames.append(timings)
            source, sink = self._source(index, timings), self._sink(index)
            last = partial(self._finish, timings, begin)
            on_its_way = FramePass(source, sink, len(plan), last, timings)
            yield from (Job(tile, on_its_way) for tile in plan)

    def _source(self, index: tuple[int, ...], timings: Timings) -> Source:
        if not isinstance(self.image, DeviceArray):
            return HostSource(*measured(self.spec, self.image[index], timings))
        with timings.phase("normalise"):
            frame = self.image[index].as_frame(self.spec.channels)
            return DeviceSource(self.spec, self.side, frame, self.side.measured(self.spec, frame))

    def _sink(self, index: tuple[int, ...]) -> Sink:
        if isinstance(self.labels, DeviceArray):
            return DeviceSink(self.spec, self.side, self.labels[index])
        return HostSink(into_labels(self.spec, self.labels[index]))

    def _finish(self, timings: Timings, begin: float) -> None:
        if self.spec.precision != "fp32" and isinstance(self.labels, DeviceArray):
            self.side.require_sound()
        timings.total = time.perf_counter() - begin


def require_same_device(session: Session, arrays: Iterable[DeviceArray]) -> CudaDevice:
    """Return the GPU that a session computes on; raises FrameError where it is none or the arrays lie on another."""
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
