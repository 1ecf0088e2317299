"""The 8 symmetries of the square, over which a network's answer can be averaged."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.frames import Size

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
