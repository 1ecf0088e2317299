"""Timing that can be believed: warm-up, interleaved rounds, fresh processes, medians with the range."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

# In each round every contender runs so often uncounted, then counted.
WARM_UP, COUNTED = 1, 2

Runs = Mapping[str, Callable[[], float]]


@dataclass(frozen=True)
class Figure:
    """What was measured of one contender, in seconds.

    Attributes
    ----------
    median
        Of all rounds.
    low, high
        The smallest and the largest. No interval is claimed: timings of one process resemble each other.
    rounds
        Every round, in order.
    """

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]


def interleaved(
    sides: Sequence[Callable[[], AbstractContextManager[Runs]]], rounds: int, done: Callable[[], None] = lambda: None
) -> dict[str, Figure]:
    """Start every side anew in every round, and run its contenders in turn.

    Interleaved, so that a drift of the machine's speed meets all of them alike. Started anew, because how fast a
    process runs depends on where its memory happens to lie: that luck must not last for a whole measurement.

    Parameters
    ----------
    sides
        Each starts one or more contenders; each contender, when called, returns how long it took, in seconds.
    rounds
        How often; each gives `COUNTED` measurements.
    done
        Called after every single run.
    """
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for side in sides:
            with side() as runs:
                for turn in range(WARM_UP + COUNTED):
                    for name, run in runs.items():
                        took = run()
                        if turn >= WARM_UP:
                            seconds.setdefault(name, []).append(took)
                        done()
    return {name: summary(values) for name, values in seconds.items()}


def ratio(numerator: Figure, denominator: Figure) -> Figure:
    """Return how many times one contender's time is another's, round by round."""
    pairs = zip(numerator.rounds, denominator.rounds, strict=True)
    return summary([above / below for above, below in pairs])


def summary(values: Sequence[float]) -> Figure:
    """Return median and range of some measurements."""
    return Figure(float(np.median(values)), min(values), max(values), tuple(values))
