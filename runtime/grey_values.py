"""Statistics of a channel's grey values: percentiles, mean and deviation.

Camera pixels are small integers, millions of them: their statistics follow from how often each value occurs, and
those of a large frame from less than that. Whichever way is taken, what a network gets is bitwise the same.
"""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unetrt.runtime.brackets import bracketed

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
