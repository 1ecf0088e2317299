"""How figures are written: three digits, one unit a column, and intervals under their true name."""

from collections.abc import Iterable, Mapping
from math import floor, log10
from typing import Any, NamedTuple

from unetrt.benchmarks.figure import CONFIDENCE, Figure

ROUNDS_NEEDED = 6  # for an interval of 95 %: unetrt.benchmarks.figure.Figure


class Unit(NamedTuple):
    """A unit of time: its name, and how many seconds it is."""

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
    """Return the one unit in which all of several times read well: down to a tenth of it."""
    least = min(seconds)
    return next((unit for unit in UNITS if least >= 0.1 * unit.seconds), UNITS[-1])


def time(seconds: float) -> str:
    """Return one time in the unit that fits it."""
    unit = next((unit for unit in UNITS if seconds >= unit.seconds), UNITS[-1])
    return f"{digits(seconds / unit.seconds)} {unit.name}"


def decimals(value: float) -> int:
    """Return how many places after the point show three digits of a value."""
    rounded = float(f"{value:.2e}")  # 0.9996 is 1.00, and 99.96 is 100
    return max(0, 2 - floor(log10(abs(rounded)))) if rounded else 0


def digits(value: float) -> str:
    """Return a value with three digits, more where it is above 1000."""
    return f"{value:.{decimals(value)}f}"


def times(speedup: Figure) -> str:
    """Return a speed-up with its interval."""
    return f"{digits(speedup.median)} ({Unit('', 1.0).interval(speedup)})"


def percent(share: float) -> str:
    """Return a share in whole per cent."""
    return f"{100 * share:.0f} %"


def pixels(share: float) -> str:
    """Return a share of pixels; what is not none is never rounded to none."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.2f} %" if share else "none"


def memory(size: int | None) -> str:
    """Return bytes in MiB or GiB; nothing where unknown."""
    if size is None:
        return ""
    return f"{digits(size / 2**30)} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def rate(value: float, unit: str) -> str:
    """Return a rate with the prefix that fits it, such as 88.2 GFLOP/s."""
    prefix, factor = next((known for known in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if value >= known[1]), ("", 1.0))
    return f"{digits(value / factor)} {prefix}{unit}"


def interval_name(figures: Iterable[Figure]) -> str:
    """Return what the intervals of several figures may be called: with too few rounds, less than 95 %."""
    sure = min(figure.coverage for figure in figures)
    return f"{100 * min(sure, CONFIDENCE):.0f} % interval" if sure else "one round"


def count(number: int, noun: str) -> str:
    """Return a number of things."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def flat(told: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Return nested names and values as one list; what is within others has their name before it."""
    found: list[tuple[str, str]] = []
    for name, value in told.items():
        whole = f"{above}{name}"
        found += flat(value, f"{whole}: ") if isinstance(value, Mapping) else [(whole, str(value))]
    return found
