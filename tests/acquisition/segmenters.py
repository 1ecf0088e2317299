"""Segmenters without an engine whose labels tell which frame they are of."""

import time

import numpy as np

from tests.conftest import small_spec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import WorkerSession

AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))


def classes_of(frame):
    """The classes that `RemainderSession` gives frames of integers (..., H, W)."""
    return (np.asarray(frame).astype(np.int64) % 7).astype(np.uint8)


class RemainderSession(WorkerSession):
    """Classes are grey values modulo 7; a pass takes `seconds`, and fails on those of which `fails` says so."""

    def __init__(self, seconds, tile, fails):
        super().__init__(small_spec(tile=(tile, tile), normalisation=AS_IT_IS, head="labels"), "grey values modulo 7")
        self._seconds, self._fails, self._passes = seconds, fails, 0

    def compute(self, frames, scores):
        time.sleep(self._seconds)
        self._passes += 1
        if self._fails(self._passes):
            raise ValueError("the network did not like it")
        halo = self.spec.halo
        scores[...] = np.rint(frames[:, 0, halo:-halo, halo:-halo]).astype(np.int64) % 7


def segmenter(seconds=0.0, tile=188, fails=lambda number: False):
    """A segmenter of one pass for frames up to 148 x 148, with the usual tile; passes are counted from 1."""
    return Segmenter(RemainderSession(seconds, tile, fails), lanes=1)
