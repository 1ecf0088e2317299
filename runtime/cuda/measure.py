"""What is measured and checked of a frame in GPU memory: the host reads some counts, never the frame."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.device_array import DeviceArray
from unetrt.runtime.frames import not_finite
from unetrt.runtime.grey_values import from_sums
from unetrt.runtime.normalisation import Affine, Normalisation

# How often bins are kept, by dtype: blocks that count the same grey value wait for each other. 32 KiB, and 1 MiB.
COPIES = {np.dtype(np.uint8): 32, np.dtype(np.uint16): 4}
# What `Kernels.not_finite` leaves: how many pixels, and the index of the first in C order.
FOUND = np.dtype([("count", np.uint64), ("first", np.uint64)])


def bins_shape(frame: DeviceArray) -> tuple[int, int, int]:
    """Return the shape of the bins (C, copies, grey values) for a frame (C, H, W), uint8 or uint16."""
    return frame.shape[0], COPIES[frame.dtype], 256**frame.dtype.itemsize


def require_none(found: NDArray[Any], frame: DeviceArray) -> None:
    """Raise FrameError, as `frames.require_finite` does, for the FOUND that a frame (C, H, W) has left."""
    if found["count"]:
        height, width = frame.shape[1:]
        row, column = divmod(int(found["first"]) % (height * width), width)
        raise not_finite(int(found["count"]), row, column)


def measure_counts(normalisation: Normalisation, counts: NDArray[np.integer[Any]]) -> Affine:
    """Return, bit for bit, what `normalisation.measure` gives for a uint8 or uint16 frame.

    Parameters
    ----------
    normalisation
        Of whatever mode; `fixed` needs no counts.
    counts
        (C, ..., 256) or (C, ..., 65536), integers: how often each grey value occurs, to be summed over the axes
        between, as `Kernels.histogram` leaves them.
    """
    if normalisation.mode == "fixed":
        return normalisation.measure(np.empty((0, 0, 0)))  # which reads no pixels
    totals = counts.reshape(len(counts), -1, counts.shape[-1]).sum(axis=1, dtype=np.int64)
    return Affine.between([_limits(normalisation, total) for total in totals])


def _limits(normalisation: Normalisation, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return what becomes 0, and how much above it becomes 1."""
    if normalisation.mode == "zscore":
        return _mean_and_deviation(counts)
    low, high = (_percentile(counts, rank) for rank in (normalisation.low, normalisation.high))
    return low, high - low


def _percentile(counts: NDArray[np.int64], rank: float) -> float:
    upto = np.cumsum(counts)
    last = int(upto[-1]) - 1
    position = rank / 100 * last
    below = int(position)
    lower, upper = (float(np.searchsorted(upto, at, side="right")) for at in (below, min(below + 1, last)))
    return lower + (upper - lower) * (position - below)


def _mean_and_deviation(counts: NDArray[np.int64]) -> tuple[float, float]:
    # Less than 2^64: there are fewer than 2^32 pixels, of less than 2^16.
    values, counted = np.arange(len(counts), dtype=np.uint64), counts.astype(np.uint64)
    return from_sums(int((counted * values).sum()), int((counted * values**2).sum()), int(counts.sum()))
