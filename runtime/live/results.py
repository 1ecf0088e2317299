"""Results of a live segmenter, one per frame, and snapshots of its status.

The future of every submitted frame gets exactly one `LiveResult`: `done`, `failed` or `dropped`. A `Delivery` passes
`done` and `failed` results to each `ResultOutput`, on the live segmenter's thread, and fills the `ResultStream`s from
which other threads take them. Of dropped frames, outputs get one `DroppedFrames` for each run of them.
`LiveStatus` is a frozen snapshot; the worker keeps the figures behind it in a `Record`.

    for result in live.results():
        print(result.index, result.outcome, result.objects)
"""

import logging
import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from inspect import iscoroutinefunction
from time import monotonic, perf_counter
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OptionError, one_line, shown
from unetrt.runtime.timings import Timings

log = logging.getLogger("unetrt.live")


class Outcome(StrEnum):
    """Outcome of a frame; each frame has exactly one."""

    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"


class StreamKey(NamedTuple):
    """Identity of a stream of frames: statistics, gaps in image numbers and labels of two streams are never mixed.

    Attributes
    ----------
    camera
        Device label of the camera, such as "Camera-1"; empty if unknown.
    channel
        Name of the acquisition's channel, such as "DAPI"; empty if it has none.
    """

    camera: str = ""
    channel: str = ""


UNKNOWN_STREAM = StreamKey()


@dataclass(frozen=True, eq=False)
class LiveSequence:
    """An acquisition sequence, as the acquisition program announced it.

    Attributes
    ----------
    number
        Sequence index in this live segmenter, from 0.
    plan
        The description of the sequence, unchanged: a `useq.MDASequence` from Micro-Manager, or None.
    meta
        Sequence metadata. From Micro-Manager, `image_infos` holds dtype, height, width (pixels) and pixel size (µm) of
        each camera. Shared by all listeners: do not modify.
    first
        Submission index of the sequence's first frame.
    channel
        The only channel whose frames are taken; None for all channels.
    """

    number: int
    plan: Any = field(default=None, repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)
    first: int = 0
    channel: str | None = None


@dataclass(frozen=True, eq=False)
class LiveResult:
    """The result of one frame.

    Attributes
    ----------
    outcome
        `done`: labels are set. `failed`: error is set. `dropped`: discarded by the policy, by cancelling its future, or
        by closing; outputs, callbacks and streams get no such result.
    number
        Submission index, from 0.
    index
        The index given to `submit`; for a Micro-Manager event its index, such as {"t": 3, "c": 0}.
    meta
        The metadata given to `submit`. Shared by all listeners: do not modify.
    sequence
        The sequence the frame belongs to; None if no sequence was announced.
    frame
        (H, W) or (C, H, W), the array that was segmented: the submitted one, its copy, or, for a frame with colours or
        with axes of length one in front, what was made of it. Do not modify. None if dropped.
    labels
        (H, W): int32 object numbers, or uint8 class indices; None unless done.
    objects
        Number of objects; None unless done and `kind` is `instances`.
    error
        The exception, if failed; else None.
    dropped
        Number of frames of this sequence dropped since the previous frame that was not dropped.
    stream
        The camera and channel that the frame comes from.
    table
        Measurements of the objects: name of the column -> values, (objects,), in the order of their numbers; names as
        in the tables of `unetrt predict` (see below). None unless done and `kind` is `instances`. Shared by all
        recipients: do not modify.
    queueing, compute, latency
        Seconds in the queue, seconds in the segmenter, and seconds from `submit` to this result. The latency also
        includes the numbering of objects and their table (`timings.decode`), which `compute` does not, and the wait for
        it.
    timings
        Seconds of each phase of the segmentation; None unless done.

    Columns of the table: ``label``, 1 ... n; ``area``, pixels; ``centroid-0``, ``centroid-1``, mean row and column;
    ``bbox-0`` ... ``bbox-3``, first row and column, and those after the last; ``mean_intensity``, of the frame's grey
    values, or ``mean_intensity-0``, ``mean_intensity-1`` ... of several channels, absent for a frame on a GPU;
    ``confidence``, 0 to 1, with ``LiveSegmenter(confidence=True)``. For the other columns of a file's table, call
    `unetrt.runtime.model.measurements.measurements`, which takes five times as long.
    """

    outcome: Outcome
    number: int
    index: Any
    meta: Mapping[str, Any] = field(repr=False)
    sequence: LiveSequence | None = field(repr=False)
    frame: Any = field(repr=False)
    labels: NDArray[Any] | None = field(default=None, repr=False)
    objects: int | None = None
    error: BaseException | None = None
    dropped: int = 0
    stream: StreamKey = UNKNOWN_STREAM
    table: Mapping[str, NDArray[Any]] | None = field(default=None, repr=False)
    queueing: float = 0.0
    compute: float = 0.0
    latency: float = 0.0
    timings: Timings | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class DroppedFrames:
    """Consecutive frames that were dropped, as one notice: they cost an output the same, however many they are.

    Attributes
    ----------
    first, last
        Submission indices of the first and of the last of them.
    sequence
        The sequence they belong to; None if no sequence was announced.
    """

    first: int
    last: int
    sequence: LiveSequence | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """Number of frames."""
        return self.last - self.first + 1


class ResultOutput(Protocol):
    """A consumer of results, in submission order.

    All methods run on `LiveSegmenter.thread`, one at a time. A slow method delays the next result, never the camera.
    Exceptions are counted and logged; the live segmenter continues.
    """

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Handle the start of a sequence; called before the results of its frames."""

    def result(self, result: LiveResult) -> None:
        """Handle the result of a `done` or `failed` frame."""

    def dropped(self, frames: DroppedFrames) -> None:
        """Handle consecutive frames of one sequence that were dropped, were cancelled or have been abandoned.

        Called once for the frames between two results, before the next result, start or end of a sequence, and after
        the last result when the live segmenter has drained its queue. Not called after `close(drain=False)`, nor for
        frames submitted to a live segmenter that is closing.
        """

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Handle the end of a sequence; called after the results of its frames."""

    def close(self) -> None:
        """Release all resources; called when the live segmenter closes. Idempotent."""


OUTPUT_METHODS = ("sequence_started", "result", "dropped", "sequence_finished", "close")


class ResultStream(Closable):
    """An iterator over `done` and `failed` results, in submission order; ends when the live segmenter closes.

    It buffers `capacity` results. When the buffer is full, the oldest is discarded and counted in `missed`. Several
    threads may iterate over one stream; each result goes to one of them.

    Attributes
    ----------
    missed
        Number of results discarded before they were fetched.

    Raises
    ------
    OptionError
        `capacity` is less than 1.
    """

    def __init__(self, capacity: int) -> None:
        if not isinstance(capacity, int) or capacity < 1:
            raise OptionError(f"invalid stream capacity {shown(capacity)}: use a whole number of results, 1 or more")
        self.missed = 0
        self._waiting: deque[LiveResult] = deque()
        self._capacity, self._ended = capacity, False
        self._changed = threading.Condition()

    def offer(self, result: LiveResult) -> None:
        """Buffer a result; never blocks."""
        with self._changed:
            if self._ended:
                return
            if len(self._waiting) == self._capacity:
                self._waiting.popleft()
                self.missed += 1
            self._waiting.append(result)
            self._changed.notify()

    def get(self, timeout: float | None = None) -> LiveResult | None:
        """Return the next result; None after `timeout` seconds without one, or when the stream has ended."""
        until = None if timeout is None else monotonic() + timeout
        with self._changed:
            while not self._waiting and not self._ended:
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            return self._waiting.popleft() if self._waiting else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LiveResult:
        result = self.get()
        if result is None:
            raise StopIteration
        return result

    def close(self) -> None:
        """Accept no more results; buffered ones can still be fetched."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class State(StrEnum):
    """State of the live segmenter's threads.

    `waiting` for frames; `segmenting`, or delivering a result; `closing`: finishing the queue; `closed`.
    """

    WAITING = "waiting"
    SEGMENTING = "segmenting"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of a duration in seconds, over the last 1000 segmented frames; None before the first."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class LiveStatus:
    """Snapshot of a live segmenter: submitted = done + dropped + failed + pending.

    Attributes
    ----------
    state
        State of its thread.
    submitted, done, dropped, failed, pending
        Numbers of frames; `pending` frames are queued or in flight.
    missed
        Number of frames lost before `submit`: gaps in the camera's image numbers.
    output_errors
        Number of exceptions raised by outputs and `on_result`.
    last_error
        The last error of a frame or an output, in one line; empty if there was none.
    warning
        What the host program should do otherwise, in one line, such as how it connects `frameReady`; empty if nothing.
    rate
        Frames segmented per second, over the last 5 seconds, or between the last two results where that is longer; 0
        before the first result. Once results stay away it decays.
    queueing, compute, latency
        Seconds in the queue, seconds in the segmenter, and seconds from `submit` to the result; as in `LiveResult`.
    decode
        Seconds in which objects are numbered and measured, while the next frame is in the segmenter; 0 for class maps.
    """

    state: State
    submitted: int
    done: int
    dropped: int
    failed: int
    pending: int
    missed: int
    output_errors: int
    last_error: str
    rate: float
    queueing: Percentiles
    compute: Percentiles
    latency: Percentiles
    decode: Percentiles = Percentiles()
    warning: str = ""

    def __str__(self) -> str:
        counts = ("submitted", "done", "dropped", "failed", "pending", "missed")
        parts = [
            f"{self.state}: " + ", ".join(f"{getattr(self, name)} {name}" for name in counts),
            f"{decimal(self.rate)}/s",
        ]
        if self.latency.p50 is not None and self.latency.p99 is not None:
            parts.append(f"latency p50 {1e3 * self.latency.p50:.0f} ms, p99 {1e3 * self.latency.p99:.0f} ms")
        if self.last_error:
            parts.append(f"last error: {self.last_error}")
        if self.warning:
            parts.append(f"warning: {self.warning}")
        return "; ".join(parts)


# Number of results behind the percentiles: half a minute of a fast camera.
RECENT = 1000
# Averaging window of the frame rate, in seconds.
RATE_WINDOW = 5.0


class Record:
    """Timings and errors behind a `LiveStatus`; written by the thread that delivers, read by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # End (seconds of `perf_counter`), queueing, compute, decode and latency of each segmented frame.
        self._recent: deque[tuple[float, float, float, float, float]] = deque(maxlen=RECENT)
        self.output_errors, self.last_error, self.warning = 0, "", ""

    def add(self, result: LiveResult) -> None:
        """Record a result's timings or error."""
        with self._lock:
            if result.outcome is Outcome.DONE:
                decode = 0.0 if result.timings is None else result.timings.decode
                self._recent.append((perf_counter(), result.queueing, result.compute, decode, result.latency))
            if result.error is not None:
                self.last_error = one_line(result.error, kind=True)

    def output_failed(self, error: BaseException) -> None:
        """Record an exception raised by an output."""
        with self._lock:
            self.output_errors += 1
            self.last_error = one_line(error, kind=True)

    def warn(self, warning: str) -> None:
        """Record a warning to the host program, and log it once."""
        if warning != self.warning:
            self.warning = warning
            with suppress(BaseException):  # the host's log handlers can fail
                log.warning(warning)

    def times(self) -> tuple[float, Percentiles, Percentiles, Percentiles, Percentiles]:
        """Return frames per second, and the percentiles of queueing, compute, decode and latency."""
        with self._lock:
            recent = list(self._recent)
        if not recent:
            return 0.0, Percentiles(), Percentiles(), Percentiles(), Percentiles()
        ends, *seconds = np.array(recent).T
        queueing, compute, decode, latency = (
            Percentiles(*np.percentile(each, (50, 95, 99)).tolist()) for each in seconds
        )
        begin = ends[0] - recent[0][2] - recent[0][3]  # when the computation of the first began
        rate = frequency(list(enumerate([begin, *ends.tolist()])), perf_counter(), RATE_WINDOW)
        return rate, queueing, compute, decode, latency


def frequency(counted: Sequence[tuple[int, float]], now: float, window: float) -> float:
    """Return events per second at the time `now`, in the last `window` seconds.

    At least the last two entries count, however old: events that are rarer than the window do not read 0. Once the next
    event is overdue, the rate decays.

    Parameters
    ----------
    counted
        Number of events so far, and when it was reached (seconds); both ascending.
    now, window
        Seconds.
    """
    if len(counted) < 2:
        return 0.0
    before = bisect_right(counted, now - window, key=lambda entry: entry[1]) - 1  # the last entry before the window
    first, begin = counted[min(max(before, 0), len(counted) - 2)]
    last, end = counted[-1]
    overdue = max(0.0, now - end - (end - begin) / (last - first))
    return (last - first) / (end - begin + overdue) if end - begin + overdue > 0 else 0.0


def decimal(rate: float) -> str:
    """Return a rate with one decimal, or, below 1, with two significant digits: a slow stream does not read 0.0."""
    return f"{rate:.1f}" if rate >= 1 or rate < 1e-4 else f"{rate:.2g}"


class Delivery:
    """Passes results to a callback, outputs and streams, on a worker's thread; contains all their exceptions.

    Parameters
    ----------
    on_result
        Called with each `done` or `failed` result; None for no call.
    outputs
        Consumers of results, sequences and dropped frames; closed by `close`.
    record
        Counts exceptions of outputs.
    """

    def __init__(
        self, on_result: Callable[[LiveResult], None] | None, outputs: Sequence[ResultOutput], record: Record
    ) -> None:
        self._on_result, self._outputs, self._record = on_result, tuple(outputs), record
        self._streams: weakref.WeakSet[ResultStream] = weakref.WeakSet()
        self._lock, self._closed = threading.Lock(), False

    def add(self, stream: ResultStream) -> None:
        """Fill a stream with all later results; from any thread."""
        with self._lock:
            self._streams.add(stream)
            if self._closed:
                stream.close()

    def deliver(self, result: LiveResult) -> None:
        """Pass the result of a frame that was not dropped to the callback, all outputs and all streams."""
        if self._on_result is not None:
            self.guarded(self._on_result, result)
        for output in self._outputs:
            self.guarded(output.result, result)
        for stream in self._open_streams():
            stream.offer(result)

    def dropped(self, frames: DroppedFrames) -> None:
        """Notify outputs of dropped frames."""
        for output in self._outputs:
            self.guarded(output.dropped, frames)

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Notify outputs of a sequence, after all earlier frames."""
        for output in self._outputs:
            self.guarded(output.sequence_started, sequence)

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Notify outputs of the end of a sequence, after its frames."""
        for output in self._outputs:
            self.guarded(output.sequence_finished, sequence)

    def close(self) -> None:
        """Close outputs and streams."""
        for output in self._outputs:
            self.guarded(output.close)
        with self._lock:
            self._closed = True
        for stream in self._open_streams():
            stream.close()

    def guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call third-party code; log and count what it raises."""
        try:
            call(*arguments)
        except BaseException as error:
            self._record.output_failed(error)
            with suppress(BaseException):  # the host's log handlers can fail too
                log.exception("an output of a live segmenter failed")

    def _open_streams(self) -> list[ResultStream]:
        with self._lock:  # other threads add streams
            return list(self._streams)


def require_consumers(on_result: Any, outputs: Any) -> None:
    """Raise OptionError unless the consumers of results have the methods that are called."""
    if on_result is not None and not callable(on_result):
        raise OptionError(f"on_result={shown(on_result)} cannot be called: give a function of one result")
    _require_plain("on_result", on_result)
    if not isinstance(outputs, Sequence) or not all(hasattr(one, "result") for one in outputs):
        raise OptionError(
            f"outputs={shown(outputs)} are not a list of result outputs: give one, such as "
            "[LabelWriter('labels.ome.zarr')]"
        )
    for one in outputs:
        if isinstance(one, type):
            raise OptionError(f"output {one.__name__} is a class: give an object of it, {one.__name__}(...)")
        for name in OUTPUT_METHODS:
            _require_plain(f"{type(one).__name__}.{name}", getattr(one, name, None))
        if lacking := [name for name in OUTPUT_METHODS if not callable(getattr(one, name, None))]:
            raise OptionError(
                f"output {type(one).__name__} has no method {', '.join(lacking)}: add it, it may do nothing"
            )


def _require_plain(name: str, function: Any) -> None:
    """Raise OptionError for a coroutine function: nothing would await what it returns."""
    if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise OptionError(
            f"{name} is a coroutine function, and no event loop runs where it is called: give a plain function, which "
            "may call asyncio.run_coroutine_threadsafe, or await asyncio.wrap_future(live.submit(frame))"
        )
