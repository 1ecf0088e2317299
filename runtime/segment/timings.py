"""Where the time of a call went.

Named ranges for NVIDIA's profilers (NVTX), where the package `nvtx` is installed; else nothing.
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
        Copying in (or cutting, where the frame lies on the device), waiting for a lane that has the scratch memory, the
        engine's pass, copying out. On a GPU by CUDA events, in the order of the lane's stream; a CPU copies nothing.
    begin
        When the engine began, on a clock that its session's lanes share.
    """

    upload: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    download: float = 0.0
    begin: float = 0.0

    @property
    def end(self) -> float:
        """When the engine ended, on the clock of `begin`."""
        return self.begin + self.compute


class Occupancy:
    """Adds up how long at least one pass is in flight, from passes in the order of their begin.

    A pass is in flight from its begin to its end in the lane's stream. That is not how long the device computes: the
    gaps between a pass's kernels count too, and so does waiting for kernels of another lane. How long kernels run is
    what `unetrt bench --goals` measures, with CUPTI.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = self.in_flight = 0.0

    def add(self, one: Passed) -> None:
        """Count a pass."""
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
    """Where the time of one call, or of one frame in it, went, in seconds.

    Attributes
    ----------
    total
        The whole call; for a frame from its reading to its last tile.
    queue
        Waiting for calls of other threads, and on a GPU for other lanes where they share scratch memory.
    normalise
        Reading and checking frames and measuring their grey values.
    cut
        Copying tiles out of the frame and normalising them.
    upload, download
        Copies to and from a GPU, by its own clock.
    compute
        The engine's passes, by its own clock, each from its begin to its end: on a GPU with the gaps between kernels,
        and the time in which another lane's kernels run. Passes in several lanes may overlap.
    wait
        Blocked until a pass ended: what is left of `compute` after the other phases overlapped with it.
    stitch
        Turning scores into labels and copying them to their place.
    tiles
        Number of tiles computed.
    in_flight, span
        How long at least one pass was in flight (`Occupancy`), and the time from the begin of the first pass to the end
        of the last; of calls only.
    frames
        The same for each frame, in the order of the stack; of calls only. A pass for tiles of several frames is divided
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
    tiles: int = 0
    in_flight: float = 0.0
    span: float = 0.0
    frames: list["Timings"] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase `name`."""
        begin = time.perf_counter()
        try:
            with named_range(name):
                yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Add to the phase `name`."""
        setattr(self, name, getattr(self, name) + seconds)

    def passed(self, one: Passed, share: float) -> None:
        """Add a share, 0 to 1, of a pass."""
        for name in ("upload", "queue", "compute", "download"):
            self.add(name, share * getattr(one, name))

    def sum_frames(self, occupancy: Occupancy) -> None:
        """Add up the phases of all frames, and take over how long passes were in flight."""
        for name in ("normalise", "cut", "upload", "compute", "download", "wait", "stitch"):
            setattr(self, name, sum(getattr(frame, name) for frame in self.frames))
        self.queue += sum(frame.queue for frame in self.frames)
        self.tiles = sum(frame.tiles for frame in self.frames)
        self.in_flight, self.span = occupancy.in_flight, occupancy.span


DOMAIN = "unetrt"


def named_range(name: str) -> AbstractContextManager[Any]:
    """Return a context that shows up as `name`, in the domain `unetrt`, on the calling thread's line of a profile."""
    nvtx = _nvtx()
    return nullcontext() if nvtx is None else nvtx.annotate(name, domain=DOMAIN)


@cache
def _nvtx() -> Any:
    if find_spec("nvtx") is None:
        return None
    import nvtx

    return nvtx
