"""Frames on their way to the disk: how many a writer still holds, asked without knowing the writer."""

import time
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import OutputError

# Frames that may wait for the disk.
MOST = 16
# Seconds without progress after which the disk is given up.
PATIENCE = 20.0


class Backlog:
    """Counts the arrays that somebody else keeps alive until they are written.

    What queues frames for a thread of its own has no bound, and says nothing when that thread has failed.
    """

    def __init__(self) -> None:
        self._frames: deque[weakref.ref[NDArray[np.generic]]] = deque()
        self._given_up = False

    def add(self, frame: NDArray[np.generic]) -> None:
        """Take note of a frame that nobody but the writer keeps."""
        self._frames.append(weakref.ref(frame))

    def wait(self, most: int = MOST, patience: float = PATIENCE) -> None:
        """Wait until no more than `most` frames are kept; once that took too long, only look until they are.

        Raises
        ------
        OutputError
            For `patience` seconds none was written.
        """
        left, until = self._count(), time.monotonic() + (0 if self._given_up else patience)
        while left > most:
            time.sleep(0.002)
            count = self._count()
            if count < left:
                until = time.monotonic() + patience
            elif time.monotonic() > until:
                self._given_up = True
                raise OutputError(f"{count} frames of labels wait for the disk, which took none for {patience:.0f} s")
            left = count
        self._given_up = False

    def _count(self) -> int:
        self._frames = deque(frame for frame in self._frames if frame() is not None)
        return len(self._frames)
