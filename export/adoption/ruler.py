"""How far the influence of one line of an image goes in a network's output, measured on its footprint."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.export.adoption.footprint import footprint
from unetrt.export.adoption.sizes import Sizes
from unetrt.export.adoption.static_graph import Runner

# Periods up to this many pixels are measured line by line; longer ones at lines that a bisection finds.
EACH = 32


class Ruler:
    """A long, narrow image, and how far the influence of one of its lines goes.

    Parameters
    ----------
    sizes
        The network and what sizes it runs on.
    axis
        The axis along which it is long: 0 to measure rows, 1 for columns.
    length
        Its length, in pixels.

    Raises
    ------
    ModelFileError
        An operator's reach is not known.
    TileError
        The network does not run on this length.
    """

    def __init__(self, sizes: Sizes, axis: int, length: int) -> None:
        breadth = sizes.least[1 - axis]
        self._axis, self._margin, self.length = axis, sizes.margin[axis], length
        self._size = (length, breadth) if axis == 0 else (breadth, length)
        self._channels = sizes.foreign.channels
        self._footprint = footprint(sizes.at(self._size), sizes.foreign.name)
        self._run = Runner(self._footprint.model)
        self.extent = cache(self._measured)

    def holds(self, slack: int) -> bool:
        """Tell whether the influence of the middle line ends inside the image, `slack` pixels before its end."""
        first, last = self.extent(self.length // 2)
        half = self._margin // 2
        return first > half and last + slack < self.length - half - 1

    def radius(self, period: int) -> int:
        """Return the farthest influence, in pixels, of the lines of one period from the middle of the image on."""
        first = self.length // 2
        if period <= EACH:
            return max(self._reach(line) for line in range(first, first + period))
        return self._radius(first, first + period - 1)

    def repeats(self, period: int) -> bool:
        """Tell whether a line that lies a period further on touches what lies a period further on."""
        first = self.length // 2
        lines = range(first, first + period, max(1, period // EACH))
        return all(
            self.extent(line + period) == tuple(end + period for end in self.extent(line))
            for line in lines
            if line + period < self.length
        )

    def offset(self, period: int) -> float:
        """Return how far the middle of what a line touches lies from the line, in pixels, on average over a period."""
        first = self.length // 2
        lines = range(first, first + period, max(1, period // EACH))
        return float(np.mean([sum(self.extent(line)) / 2 - line for line in lines]))

    def _reach(self, line: int) -> int:
        return max(abs(touched - line) for touched in self.extent(line))

    def _radius(self, first: int, last: int) -> int:
        """Return the farthest influence of lines first ... last.

        A line that lies further on touches nothing that lies further back. So where two lines touch the same, all lines
        between them do, and the farthest influence is that of the two.
        """
        ends = [self._reach(first), self._reach(last)]
        if last - first < 2 or self.extent(first) == self.extent(last):
            return max(ends)
        middle = (first + last) // 2
        return max(self._radius(first, middle), self._radius(middle, last))

    def global_operator(self) -> str | None:
        """Return the first operator that makes everything depend on one line."""
        _, *probes = self._touched(self.length // 2)
        shares = zip(self._footprint.mixers, probes[::2], probes[1::2], strict=True)
        return next((mixer for mixer, before, after in shares if before < 0.5 and after == 1), None)

    def _measured(self, line: int) -> tuple[int, int]:
        """Return the first and the last line of the output, in the input's coordinates, that a line touches."""
        answer, *_ = self._touched(line)
        others = tuple(axis for axis in range(answer.ndim) if axis != answer.ndim - 2 + self._axis)
        touched = np.flatnonzero(answer.any(axis=others)) + self._margin // 2
        return (int(touched[0]), int(touched[-1])) if touched.size else (line, line)

    def _touched(self, line: int) -> list[NDArray[Any]]:
        image = np.zeros((1, self._channels, *self._size), np.float32)
        np.moveaxis(image, 2 + self._axis, 0)[line] = 1
        return self._run(image)
