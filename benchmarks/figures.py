"""Figures: the median of several rounds with its confidence interval, and how numbers are written.

Every benchmark yields one value a round and states a `Figure` of all rounds. Numbers are written with three
significant digits, times in a unit that fits them, and an interval is named by the confidence that it really has.

>>> figure = Figure.of([2.0, 1.0, 4.0])
>>> time(figure.median), interval_name([figure])
('2.00 s', '75 % interval')
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, floor, log10
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from msgspec import Meta

from unetrt.runtime.machine import format_bytes

# Confidence that an interval should have, and the rounds that it takes (1 - 2 / 2^6 = 0.97).
CONFIDENCE, ROUNDS_NEEDED = 0.95, 6
# Percentile -> runs needed: with fewer, no run is expected beyond the percentile, which would be the maximum itself.
RUNS_NEEDED = {50: 1, 95: 20, 99: 100}

# A time, a rate or their ratio in a file: far beyond what is measured, so that ratios of two are finite.
Positive = Annotated[float, Meta(ge=1e-18, le=1e24)]


@dataclass(frozen=True)
class Figure:
    """Median and confidence interval of one value a round.

    Rounds should be independent, which means fresh processes: repetitions within a process share where its memory
    happens to lie, and count as one value here. The interval is the distribution-free one of the median, by order
    statistics: a round lies above the true median as likely as below, so that the range of n rounds covers it with
    probability 1 - 2 / 2^n (W. J. Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2).

    Attributes
    ----------
    median
        Over all rounds, in the unit of the measured quantity.
    low, high
        Ends of the narrowest such interval of at least 95 %; the range of all rounds where they are too few.
    coverage
        Confidence of the interval, 0 to 1.
    rounds
        The value of each round, in order.
    """

    median: Positive
    low: Positive
    high: Positive
    coverage: float
    rounds: tuple[Positive, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Return the figure of at least one value."""
        rounds = tuple(map(float, values))
        ordered, count = sorted(rounds), len(rounds)
        cut = max((cut for cut in range((count + 1) // 2) if _coverage(count, cut) >= CONFIDENCE), default=0)
        return cls(float(np.median(rounds)), ordered[cut], ordered[count - 1 - cut], _coverage(count, cut), rounds)

    def __rtruediv__(self, amount: float) -> "Figure":
        """Return a constant divided by each round: a rate, from seconds."""
        return Figure.of(amount / value for value in self.rounds)

    def __truediv__(self, other: "Figure") -> "Figure":
        """Return the ratio to another figure, round by round, so that what slowed both cancels."""
        return Figure.of(mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True))

    def __mul__(self, other: "Figure") -> "Figure":
        """Return the product with another figure, round by round."""
        return Figure.of(mine * theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True))


def _coverage(count: int, cut: int) -> float:
    """Return the probability that the median lies within `count` ordered values less `cut` at each end."""
    return float(1 - 2 * sum(comb(count, below) for below in range(cut + 1)) / 2**count)


def percentiles(latencies: Sequence[float]) -> dict[int, float | None]:
    """Return p50, p95 and p99 in the unit of `latencies`; None where there are too few for one."""
    return {
        percent: float(np.percentile(latencies, percent)) if len(latencies) >= needed else None
        for percent, needed in RUNS_NEEDED.items()
    }


class Unit(NamedTuple):
    """A unit of time: its name, and its length in seconds."""

    name: str
    seconds: float

    def of(self, figure: Figure) -> str:
        """Return a figure's median in this unit, with the unit."""
        return f"{digits(figure.median / self.seconds)} {self.name}"

    def interval(self, figure: Figure) -> str:
        """Return a figure's interval in this unit, without the unit."""
        places = decimals(figure.median / self.seconds)
        return f"{figure.low / self.seconds:.{places}f} to {figure.high / self.seconds:.{places}f}"


UNITS = (Unit("s", 1.0), Unit("ms", 1e-3), Unit("µs", 1e-6))


def unit_for(seconds: Iterable[float]) -> Unit:
    """Return the common unit of a column of times: the largest of which the smallest time is a tenth."""
    least = min(seconds)
    return next((unit for unit in UNITS if least >= 0.1 * unit.seconds), UNITS[-1])


def time(seconds: float) -> str:
    """Return a time in the unit that fits it."""
    unit = next((unit for unit in UNITS if seconds >= unit.seconds), UNITS[-1])
    return f"{digits(seconds / unit.seconds)} {unit.name}"


def shown(value: float, unit: str) -> str:
    """Return a value with its unit; seconds in the unit of time that fits them."""
    return time(value) if unit == "s" else f"{digits(value)} {unit}"


def decimals(value: float) -> int:
    """Return the number of decimals that shows three significant digits."""
    rounded = float(f"{value:.2e}")  # 0.9996 is 1.00, and 99.96 is 100
    return max(0, 2 - floor(log10(abs(rounded)))) if rounded else 0


def digits(value: float) -> str:
    """Return a value with three significant digits; with all before the point where it is above 1000."""
    return f"{value:.{decimals(value)}f}"


def times(speedup: Figure) -> str:
    """Return a speed-up with its interval."""
    return f"{digits(speedup.median)} ({Unit('', 1.0).interval(speedup)})"


def percent(share: float) -> str:
    """Return a share in whole per cent."""
    return f"{100 * share:.0f} %"


def pixels(share: float) -> str:
    """Return a share of pixels; a share above 0 is never rounded to 0."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.2f} %" if share else "none"


def memory(size: int | None) -> str:
    """Return bytes as text; an empty text where unknown."""
    return "" if size is None else format_bytes(size)


def rate(value: float, unit: str) -> str:
    """Return a rate with an SI prefix, such as 88.2 GFLOP/s."""
    prefix, factor = next((known for known in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if value >= known[1]), ("", 1.0))
    return f"{digits(value / factor)} {prefix}{unit}"


def interval_name(figures: Iterable[Figure]) -> str:
    """Return the name of the intervals of several figures: with too few rounds, less than 95 %."""
    coverage = min(figure.coverage for figure in figures)
    return f"{100 * min(coverage, CONFIDENCE):.0f} % interval" if coverage else "one round"


def count(number: int, noun: str) -> str:
    """Return a number of things, the noun in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested names and values as one list of pairs; nested names are joined with ": "."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += flat(value, f"{name}: ") if isinstance(value, Mapping) else [(name, str(value))]
    return found
