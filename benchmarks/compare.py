"""`unetrt bench --compare`: what changed from one result to another, and whether it is more than noise.

Two figures differ outside the noise where their 95 % intervals do not overlap. A machine that became slower slows its
measured limits too; where they changed outside the noise, times are judged relative to them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from unetrt.benchmarks.figures import CONFIDENCE, ROUNDS_NEEDED, Figure, digits, flat, pixels, time
from unetrt.benchmarks.findings import processor
from unetrt.benchmarks.result import SEGMENT, BenchResult, Limit, Measured
from unetrt.runtime.errors import OptionError


class ChangeVerdict(Enum):
    """What can be said of a change."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "within the noise"
    TOO_FEW = "too few rounds"


@dataclass(frozen=True)
class Shift:
    """One figure, before and after.

    It lies outside the noise where the two intervals do not overlap. This is stricter than a test at 5 %: of six rounds
    each, which need their whole range for 95 %, chance alone separates all of one from all of the other in 2 of 924
    cases (12 over 6 orders). It accounts for variation between rounds, not for variation between days.
    """

    before: Figure
    after: Figure

    @property
    def ratio(self) -> float:
        """After divided by before, of the medians."""
        return self.after.median / self.before.median

    @property
    def enough(self) -> bool:
        """Whether both intervals have 95 %."""
        return min(self.before.coverage, self.after.coverage) >= CONFIDENCE

    @property
    def outside(self) -> bool:
        """Whether there are enough rounds, and the intervals do not overlap."""
        return self.enough and (self.after.high < self.before.low or self.before.high < self.after.low)

    @property
    def verdict(self) -> ChangeVerdict:
        """What can be said where less is better."""
        if not self.enough:
            return ChangeVerdict.TOO_FEW
        if not self.outside:
            return ChangeVerdict.SAME
        return ChangeVerdict.FASTER if self.ratio < 1 else ChangeVerdict.SLOWER


@dataclass(frozen=True)
class Change:
    """One contender, timed in one section, in both results.

    Attributes
    ----------
    name, way
        The contender, and one of `unetrt.benchmarks.result.WAYS`.
    title
        Title of both.
    seconds
        Per frame.
    limit_name
        The machine's limit that applies.
    limit
        That limit's rate; None where it was not measured in both.
    relative
        Seconds times the limit's rate, round by round: the work that the machine could have done meanwhile. A change of
        the machine cancels in it. None as `limit`.
    """

    name: str
    way: str
    title: str
    seconds: Shift
    limit_name: str
    limit: Shift | None
    relative: Shift | None

    @property
    def decisive(self) -> Shift:
        """What the verdict is of: `relative` where the machine itself changed outside the noise, else `seconds`."""
        return self.relative if self.relative and self.limit and self.limit.outside else self.seconds

    @property
    def verdict(self) -> ChangeVerdict:
        """What can be said of it."""
        return self.decisive.verdict

    @property
    def changed(self) -> bool:
        """Whether it is faster or slower, outside the noise."""
        return self.verdict in (ChangeVerdict.FASTER, ChangeVerdict.SLOWER)

    def __str__(self) -> str:
        times = f"({time(self.seconds.before.median)} -> {time(self.seconds.after.median)})"
        if self.verdict is ChangeVerdict.TOO_FEW:
            rounds = " and ".join(str(len(one.rounds)) for one in (self.seconds.before, self.seconds.after))
            return f"{self.title}: too few rounds to judge {times}: {rounds}, and {ROUNDS_NEEDED} each are needed"
        machine = ""
        if self.decisive is not self.seconds and self.limit is not None:
            machine = f", relative to {self.limit_name}, which was itself {faster(1 / self.limit.ratio)}"
        if self.verdict is ChangeVerdict.SAME:
            return f"{self.title}: no change outside the noise {times}{machine}"
        return f"{self.title}: {faster(self.decisive.ratio)} {times}, outside the noise{machine}"


def faster(ratio: float) -> str:
    """Return a ratio of times in words: per cent of speed gained, or of time lost; a factor from 2 on."""
    word, gain = ("faster", 1 / ratio) if ratio <= 1 else ("slower", ratio)
    if gain >= 2:
        return f"{digits(gain)} times as {'fast' if word == 'faster' else 'slow'}"
    share = 100 * (gain - 1)
    return f"{share:.0f} % {word}" if share >= 1.5 else f"{share:.1f} % {word}"


@dataclass(frozen=True)
class Mismatch:
    """A fact that differs between both results, as text; "none" where one lacks it."""

    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.what}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Comparison:
    """What changed.

    Attributes
    ----------
    changes
        Each contender and section that both results have, in the order of the later.
    limits
        Rates of the machine that both have, with their unit, by name.
    mismatches
        Facts of the environment and of the contenders' arithmetic that differ.
    came, went
        Contenders that only one result has, with the reason of the other, where it states one.
    warnings
        What a reader must know before the figures.
    """

    changes: tuple[Change, ...]
    limits: Mapping[str, tuple[Shift, str]]
    mismatches: tuple[Mismatch, ...]
    came: tuple[str, ...]
    went: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> tuple[str, ...]:
        """One sentence for each contender and section that changed; one in all where none did."""
        if sentences := tuple(str(change) for change in self.changes if change.changed):
            return sentences
        if any(change.verdict is ChangeVerdict.TOO_FEW for change in self.changes):
            return (f"too few rounds to judge what changed: {ROUNDS_NEEDED} in both results are needed",)
        return ("nothing changed outside the noise",) if self.changes else ("no contender is in both results",)


def compare(before: BenchResult, after: BenchResult) -> Comparison:
    """Compare two results of the same frame and network; raises OptionError where these differ."""
    _require_same_case(before, after)
    limits = {
        one.name: (Shift(one.rate, other.rate), one.unit)
        for one in before.limits
        if (other := _limit(after, one.name)) is not None
    }
    pairs = [(one, other) for other in after.contenders for one in before.contenders if one.name == other.name]
    return Comparison(
        tuple(change for pair in pairs for change in _changes(*pair, before, after)),
        limits,
        tuple(_mismatches(before, after, pairs)),
        _missing(after, before),
        _missing(before, after),
        tuple(_warnings(before, after, limits)),
    )


def _require_same_case(before: BenchResult, after: BenchResult) -> None:
    frames = [f"{height} x {width}" for height, width in (before.frame, after.frame)]
    networks = [", ".join(f"{k} {v}" for k, v in one.network.items()) for one in (before, after)]
    for what, (one, other) in (("frames", frames), ("networks", networks)):
        if one != other:
            raise OptionError(f"{what} of {one} and of {other} have no times to compare: time both with the same")


def _changes(one: Measured, other: Measured, before: BenchResult, after: BenchResult) -> Iterator[Change]:
    known = (_limit(before, one.limit), _limit(after, other.limit)) if one.limit == other.limit else (None, None)
    limit = Shift(known[0].rate, known[1].rate) if known[0] and known[1] else None
    for way in one.seconds:
        if way in other.seconds:
            seconds = Shift(one.seconds[way], other.seconds[way])
            relative = limit and Shift(_work(seconds.before, limit.before), _work(seconds.after, limit.after))
            title = other.title if way == SEGMENT else f"{other.title}, {way}"
            yield Change(other.name, way, title, seconds, other.limit, limit, relative)


def _work(seconds: Figure, limit: Figure) -> Figure:
    """Return seconds times the limit's rate, round by round; by its median where the rounds differ in number."""
    count = len(seconds.rounds)
    return seconds * (limit if len(limit.rounds) == count else Figure.of([limit.median] * count))


def _limit(result: BenchResult, name: str) -> Limit | None:
    return next((one for one in result.limits if one.name == name), None)


def _mismatches(before: BenchResult, after: BenchResult, pairs: list[tuple[Measured, Measured]]) -> Iterator[Mismatch]:
    one, other = (dict(flat(result.environment)) for result in (before, after))
    for name in one | other:
        if one.get(name) != other.get(name):
            yield Mismatch(name, one.get(name, "none"), other.get(name, "none"))
    for first, second in pairs:
        for (what, was), (_, now) in zip(_arithmetic(first), _arithmetic(second), strict=True):
            if was != now:
                yield Mismatch(f"{second.title}, {what}", was, now)


def _arithmetic(one: Measured) -> Iterator[tuple[str, str]]:
    yield "tile", f"{one.tile[0]} x {one.tile[1]}"
    yield "tiles", str(one.tiles)
    yield "precision", one.precision
    yield "device", one.device
    yield "limit", one.limit
    yield "pixels off", pixels(one.pixels_off)


def _missing(having: BenchResult, other: BenchResult) -> tuple[str, ...]:
    """Return the contenders of one result that the other lacks, with its reason."""
    reasons = {one.name: f": {one.reason}" for one in other.left_out}
    names = {one.name for one in other.contenders}
    return tuple(one.title + reasons.get(one.name, "") for one in having.contenders if one.name not in names)


def _warnings(before: BenchResult, after: BenchResult, limits: Mapping[str, tuple[Shift, str]]) -> Iterator[str]:
    one, other = processor(before), processor(after)
    if one != other:
        yield f"the processors differ ({one} -> {other}): the times depend on them as much as on the contenders"
    for name, (shift, _) in limits.items():
        if shift.outside:
            yield f"the machine itself changed ({name} is {faster(1 / shift.ratio)}): times are judged relative to that"
