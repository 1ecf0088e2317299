"""The double-buffered loop: while one lane computes, the next tile is cut and the last result is stitched."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.plan import Tile, TilePlan
from unetrt.runtime.sessions import Lane

Array = NDArray[Any]
Cut = Callable[[Tile, Array], None]
Stitch = Callable[[Tile, Array], None]


@dataclass
class Timings:
    """Where the time of one call went, in seconds.

    Attributes
    ----------
    total
        The whole call.
    queue
        Waiting for calls of other threads.
    normalise
        Reading and checking frames and measuring their grey values.
    cut
        Copying tiles out of the frame and normalising them.
    wait
        Blocked until a pass ended: what is left of `compute` after the other phases overlapped with it.
    stitch
        Turning scores into labels and copying them to their place.
    compute
        The engine, by its own clock.
    tiles
        Number of tiles computed.
    """

    total: float = 0.0
    queue: float = 0.0
    normalise: float = 0.0
    cut: float = 0.0
    wait: float = 0.0
    stitch: float = 0.0
    compute: float = 0.0
    tiles: int = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)


class TileLoop:
    """Drives the tiles of a frame through lanes.

    Parameters
    ----------
    lanes
        At least one; they are the loop's alone while `run` runs.
    timings
        Where the phases are added up.
    """

    def __init__(self, lanes: Sequence[Lane], timings: Timings) -> None:
        self._lanes, self._timings = lanes, timings
        self._flying: deque[tuple[Lane, tuple[Tile, ...]]] = deque()

    def run(self, plan: TilePlan, cut: Cut, stitch: Stitch, finished: Callable[[int], None]) -> None:
        """Compute every tile of `plan`.

        Parameters
        ----------
        plan
            The frame's tiles.
        cut
            Fills one slot (C, h, w) of a lane's input.
        stitch
            Takes one slot of a lane's output to its place.
        finished
            Called with the number of tiles of each batch that is in its place.

        Raises
        ------
        Exception
            Whatever `cut`, `stitch` or a pass raised; no pass is in flight then.
        """
        free = deque(self._lanes)
        try:
            for batch in plan.batches(len(self._lanes[0].input)):
                if not free:
                    free.append(self._finish(stitch, finished))
                self._start(free.popleft(), batch, cut)
            while self._flying:
                self._finish(stitch, finished)
        finally:
            self._drain()

    def _start(self, lane: Lane, batch: tuple[Tile, ...], cut: Cut) -> None:
        with self._timings.phase("cut"):
            for tile, slot in zip(batch, lane.input, strict=False):
                cut(tile, slot)
        lane.launch()
        self._flying.append((lane, batch))

    def _finish(self, stitch: Stitch, finished: Callable[[int], None]) -> Lane:
        lane, batch = self._flying[0]
        with self._timings.phase("wait"):
            lane.wait()
        self._flying.popleft()
        with self._timings.phase("stitch"):
            for tile, slot in zip(batch, lane.output, strict=False):
                stitch(tile, slot)
        self._timings.compute += lane.seconds
        self._timings.tiles += len(batch)
        finished(len(batch))
        return lane

    def _drain(self) -> None:
        """Leave no pass in flight: the next frame would otherwise be cut into arrays that are still being read."""
        while self._flying:
            with suppress(Exception):  # the first error is already on its way to the caller
                self._flying[0][0].wait()
            self._flying.popleft()
