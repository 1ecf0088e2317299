"""Mirrored borders as index arithmetic: a window may reach past the frame without a padded copy of it.

`reflect` does not repeat the edge pixel (... 2 1 0 1 2 ...), as in the paper's overlap-tile strategy (section 2,
figure 2) and numpy.pad; `symmetric` does (... 1 0 0 1 ...). Both repeat for as far as the window reaches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Border = Literal["reflect", "symmetric"]
BORDERS: tuple[Border, ...] = ("reflect", "symmetric")


@dataclass(frozen=True)
class Span:
    """A run of a window along one axis that reads the frame in one direction.

    Attributes
    ----------
    window
        Where the run lies in the window.
    frame
        The frame's pixels that it reads; step -1 where they are mirrored.
    """

    window: slice
    frame: slice

    def split(self, most: int) -> Iterator["Span"]:
        """Iterate over the parts of this run, in the window's order, each of at most `most` pixels."""
        step = self.frame.step or 1
        for begin in range(self.window.start, self.window.stop, most):
            end = min(begin + most, self.window.stop)
            first, last = (self.frame.start + step * (at - self.window.start) for at in (begin, end))
            yield Span(slice(begin, end), slice(first, None if last < 0 else last, step))


def mirrored(start: int, stop: int, length: int, border: Border) -> NDArray[np.intp]:
    """Return, for each coordinate in start ... stop - 1, the index in 0 ... length - 1 that it is read from."""
    at = np.arange(start, stop)
    if border == "symmetric":
        folded = at % (2 * length)
        return np.minimum(folded, 2 * length - 1 - folded)
    if length == 1:
        return np.zeros_like(at)
    folded = at % (2 * length - 2)
    return np.minimum(folded, 2 * length - 2 - folded)


def spans(start: int, stop: int, length: int, border: Border) -> tuple[Span, ...]:
    """Return the runs that read start ... stop - 1, as `mirrored` does, for a frame of at least 2 pixels.

    Coordinates fall into segments, each of `period` pixels; every other one is read backwards.
    """
    period = length - 1 if border == "reflect" else length
    segments = range(start // period, (stop - 1) // period + 1)
    return tuple(_span(segment, period, start, stop, border) for segment in segments)


def _span(segment: int, period: int, start: int, stop: int, border: Border) -> Span:
    low, high = max(start, segment * period), min(stop, (segment + 1) * period)
    window = slice(low - start, high - start)
    if segment % 2 == 0:
        return Span(window, slice(low - segment * period, high - segment * period))
    first = (segment + 1) * period - low - (border == "symmetric")
    last = first - (high - low)
    return Span(window, slice(first, None if last < 0 else last, -1))
