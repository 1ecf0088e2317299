"""Exact order statistics of many camera pixels, faster than by counting every value.

A sample says between which two grey values a rank lies, very likely. The number of pixels below the two proves it or
not, and the few pixels between them, ordered or counted, hold the answer. A sample that misleads costs time, never
exactness: there is no answer then.
"""

from math import ceil, floor, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Every so-many-th pixel is sampled; a prime, so that the sample meets all columns of most frames.
STEP = 61
# Standard deviations of a rank in the sample between it and either end of its bracket: few frames in 10^4 lie outside.
MARGIN = 4.0
# Share of the pixels in a bracket from which on a histogram of all is faster.
CROWDED = 1 / 16
# Grey values of a bracket up to which it is halved by counting, three times at most, instead of ordering its pixels.
NARROW = 8
# Share of the pixels above a bracket up to which they are taken too: what is left needs no count, it is below.
TAIL = 1 / 256
# Pixels that are compared together: pixels, differences and mask, 1.25 MiB of uint16, stay in the cache.
BLOCK = 1 << 18


class Run(NamedTuple):
    """Neighbours in the order of all pixels: `values`, ascending, follow `first` smaller pixels."""

    first: int
    values: Array

    def at(self, ranks: list[int]) -> dict[int, float]:
        """Return the values at those of the ranks that this run reaches."""
        places = {rank: rank - self.first for rank in ranks}
        return {rank: float(self.values[place]) for rank, place in places.items() if 0 <= place < len(self.values)}


def bracketed(flat: Array, ranks: list[int]) -> dict[int, float] | None:
    """Return the values at `ranks` (0 is the smallest) of a flat array, uint8 or uint16, as if it were sorted.

    None where the sample misled, or where so many pixels lie in a bracket that a histogram is faster.
    """
    upto = np.cumsum(np.bincount(flat[::STEP]))
    below, found = Below(flat), dict[int, float]()
    for rank in ranks:
        if rank in found:  # neighbours mostly share a bracket
            continue
        run = _run(flat, upto, rank, below)
        if run is None:
            return None
        found |= run.at(ranks)
        if rank not in found:
            return None
    return found


def _run(flat: Array, upto: Array, rank: int, below: "Below") -> Run | None:
    """Return pixels that hold a rank very likely, from the sample's cumulated histogram; None if they are too many."""
    low, high = _bracket(upto, rank, flat)
    if high - low < NARROW:
        value = below.halve(low, high, rank)
        first, equal = below[value], below[value + 1] - below[value]
        # One value, so many times, in no memory.
        return Run(first, np.broadcast_to(flat.dtype.type(value), equal))
    reached = upto[min(high, len(upto) - 1)]
    if reached - (upto[low - 1] if low else 0) > CROWDED * upto[-1]:
        return None
    if upto[-1] - reached <= TAIL * upto[-1]:
        values = _between(flat, low, _largest(flat))
        return Run(flat.size - len(values), values)
    return Run(below[low], _between(flat, low, high))


def _bracket(upto: Array, rank: int, flat: Array) -> tuple[int, int]:
    """Return the smallest and the largest grey value that the pixel of a rank may well have."""
    share = rank / flat.size
    # Of a binomial, and 2 more, for where that is no good measure: the first and last few pixels.
    margin = MARGIN * sqrt(upto[-1] * share * (1 - share)) + 2
    low, high = floor(rank / STEP - margin), ceil(rank / STEP + margin)
    smallest = int(np.searchsorted(upto, low, side="right")) if low >= 0 else 0
    largest = int(np.searchsorted(upto, high, side="right")) if high < upto[-1] else _largest(flat)
    return smallest, largest


def _largest(flat: Array) -> int:
    return int(np.iinfo(flat.dtype).max)


class Below(dict[int, int]):
    """How many pixels of a flat array are less than a grey value, counted when first asked for."""

    def __init__(self, flat: Array) -> None:
        super().__init__({0: 0})
        self._flat, self._mask = flat, np.empty(min(BLOCK, flat.size), bool)

    def __missing__(self, value: int) -> int:
        # Not `< value`: the one after the largest does not fit the dtype.
        limit, count = self._flat.dtype.type(value - 1), 0
        for begin in range(0, self._flat.size, BLOCK):
            part = self._flat[begin : begin + BLOCK]
            count += int(np.count_nonzero(np.less_equal(part, limit, out=self._mask[: len(part)])))
        self[value] = count
        return count

    def halve(self, low: int, high: int, rank: int) -> int:
        """Return the value from `low` to `high` that the pixel of a rank has, if it has one of these."""
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self[middle + 1] > rank else (middle + 1, high)
        return low


def _between(flat: Array, low: int, high: int) -> Array:
    """Return the pixels from `low` to `high`, both included, ascending."""
    offset, width = flat.dtype.type(low), flat.dtype.type(high - low)
    differences = np.empty(min(BLOCK, flat.size), flat.dtype)
    found = []
    for begin in range(0, flat.size, BLOCK):
        part = flat[begin : begin + BLOCK]
        # Unsigned: what is below `low` wraps around and is larger than any width.
        found.append(part[np.subtract(part, offset, out=differences[: len(part)]) <= width])
    return np.sort(np.concatenate(found))
