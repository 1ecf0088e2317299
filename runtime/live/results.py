"""What becomes of a frame, and how a program waits for it."""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OptionError
from unetrt.runtime.segment.timings import Timings


class Outcome(StrEnum):
    """What became of a frame: each ends as exactly one of these."""

    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"


@dataclass(frozen=True, eq=False)
class LiveSequence:
    """What an acquisition program said when it began a sequence.

    Attributes
    ----------
    number
        0 for the first sequence of this segmenter, then 1, 2, ...
    plan
        What describes the sequence, as it came: a `useq.MDASequence` from Micro-Manager; None where nobody said.
    meta
        What came with it: from Micro-Manager, under `image_infos`, the dtype, height, width (pixels) and pixel size
        (µm) of each camera. Shared with all who listen: never write into it.
    first
        The number of its first frame: how many were submitted before.
    channel
        The name of the only channel whose frames are taken; None where all are.
    """

    number: int
    plan: Any = field(default=None, repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)
    first: int = 0
    channel: str | None = None


@dataclass(frozen=True, eq=False)
class LiveResult:
    """What became of one frame.

    Attributes
    ----------
    outcome
        `done`: there are labels. `failed`: there is an error. `dropped`: the policy, or closing, gave the frame up.
    number
        The how manieth frame that was submitted, from 0.
    index
        The frame's own index, as it was submitted: of a Micro-Manager event its index, such as {"t": 3, "c": 0}.
    meta
        The frame's metadata, as they were submitted. Shared with all who listen: never write into them.
    sequence
        The sequence that the frame belongs to; None where none was announced.
    frame
        The frame: the array that was submitted, or the copy that was made of it. Never write into it. None if dropped.
    labels
        (H, W): int32 instances, or the uint8 index of the best class of each pixel; None unless done.
    objects
        How many objects there are; None unless done and instances were asked for.
    error
        Why there are no labels; None where there are.
    dropped
        How many frames between the one before it that was not dropped, in the same sequence, and this one were.
    queueing, compute, latency
        Seconds the frame waited, seconds the segmenter took, and seconds from `submit` to this result.
    timings
        Where the time went; None unless done.
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
    queueing: float = 0.0
    compute: float = 0.0
    latency: float = 0.0
    timings: Timings | None = field(default=None, repr=False)


class ResultOutput(Protocol):
    """Where results go, one after the other, in the order of the frames.

    All methods are called on the live segmenter's own thread, one at a time: what they take, the next frame waits, and
    the camera never does. What they raise is counted and logged, and ends nothing.
    """

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Take note of a sequence, before the results of its frames."""

    def result(self, result: LiveResult) -> None:
        """Take a result: one for each frame. Of those that were dropped, at most 1000 are told between two others."""

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Take note that all results of a sequence have come."""

    def close(self) -> None:
        """Free everything: the live segmenter was closed. Idempotent."""


class ResultStream(Closable):
    """An iterator over results, `done` and `failed`, in the order of the frames; ends when the live segmenter closes.

    What nobody fetches is not kept for ever: when `capacity` results wait, the oldest makes room, and `missed` counts
    it. Any thread may iterate; each result goes to one of them.

    Attributes
    ----------
    missed
        How many results made room for others before they were fetched.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise OptionError(f"a stream of {capacity} results keeps nothing: use 1 or more")
        self.missed = 0
        self._waiting: deque[LiveResult] = deque()
        self._capacity, self._ended = capacity, False
        self._changed = threading.Condition()

    def offer(self, result: LiveResult) -> None:
        """Take a result; never blocks."""
        with self._changed:
            if self._ended:
                return
            if len(self._waiting) == self._capacity:
                self._waiting.popleft()
                self.missed += 1
            self._waiting.append(result)
            self._changed.notify()

    def get(self, timeout: float | None = None) -> LiveResult | None:
        """Return the next result; None when `timeout` seconds pass without one, or when no more will come."""
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
        """Take no more results; those that wait can still be fetched."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
