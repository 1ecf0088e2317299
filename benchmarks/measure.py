"""Timing that can be believed: warm-up, interleaved rounds, medians with an interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Passes before the clock counts: allocators grow in the first and settle in the second.
WARM_UP = 2


@dataclass(frozen=True)
class Figure:
    """What was measured of one contender, in seconds.

    Attributes
    ----------
    median
        Of all rounds.
    low, high
        95 % interval of the median, from order statistics; the extremes where there are few rounds.
    rounds
        Every round, in order.
    """

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]


def interleaved(
    contenders: Mapping[str, Callable[[], float]], rounds: int, done: Callable[[], None] = lambda: None
) -> dict[str, Figure]:
    """Run every contender once a round, so that a drift of the machine's speed meets all of them alike.

    Parameters
    ----------
    contenders
        What to call; each returns how long it took, in seconds.
    rounds
        How many count, after `WARM_UP` that do not.
    done
        Called after every single run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(WARM_UP + rounds):
        for name, run in contenders.items():
            seconds[name].append(run())
            done()
    return {name: summary(values[WARM_UP:]) for name, values in seconds.items()}


def ratio(numerator: Figure, denominator: Figure) -> Figure:
    """Return how many times one contender's time is another's, round by round."""
    pairs = zip(numerator.rounds, denominator.rounds, strict=True)
    return summary([above / below for above, below in pairs])


def summary(values: Sequence[float]) -> Figure:
    """Return median and 95 % interval of some measurements."""
    ordered = sorted(values)
    # Ranks of the interval from the normal approximation of the binomial distribution.
    spread = 0.98 * np.sqrt(len(ordered))
    low = max(0, int(np.floor(len(ordered) / 2 - spread)))
    high = min(len(ordered) - 1, int(np.ceil(len(ordered) / 2 + spread)) - 1)
    return Figure(float(np.median(ordered)), ordered[low], ordered[high], tuple(values))
