"""Segmenters without an engine, with chosen durations and failures; and an output that records its calls."""

import time
from itertools import count

import numpy as np

from tests.conftest import small_spec
from unetrt.runtime.errors import InferenceError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import WorkerSession

# The tile of which one covers the demo camera's frame of 512 x 512, at depth 2.
TILE = (552, 552)


class SlowSession(WorkerSession):
    """Class 1 is what is brighter than the frame's mean; a pass sleeps, without Python's lock, as engines do.

    Passes whose number, from 0, is in `failing` raise instead.
    """

    def __init__(self, seconds, failing):
        super().__init__(small_spec(tile=TILE, normalisation=Normalisation("zscore")), "sleeps")
        self._seconds, self._failing, self._passes = seconds, failing, count()

    def compute(self, frames, scores):
        time.sleep(self._seconds)
        if next(self._passes) in self._failing:
            raise InferenceError("the engine failed")
        inner = slice(self.spec.halo, -self.spec.halo)
        scores[:, 0], scores[:, 1] = 0, frames[:, 0, inner, inner]


def slow_segmenter(seconds=0.0, failing=()):
    return Segmenter(SlowSession(seconds, failing))


class Notes:
    """An output that records the results it gets, in order."""

    def __init__(self):
        self.calls, self.results, self.lost = [], [], []

    def sequence_started(self, sequence):
        self.calls.append(("started", sequence.number))

    def result(self, result):
        self.calls.append(("result", result.sequence.number))
        self.results.append(result)

    def dropped(self, frames):
        self.lost.append((frames.first, frames.last))

    def sequence_finished(self, sequence):
        self.calls.append(("finished", sequence.number))

    def close(self):
        self.calls.append(("closed",))

    def indices(self, axis="t"):
        return [result.index[axis] for result in self.results]


def bright(frame):
    """What SlowSession finds in a frame: the class of each pixel."""
    return (frame > frame.mean()).astype(np.uint8)


def adds_up(status):
    return status.submitted == status.done + status.dropped + status.failed + status.pending
