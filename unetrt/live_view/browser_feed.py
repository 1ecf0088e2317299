"""What the page is told: the newest result, and the times of those before it."""

import threading
from collections import deque
from dataclasses import asdict, dataclass
from itertools import islice
from time import perf_counter
from typing import Any

from unetrt.runtime import LiveResult, LiveSegmenter, Outcome

# Results that wait for this thread, which does next to nothing with each.
CAPACITY = 4
# Results whose times are kept: a minute of a camera with 50 frames a second.
HISTORY = 3000


@dataclass(frozen=True)
class Point:
    """One result in the plots: times in seconds, `time` since the view was opened."""

    time: float
    queueing: float
    compute: float
    objects: int | None
    failed: bool


class Feed:
    """Follows a live segmenter in a thread of its own and keeps what a page may ask for.

    Attributes
    ----------
    live
        What is followed.
    newest
        The newest result that is done; None before the first.
    closing
        Set once the view closes: whoever serves a page ends.
    """

    def __init__(self, live: LiveSegmenter) -> None:
        self.live, self.closing = live, threading.Event()
        self.newest: LiveResult | None = None
        self._stream = live.results(CAPACITY)
        self._lock, self._begin = threading.Lock(), perf_counter()
        self._points: deque[Point] = deque(maxlen=HISTORY)
        self._seen = 0
        self._thread = threading.Thread(target=self._follow, name="unetrt-view-results", daemon=True)
        self._thread.start()

    @property
    def newest_number(self) -> int:
        """The number of the newest frame that is done; -1 before the first."""
        newest = self.newest
        return -1 if newest is None else newest.number

    def news(self, cursor: int) -> tuple[int, dict[str, Any]]:
        """Return what happened since an earlier call, and what to give to the next.

        Parameters
        ----------
        cursor
            What the call before returned; 0 for all that is kept.

        Returns
        -------
        The next cursor; and `status`, the `LiveStatus` as a dict; `now`, seconds since the view was opened; `points`,
        lists as in `Point`, the oldest first; `newest`, the number of the newest frame that is done, or -1.
        """
        with self._lock:
            seen, count = self._seen, min(self._seen - cursor, len(self._points))
            points = list(islice(reversed(self._points), count))[::-1]
        return seen, {
            "status": asdict(self.live.status()),
            "now": perf_counter() - self._begin,
            "points": [[*vars(point).values()] for point in points],
            "newest": self.newest_number,
        }

    def close(self) -> None:
        """End the thread; idempotent."""
        self.closing.set()
        self._stream.close()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.newest = None

    def _follow(self) -> None:
        for result in self._stream:
            self._take(result)
            del result  # a frame is not kept while the next is waited for

    def _take(self, result: LiveResult) -> None:
        failed = result.outcome is not Outcome.DONE
        now = perf_counter() - self._begin
        point = Point(now, result.queueing, result.compute, result.objects, failed)
        with self._lock:
            self._points.append(point)
            self._seen += 1
        if not failed:
            self.newest = result
