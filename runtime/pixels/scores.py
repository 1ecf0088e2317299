"""Scores of a network: classes, probabilities, and their average over rotated and reflected copies of a frame.

For test-time averaging, a frame is segmented in the 8 `SQUARE` symmetries; `Mean` turns the scores of each copy back
and averages their probabilities.

>>> best_class(np.array([[0.1, 0.9], [0.7, 0.2]], np.float32))
array([1, 0], dtype=uint8)
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import InferenceError
from unetrt.runtime.pixels.frames import Size

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import ModelSpec

Array = NDArray[Any]
Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]

NOT_FINITE = (
    "the network's output holds NaN or infinity, as an activation exceeds the range of its type: export it in fp32"
)


def best_class(scores: Array) -> Labels:
    """Return the index of the highest score along the first axis of (classes, ...), uint8; the lowest index of ties."""
    if len(scores) == 2:
        # Many times faster than argmax, which strides over the classes of each pixel.
        higher: NDArray[np.bool_] = np.greater(scores[1], scores[0])
        return higher.view(np.uint8)
    best, labels = scores[0], np.zeros(scores.shape[1:], np.uint8)
    for index, score in enumerate(scores[1:], start=1):
        higher = np.greater(score, best).view(np.uint8)
        # Labels so far are smaller than this index, so a maximum writes it without a branch per pixel.
        np.maximum(labels, higher * np.uint8(index), out=labels)
        best = np.maximum(best, score)
    return labels


def require_finite_scores(scores: Array) -> None:
    """Raise InferenceError where scores of any shape hold NaN or infinity, which would compare as background."""
    # One sum instead of a mask: it is not finite if any term is not.
    if not np.isfinite(scores.sum()):
        raise InferenceError(NOT_FINITE)


def require_sound(spec: "ModelSpec", scores: Array) -> None:
    """Raise InferenceError where scores are not finite, which only a lower precision than fp32 can cause."""
    if spec.precision != "fp32":
        require_finite_scores(scores)


def softmax(logits: Scores) -> Scores:
    """Convert logits (classes, ...) float32 to probabilities, in place, and return them."""
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=0)
    return logits


@dataclass(frozen=True)
class Symmetry:
    """A reflection, a rotation by a multiple of 90 degrees, or both.

    Attributes
    ----------
    transpose
        Whether rows and columns are exchanged, before the flips.
    flips
        Whether each of the last two axes is then reversed.
    """

    transpose: bool
    flips: tuple[bool, bool]

    def size(self, size: Size) -> Size:
        """Return height and width after `apply`, from those before."""
        return (size[1], size[0]) if self.transpose else size

    def part(self, part: tuple[slice, slice], size: Size) -> tuple[slice, slice]:
        """Return the rows and columns, after `apply` to a frame of a size, of a part of that frame."""
        return self._flipped_part(part[::-1] if self.transpose else part, self.size(size))

    def part_before(self, part: tuple[slice, slice], size: Size) -> tuple[slice, slice]:
        """Return the rows and columns, before `apply` to a frame of a size, of a part of the transformed frame."""
        flipped = self._flipped_part(part, self.size(size))
        return flipped[::-1] if self.transpose else flipped

    def apply(self, planes: Array) -> Array:
        """Return a transformed view of planes (..., H, W): (..., H, W) or (..., W, H)."""
        return self._flipped(planes.swapaxes(-2, -1) if self.transpose else planes)

    def undo(self, planes: Array) -> Array:
        """Return the view that undoes `apply`."""
        flipped = self._flipped(planes)
        return flipped.swapaxes(-2, -1) if self.transpose else flipped

    def _flipped_part(self, part: tuple[slice, slice], size: Size) -> tuple[slice, slice]:
        rows, columns = (
            slice(length - side.stop, length - side.start) if flip else side
            for side, length, flip in zip(part, size, self.flips, strict=True)
        )
        return rows, columns

    def _flipped(self, planes: Array) -> Array:
        flipped: Array = np.flip(planes, tuple(axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip))
        return flipped


SQUARE = tuple(Symmetry(transpose, (down, right)) for transpose, down, right in product((False, True), repeat=3))
# The identity.
ONCE = SQUARE[:1]


class Mean:
    """Mean of the probabilities of transformed copies of a frame, and the labels that follow from it.

    Parameters
    ----------
    spec
        The model's spec.
    copies
        Number of copies; after as many calls of `add`, `out` and `labels` are complete and `last` is called.
    out
        float32, (classes, H, W), to be written.
    labels
        uint8, (H, W), to be written.
    last
        Called at the end.
    """

    def __init__(self, spec: "ModelSpec", copies: int, out: Scores, labels: Labels, last: Callable[[], None]) -> None:
        self._spec, self._copies, self._out, self._labels, self._last = spec, copies, out, labels, last
        self._added = 0

    def room(self, size: tuple[int, ...]) -> Scores:
        """Return an array (classes, h, w) for the scores of a copy with that height and width."""
        return self._out if self._copies == 1 else np.empty((len(self._out), *size), np.float32)

    def add(self, copy: Symmetry, scores: Scores, part: tuple[slice, slice] | None = None) -> None:
        """Add the scores of a copy, an array from `room`; `part` is the part of it that counts, all by default."""
        require_sound(self._spec, scores)
        if self._spec.head == "logits":
            softmax(scores)
        if scores is not self._out:
            counted = scores if part is None else scores[:, *part]
            share = copy.undo(counted) / np.float32(self._copies)
            self._out[:] = self._out + share if self._added else share
        self._added += 1
        if self._added == self._copies:
            self._labels[...] = best_class(self._out)
            self._last()
