"""A bounded queue of frames between a camera and a worker, and the counts that always add up.

Frames that were given up, until somebody is told in their turn.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from time import perf_counter
from typing import Any

from unetrt.runtime.errors import OptionError
from unetrt.runtime.live.results import LiveResult, LiveSequence, Outcome

# Those of which nobody was told: 5 MB, with the metadata that Micro-Manager gives each.
MOST = 1000


class DroppedFrames:
    """Results of dropped frames, kept without their pixels, in their order; beyond 1000 the first are forgotten."""

    def __init__(self) -> None:
        self._results: deque[LiveResult] = deque(maxlen=MOST)
        # A thread may come here while it is here: what it allocates can set off the end of a forgotten live segmenter.
        self._lock = threading.RLock()

    def add(self, result: LiveResult) -> None:
        """Keep what there is to say of a frame, whose number is higher than all before; from any thread."""
        with self._lock:
            self._results.append(result)

    def take(self, before: float) -> list[LiveResult]:
        """Return those of the frames whose numbers are lower than `before`; they are not kept."""
        found: list[LiveResult] = []
        with self._lock:
            while self._results and self._results[0].number < before:
                found.append(self._results.popleft())
        return found


class Policy(StrEnum):
    """What happens to a frame for which there is no room.

    `latest`: the newest frame waits, all older ones are dropped. `drop_oldest`: it takes the place of the one that has
    waited longest. `block`: whoever submits it waits.
    """

    LATEST = "latest"
    DROP_OLDEST = "drop_oldest"
    BLOCK = "block"


# Frames that wait, where nobody says how many: a few hundred milliseconds of a camera.
CAPACITY = 8


@dataclass(eq=False)
class WaitingFrame:
    """A frame on its way: what was submitted, when (seconds of `perf_counter`), and who waits for its result."""

    frame: Any
    index: Any
    meta: Mapping[str, Any]
    number: int = -1
    sequence: LiveSequence | None = None
    submitted: float = field(default_factory=perf_counter)
    future: "Future[LiveResult]" = field(default_factory=Future)
    error: Exception | None = None

    def result(self, outcome: Outcome, **found: Any) -> LiveResult:
        """Return what became of it; pixels that were given up are not kept by who keeps the result."""
        frame = None if outcome is Outcome.DROPPED else self.frame
        return LiveResult(outcome, self.number, self.index, self.meta, self.sequence, frame, **found)


@dataclass(frozen=True)
class Counts:
    """How many frames were submitted, and what became of them: submitted = done + dropped + failed + pending."""

    submitted: int = 0
    done: int = 0
    dropped: int = 0
    failed: int = 0
    pending: int = 0


@dataclass(frozen=True)
class Notice:
    """News of a sequence, told in turn and never dropped: behind the frames whose numbers are lower than `number`."""

    number: int
    tell: Callable[[], None]


class FrameQueue:
    """Frames in the order in which they came, at most `capacity` of them, for one worker.

    The worker takes a frame, settles it once its outcome is known, and takes the next: between `take` and `settle` the
    frame is in flight, and pending as those that wait.

    Parameters
    ----------
    policy
        What happens when there is no room.
    capacity
        How many frames may wait, beside the one in flight; None takes 1 for `latest`, else 8.

    Attributes
    ----------
    dropped
        Those that were given up before their turn.

    Raises
    ------
    OptionError
        There is no such policy, or no such capacity for it.
    """

    def __init__(self, policy: Policy | str, capacity: int | None = None) -> None:
        self.policy, self.capacity = _policy(policy, capacity)
        self.closing = False
        self.dropped = DroppedFrames()
        self._drain = True
        self._waiting: deque[WaitingFrame | Notice] = deque()
        self._frames = 0  # in `_waiting`
        self._in_flight: WaitingFrame | None = None
        self._busy = False  # from `take` until the next: results are still being given out
        self._counted = dict.fromkeys(("submitted", *map(str, Outcome)), 0)
        self._changed = threading.Condition()
        self._worker: int | None = None  # its thread
        self._sequence: LiveSequence | None = None
        self._sequences = 0

    def put(self, item: WaitingFrame) -> list[WaitingFrame]:
        """Take a frame, and return those that are dropped: it may be one of them.

        Waits where the policy is `block`; but not the worker, who would wait for itself.
        """
        with self._changed:
            if self.policy is Policy.BLOCK and threading.get_ident() != self._worker:
                self._changed.wait_for(lambda: self.closing or self._frames < self.capacity)
            item.number, item.sequence = self._counted["submitted"], self._sequence
            self._counted["submitted"] += 1
            if self.closing:  # nobody but its future tells of it: the outputs are at their end
                self._counted[Outcome.DROPPED] += 1
                return [item]
            dropped = [self._drop_oldest() for _ in range(self._frames - self.capacity + 1)]
            self._waiting.append(item)
            self._frames += 1
            self._changed.notify_all()
            return dropped

    def begin(
        self, plan: Any, meta: Mapping[str, Any], channel: str | None, tell: Callable[[LiveSequence], None]
    ) -> None:
        """Begin a sequence, to which all frames from now on belong; never blocks.

        The worker calls `tell` after all frames that were put before.
        """
        with self._changed:
            first = self._counted["submitted"]
            self._sequence = LiveSequence(self._sequences, plan, meta, first, channel)
            self._sequences += 1
            self._notice(first, partial(tell, self._sequence))

    def end(self, tell: Callable[[LiveSequence], None]) -> None:
        """End the sequence, if there is one; never blocks. The worker calls `tell` after its frames."""
        with self._changed:
            if self._sequence is not None:
                self._notice(self._counted["submitted"], partial(tell, self._sequence))
                self._sequence = None

    def _notice(self, number: int, tell: Callable[[], None]) -> None:
        if not self.closing:
            self._waiting.append(Notice(number, tell))
            self._changed.notify_all()

    def take(self) -> WaitingFrame | Notice | None:
        """Return what is next, for the worker: waits for it; None once the queue is closed and empty."""
        with self._changed:
            self._worker = threading.get_ident()
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self.closing)
            if not self._waiting:
                return None
            self._busy = True
            item = self._waiting.popleft()
            if isinstance(item, WaitingFrame):
                self._frames -= 1
                self._in_flight = item
                self._changed.notify_all()
            return item

    def settle(self, outcome: Outcome) -> None:
        """Count what became of the frame in flight."""
        with self._changed:
            self._in_flight = None
            self._counted[outcome] += 1

    def close(self, drain: bool) -> list[WaitingFrame]:
        """Take no more frames; unless they are to be drained, return those that wait: they are dropped. Idempotent."""
        with self._changed:
            self.closing = True
            self._drain = self._drain and drain
            dropped = [] if drain else [self._drop_oldest() for _ in range(self._frames)]
            self._changed.notify_all()
            return dropped

    @property
    def abandoned(self) -> bool:
        """Whether the frame in flight need not be finished."""
        return not self._drain

    def wait_idle(self, timeout: float | None) -> bool:
        """Wait until no frame is pending and all results were given out; False where `timeout` seconds were too few."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def counts(self) -> Counts:
        """Return the counts of this moment."""
        with self._changed:
            pending = self._frames + (self._in_flight is not None)
            return Counts(**self._counted, pending=pending)

    @property
    def busy(self) -> bool:
        """Whether the worker has something in hand, if only a result that it gives out."""
        return self._busy

    def _drop_oldest(self) -> WaitingFrame:
        item = next(item for item in self._waiting if isinstance(item, WaitingFrame))
        self._waiting.remove(item)
        self._frames -= 1
        return self._given_up(item)

    def _given_up(self, item: WaitingFrame) -> WaitingFrame:
        self._counted[Outcome.DROPPED] += 1
        self.dropped.add(item.result(Outcome.DROPPED))
        return item


def _policy(policy: Policy | str, capacity: int | None) -> tuple[Policy, int]:
    if policy not in list(Policy):
        raise OptionError(f"policy {policy!r} is unknown: use one of {', '.join(Policy)}")
    least = 1 if policy == Policy.LATEST else CAPACITY
    capacity = least if capacity is None else capacity
    if not isinstance(capacity, int) or capacity < 1:
        raise OptionError(f"a queue cannot hold {capacity} frames: use 1 or more, a whole number")
    if policy == Policy.LATEST and capacity > 1:
        raise OptionError(f"policy latest keeps the newest frame alone, not {capacity}: use drop_oldest to keep more")
    return Policy(policy), capacity
