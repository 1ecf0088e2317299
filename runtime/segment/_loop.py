"""The loop that takes tiles through the lanes of a session."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, cast

from unetrt.runtime.segment._host import TileJob
from unetrt.runtime.sessions import Lane
from unetrt.runtime.timings import Occupancy

if TYPE_CHECKING:
    from unetrt.runtime.sessions.cuda import CudaLane, Step


class TileLoop:
    """The double-buffered loop: while lanes compute, the next batch is cut and the last result is stitched.

    Tiles go through the lanes in order; a batch may hold tiles of several frames.

    Parameters
    ----------
    lanes
        At least one; nothing else uses them while `run` runs.

    Attributes
    ----------
    occupancy
        How long passes were in flight.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.occupancy = Occupancy()
        self._lanes = lanes
        self._flying: deque[tuple[Lane, list[TileJob]]] = deque()

    def run(self, jobs: Iterable[TileJob], finished: Callable[[int], None]) -> None:
        """Compute all tiles.

        Parameters
        ----------
        jobs
            Advanced one by one, while the lanes compute earlier jobs.
        finished
            Called with the number of tiles of each batch after it is written.

        Raises
        ------
        Exception
            Any exception raised by `jobs`, a frame or a pass; no pass is left in flight.
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

    def _start(self, lane: Lane, jobs: Iterator[TileJob]) -> bool:
        """Fill a lane and launch it; return False where no jobs are left."""
        batch: list[TileJob] = []
        before: list[Step | None] = []
        for slot, job in enumerate(islice(jobs, len(lane.input))):
            with job.frame.timings.phase("cut"):
                before.append(job.frame.source.cut(job.tile, lane, slot))
            batch.append(job)
        if batch:
            after = [job.frame.sink.place(job.tile, lane, slot) for slot, job in enumerate(batch)]
            self._flying.append((lane, batch))  # before the launch: an interrupt may follow it at once
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
        """Wait for all passes in flight, which read arrays that the next call fills."""
        try:
            while self._flying:
                with suppress(Exception):  # an earlier error is being raised
                    self._flying[0][0].wait()
                self._flying.popleft()
        except BaseException:  # another interrupt
            self._drain()
            raise
