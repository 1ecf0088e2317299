"""Sessions and frames for tests of the live segmenter."""

import threading

import numpy as np

from tests.conftest import small_spec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import WorkerSession

AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))


class GatedSession(WorkerSession):
    """Labels are the frame's grey values; a pass begins when the test lets it, and a frame of 13 breaks the model."""

    def __init__(self, **fields):
        fields = {"normalisation": AS_IT_IS, "head": "labels", "annotation": "classes", **fields}
        super().__init__(small_spec(**fields), "gated")
        self.began, self._go, self.open_for_all = threading.Semaphore(0), threading.Semaphore(0), False

    def compute(self, frames, scores):
        self.began.release()
        if not self.open_for_all:
            self._go.acquire(timeout=30)
        if frames.max() == 13:
            raise ValueError("the model broke\non 13")
        halo = self.spec.halo
        scores[...] = frames[:, 0, halo:-halo, halo:-halo]

    def let(self, passes=None):
        """Release a number of passes, or all from now on."""
        self.open_for_all = passes is None
        self._go.release(passes or 1000)


def gated(**fields):
    """A segmenter that waits for the test, and its session."""
    session = GatedSession(**fields)
    return Segmenter(session, lanes=1), session


def flat(value, size=(12, 16), dtype=np.uint8):
    """A frame of one grey value."""
    return np.full(size, value, dtype)
