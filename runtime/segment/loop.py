"""The loop over lanes: while some compute, the next tiles are cut into another and the last result is stitched.

A frame on its way through a network: where its tiles come from, and where they go.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from unetrt.runtime.geometry.plan import Tile
from unetrt.runtime.segment.timings import Occupancy, Timings
from unetrt.runtime.sessions.protocol import Lane

if TYPE_CHECKING:
    from unetrt.runtime.sessions.cuda_lane import CudaLane, Step


class Source(Protocol):
    """Where a frame's tiles are cut from."""

    def cut(self, tile: Tile, lane: Lane, slot: int) -> "Step | None":
        """Fill a slot of a lane's input, or return what does so on the device. Runs before the launch."""


class Sink(Protocol):
    """Where a frame's results go."""

    def place(self, tile: Tile, lane: Lane, slot: int) -> "Step | None":
        """Return what takes a slot of a lane's output to its place on the device; None where `stitch` does it."""

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Take a slot of a lane's output to its place on the host, if it goes there, once the pass has ended."""


@dataclass
class FramePass:
    """A pass of a frame through the network, tile by tile.

    Attributes
    ----------
    source, sink
        Where tiles come from, and where they go.
    left
        Number of tiles that are not in their place yet.
    finish
        Called once none is left.
    timings
        Where the frame's phases are added up.
    """

    source: Source
    sink: Sink
    left: int
    finish: Callable[[], None]
    timings: Timings = field(default_factory=Timings)

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Take a tile to its place, and finish with the last one."""
        self.sink.stitch(tile, lane, slot)
        self.left -= 1
        if not self.left:
            self.finish()


class Job(NamedTuple):
    """A tile, and the pass of a frame that it belongs to."""

    tile: Tile
    frame: FramePass


Batch = list[Job]


class TileLoop:
    """Drives tiles through lanes, in order; a batch may hold tiles of several frames.

    Parameters
    ----------
    lanes
        At least one; they are the loop's alone while `run` runs.

    Attributes
    ----------
    occupancy
        How long the engine computed.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.occupancy = Occupancy()
        self._lanes = lanes
        self._flying: deque[tuple[Lane, Batch]] = deque()

    def run(self, jobs: Iterable[Job], finished: Callable[[int], None]) -> None:
        """Compute every tile.

        Parameters
        ----------
        jobs
            Asked for one by one, while the lanes compute what was asked for before.
        finished
            Called with the number of tiles of each batch that is in its place.

        Raises
        ------
        Exception
            Whatever `jobs`, a frame or a pass raised; no pass is in flight then.
        """
        free, rest = deque(self._lanes), iter(jobs)
        self._lanes[0].restart_clock()
        try:
            while True:
                if not free:
                    free.append(self._finish(finished))
                if not self._start(free[0], rest):
                    break
                free.popleft()
            while self._flying:
                self._finish(finished)
        finally:
            self._drain()

    def _start(self, lane: Lane, jobs: Iterator[Job]) -> bool:
        """Fill a lane and launch it; return whether there was anything to compute."""
        batch: Batch = []
        before: list[Step | None] = []
        for slot, job in enumerate(islice(jobs, len(lane.input))):
            with job.frame.timings.phase("cut"):
                before.append(job.frame.source.cut(job.tile, lane, slot))
            batch.append(job)
        if batch:
            after = [job.frame.sink.place(job.tile, lane, slot) for slot, job in enumerate(batch)]
            self._flying.append((lane, batch))  # before the launch, for an interrupt may come right after it
            steps = list(filter(None, before)), list(filter(None, after))
            if any(steps):  # only frames and labels on the device have them, and their lanes are on it
                cast("CudaLane", lane).launch_with(*steps)
            else:
                lane.launch()
        return bool(batch)

    def _finish(self, finished: Callable[[int], None]) -> Lane:
        lane, batch = self._flying[0]
        begin = time.perf_counter()
        lane.wait()
        waited = time.perf_counter() - begin
        self._flying.popleft()
        self.occupancy.add(lane.passed)
        for slot, (tile, frame) in enumerate(batch):
            frame.timings.add("wait", waited / len(batch))
            frame.timings.passed(lane.passed, 1 / len(batch))
            frame.timings.tiles += 1
            with frame.timings.phase("stitch"):
                frame.stitch(tile, lane, slot)
        finished(len(batch))
        return lane

    def _drain(self) -> None:
        """Leave no pass in flight: the next frame would otherwise be cut into arrays that are still being read."""
        try:
            while self._flying:
                with suppress(Exception):  # the first error is already on its way to the caller
                    self._flying[0][0].wait()
                self._flying.popleft()
        except BaseException:  # another interrupt: the rest must end all the same
            self._drain()
            raise
