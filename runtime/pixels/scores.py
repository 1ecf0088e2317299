"""From a network's scores to classes and probabilities.

The 8 symmetries of the square, over which a network's answer can be averaged.

Probabilities averaged over turned copies of a frame.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import InferenceError
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import Size

SPOILT = "the network gives NaN or infinity, as an activation leaves the range of its type: export it in fp32"


def best_class(scores: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the index of the highest score along the first axis of (classes, ...), the lowest one where they tie."""
    if len(scores) == 2:
        # Many times faster than argmax, which walks the far apart classes of each pixel.
        higher: NDArray[np.bool_] = np.greater(scores[1], scores[0])
        return higher.view(np.uint8)
    best, labels = scores[0], np.zeros(scores.shape[1:], np.uint8)
    for index, score in enumerate(scores[1:], start=1):
        higher = np.greater(score, best).view(np.uint8)
        # No label is as large as this index yet, so a maximum places it: a mask would cost a branch a pixel.
        np.maximum(labels, higher * np.uint8(index), out=labels)
        best = np.maximum(best, score)
    return labels


def require_finite_scores(scores: NDArray[Any]) -> None:
    """Raise InferenceError where scores of any shape hold NaN or infinity: compared, they would give the background."""
    # One sum instead of a mask: it is not finite if any term is not.
    if not np.isfinite(scores.sum()):
        raise InferenceError(SPOILT)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits (classes, ...) float32 into probabilities, in place, and return them."""
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=0)
    return logits


Array = NDArray[Any]


@dataclass(frozen=True)
class Symmetry:
    """A reflection, a rotation by a multiple of 90 degrees, or both.

    Attributes
    ----------
    transpose
        Whether rows and columns change places, before anything is flipped.
    flips
        Which of the last two axes are then reversed.
    """

    transpose: bool
    flips: tuple[bool, bool]

    def size(self, size: Size) -> Size:
        """Return height and width of what is turned, from those of what is not."""
        return (size[1], size[0]) if self.transpose else size

    def apply(self, planes: Array) -> Array:
        """Return a view of planes (..., H, W), turned: (..., H, W) or (..., W, H)."""
        turned = planes.swapaxes(-2, -1) if self.transpose else planes
        return self._flipped(turned)

    def undo(self, planes: Array) -> Array:
        """Return a view of turned planes as they were."""
        flipped = self._flipped(planes)
        return flipped.swapaxes(-2, -1) if self.transpose else flipped

    def _flipped(self, planes: Array) -> Array:
        flipped: Array = np.flip(planes, tuple(axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip))
        return flipped


SQUARE = tuple(Symmetry(transpose, (down, right)) for transpose, down, right in product((False, True), repeat=3))
# A frame as it is, which is the first of the eight.
ONCE = SQUARE[:1]


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
