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
# A variance summed in float64 over the histogram of 16 bits, at most 2^16 terms, is this close to the exact one,
# relatively: each addition rounds by 2^-53 or less. Twice that, for what the terms themselves are rounded by.
HISTOGRAM_ERROR = 2.0**-36


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
    """Return mean and standard deviation of an array of any shape, summed in float64.

    uint8 and uint16 have an exact mean. The reciprocal of their deviation, rounded to float32, is that of the sum over
    the histogram; in float64 it may differ in the last places.
    """
    if not _is_counted(channel):
        return float(channel.mean(dtype=np.float64)), float(channel.std(dtype=np.float64))
    flat = np.asarray(channel).ravel()
    if flat.size >= LARGE:
        mean, deviation = _summed(flat)
        if _rounds_alike(deviation):
            return mean, deviation
    return _from_histogram(flat)


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


def _from_histogram(flat: NDArray[Any]) -> tuple[float, float]:
    counts = histogram(flat)
    values = np.arange(len(counts), dtype=np.float64)
    mean = float(counts @ values / flat.size)
    return mean, float(np.sqrt(counts @ (values - mean) ** 2 / flat.size))


def _summed(flat: NDArray[Any]) -> tuple[float, float]:
    """Return mean and deviation of uint8 or uint16 from exact sums; two passes in the cache instead of a histogram."""
    total = squares = 0
    for block in _blocks(flat, np.uint32):
        total += int(block.sum(dtype=np.uint64))
        np.multiply(block, block, out=block)  # 65535 squared still fits
        squares += int(block.sum(dtype=np.uint64))
    # Quotients of Python's integers are rounded once.
    return total / flat.size, sqrt((flat.size * squares - total**2) / flat.size**2)


def _rounds_alike(deviation: float) -> bool:
    """Tell whether all that a histogram could give for this deviation is the same float32 scale."""
    if deviation == 0:
        return True
    largest, smallest = (np.float32(1 / (deviation * (1 + side))) for side in (-HISTOGRAM_ERROR, HISTOGRAM_ERROR))
    return bool(largest == smallest)


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
