"""Exact order statistics of many camera pixels, faster than by counting every value.

A sample says between which two grey values a rank lies, very likely. The number of pixels below the two proves it or
not, and the few pixels between them, ordered or counted, hold the answer. A sample that misleads costs time, never
exactness: there is no answer then.

Statistics of a channel's grey values: percentiles, mean and deviation.

Camera pixels are small integers, millions of them: their statistics follow from how often each value occurs, and
those of a large frame from less than that. Whichever way is taken, what a network gets is bitwise the same.
"""

from collections.abc import Iterator
from math import ceil, floor, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

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
BRACKET_BLOCK = 1 << 18


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
        self._flat, self._mask = flat, np.empty(min(BRACKET_BLOCK, flat.size), bool)

    def __missing__(self, value: int) -> int:
        # Not `< value`: the one after the largest does not fit the dtype.
        limit, count = self._flat.dtype.type(value - 1), 0
        for begin in range(0, self._flat.size, BRACKET_BLOCK):
            part = self._flat[begin : begin + BRACKET_BLOCK]
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
    differences = np.empty(min(BRACKET_BLOCK, flat.size), flat.dtype)
    found = []
    for begin in range(0, flat.size, BRACKET_BLOCK):
        part = flat[begin : begin + BRACKET_BLOCK]
        # Unsigned: what is below `low` wraps around and is larger than any width.
        found.append(part[np.subtract(part, offset, out=differences[: len(part)]) <= width])
    return np.sort(np.concatenate(found))


# Pixels that are looked at together: as intp, 1 MiB, they stay in a core's cache.
BLOCK = 1 << 17
# Pixels of a channel from which on a full histogram is no longer the fastest way.
LARGE = 1 << 19


def percentiles(channel: NDArray[Any], ranks: tuple[float, ...]) -> tuple[float, ...]:
    """Return percentiles (0 to 100) of an array of any shape, linear between neighbours, as numpy.percentile's default.

    Exact for every dtype: nothing is estimated.
    """
    at = [rank / 100 * (channel.size - 1) for rank in ranks]
    below = [int(position) for position in at]
    above = [min(position + 1, channel.size - 1) for position in below]
    value = order_statistics(np.asarray(channel).ravel(), sorted({*below, *above}))
    return tuple(
        value[lower] + (value[upper] - value[lower]) * (position - lower)
        for position, lower, upper in zip(at, below, above, strict=True)
    )


def mean_and_deviation(channel: NDArray[Any]) -> tuple[float, float]:
    """Return mean and standard deviation of an array of any shape: from exact sums for uint8 and uint16."""
    if not _is_counted(channel):
        return float(channel.mean(dtype=np.float64)), float(channel.std(dtype=np.float64))
    flat = np.asarray(channel).ravel()
    return from_sums(*_sums(flat), flat.size)


def from_sums(total: int, squares: int, pixels: int) -> tuple[float, float]:
    """Return mean and standard deviation from the sum of so many grey values, and the sum of their squares."""
    # Quotients of Python's integers are rounded once.
    return total / pixels, sqrt((pixels * squares - total**2) / pixels**2)


def order_statistics(flat: NDArray[Any], ranks: list[int]) -> dict[int, float]:
    """Return the values at `ranks` (0 is the smallest) of a flat array, as if it were sorted."""
    if not _is_counted(flat):
        ordered = np.partition(flat, ranks)
        return {rank: float(ordered[rank]) for rank in ranks}
    found = bracketed(flat, ranks) if flat.size >= LARGE else None
    if found is not None:
        return found
    upto = np.cumsum(histogram(flat))
    return {rank: float(np.searchsorted(upto, rank, side="right")) for rank in ranks}


def histogram(flat: NDArray[Any]) -> NDArray[np.intp]:
    """Return how often each value from 0 to the largest occurs in a flat array, uint8 or uint16."""
    counts = np.zeros(int(flat.max()) + 1, np.intp)
    for block in _blocks(flat, np.intp):
        part = np.bincount(block)
        counts[: len(part)] += part
    return counts


def _sums(flat: NDArray[Any]) -> tuple[int, int]:
    """Return the sum of uint8 or uint16 and that of their squares; two passes in the cache instead of a histogram."""
    total = squares = 0
    for block in _blocks(flat, np.uint32):
        total += int(block.sum(dtype=np.uint64))
        np.multiply(block, block, out=block)  # 65535 squared still fits
        squares += int(block.sum(dtype=np.uint64))
    return total, squares


def _blocks(flat: NDArray[Any], dtype: DTypeLike) -> Iterator[NDArray[Any]]:
    """Yield a flat array block by block, cast into the same small array each time."""
    room: NDArray[Any] = np.empty(min(BLOCK, flat.size), dtype)
    for begin in range(0, flat.size, BLOCK):
        part = flat[begin : begin + BLOCK]
        block = room[: len(part)]
        block[...] = part
        yield block


def _is_counted(channel: NDArray[Any]) -> bool:
    return channel.dtype in (np.uint8, np.uint16)
