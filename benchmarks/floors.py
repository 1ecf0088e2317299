"""Ratios that must be reached: a gate for people's continuous integration."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from unetrt.benchmarks.contenders import Contender, Device
from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.result import SEGMENT, Measured, Result
from unetrt.benchmarks.verdict import is_ours, leader
from unetrt.runtime.errors import GateError, OptionError


class FloorError(GateError):
    """A contender is slower than its floor allows."""


@dataclass(frozen=True)
class Floor:
    """How many times as fast as another a contender must be.

    Attributes
    ----------
    least
        The ratio of their times from frame to labels, the median over all rounds.
    name
        The contender; unetrt's fastest if empty.
    other
        What it is held against; the reference if empty.
    """

    least: float
    name: str = ""
    other: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `2.6`, `NAME=2.6` or `NAME/OTHER=2.6`; raises OptionError where it is none of them."""
        match = re.fullmatch(r"(?:([\w-]+)(?:/([\w-]+))?=)?(\d+(?:\.\d*)?|\.\d+)", text.strip())
        if match is None:
            raise OptionError(
                f"{text!r} is no floor: write 2.6 for unetrt's fastest against the usual loop, NAME=2.6, or "
                "NAME/OTHER=2.6"
            )
        return cls(float(match[3]), match[1] or "", match[2] or "")

    def require(self, contenders: Sequence[Contender], device: Device) -> None:
        """Raise OptionError unless both can be timed, before anything is."""
        known = {one.name: one for one in contenders}
        for name in filter(None, (self.name, self.other)):
            if name not in known:
                raise OptionError(f"{name!r} of the floor is not among what is timed: {', '.join(known)}")
            if reason := known[name].why_not(device):
                raise OptionError(f"{name!r} of the floor cannot be timed here: {reason}")

    def ratio(self, result: Result) -> tuple[Measured, Measured, Figure]:
        """Return both contenders, and how many times as fast the first is.

        Raises
        ------
        OptionError
            One of them was not timed.
        """
        first = _named(result, self.name) if self.name else leader(result)
        if not self.name and not is_ours(first):
            raise OptionError("a floor without a name is for unetrt's fastest, and no engine of unetrt was timed")
        other = _named(result, self.other or result.reference)
        return first, other, other.seconds[SEGMENT] / first.seconds[SEGMENT]

    def check(self, result: Result) -> str:
        """Return a line that says by how much it is kept; raises FloorError where it is not."""
        first, other, ratio = self.ratio(result)
        said = (
            f"{first.title} is {ratio.median:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) as fast as "
            f"{other.title}; the floor is {self.least:g}"
        )
        if ratio.median < self.least:
            raise FloorError(said)
        return said


def check_all(floors: Sequence[Floor], result: Result) -> list[str]:
    """Return a line a floor; raises FloorError with those that are missed, after the others were looked at too."""
    kept, missed = [], []
    for floor in floors:
        try:
            kept.append(floor.check(result))
        except FloorError as error:
            missed.append(str(error))
    if missed:
        raise FloorError("; ".join(missed))
    return kept


def _named(result: Result, name: str) -> Measured:
    timed = {one.name: one for one in result.contenders}
    if name in timed:
        return timed[name]
    reasons = {one.name: f": {one.reason}" for one in result.left_out}
    raise OptionError(
        f"{name!r} of the floor was not timed{reasons.get(name, '')}; these were: {', '.join(timed) or 'none'}"
    )
