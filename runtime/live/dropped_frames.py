"""Frames that were given up, until somebody is told in their turn."""

import threading
from collections import deque

from unetrt.runtime.live.results import LiveResult

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
