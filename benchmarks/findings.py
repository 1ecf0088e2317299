"""What a result of `unetrt bench` shows: the headline, the reasons to doubt it, and floors that it must keep."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from unetrt.benchmarks.contenders import Contender, Device
from unetrt.benchmarks.figures import (
    CONFIDENCE,
    ROUNDS_NEEDED,
    Figure,
    count,
    interval_name,
    percent,
    pixels,
    time,
    times,
)
from unetrt.benchmarks.result import BenchResult, Limit, Measured
from unetrt.runtime.errors import GateError, OptionError

# Largest variation of a limit between rounds, relative to it, on a machine without other load.
QUIET = 0.1


def fastest(contenders: Sequence[Measured]) -> Measured:
    """Return the contender with the least median from frame to labels."""
    return min(contenders, key=lambda one: one.segment.median)


def leader(result: BenchResult) -> Measured:
    """Return the fastest of unetrt's contenders, or the fastest of all if there are no unetrt contenders."""
    return fastest([one for one in result.contenders if one.is_ours] or result.contenders)


def shortest(one: Measured) -> Figure | None:
    """Return the seconds of a frame's arithmetic at the limit, round by round; None where no limit is known."""
    if one.share is None or len(one.share.rounds) != len(one.segment.rounds):
        return None
    return one.segment * one.share


def processor(result: BenchResult) -> str:
    """Return the name of the processor or GPU that segmented the frames."""
    devices = {one.device for one in result.contenders} - {"cpu"}
    return ", ".join(sorted(devices)) or str(result.environment.get("processor", "unknown processor"))


def case(result: BenchResult) -> str:
    """Return the frame, the network and the processor."""
    height, width = result.frame
    network = ", ".join(f"{name} {value}" for name, value in result.network.items())
    return f"{height} x {width}, {network}, {processor(result)}"


def headline(result: BenchResult) -> str:
    """Return unetrt's speed-up over the reference in one sentence."""
    best = leader(result)
    against = next((one.title for one in result.contenders if one.name == result.reference), result.reference)
    if best.name == result.reference:
        return f"{against} is the fastest, and the reference"
    if best.speedup.low <= 1 <= best.speedup.high:
        return f"{best.title} cannot be distinguished from {against}: {_times(best)} times as fast"
    return f"{best.title} is {_times(best)} times as fast as {against}"


def _times(one: Measured) -> str:
    if len(one.speedup.rounds) == 1:
        return times(one.speedup).partition(" ")[0]
    return times(one.speedup).replace("(", f"({interval_name([one.speedup])} ")


def doubts(result: BenchResult) -> tuple[str, ...]:
    """Return the reasons to doubt the headline, one sentence each."""
    return tuple(_doubts(result))


def _doubts(result: BenchResult) -> Iterator[str]:
    best, first = leader(result), fastest(result.contenders)
    if first is not best:
        yield f"{first.title} is faster still: {time(first.segment.median)} a frame"
    if best.pixels_off:
        yield f"{best.title} assigns {pixels(best.pixels_off)} of the pixels another class than FP32"
    least = min((one.segment for one in result.contenders), key=lambda figure: figure.coverage)
    if least.coverage < CONFIDENCE:
        yield _too_few(least)
    for limit in result.limits:
        if (variation := _variation(limit)) > QUIET:
            yield f"The machine was not quiet: {limit.name} varied by {percent(variation)} between rounds"
    for one in result.contenders:
        if one.share is not None and one.share.median > 1:
            yield f"{one.title} is above its limit ({percent(one.share.median)}): {one.limit} was measured too low"


def _too_few(figure: Figure) -> str:
    rounds = len(figure.rounds)
    if rounds == 1:
        return f"One round gives no interval: {ROUNDS_NEEDED} give one of 95 %"
    return (
        f"{count(rounds, 'round')} are few: their range covers the true median in {percent(figure.coverage)} of cases,"
        f" {ROUNDS_NEEDED} rounds cover it in 95 %"
    )


def _variation(limit: Limit) -> float:
    return (limit.rate.high - limit.rate.low) / limit.rate.median


class FloorError(GateError):
    """A contender is slower than its floor."""


@dataclass(frozen=True)
class Floor:
    """The least speed-up of one contender over another, a gate for continuous integration.

    Attributes
    ----------
    least
        Ratio of their times from frame to labels, the median over all rounds.
    name
        The contender; unetrt's fastest if empty.
    other
        The contender that it is compared with; the reference if empty.
    """

    least: float
    name: str = ""
    other: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `2.6`, `NAME=2.6` or `NAME/OTHER=2.6`; raises OptionError for anything else."""
        match = re.fullmatch(r"(?:([\w-]+)(?:/([\w-]+))?=)?([0-9]{1,9}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})", text.strip())
        if match is None:
            raise OptionError(
                f"{text!r:.60} is not a floor: write 2.6 for unetrt's fastest against the usual loop, NAME=2.6, or "
                "NAME/OTHER=2.6"
            )
        return cls(float(match[3]), match[1] or "", match[2] or "")

    def require(self, contenders: Sequence[Contender], device: Device) -> None:
        """Raise OptionError unless both contenders can be timed; called before anything is."""
        known = {one.name: one for one in contenders}
        for name in filter(None, (self.name, self.other)):
            if name not in known:
                raise OptionError(f"{name!r} of the floor is not among what is timed: {', '.join(known)}")
            if reason := known[name].why_not(device):
                raise OptionError(f"{name!r} of the floor cannot be timed here: {reason}")

    def ratio(self, result: BenchResult) -> tuple[Measured, Measured, Figure]:
        """Return both contenders, and the speed-up of the first.

        Raises
        ------
        OptionError
            One of them was not timed.
        """
        first = _named(result, self.name) if self.name else leader(result)
        if not self.name and not first.is_ours:
            raise OptionError("no engine of unetrt was timed: name the contender, as in --floor NAME=2.6")
        other = _named(result, self.other or result.reference)
        return first, other, other.segment / first.segment

    def check(self, result: BenchResult) -> str:
        """Return a line that states the speed-up; raises FloorError where it is below the floor."""
        first, other, ratio = self.ratio(result)
        line = (
            f"{first.title} is {ratio.median:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) as fast as "
            f"{other.title}; the floor is {self.least:g}"
        )
        if ratio.median < self.least:
            raise FloorError(line)
        return line


def check_all(floors: Sequence[Floor], result: BenchResult) -> list[str]:
    """Return a line a floor; raises FloorError with all that are missed."""
    kept, missed = [], []
    for floor in floors:
        try:
            kept.append(floor.check(result))
        except FloorError as error:
            missed.append(str(error))
    if missed:
        raise FloorError("; ".join(missed))
    return kept


def _named(result: BenchResult, name: str) -> Measured:
    timed = {one.name: one for one in result.contenders}
    if name in timed:
        return timed[name]
    reasons = {one.name: f": {one.reason}" for one in result.left_out}
    raise OptionError(
        f"{name!r} of the floor was not timed{reasons.get(name, '')}; these were: {', '.join(timed) or 'none'}"
    )
