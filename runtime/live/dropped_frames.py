"""Frames that were given up, until somebody is told in their turn."""

import threading
from collections import deque

from unetrt.runtime.live.results import LiveResult

# Those of which nobody was told: 5 MB, with the metadata that Micro-Manager gives each.
MOST = 1000


class DroppedFrames:
    """Results of dropped frames, kept without their pixels; beyond 1000 the first are forgotten. From any thread."""

    def __init__(self) -> None:
        self._results: deque[LiveResult] = deque(maxlen=MOST)
        self._lock = threading.Lock()

    def add(self, result: LiveResult) -> None:
        """Keep what there is to say of a frame."""
        with self._lock:
            self._results.append(result)

    def take(self, before: float) -> list[LiveResult]:
        """Return those of the frames whose numbers are lower than `before`, in their order; they are not kept."""
        with self._lock:
            found = [one for one in self._results if one.number < before]
            self._results = deque((one for one in self._results if one.number >= before), MOST)
        return sorted(found, key=lambda one: one.number)
