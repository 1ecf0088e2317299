"""What a person is shown of a live segmentation, at one moment."""

import threading
from collections import deque
from dataclasses import dataclass
from time import perf_counter

from unetrt.runtime.live.results import LiveResult, Outcome
from unetrt.runtime.live.status import LiveStatus

# Results whose objects the history shows: as many as a line of a terminal has room for.
HISTORY = 40
# Seconds over which the camera's rate is taken.
SPAN = 5.0


@dataclass(frozen=True)
class Figures:
    """A live segmentation at one moment.

    Attributes
    ----------
    status
        Counts and times.
    seconds
        Since the first frame; 0 before it.
    camera
        Frames that came a second, over the last 5 seconds.
    frame
        The last result's frame, such as "512 x 700 px, uint16"; empty before it.
    history
        Objects in each of the last 40 results, the newest last; empty where labels name classes.
    objects
        Objects in all results together.
    covered
        The share of the last labels that is not background, where they name classes; else None.
    """

    status: LiveStatus
    seconds: float
    camera: float
    frame: str
    history: tuple[int, ...]
    objects: int
    covered: float | None


class Observer:
    """Takes note of results, on any thread, for who asks from another.

    Attributes
    ----------
    failure
        The error of the last frame that failed.
    """

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._last: LiveResult | None = None
        self._history: deque[int] = deque(maxlen=HISTORY)
        self._objects = 0
        self._came: deque[tuple[float, int]] = deque()
        self._first: float | None = None

    def result(self, result: LiveResult) -> None:
        """Take note of a result; quick."""
        with self._lock:
            if result.outcome is Outcome.FAILED:
                self.failure = result.error
                return
            self._last = result
            if result.objects is not None:
                self._history.append(result.objects)
                self._objects += result.objects

    def look(self, status: LiveStatus) -> Figures:
        """Return the figures of this moment, for one thread, regularly."""
        now = perf_counter()
        if self._first is None and status.submitted:
            self._first = now
        with self._lock:
            last, history, objects = self._last, tuple(self._history), self._objects
        seconds = 0.0 if self._first is None else now - self._first
        rate = self._rate(now, status.submitted)
        return Figures(status, seconds, rate, _kind(last), history, objects, _covered(last))

    def _rate(self, now: float, submitted: int) -> float:
        self._came.append((now, submitted))
        while self._came[0][0] < now - SPAN:
            self._came.popleft()
        begin, before = self._came[0]
        return (submitted - before) / (now - begin) if now > begin else 0.0


def _kind(result: LiveResult | None) -> str:
    return "" if result is None else f"{' x '.join(map(str, result.frame.shape))} px, {result.frame.dtype}"


def _covered(result: LiveResult | None) -> float | None:
    if result is None or result.labels is None or result.objects is not None:
        return None
    return float((result.labels > 0).mean())
