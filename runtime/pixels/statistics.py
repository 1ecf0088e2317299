"""Statistics of a frame from passes over its parts, for frames that are larger than the memory.

`FrameStatistics` counts the parts of a frame in any order, and returns the map that `Normalisation.measure` returns for
the whole frame: bit for bit for percentiles of every dtype and for mean and deviation of integers. Several workers may
count parts each (`merge`), and a count can be stored as JSON (`to_dict`).

Percentiles follow from a radix selection. Grey values become unsigned integers in the same order (`_keys`), of which a
pass counts 16 bits, the highest first: uint8, uint16, int16 and float16 take one pass, 32-bit integers and float32 two,
64-bit integers and float64 four. After a pass, the counts say which value of these bits each rank has; the next pass
counts only pixels with that value.

>>> frame = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
>>> statistics = FrameStatistics(Normalisation("percentile"), frame.dtype, frame.shape)
>>> for _ in range(statistics.passes):
...     statistics.add(frame[:, 2:], (2, 0))
...     statistics.add(frame[:, :2], (0, 0))
...     statistics.next_pass()
>>> np.array_equal(statistics.affine(), Normalisation("percentile").measure(frame))
True
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from math import sqrt
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import DTypeLike, NDArray

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.pixels.frames import Unusable, find_unusable, require_numbers
from unetrt.runtime.pixels.normalisation import (
    BLOCK,
    Affine,
    Normalisation,
    exact_sums,
    interpolated,
    neighbours,
    with_contrast,
)
from unetrt.runtime.records import validated

Array = NDArray[Any]
Count = Annotated[int, Meta(ge=0)]
Rational = Annotated[str, Meta(pattern=r"^-?\d+(/[1-9]\d*)?\Z")]

# Bits of a key that one pass counts: 512 KiB of counts for each value of the bits before.
BITS = 16


class FrameStatistics:
    """What the normalisation of a frame is measured from, counted in passes over its parts.

    In each pass, `add` every pixel of the frame once, on one or several workers; then `merge` their counts, and call
    `next_pass`. After the last one, `affine` returns the normalisation. Mean and deviation of floats equal those of the
    whole frame up to rounding; all else is bitwise equal. The order of parts and workers never matters.

    Parameters
    ----------
    normalisation
        The model's normalisation.
    dtype
        Integers, floats or bool.
    shape
        Shape of the frame, (C, H, W).

    Attributes
    ----------
    passed
        Number of passes that are over.

    Raises
    ------
    FrameError
        The dtype is another one.
    """

    def __init__(self, normalisation: Normalisation, dtype: DTypeLike, shape: tuple[int, int, int]) -> None:
        self.normalisation, self.dtype, self.shape = normalisation, _native(np.dtype(dtype)), shape
        self.passed = self._pixels = 0
        self._unusable: Unusable | None = None
        if normalisation.mode == "fixed":
            self._channels: list[_Selection | _Moments] = []
        elif normalisation.mode == "zscore":
            self._channels = [_Moments(self.dtype) for _ in range(shape[0])]
        else:
            self._channels = [_Selection(self.dtype) for _ in range(shape[0])]

    @property
    def passes(self) -> int:
        """Number of passes over the frame: 0 where nothing is measured. Floats take one at least, to be checked."""
        is_float = self.dtype.kind == "f"
        return max([channel.passes for channel in self._channels], default=int(is_float))

    @property
    def is_complete(self) -> bool:
        """Whether all passes are over."""
        return self.passed >= self.passes

    def add(self, pixels: Array, place: tuple[int, int] = (0, 0)) -> None:
        """Count a part of the frame, (C, h, w), which begins at the row and the column `place`."""
        self._require_incomplete()
        if _native(pixels.dtype) != self.dtype:
            raise FrameError(f"a part of the image is {pixels.dtype}, the image {self.dtype}: give parts of one image")
        channels, height, width = self.shape
        fits = pixels.ndim == 3 and len(pixels) == channels and min(place) >= 0
        if not fits or place[0] + pixels.shape[1] > height or place[1] + pixels.shape[2] > width:
            raise FrameError(
                f"a part of shape {pixels.shape} at row {place[0]}, column {place[1]} is not inside a frame of shape "
                f"{self.shape}: give (C, h, w) of its pixels"
            )
        if self.dtype.kind == "f" and self.passed == 0 and (found := find_unusable(pixels)) is not None:
            self._unusable = found.moved(place).merged(self._unusable)
        if self._unusable is None:
            for channel, plane in zip(self._channels, pixels, strict=False):
                for block in _blocks(plane, self.dtype):
                    channel.add(block)
        self._pixels += pixels.shape[1] * pixels.shape[2]

    def empty(self) -> "FrameStatistics":
        """Return a copy, in the same pass, that has counted nothing yet: for a worker, to be merged."""
        copy = FrameStatistics(self.normalisation, self.dtype, self.shape)
        copy.passed = self.passed
        copy._channels = [channel.empty() for channel in self._channels]
        return copy

    def merge(self, other: "FrameStatistics") -> None:
        """Add the counts of other parts of the frame, in the same pass."""
        self._require_incomplete()
        if self._about() != other._about():
            raise OptionError(
                "statistics of different frames, normalisations or passes cannot be merged: count each pass in copies "
                "that `empty` returned"
            )
        self._pixels += other._pixels
        if other._unusable is not None:
            self._unusable = other._unusable.merged(self._unusable)
        for channel, more in zip(self._channels, other._channels, strict=True):
            channel.merge(more)  # type: ignore[arg-type]  # of one class, as the normalisation is the same

    def next_pass(self) -> None:
        """End a pass.

        Raises
        ------
        FrameError
            Pixels are NaN, infinite or beyond float32; the message says how many, and where the first is.
        OptionError
            The parts do not have as many pixels as the frame, or all passes are over.
        """
        self._require_incomplete()
        expected = self.shape[1] * self.shape[2]
        if self._pixels != expected:
            raise OptionError(
                f"the parts of the frame have {self._pixels} pixels, and the frame {expected}: add each pixel once in "
                "each pass"
            )
        if self._unusable is not None:
            raise self._unusable.error()
        for channel in self._channels:
            channel.next_pass(self._ranks)
        self.passed, self._pixels = self.passed + 1, 0

    def measure(self, parts: Sequence[tuple[slice, slice]], read: Callable[[tuple[slice, slice]], Array]) -> Affine:
        """Return the normalisation from all passes over a frame in this process.

        Parameters
        ----------
        parts
            Rows and columns of parts of the frame that hold each pixel once.
        read
            Returns the raw grey values (C, h, w) of a part.

        Raises
        ------
        FrameError
            As `add` and `next_pass`.
        """
        while not self.is_complete:
            for part in parts:
                self.add(read(part), (part[0].start, part[1].start))
            self.next_pass()
        return self.affine()

    def affine(self) -> Affine:
        """Return the normalisation; raises OptionError before the last pass is over."""
        if not self.is_complete:
            raise OptionError(f"pass {self.passed + 1} of {self.passes} is not over: add all parts, call next_pass")
        if self.normalisation.mode == "fixed":
            return self.normalisation.measure(np.empty((0, 0, 0)))  # which reads no pixels
        pixels = self.shape[1] * self.shape[2]
        return Affine.between([channel.limits(self.normalisation, pixels) for channel in self._channels])

    def to_dict(self) -> dict[str, Any]:
        """Return the counts in types that JSON has; `from_dict` continues with them."""
        return {
            "normalisation": self.normalisation.to_dict(),
            "dtype": self.dtype.name,
            "shape": list(self.shape),
            "passed": self.passed,
            "pixels": self._pixels,
            "unusable": None if self._unusable is None else list(self._unusable),
            "channels": [asdict(channel.stored()) for channel in self._channels],
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "FrameStatistics":
        """Return the statistics that `to_dict` stored; raises OptionError where they are invalid."""
        record = validated(stored, StoredStatistics, "the statistics of the frame", OptionError)
        try:
            normalisation = Normalisation.from_dict(record.normalisation)
            statistics = cls(normalisation, np.dtype(record.dtype), record.shape)
            statistics._restore(record)
        except (IndexError, TypeError, ValueError) as error:
            raise OptionError(f"the statistics of the frame are invalid: {error}; measure the frame again") from error
        return statistics

    def _restore(self, record: "StoredStatistics") -> None:
        if record.passed > self.passes:
            raise ValueError(f"passed: {record.passed} of {self.passes} passes")
        if len(record.channels) != len(self._channels):
            raise ValueError(f"channels: {len(record.channels)}, and {len(self._channels)} are measured")
        self.passed, self._pixels = record.passed, record.pixels
        self._unusable = None if record.unusable is None else Unusable(*record.unusable)
        for channel, one in zip(self._channels, record.channels, strict=True):
            channel.restore(one, self.passed, self._ranks if self.passed else [])

    @property
    def _ranks(self) -> list[int]:
        return neighbours((self.normalisation.low, self.normalisation.high), self.shape[1] * self.shape[2])

    def _about(self) -> tuple[Any, ...]:
        return (
            self.normalisation.to_dict(),
            self.dtype,
            self.shape,
            self.passed,
            [one.wanted() for one in self._channels],
        )

    def _require_incomplete(self) -> None:
        if self.is_complete:
            raise OptionError(f"all {self.passes} passes over the frame are over: call affine")


@dataclass(frozen=True)
class StoredBins:
    """Counts of one prefix: those that are not 0, by the next bits of the key."""

    prefix: Count
    bits: list[Annotated[int, Meta(ge=0, lt=2**BITS)]]
    counts: list[Annotated[int, Meta(ge=0, le=2**63 - 1)]]


@dataclass(frozen=True)
class StoredChannel:
    """Counts of one channel."""

    total: Rational = "0"
    squares: Rational = "0"
    found: list[tuple[Count, Count, Count]] = field(default_factory=list)
    bins: list[StoredBins] = field(default_factory=list)


@dataclass(frozen=True)
class StoredStatistics:
    """What `FrameStatistics.to_dict` returns."""

    normalisation: dict[str, Any]
    dtype: str
    shape: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]]
    passed: Count
    pixels: Count
    channels: list[StoredChannel]
    unusable: tuple[Count, tuple[Count, Count, Count], bool, bool] | None = None


class _Moments:
    """The sum of a channel's grey values and of their squares, as rational numbers.

    The sums of integers are exact. Those of floats are exact sums of parts: a part is rounded in float64, relative to
    its own mean, so that nothing cancels.
    """

    passes = 1

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._total = self._squares = Fraction(0)

    def add(self, flat: Array) -> None:
        if self._dtype.kind == "f":
            values = flat.astype(np.float64)
            middle = float(values.mean())
            values -= middle
            rest, centre, count = Fraction(float(values.sum())), Fraction(middle), len(values)
            total = rest + count * centre
            squares = Fraction(float(np.square(values, out=values).sum())) + 2 * centre * rest + count * centre**2
        else:
            total, squares = map(Fraction, exact_sums(flat))
        self._total += total
        self._squares += squares

    def empty(self) -> "_Moments":
        return _Moments(self._dtype)

    def merge(self, other: "_Moments") -> None:
        self._total += other._total
        self._squares += other._squares

    def next_pass(self, _ranks: Sequence[int]) -> None:
        pass

    def limits(self, _normalisation: Normalisation, pixels: int) -> tuple[float, float]:
        mean = self._total / pixels
        # Less than 0 by rounding of the parts.
        deviation = sqrt(max(0.0, float(self._squares / pixels - mean**2)))
        return (float(mean), deviation) if self._dtype.kind in "ui" else with_contrast(float(mean), deviation)

    def wanted(self) -> object:
        return None

    def stored(self) -> StoredChannel:
        return StoredChannel(str(self._total), str(self._squares))

    def restore(self, stored: StoredChannel, _passed: int, _ranks: Sequence[int]) -> None:
        self._total, self._squares = Fraction(stored.total), Fraction(stored.squares)


class _Selection:
    """The values at some ranks of a channel, by radix selection from the highest bits on."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._left = 8 * dtype.itemsize  # bits of the key that are not known yet
        self._width = min(BITS, self._left)
        # The counts of the next bits, for each prefix that a rank has; and each rank's prefix, and its rank among the
        # pixels with that prefix.
        self._bins: dict[int, NDArray[np.int64]] = {0: self._no_pixels()}
        self._found: dict[int, tuple[int, int]] = {}

    @property
    def passes(self) -> int:
        return 8 * self._dtype.itemsize // self._width

    def add(self, flat: Array) -> None:
        keys = _keys(flat)
        shift, above = self._left - self._width, self._left
        for prefix, counts in self._bins.items():
            # In the first pass all pixels have the prefix, of no bits.
            chosen = keys if above == 8 * keys.itemsize else keys[keys >> above == prefix]
            bits = (chosen >> shift).astype(np.intp) & (2**self._width - 1)
            np.add(counts, np.bincount(bits, minlength=len(counts)), out=counts)

    def empty(self) -> "_Selection":
        copy = _Selection(self._dtype)
        copy._left, copy._found = self._left, dict(self._found)
        copy._bins = {prefix: self._no_pixels() for prefix in self._bins}
        return copy

    def merge(self, other: "_Selection") -> None:
        for prefix, counts in other._bins.items():
            self._bins[prefix] += counts

    def next_pass(self, ranks: Sequence[int]) -> None:
        upto = {prefix: np.cumsum(counts) for prefix, counts in self._bins.items()}
        for rank in ranks:
            prefix, within = self._found.get(rank, (0, rank))
            if within >= upto[prefix][-1]:
                raise OptionError(
                    "this pass over the frame counted other pixels than the passes before: measure the frame again, "
                    "and add each pixel once in each pass"
                )
            bits = int(np.searchsorted(upto[prefix], within, side="right"))
            below = int(upto[prefix][bits - 1]) if bits else 0
            self._found[rank] = prefix << self._width | bits, within - below
        self._left -= self._width
        self._bins = {prefix: self._no_pixels() for prefix in self._prefixes()}

    def limits(self, normalisation: Normalisation, pixels: int) -> tuple[float, float]:
        low, high = interpolated((normalisation.low, normalisation.high), pixels, self._values_at)
        return low, high - low

    def wanted(self) -> object:
        return self._found

    def stored(self) -> StoredChannel:
        found = [(rank, prefix, within) for rank, (prefix, within) in self._found.items()]
        bins = []
        for prefix, counts in self._bins.items():
            (bits,) = np.nonzero(counts)
            bins.append(StoredBins(prefix, bits.tolist(), counts[bits].tolist()))
        return StoredChannel(found=found, bins=bins)

    def restore(self, stored: StoredChannel, passed: int, ranks: Sequence[int]) -> None:
        self._found = {rank: (prefix, within) for rank, prefix, within in stored.found}
        if sorted(self._found) != sorted(ranks):
            raise ValueError(f"found: ranks {sorted(self._found)}, not {sorted(ranks)}")
        self._left -= passed * self._width
        self._bins = {prefix: self._no_pixels() for prefix in self._prefixes()}
        if sorted(self._bins) != sorted(one.prefix for one in stored.bins):
            raise ValueError("bins: the prefixes are not those of the ranks found")
        for one in stored.bins:
            if len(one.bits) != len(one.counts):
                raise ValueError(f"bins: {len(one.bits)} bits and {len(one.counts)} counts")
            self._bins[one.prefix][one.bits] = one.counts

    def _prefixes(self) -> list[int]:
        """Return the prefixes whose pixels the next pass counts; none after the last one."""
        if not self._left:
            return []
        return sorted({prefix for prefix, _ in self._found.values()}) or [0]

    def _values_at(self, ranks: list[int]) -> Mapping[int, float]:
        return {rank: _value(self._found[rank][0], self._dtype) for rank in ranks}

    def _no_pixels(self) -> NDArray[np.int64]:
        return np.zeros(2**self._width, np.int64)


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which pixels are counted: that of the machine's byte order, with 64 bits at most."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    require_numbers(dtype)
    # Rounding to float64 keeps the order of values.
    return np.dtype(np.float64) if dtype.itemsize > 8 else dtype.newbyteorder("=")


def _blocks(plane: Array, dtype: np.dtype[Any]) -> Iterator[Array]:
    """Yield a plane (h, w) as flat arrays of some rows each, cast to a dtype."""
    height = max(1, BLOCK // max(1, plane.shape[1]))
    for begin in range(0, len(plane), height):
        if (part := plane[begin : begin + height]).size:
            yield part.astype(dtype, copy=False).ravel()


def _keys(flat: Array) -> Array:
    """Return unsigned integers of as many bits, in the same order as integers or finite floats.

    The order of IEEE 754 floats is that of their bits as sign and magnitude: the bits of negative numbers are inverted,
    and the sign of others is set (Terdiman, "Radix Sort Revisited", 2000).
    """
    if flat.dtype.kind == "u":
        return flat
    bits = flat.view(f"u{flat.dtype.itemsize}")
    sign = bits.dtype.type(1 << 8 * flat.dtype.itemsize - 1)
    return bits ^ sign if flat.dtype.kind == "i" else np.where(bits & sign, ~bits, bits | sign)


def _value(key: int, dtype: np.dtype[Any]) -> float:
    """Return the grey value of a key."""
    sign = 1 << 8 * dtype.itemsize - 1
    if dtype.kind == "u":
        return float(key)
    if dtype.kind == "i":
        return float(key - sign)
    bits = key ^ sign if key & sign else 2 * sign - 1 - key
    return float(np.array(bits, f"u{dtype.itemsize}").view(dtype))
