"""Whether a contender's time changed between two results, or only the noise."""

from dataclasses import dataclass
from enum import Enum

from unetrt.benchmarks.figure import CONFIDENCE, Figure
from unetrt.benchmarks.result import SEGMENT
from unetrt.benchmarks.wording import ROUNDS_NEEDED, digits, time


class Verdict(Enum):
    """What can be said of a change."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "within the noise"
    TOO_FEW = "too few rounds"


@dataclass(frozen=True)
class Shift:
    """One figure, before and after.

    It lies outside the noise where the two intervals do not overlap. This is stricter than a test at 5 %: of six rounds
    each, which need their whole range for 95 %, chance alone sets all of one apart from all of the other in 2 of 924
    cases (12 over 6 orders). It covers what differs from round to round, not what differs from day to day.
    """

    before: Figure
    after: Figure

    @property
    def ratio(self) -> float:
        """After, divided by before: of the medians."""
        return self.after.median / self.before.median

    @property
    def enough(self) -> bool:
        """Whether both intervals are of 95 %."""
        return min(self.before.coverage, self.after.coverage) >= CONFIDENCE

    @property
    def outside(self) -> bool:
        """Whether there are enough rounds, and the intervals do not overlap."""
        return self.enough and (self.after.high < self.before.low or self.before.high < self.after.low)

    @property
    def verdict(self) -> Verdict:
        """What can be said where less is better."""
        if not self.enough:
            return Verdict.TOO_FEW
        if not self.outside:
            return Verdict.SAME
        return Verdict.FASTER if self.ratio < 1 else Verdict.SLOWER


@dataclass(frozen=True)
class Change:
    """One contender, timed in one way, in both results.

    Attributes
    ----------
    name, title, way
        The contender, and one of `unetrt.benchmarks.result.WAYS`.
    seconds
        Of a frame.
    limit_name
        The limit that it is held against.
    limit
        That limit's rate; None where it was not measured in both.
    held
        Seconds times the limit's rate, round by round: what would have been done meanwhile at the limit. A machine that
        slows both leaves it as it is. None as `limit`.
    """

    name: str
    title: str
    way: str
    seconds: Shift
    limit_name: str
    limit: Shift | None
    held: Shift | None

    @property
    def decides(self) -> Shift:
        """What the verdict is of: `held` where the machine itself changed outside the noise, else `seconds`."""
        return self.held if self.held and self.limit and self.limit.outside else self.seconds

    @property
    def verdict(self) -> Verdict:
        """What can be said of it."""
        return self.decides.verdict

    @property
    def changed(self) -> bool:
        """Whether it is faster or slower, outside the noise."""
        return self.verdict in (Verdict.FASTER, Verdict.SLOWER)

    def __str__(self) -> str:
        who = self.title if self.way == SEGMENT else f"{self.title}, {self.way}"
        times = f"({time(self.seconds.before.median)} -> {time(self.seconds.after.median)})"
        if self.verdict is Verdict.TOO_FEW:
            rounds = " and ".join(str(len(one.rounds)) for one in (self.seconds.before, self.seconds.after))
            return f"{who}: too few rounds to tell {times}: {rounds}, and {ROUNDS_NEEDED} each are needed"
        machine = self._machine()
        if self.verdict is Verdict.SAME:
            return f"{who}: no change outside the noise {times}{machine}"
        return f"{who}: {faster(self.decides.ratio)} {times}, outside the noise{machine}"

    def _machine(self) -> str:
        """Return that the limit decided, and how the machine itself changed; nothing where the seconds did."""
        if self.decides is self.seconds or self.limit is None:
            return ""
        return f", held against {self.limit_name}, which was itself {faster(1 / self.limit.ratio)}"


def faster(ratio: float) -> str:
    """Return a ratio of times in words: per cent of speed gained, or of time lost; from double on, times."""
    word, gain = ("faster", 1 / ratio) if ratio <= 1 else ("slower", ratio)
    if gain >= 2:
        return f"{digits(gain)} times as {'fast' if word == 'faster' else 'slow'}"
    share = 100 * (gain - 1)
    return f"{share:.0f} % {word}" if share >= 1.5 else f"{share:.1f} % {word}"
