"""A figure: what several rounds gave, as their median and an interval that says how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Self

import numpy as np

# Share of cases in which an interval is to hold what would come out of endless rounds.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Figure:
    """Median and interval of one value a round.

    Rounds are to be independent, best each started in fresh processes; what is measured within one is not, and is one
    value here.
    The interval is that of the median by order statistics, which asks nothing of the distribution: each round lies
    above the true median as likely as below, so that the range of n rounds holds it in 1 - 2 / 2^n of all cases
    (W. J. Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2). 6 rounds are needed for 95 %.

    Attributes
    ----------
    median
        Of all rounds, in the unit of what was measured.
    low, high
        Ends of the narrowest such interval of at least 95 %; the range where there are too few rounds.
    coverage
        How sure the interval is, 0 to 1.
    rounds
        Every round, in order.
    """

    median: float
    low: float
    high: float
    coverage: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the figure of at least one value."""
        ordered, count = sorted(values), len(values)
        left_out = max((cut for cut in range((count + 1) // 2) if coverage(count, cut) >= CONFIDENCE), default=0)
        low, high = ordered[left_out], ordered[count - 1 - left_out]
        return cls(float(np.median(values)), low, high, coverage(count, left_out), tuple(values))

    def __rtruediv__(self, above: float) -> "Figure":
        """Return what a constant is, divided by each round: a rate, from seconds."""
        return Figure.of([above / value for value in self.rounds])

    def __truediv__(self, below: "Figure") -> "Figure":
        """Return how many times another figure this one is, round by round, so that what slowed both cancels."""
        return Figure.of([mine / theirs for mine, theirs in zip(self.rounds, below.rounds, strict=True)])


def coverage(count: int, left_out: int) -> float:
    """Return how often the median lies within `count` ordered values less `left_out` at each end, 0 to 1."""
    return float(1 - 2 * sum(comb(count, below) for below in range(left_out + 1)) / 2**count)
