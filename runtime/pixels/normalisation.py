"""Normalisation of grey values to network input: one implementation for trainer, exporter and runtime.

Every mode is one affine map per channel, measured on the whole frame and applied pixel by pixel in float32. So a frame
can be normalised before or after it is cut into tiles, with bitwise equal results. Nothing is measured on a single
tile, because neighbouring tiles would then disagree.

>>> frame = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
>>> Normalisation("fixed", offset=(2.0,), scale=(0.5,))(frame)[0, 0]
array([-1. , -0.5,  0. ,  0.5], dtype=float32)

The second half of the module measures: percentiles, mean and standard deviation of a channel, exactly. Camera pixels
are small integers, so a histogram determines all of these. On large frames sampled selection is faster: a sample
brackets each rank between two grey values, the number of pixels below each proves that the bracket holds the rank, and
the few pixels inside are sorted. If the sample is misleading, the histogram is used: slower, but equally exact.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, sqrt
from statistics import NormalDist
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from msgspec import Meta
from numpy.typing import DTypeLike, NDArray

from unetrt.runtime.errors import OptionError
from unetrt.runtime.records import validated

Array = NDArray[Any]
Mode = Literal["fixed", "percentile", "zscore", "running"]
MODES: tuple[Mode, ...] = get_args(Mode)
# Largest finite float32: larger values are infinite in the network.
MAX_FLOAT = 3.4028234e38
Real = Annotated[float, Meta(ge=-MAX_FLOAT, le=MAX_FLOAT)]

# Every STEP-th pixel is sampled; a prime, so that the sample visits all columns of most frames.
STEP = 61
# Half width of a bracket in standard deviations of the rank in the sample: about 1 frame in 10^4 falls outside.
MARGIN = 4.0
# Share of the pixels in a bracket above which a histogram of all pixels is faster.
CROWDED = 1 / 16
# Width of a bracket, in grey values, up to which it is bisected by counting, in 3 steps at most, instead of sorted.
NARROW = 8
# Share of the pixels above a bracket up to which they are sorted too, which saves counting the pixels below.
TAIL = 1 / 256
# Pixels compared at a time: pixels, differences and mask, 1.25 MiB for uint16, stay in the cache.
BRACKET_BLOCK = 1 << 18
# Pixels counted or summed at a time: 1 MiB as intp, which stays in a core's cache.
BLOCK = 1 << 17
# Standard deviation, relative to the mean, that the rounding of float64 may cause. Networks compute in float32, whose
# resolution is 6e-8.
ROUNDING = 1e-12
# Pixels of a channel from which sampled selection is faster than a histogram.
LARGE = 1 << 19


class Affine(NamedTuple):
    """The map x -> (x - offset) * scale, with one offset and scale per channel.

    Attributes
    ----------
    offset, scale
        float32, shape (C,).
    """

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def between(cls, limits: Sequence[tuple[float, float]]) -> "Affine":
        """Return the map of each channel's (low, width), in grey values: low becomes 0 and low + width becomes 1.

        A channel of width 0 has no contrast and becomes 0.
        """
        offset = np.array([low for low, _ in limits], np.float32)
        scale = np.array([1 / width if width > 0 else 0 for _, width in limits], np.float32)
        return cls(offset, scale)

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map `pixels` (..., C, h, w), float32, in place, and return them."""
        pixels -= self.offset[:, None, None]
        pixels *= self.scale[:, None, None]
        return pixels


# Returns the normalisation of a whole raw frame (C, H, W).
Measure = Callable[[Array], Affine]


@dataclass(frozen=True)
class Normalisation:
    """A normalisation mode and its constants.

    Attributes
    ----------
    mode
        `percentile`: the frame's `low` and `high` percentiles become 0 and 1. `zscore`: the frame's mean and standard
        deviation become 0 and 1. `fixed`: `offset` and `scale`, measured once on the training images. `running`: for a
        single frame as `percentile`; over a stream, the running average of the percentiles
        (`unetrt.runtime.pixels.running`).
    low, high
        Percentiles, 0 to 100.
    offset, scale
        One number per channel, for `fixed`.
    """

    mode: Mode = "percentile"
    low: Real = 1.0
    high: Real = 99.8
    offset: tuple[Real, ...] = ()
    scale: tuple[Real, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"normalisation {self.mode!r} is unknown: use one of {', '.join(MODES)}")
        if not 0 <= self.low < self.high <= 100:
            raise OptionError(f"percentiles {self.low} and {self.high} are invalid: use 0 <= low < high <= 100")
        if self.mode == "fixed" and not (self.offset and len(self.offset) == len(self.scale)):
            raise OptionError("normalisation fixed needs an offset and a scale for each channel")

    def measure(self, frame: Array) -> Affine:
        """Return the affine map of a whole raw frame (C, H, W) of integers or floats.

        A channel without contrast becomes 0.
        """
        if self.mode == "fixed":
            return Affine(np.array(self.offset, np.float32), np.array(self.scale, np.float32))
        return Affine.between(self.limits(frame))

    def limits(self, frame: Array) -> list[tuple[float, float]]:
        """Return (low, width) of each channel of a raw frame (C, H, W), in grey values; see `Affine.between`.

        Not for mode `fixed`, which measures nothing.
        """
        return [self._limits(channel) for channel in frame]

    def _limits(self, channel: Array) -> tuple[float, float]:
        if self.mode == "zscore":
            return mean_and_deviation(channel)
        low, high = percentiles(channel, (self.low, self.high))
        return low, high - low

    def contrast_of_noise(self) -> float:
        """Return the width that `limits` measures on normally distributed noise of standard deviation 1."""
        if self.mode == "zscore":
            return 1.0
        low, high = (NormalDist().inv_cdf(min(max(rank / 100, 1e-6), 1 - 1e-6)) for rank in (self.low, self.high))
        return high - low

    def frozen(self, frames: Iterable[Array]) -> "Normalisation":
        """Return `fixed` normalisation with the median offset and scale that this one measures on raw frames (C, H, W).

        The result suits frames of the same illumination; measuring each frame also suits frames that differ. Raises
        OptionError if a channel has no contrast in half of the frames.
        """
        measured = [self.measure(frame) for frame in frames]
        offset, scale = (np.median(np.stack(side), axis=0).tolist() for side in zip(*measured, strict=True))
        if 0 in scale:
            raise OptionError(
                f"channel {scale.index(0)} of the frames has no contrast, so its offset and scale cannot be measured: "
                "give other frames"
            )
        return Normalisation("fixed", offset=tuple(offset), scale=tuple(scale))

    def __call__(self, frame: Array) -> NDArray[np.float32]:
        """Return a normalised float32 copy of a whole raw frame (C, H, W)."""
        return self.measure(frame).apply(frame.astype(np.float32))

    def to_dict(self) -> dict[str, Any]:
        """Return the mode and the constants that it uses, as a spec stores them."""
        if self.mode == "fixed":
            return {"mode": self.mode, "offset": list(self.offset), "scale": list(self.scale)}
        if self.mode == "zscore":
            return {"mode": self.mode}
        return {"mode": self.mode, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Normalisation":
        """Return the normalisation that `to_dict` stored; raises ModelFileError where it is invalid."""
        return validated(stored, cls, "normalisation", unknown=True)


def percentiles(channel: NDArray[Any], ranks: tuple[float, ...]) -> tuple[float, ...]:
    """Return percentiles (0 to 100) of an array of any shape, interpolated linearly as numpy.percentile's default.

    Exact for every dtype.
    """
    flat = np.asarray(channel).ravel()
    return interpolated(ranks, flat.size, partial(order_statistics, flat))


def interpolated(
    ranks: Sequence[float], pixels: int, values_at: Callable[[list[int]], Mapping[int, float]]
) -> tuple[float, ...]:
    """Return percentiles (0 to 100) of a number of pixels, from the values at the ranks of `neighbours`."""
    value = values_at(neighbours(ranks, pixels))
    places = [(at, int(at), min(int(at) + 1, pixels - 1)) for at in _positions(ranks, pixels)]
    return tuple(value[lower] + (value[upper] - value[lower]) * (at - lower) for at, lower, upper in places)


def neighbours(ranks: Sequence[float], pixels: int) -> list[int]:
    """Return the ranks, ascending from 0, of the sorted pixels between which percentiles (0 to 100) lie."""
    below = [int(at) for at in _positions(ranks, pixels)]
    return sorted({*below, *(min(rank + 1, pixels - 1) for rank in below)})


def _positions(ranks: Sequence[float], pixels: int) -> list[float]:
    return [rank / 100 * (pixels - 1) for rank in ranks]


def mean_and_deviation(channel: NDArray[Any]) -> tuple[float, float]:
    """Return mean and standard deviation of an array of any shape; for integers from exact sums."""
    if channel.dtype.kind == "f":
        return with_contrast(float(channel.mean(dtype=np.float64)), float(channel.std(dtype=np.float64)))
    flat = np.asarray(channel).ravel()
    return from_sums(*exact_sums(flat), flat.size)


def with_contrast(mean: float, deviation: float) -> tuple[float, float]:
    """Return mean and standard deviation of floats; a deviation that rounding may have caused becomes 0."""
    return mean, deviation if deviation > ROUNDING * abs(mean) else 0.0


def from_sums(total: int, squares: int, pixels: int) -> tuple[float, float]:
    """Return mean and standard deviation from the number of grey values, their sum and the sum of their squares."""
    # A quotient of Python integers is rounded once.
    return total / pixels, sqrt((pixels * squares - total**2) / pixels**2)


def order_statistics(flat: NDArray[Any], ranks: list[int]) -> dict[int, float]:
    """Return the values at `ranks` (0 is the smallest) of a flat array, as if it were sorted."""
    if not _is_countable(flat):
        ordered = np.partition(flat, ranks)
        return {rank: float(ordered[rank]) for rank in ranks}
    found = bracketed(flat, ranks) if flat.size >= LARGE else None
    if found is not None:
        return found
    upto = np.cumsum(histogram(flat))
    return {rank: float(np.searchsorted(upto, rank, side="right")) for rank in ranks}


def histogram(flat: NDArray[Any]) -> NDArray[np.intp]:
    """Return the number of occurrences of each value from 0 to the largest in a flat uint8 or uint16 array."""
    counts = np.zeros(int(flat.max()) + 1, np.intp)
    for block in _blocks(flat, np.intp):
        part = np.bincount(block)
        counts[: len(part)] += part
    return counts


def exact_sums(flat: NDArray[Any]) -> tuple[int, int]:
    """Return the sum of integers of any dtype and of their squares: faster than from a histogram."""
    if not _is_countable(flat):
        return _sums_of_digits(flat)
    total = squares = 0
    for block in _blocks(flat, np.uint32):
        total += int(block.sum(dtype=np.uint64))
        np.multiply(block, block, out=block)  # 65535 squared fits uint32
        squares += int(block.sum(dtype=np.uint64))
    return total, squares


def _sums_of_digits(flat: NDArray[Any]) -> tuple[int, int]:
    """Return the sum of integers and of their squares, from those of their digits to base 2^16.

    A product of two digits has at most 32 bits, so that int64 holds the sum of a block's products.
    """
    count = max(1, flat.dtype.itemsize // 2)
    total = squares = 0
    for block in _blocks(flat, np.uint64 if flat.dtype.kind == "u" else np.int64):
        # The highest digit keeps the sign.
        digits = np.array([block >> 16 * at if at == count - 1 else block >> 16 * at & 0xFFFF for at in range(count)])
        digits = digits.astype(np.int64, copy=False)
        products = digits @ digits.T
        total += sum(int(digit.sum()) << 16 * at for at, digit in enumerate(digits))
        squares += sum(int(product) << 16 * (row + column) for (row, column), product in np.ndenumerate(products))
    return total, squares


def _blocks(flat: NDArray[Any], dtype: DTypeLike) -> Iterator[NDArray[Any]]:
    """Yield a flat array block by block, cast into one buffer that is reused."""
    room: NDArray[Any] = np.empty(min(BLOCK, flat.size), dtype)
    for begin in range(0, flat.size, BLOCK):
        part = flat[begin : begin + BLOCK]
        block = room[: len(part)]
        block[...] = part
        yield block


def _is_countable(channel: NDArray[Any]) -> bool:
    return channel.dtype in (np.uint8, np.uint16)


class _SortedRun(NamedTuple):
    """Consecutive pixels of the sorted array: `values`, ascending, are those from rank `first` on."""

    first: int
    values: Array

    def at(self, ranks: list[int]) -> dict[int, float]:
        """Return the values at the ranks that lie in this run, by rank."""
        places = {rank: rank - self.first for rank in ranks}
        return {rank: float(self.values[place]) for rank, place in places.items() if 0 <= place < len(self.values)}


def bracketed(flat: Array, ranks: list[int]) -> dict[int, float] | None:
    """Return the values at `ranks` (0 is the smallest) of a flat uint8 or uint16 array, by sampled selection.

    Returns None if a bracket misses its rank, or holds more pixels than `CROWDED` allows.
    """
    upto = np.cumsum(np.bincount(flat[::STEP]))
    below, found = _PixelsBelow(flat), dict[int, float]()
    for rank in ranks:
        if rank in found:  # neighbouring ranks mostly share a bracket
            continue
        run = _run(flat, upto, rank, below)
        if run is None:
            return None
        found |= run.at(ranks)
        if rank not in found:
            return None
    return found


def _run(flat: Array, upto: Array, rank: int, below: "_PixelsBelow") -> _SortedRun | None:
    """Return the pixels of a rank's bracket, from the sample's cumulative histogram `upto`; None if too many."""
    low, high = _bracket(upto, rank, flat)
    if high - low < NARROW:
        value = below.bisect(low, high, rank)
        first, equal = below[value], below[value + 1] - below[value]
        # `equal` copies of one value, without memory for them.
        return _SortedRun(first, np.broadcast_to(flat.dtype.type(value), equal))
    reached = upto[min(high, len(upto) - 1)]
    if reached - (upto[low - 1] if low else 0) > CROWDED * upto[-1]:
        return None
    if upto[-1] - reached <= TAIL * upto[-1]:
        values = _between(flat, low, _largest(flat))
        return _SortedRun(flat.size - len(values), values)
    return _SortedRun(below[low], _between(flat, low, high))


def _bracket(upto: Array, rank: int, flat: Array) -> tuple[int, int]:
    """Return bounds of the grey value at a rank, from the sample; see `MARGIN` for their confidence."""
    share = rank / flat.size
    # Standard deviation of a binomial, plus 2 for the first and last few pixels, where that is a poor measure.
    margin = MARGIN * sqrt(upto[-1] * share * (1 - share)) + 2
    low, high = floor(rank / STEP - margin), ceil(rank / STEP + margin)
    smallest = int(np.searchsorted(upto, low, side="right")) if low >= 0 else 0
    largest = int(np.searchsorted(upto, high, side="right")) if high < upto[-1] else _largest(flat)
    return smallest, largest


def _largest(flat: Array) -> int:
    return int(np.iinfo(flat.dtype).max)


class _PixelsBelow(dict[int, int]):
    """Number of pixels of a flat array that are less than a grey value (the key), counted on first access."""

    def __init__(self, flat: Array) -> None:
        super().__init__({0: 0})
        self._flat, self._mask = flat, np.empty(min(BRACKET_BLOCK, flat.size), bool)

    def __missing__(self, value: int) -> int:
        # Not `< value`: one above the largest value does not fit the dtype.
        limit, count = self._flat.dtype.type(value - 1), 0
        for begin in range(0, self._flat.size, BRACKET_BLOCK):
            part = self._flat[begin : begin + BRACKET_BLOCK]
            count += int(np.count_nonzero(np.less_equal(part, limit, out=self._mask[: len(part)])))
        self[value] = count
        return count

    def bisect(self, low: int, high: int, rank: int) -> int:
        """Return the value at a rank by bisection of `low` to `high`, if it is one of these."""
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self[middle + 1] > rank else (middle + 1, high)
        return low


def _between(flat: Array, low: int, high: int) -> Array:
    """Return the pixels with values from `low` to `high` inclusive, ascending."""
    offset, width = flat.dtype.type(low), flat.dtype.type(high - low)
    differences = np.empty(min(BRACKET_BLOCK, flat.size), flat.dtype)
    found = []
    for begin in range(0, flat.size, BRACKET_BLOCK):
        part = flat[begin : begin + BRACKET_BLOCK]
        # Unsigned: values below `low` wrap around to more than any width.
        found.append(part[np.subtract(part, offset, out=differences[: len(part)]) <= width])
    return np.sort(np.concatenate(found))
