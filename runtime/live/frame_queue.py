"""The bounded queue between cameras and the threads of a live segmenter.

Any thread puts frames; one thread takes them, in order, and may pass them on to another. When the queue is full, its
`Policy` decides which frame is dropped, or that the caller waits. Under one lock it also keeps the counts, so that at
every moment submitted = done + dropped + failed + pending. Of dropped frames it keeps ranges of numbers, so that their
cost does not grow with their number. Starts and ends of sequences travel through the queue as `Notice`s, in order with
the frames and outside the capacity.
"""

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import StrEnum
from time import perf_counter
from typing import Any

from unetrt.runtime.errors import OptionError, shown
from unetrt.runtime.live.results import UNKNOWN_STREAM, DroppedFrames, LiveResult, LiveSequence, Outcome, StreamKey

# Number of queued frames with drop_oldest and block: a few hundred milliseconds of a camera.
CAPACITY = 8


class Policy(StrEnum):
    """What happens when a frame comes and the queue is full.

    `latest`: the new frame replaces all queued ones. `drop_oldest`: the frame queued longest is dropped. `block`: the
    caller of `submit` waits.
    """

    LATEST = "latest"
    DROP_OLDEST = "drop_oldest"
    BLOCK = "block"


@dataclass(eq=False)
class WaitingFrame:
    """A submitted frame: its array, when it was submitted (seconds of `perf_counter`), and the future of its result."""

    frame: Any
    index: Any
    meta: Mapping[str, Any]
    number: int = -1
    sequence: LiveSequence | None = None
    stream: StreamKey = UNKNOWN_STREAM
    submitted: float = field(default_factory=perf_counter)
    future: Future[LiveResult] = field(default_factory=Future)
    error: Exception | None = None

    def result(self, outcome: Outcome, **found: Any) -> LiveResult:
        """Return the frame's result; that of a dropped frame does not keep its pixels alive."""
        frame = None if outcome is Outcome.DROPPED else self.frame
        return LiveResult(
            outcome, self.number, self.index, self.meta, self.sequence, frame, stream=self.stream, **found
        )


@dataclass(frozen=True)
class Notice:
    """The start or the end of a sequence: `deliver` is called with it after all frames with numbers below `number`."""

    number: int
    sequence: LiveSequence
    deliver: Callable[[LiveSequence], None]
    is_start: bool


@dataclass(frozen=True)
class Counts:
    """Numbers of frames: submitted = done + dropped + failed + pending."""

    submitted: int = 0
    done: int = 0
    dropped: int = 0
    failed: int = 0
    pending: int = 0


class FrameQueue:
    """A FIFO of frames with a bounded length, for any number of producers and one or two workers.

    A worker calls `take`, processes the frame, calls `settle` with its outcome, and takes the next. If it leaves an
    item to a second worker instead, it calls `pass_on` before it takes the next, and the second worker calls `settle`
    and, when all is done, `finish`. Between `take` and `settle` a frame is in flight: it counts as pending, but not
    towards the capacity.

    Parameters
    ----------
    policy
        What happens when the queue is full.
    capacity
        Maximum number of queued frames; None for the default: 1 for `latest`, else 8.

    Attributes
    ----------
    closing
        Whether the queue accepts no more frames.

    Raises
    ------
    OptionError
        The policy is unknown, or the capacity does not fit it.
    """

    def __init__(self, policy: Policy | str, capacity: int | None = None) -> None:
        self.policy, self.capacity = _policy(policy, capacity)
        self.closing = False
        self._drain = True
        self._waiting: deque[WaitingFrame | Notice] = deque()
        self._frames = 0  # in `_waiting`
        self._in_flight = 0  # taken and not settled
        self._busy = False  # from one `take` to the next: results are still being delivered
        self._passed_on = 0  # items with the second worker
        self._counted = dict.fromkeys(("submitted", *map(str, Outcome)), 0)
        self._dropped: list[DroppedFrames] = []  # not delivered yet, ascending
        # Reentrant: an allocation under the lock can run the finalizer of a forgotten live segmenter, which closes this
        # queue on the same thread.
        self._changed = threading.Condition(threading.RLock())
        self._workers: set[int] = set()  # their threads
        self._sequence: LiveSequence | None = None
        self._sequences = 0

    def put(self, item: WaitingFrame, wait: bool = True) -> list[WaitingFrame]:
        """Queue a frame and return the frames dropped for it; once the queue is closing, that frame itself.

        With the policy `block` the caller waits for room. If `wait` is False, or on a worker's thread, which would wait
        for itself, the frame queued longest is dropped instead.
        """
        with self._changed:
            if wait and self.policy is Policy.BLOCK and threading.get_ident() not in self._workers:
                self._changed.wait_for(lambda: self.closing or self._frames < self.capacity)
            item.number, item.sequence = self._counted["submitted"], self._sequence
            self._counted["submitted"] += 1
            if self.closing:  # reported by its future only: outputs may be closed already
                self._counted[Outcome.DROPPED] += 1
                return [item]
            dropped = [self._drop_oldest() for _ in range(self._frames - self.capacity + 1)]
            self._waiting.append(item)
            self._frames += 1
            self._changed.notify_all()
            return dropped

    def begin(
        self, plan: Any, meta: Mapping[str, Any], channel: str | None, deliver: Callable[[LiveSequence], None]
    ) -> None:
        """Begin a sequence, to which all later frames belong; never blocks.

        The worker calls `deliver` after all earlier frames.
        """
        with self._changed:
            first = self._counted["submitted"]
            self._sequence = LiveSequence(self._sequences, plan, meta, first, channel)
            self._sequences += 1
            self._notice(Notice(first, self._sequence, deliver, is_start=True))

    def end(self, deliver: Callable[[LiveSequence], None]) -> None:
        """End the current sequence, if any; never blocks. The worker calls `deliver` after its frames."""
        with self._changed:
            if self._sequence is not None:
                self._notice(Notice(self._counted["submitted"], self._sequence, deliver, is_start=False))
                self._sequence = None

    def take(self) -> WaitingFrame | Notice | None:
        """Wait for the next item and return it; None once the queue is closed and empty. For the first worker."""
        with self._changed:
            self._workers.add(threading.get_ident())
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self.closing)
            if not self._waiting:
                return None
            self._busy = True
            item = self._waiting.popleft()
            if isinstance(item, WaitingFrame):
                self._frames -= 1
                self._in_flight += 1
                self._changed.notify_all()
            return item

    def settle(self, item: WaitingFrame, outcome: Outcome) -> None:
        """Count the outcome of a frame in flight."""
        with self._changed:
            self._in_flight -= 1
            self._counted[outcome] += 1
            if outcome is Outcome.DROPPED:
                self._note_dropped(item)

    def pass_on(self) -> None:
        """Count an item that was taken and that the second worker is to finish. For the first worker."""
        with self._changed:
            self._passed_on += 1

    def finish(self) -> None:
        """Count an item that was passed on as finished: its results are delivered. For the second worker."""
        with self._changed:
            self._passed_on -= 1
            self._changed.notify_all()

    def take_dropped(self, before: float) -> list[DroppedFrames]:
        """Remove and return the dropped frames with numbers below `before`, ascending; none if the queue is abandoned.

        For the worker that delivers results. Frames submitted to a closing queue are not among them.
        """
        found: list[DroppedFrames] = []
        with self._changed:
            self._workers.add(threading.get_ident())
            while self._dropped and self._dropped[0].first < before:
                frames = self._dropped.pop(0)
                if frames.last >= before:
                    self._dropped.insert(0, replace(frames, first=int(before)))
                    frames = replace(frames, last=int(before) - 1)
                found.append(frames)
        return [] if self.abandoned else found

    def close(self, drain: bool) -> list[WaitingFrame]:
        """Accept no more frames; unless `drain`, drop the queued ones and return them. Idempotent."""
        with self._changed:
            self.closing = True
            self._drain = self._drain and drain
            dropped = [] if drain else [self._drop_oldest() for _ in range(self._frames)]
            self._changed.notify_all()
            return dropped

    def wait_idle(self, timeout: float | None) -> bool:
        """Wait until no frame is pending and all results are delivered; return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self.busy, timeout)

    def counts(self) -> Counts:
        """Return the counts at this moment."""
        with self._changed:
            return Counts(**self._counted, pending=self._frames + self._in_flight)

    @property
    def abandoned(self) -> bool:
        """Whether frames in flight are to be dropped: the queue was closed without draining."""
        return not self._drain

    @property
    def busy(self) -> bool:
        """Whether a worker processes an item, including the delivery of its result."""
        return self._busy or self._passed_on > 0

    def _notice(self, notice: Notice) -> None:
        if not self.closing:
            self._waiting.append(notice)
            self._changed.notify_all()

    def _drop_oldest(self) -> WaitingFrame:
        item = next(item for item in self._waiting if isinstance(item, WaitingFrame))
        self._waiting.remove(item)
        self._frames -= 1
        self._counted[Outcome.DROPPED] += 1
        self._note_dropped(item)
        return item

    def _note_dropped(self, item: WaitingFrame) -> None:
        """Add a frame to the ranges of dropped frames: to the last one, unless the frame was in flight."""
        number, sequence = item.number, item.sequence
        at = bisect_left(self._dropped, number, key=lambda frames: frames.first)
        joined = DroppedFrames(number, number, sequence)
        if at < len(self._dropped) and self._dropped[at].first == number + 1 and self._dropped[at].sequence is sequence:
            joined = replace(joined, last=self._dropped.pop(at).last)
        if at and self._dropped[at - 1].last == number - 1 and self._dropped[at - 1].sequence is sequence:
            at -= 1
            joined = replace(joined, first=self._dropped.pop(at).first)
        self._dropped.insert(at, joined)


def _policy(policy: Policy | str, capacity: int | None) -> tuple[Policy, int]:
    """Return a valid policy and capacity."""
    if not isinstance(policy, str) or policy not in list(Policy):
        raise OptionError(f"policy {shown(policy)} is unknown: use one of {', '.join(Policy)}")
    default = 1 if policy == Policy.LATEST else CAPACITY
    capacity = default if capacity is None else capacity
    if not isinstance(capacity, int) or capacity < 1:
        raise OptionError(f"invalid queue capacity {shown(capacity)}: use a whole number of frames, 1 or more")
    if policy == Policy.LATEST and capacity > 1:
        raise OptionError(f"policy latest queues 1 frame, not {shown(capacity)}: use drop_oldest to queue more")
    return Policy(policy), capacity
