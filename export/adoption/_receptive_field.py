"""The receptive field and the lattice of a network, measured on its footprint.

A `Ruler` is a long, narrow image: one of its lines is touched, and the footprint shows which lines of the output that
one can influence. `measure` does this for every phase of the lattice, along both axes, and returns the largest distance
(the radius) and the period with which the result repeats (the grid).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.export.adoption._footprint import WholeImageError, footprint
from unetrt.export.adoption._foreign import Runner, Sizes
from unetrt.runtime.errors import ModelFileError, OptionError, TileError

# Length of the longest ruler, in pixels; a network whose receptive field extends beyond half of it cannot be tiled.
MAX_LENGTH = 8192
# Longest period that is tried, in pixels, where the axes inside the network do not show its period.
MAX_PERIOD = 64
# Periods up to this many pixels are measured at every line; longer ones at the lines that a bisection selects.
EACH = 32
# Largest mean distance, in pixels, between a line and the middle of the lines it touches: an even kernel makes 0.5.
OFF_CENTRE = 0.75


@dataclass(frozen=True)
class ReceptiveField:
    """Reach and period of a network, in pixels.

    Attributes
    ----------
    radius
        An output pixel depends on no input pixel farther away than this along an axis.
    grid
        Period of the lattice of poolings and strides.
    margin
        Input size minus output size, height and width.
    """

    radius: int
    grid: int
    margin: tuple[int, int]

    @property
    def least_halo(self) -> int:
        """The least halo with which tiles are exact."""
        return max(self.radius, *(pixels // 2 for pixels in self.margin))

    @property
    def halo(self) -> int:
        """The least such halo that also puts the tiles on the lattice of a pass over the whole image."""
        return self.least_halo + (self.margin[0] // 2 - self.least_halo) % self.grid


class Ruler:
    """A long, narrow image on which the reach of single lines is measured.

    Parameters
    ----------
    sizes
        The network and the sizes it runs on.
    axis
        The long axis: 0 measures rows, 1 columns.
    length
        Length of the long axis, in pixels.

    Raises
    ------
    ModelFileError
        The reach of an operator is not known.
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
        self.extent = cache(self._extent)

    def _extent(self, line: int) -> tuple[int, int]:
        """Return the first and last line of the output, in the input's coordinates, that a line touches."""
        answer, *_ = self._touched(line)
        others = tuple(axis for axis in range(answer.ndim) if axis != answer.ndim - 2 + self._axis)
        touched = np.flatnonzero(answer.any(axis=others)) + self._margin // 2
        return (int(touched[0]), int(touched[-1])) if touched.size else (line, line)

    def _touched(self, line: int) -> list[NDArray[Any]]:
        """Return the outputs of the footprint for an image that is 1 on one line."""
        image = np.zeros((1, self._channels, *self._size), np.float32)
        np.moveaxis(image, 2 + self._axis, 0)[line] = 1
        return self._run(image)

    def holds(self, slack: int) -> bool:
        """Return whether the middle line's influence ends inside the image, `slack` pixels before its end."""
        first, last = self.extent(self.length // 2)
        half = self._margin // 2
        return first > half and last + slack < self.length - half - 1

    def radius(self, period: int) -> int:
        """Return the largest reach, in pixels, of the lines of one period that begins in the middle of the image."""
        first = self.length // 2
        if period <= EACH:
            return max(self._reach(line) for line in range(first, first + period))
        return self._bisected(first, first + period - 1)

    def _reach(self, line: int) -> int:
        return max(abs(touched - line) for touched in self.extent(line))

    def _bisected(self, first: int, last: int) -> int:
        """Return the largest reach of lines first ... last, by bisection.

        The extent of a line never begins or ends before that of the line before it. So if two lines have the same
        extent, all lines between them have it too, and one of the two reaches farthest.
        """
        ends = [self._reach(first), self._reach(last)]
        if last - first < 2 or self.extent(first) == self.extent(last):
            return max(ends)
        middle = (first + last) // 2
        return max(self._bisected(first, middle), self._bisected(middle, last))

    def _sampled(self, period: int) -> range:
        """Return at most 2 * `EACH` evenly spaced lines of one period."""
        first = self.length // 2
        return range(first, first + period, max(1, period // EACH))

    def repeats(self, period: int) -> bool:
        """Return whether the extent of a line, moved by a period, is the extent of the line one period further on."""
        return all(
            self.extent(line + period) == tuple(end + period for end in self.extent(line))
            for line in self._sampled(period)
            if line + period < self.length
        )

    def offset(self, period: int) -> float:
        """Return the mean distance, in pixels, from a line to the middle of its extent, over one period."""
        return float(np.mean([sum(self.extent(line)) / 2 - line for line in self._sampled(period)]))

    def global_operator(self) -> str | None:
        """Return the first operator whose whole output depends on the middle line, if there is one."""
        _, *probes = self._touched(self.length // 2)
        shares = zip(self._footprint.mixers, probes[::2], probes[1::2], strict=True)
        return next((mixer for mixer, before, after in shares if before < 0.5 and after == 1), None)


def measure(sizes: Sizes, grid: int | None = None) -> ReceptiveField:
    """Measure a network, at every phase of its lattice.

    Parameters
    ----------
    sizes
        The network and the sizes it runs on.
    grid
        The period of its lattice, if known; verified where more than one size runs.

    Raises
    ------
    WholeImageError
        An operator sees the whole image.
    ModelFileError
        The reach of an operator is not known, or the output is off centre.
    OptionError
        The grid is not a period of the network, or is not given and cannot be measured.
    """
    rulers = [_ruler(sizes, axis, sizes.step or grid or 1) for axis in (0, 1)]
    found = period_of(sizes, grid)
    if sizes.step and grid is None:
        found = _repeating(sizes, rulers, found)
    for ruler, margin in zip(rulers, sizes.margin, strict=True):
        if margin and abs(offset := ruler.offset(found)) > OFF_CENTRE:
            raise ModelFileError(
                f"{sizes.foreign.name} crops {margin} px unevenly at both ends of an axis: its output lies {offset:g} "
                "px off the centre of its input; use symmetric padding, or none"
            )
    return ReceptiveField(max(ruler.radius(found) for ruler in rulers), found, sizes.margin)


def _ruler(sizes: Sizes, axis: int, period: int) -> Ruler:
    """Return a ruler that is long enough for a period along an axis: its length is doubled until it is."""
    length, suspect = sizes.least[axis], None
    while not (ruler := Ruler(sizes, axis, length)).holds(period):
        operator = ruler.global_operator()
        # A window that fills a short image sees all of it. An operator that also sees all of a longer one is global.
        if operator and (operator == suspect or not sizes.step):
            raise WholeImageError(
                sizes.foreign.name,
                f"{operator} sees the whole image",
                "train the network without it (batch normalisation in place of instance or group normalisation, no "
                "squeeze-and-excitation, global pooling or attention)",
            )
        length, suspect = _longer(sizes, length), operator
    return ruler


def _longer(sizes: Sizes, length: int) -> int:
    name, (height, width) = sizes.foreign.name, sizes.tile
    if not sizes.step:
        raise TileError(
            f"{name} runs on {height}x{width} px only, too small to see where the influence of a pixel ends: "
            "export it with open axes, or for a larger image"
        )
    if 2 * length > MAX_LENGTH:
        raise WholeImageError(
            name,
            f"an output pixel depends on pixels more than {length // 2} px away",
            "train a network that sees less of the image",
        )
    return length + -(-length // sizes.step) * sizes.step


def period_of(sizes: Sizes, given: int | None) -> int:
    """Return the given period, in pixels, or that of the axes inside the network; raises OptionError as `measure`."""
    lattice = sizes.lattice
    if lattice is None and given is None:
        raise OptionError(
            f"{sizes.foreign.name} runs on one size only, so that its grid cannot be measured: give --grid, the "
            "product of its strides and poolings"
        )
    if lattice is not None and given is not None and given % lattice:
        raise OptionError(
            f"grid {given} is not a period of this network, whose lattice repeats every {lattice} px: use --grid "
            f"{lattice}"
        )
    return given or lattice or 1


def _repeating(sizes: Sizes, rulers: list[Ruler], lattice: int) -> int:
    """Return the least multiple of `lattice` with which the reach repeats: it is larger if the network has windows."""
    longest = max(MAX_PERIOD, lattice)
    for period in range(lattice, longest + 1, lattice):
        rulers = [
            ruler if ruler.holds(2 * period) else _ruler(sizes, axis, 2 * period) for axis, ruler in enumerate(rulers)
        ]
        if all(ruler.repeats(period) for ruler in rulers):
            return period
    raise OptionError(
        f"{sizes.foreign.name} does not repeat within {longest} px: give --grid, the product of its strides, poolings "
        "and windows"
    )
