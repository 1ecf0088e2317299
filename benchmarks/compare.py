"""`unetrt bench --compare`: what changed from one result to another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unetrt.benchmarks.change import Change, Shift, Verdict, faster
from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.result import Limit, Measured, Result
from unetrt.benchmarks.verdict import processor
from unetrt.benchmarks.wording import ROUNDS_NEEDED, flat, pixels
from unetrt.runtime.errors import OptionError


@dataclass(frozen=True)
class Difference:
    """Something that is not the same in both results, as text; "none" where one does not have it."""

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
        Of each contender and way that both results have, in the order of the later.
    limits
        Rates of the machine that both have, with their unit, by name.
    differences
        Of the environment, and of what the contenders compute.
    came, went
        Contenders that only one result has, with why the other has not, where it says so.
    warnings
        What must be known before the figures are read.
    """

    changes: tuple[Change, ...]
    limits: Mapping[str, tuple[Shift, str]]
    differences: tuple[Difference, ...]
    came: tuple[str, ...]
    went: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> tuple[str, ...]:
        """One sentence for each contender and way that changed; one in all where none did."""
        if told := tuple(str(change) for change in self.changes if change.changed):
            return told
        if any(change.verdict is Verdict.TOO_FEW for change in self.changes):
            return (f"too few rounds to tell what changed: {ROUNDS_NEEDED} in both results are needed",)
        return ("nothing changed outside the noise",) if self.changes else ("no contender is in both results",)


def compare(before: Result, after: Result) -> Comparison:
    """Compare two results of the same frame and network; raises OptionError where they are not."""
    _same_case(before, after)
    limits = {
        one.name: (Shift(one.rate, other.rate), one.unit)
        for one, other in ((one, _limit(after, one.name)) for one in before.limits)
        if other is not None
    }
    pairs = [(one, other) for other in after.contenders for one in before.contenders if one.name == other.name]
    return Comparison(
        tuple(change for one, other in pairs for change in _changes(one, other, before, after)),
        limits,
        tuple(_differences(before, after, pairs)),
        _missing(after, before),
        _missing(before, after),
        tuple(_warnings(before, after, limits)),
    )


def _same_case(before: Result, after: Result) -> None:
    for name, one, other in (
        ("frames of", *(f"{height} x {width}" for height, width in (before.frame, after.frame))),
        ("networks of", *(", ".join(f"{k} {v}" for k, v in told.network.items()) for told in (before, after))),
    ):
        if one != other:
            raise OptionError(f"{name} {one} and of {other} have no times to compare: time both with the same")


def _changes(one: Measured, other: Measured, before: Result, after: Result) -> Iterator[Change]:
    limits = (_limit(before, one.limit), _limit(after, other.limit)) if one.limit == other.limit else (None, None)
    for way in one.seconds:
        if way in other.seconds:
            seconds = Shift(one.seconds[way], other.seconds[way])
            limit = Shift(limits[0].rate, limits[1].rate) if limits[0] and limits[1] else None
            held = limit and Shift(_held(seconds.before, limit.before), _held(seconds.after, limit.after))
            yield Change(other.name, other.title, way, seconds, other.limit, limit, held)


def _held(seconds: Figure, limit: Figure) -> Figure:
    """Return seconds times the limit's rate, round by round; by its median where the rounds are not the same."""
    count = len(seconds.rounds)
    rates = limit.rounds if len(limit.rounds) == count else [limit.median] * count
    return Figure.of([second * rate for second, rate in zip(seconds.rounds, rates, strict=True)])


def _limit(result: Result, name: str) -> Limit | None:
    return next((one for one in result.limits if one.name == name), None)


def _differences(before: Result, after: Result, pairs: list[tuple[Measured, Measured]]) -> Iterator[Difference]:
    one, other = (dict(flat(result.environment)) for result in (before, after))
    for name in one | other:
        if one.get(name) != other.get(name):
            yield Difference(name, one.get(name, "none"), other.get(name, "none"))
    for first, second in pairs:
        for (what, told), (_, now) in zip(_computes(first), _computes(second), strict=True):
            if told != now:
                yield Difference(f"{second.title}, {what}", told, now)


def _computes(one: Measured) -> Iterator[tuple[str, str]]:
    yield "tile", f"{one.tile[0]} x {one.tile[1]}"
    yield "tiles", str(one.tiles)
    yield "precision", one.precision
    yield "device", one.device
    yield "limit", one.limit
    yield "pixels off", pixels(one.pixels_off)


def _missing(having: Result, other: Result) -> tuple[str, ...]:
    """Return the contenders of one result that the other has not, with its reason."""
    reasons = {one.name: f": {one.reason}" for one in other.left_out}
    names = {one.name for one in other.contenders}
    return tuple(one.title + reasons.get(one.name, "") for one in having.contenders if one.name not in names)


def _warnings(before: Result, after: Result, limits: Mapping[str, tuple[Shift, str]]) -> Iterator[str]:
    one, other = processor(before), processor(after)
    if one != other:
        yield f"the processors differ ({one} -> {other}): times tell of them as much as of what runs on them"
    for name, (shift, _) in limits.items():
        if shift.outside:
            yield f"the machine itself changed ({name} is {faster(1 / shift.ratio)}): times are judged against that"
