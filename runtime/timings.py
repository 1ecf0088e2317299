"""Timings of a call: the time in each phase, and how long passes were in flight.

Each phase is also a range for NVIDIA's profilers (NVTX), where the package `nvtx` is installed.

>>> timings = Timings()
>>> with timings.phase("cut"):
...     pass
>>> timings.cut > 0
True
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple


class Passed(NamedTuple):
    """The times of one pass through a lane, in seconds.

    Attributes
    ----------
    upload, queue, compute, download
        Copy to the device (or cutting, for a frame on the device), wait for a lane that uses the shared scratch memory,
        the engine's pass, copy from the device. On a GPU by CUDA events in the lane's stream; a CPU copies nothing.
    begin
        Start of `compute`, on a clock that the session's lanes share.
    """

    upload: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    download: float = 0.0
    begin: float = 0.0

    @property
    def end(self) -> float:
        """End of `compute`, on the clock of `begin`."""
        return self.begin + self.compute


class Occupancy:
    """The time in which at least one pass is in flight: the union of intervals, in the order of their begin.

    A pass is in flight from its begin to its end in the lane's stream. That includes gaps between its kernels, and
    waits for kernels of another lane; `unetrt bench --goals` measures the time of kernels alone, with CUPTI.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = self.in_flight = 0.0

    def add(self, one: Passed) -> None:
        """Add a pass."""
        begin = one.begin if self._first is None else max(one.begin, self._last)
        self._first = one.begin if self._first is None else self._first
        self.in_flight += max(0.0, one.end - begin)
        self._last = max(self._last, one.end)

    @property
    def span(self) -> float:
        """The time from the first begin to the last end."""
        return self._last - (self._first or 0.0)


@dataclass
class Timings:
    """Time spent in the phases of a call, or of one frame of it, in seconds.

    Attributes
    ----------
    total
        The whole call; for a frame, from reading it to its last tile.
    queue
        Waiting for calls of other threads, and on a GPU for other lanes that share scratch memory.
    normalise
        Reading and checking frames and measuring their grey values.
    cut
        Copying tiles out of the frame and normalising them.
    upload, download
        Copies to and from a GPU, by its clock.
    compute
        The engine's passes, by the clock of its device, each from its begin to its end: on a GPU including gaps between
        kernels, and kernels of other lanes. Passes in several lanes may overlap.
    wait
        Blocked until a pass ended: the part of `compute` that does not overlap with other phases.
    stitch
        Converting scores to labels and writing them.
    decode
        Numbering the objects of class maps and measuring their confidence, of `Segmenter.objects` and live frames. It
        overlaps with the other phases of the next frame.
    table
        The part of `decode` in which the objects of a live frame are measured: their table, with their confidence.
    tiles
        Number of tiles computed.
    in_flight, span
        How long at least one pass was in flight (`Occupancy`), and the time from the begin of the first pass to the end
        of the last; of calls only.
    frames
        Timings of each frame, in the order of the stack; of calls only. A pass with tiles of several frames is divided
        among them.
    """

    total: float = 0.0
    queue: float = 0.0
    normalise: float = 0.0
    cut: float = 0.0
    upload: float = 0.0
    compute: float = 0.0
    download: float = 0.0
    wait: float = 0.0
    stitch: float = 0.0
    decode: float = 0.0
    table: float = 0.0
    tiles: int = 0
    in_flight: float = 0.0
    span: float = 0.0
    frames: list["Timings"] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to the phase `name`."""
        begin = time.perf_counter()
        try:
            with named_range(name):
                yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to the phase `name`."""
        setattr(self, name, getattr(self, name) + seconds)

    def passed(self, one: Passed, share: float) -> None:
        """Add a share, 0 to 1, of the times of a pass."""
        for name in ("upload", "queue", "compute", "download"):
            self.add(name, share * getattr(one, name))

    def sum_frames(self, occupancy: Occupancy) -> None:
        """Sum the phases of all frames but `decode`, which may not be over, and copy the times in flight."""
        for name in ("normalise", "cut", "upload", "compute", "download", "wait", "stitch"):
            setattr(self, name, sum(getattr(frame, name) for frame in self.frames))
        self.queue += sum(frame.queue for frame in self.frames)
        self.tiles = sum(frame.tiles for frame in self.frames)
        self.in_flight, self.span = occupancy.in_flight, occupancy.span


def named_range(name: str) -> AbstractContextManager[Any]:
    """Return an NVTX range of the domain `unetrt` on the calling thread; without the package `nvtx`, do nothing."""
    nvtx = _nvtx()
    return nullcontext() if nvtx is None else nvtx.annotate(name, domain="unetrt")


@cache
def _nvtx() -> Any:
    if find_spec("nvtx") is None:
        return None
    import nvtx

    return nvtx
