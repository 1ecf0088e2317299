"""Probabilities averaged over turned copies of a frame."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.scores import best_class, require_finite_scores, softmax
from unetrt.runtime.spec import ModelSpec
from unetrt.runtime.symmetries import Symmetry

Array = NDArray[Any]
Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]


class Mean:
    """The mean of probabilities over turned copies of a frame, and its labels.

    `out`, float32 (classes, H, W), and `labels`, uint8 (H, W), are whole after `copies` calls of `add`; then `last` is
    called.
    """

    def __init__(self, spec: ModelSpec, copies: int, out: Scores, labels: Labels, last: Callable[[], None]) -> None:
        self._spec, self._copies, self._out, self._labels, self._last = spec, copies, out, labels, last
        self._added = 0

    def room(self, size: tuple[int, ...]) -> Scores:
        """Return where the scores of a copy of that size are put together."""
        return self._out if self._copies == 1 else np.empty((len(self._out), *size), np.float32)

    def add(self, copy: Symmetry, room: Scores) -> None:
        """Count the scores of a copy in; `room` is what `room` returned for it."""
        require_sound(self._spec, room)
        if self._spec.head == "logits":
            softmax(room)
        if room is not self._out:
            share = copy.undo(room) / np.float32(self._copies)
            self._out[:] = self._out + share if self._added else share
        self._added += 1
        if self._added == self._copies:
            self._labels[...] = best_class(self._out)
            self._last()


def require_sound(spec: ModelSpec, scores: Array) -> None:
    """Refuse what a lower precision's range has spoilt."""
    if spec.precision != "fp32":
        require_finite_scores(scores)
