"""What a benchmark of this repository stores: its figures, what they are of, and the machine. Schema 1."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from unetrt.benchmarks.environment import environment, versions
from unetrt.runtime.errors import OptionError

KIND, SCHEMA = "unetrt repository benchmark", 1
# What decides these figures beside what `environment` names.
PACKAGES = ("scipy", "edt")
SECONDS = "s"


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes
    ----------
    name
        The same in every run, so that runs can be compared.
    unit
        `s`, `Mpixel/s` (10^6 pixels), `tiles/s` or `x`, a ratio. Of seconds less is better, of the others more.
    median
        Of all rounds.
    low, high
        Ends of the interval; None where there was one round.
    coverage
        How sure the interval is, 0 to 1 (`Figure`); None where `low` and `high` are the smallest and the largest round
        and no interval is claimed.
    taken
        How many rounds.
    goal
        What was to be reached, in `unit`; None where nothing was set.
    rounds
        Every round, in order; empty in the history.
    """

    name: str
    unit: str
    median: float
    low: float | None
    high: float | None
    coverage: float | None
    taken: int
    goal: float | None = None
    rounds: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, unit: str, figure: Mapping[str, Any], goal: float | None = None) -> Self:
        """Return a figure under a name; `figure` is the dict of a `Figure`."""
        rounds = tuple(figure["rounds"])
        ends = (figure["low"], figure["high"], figure.get("coverage"))
        return cls(name, unit, figure["median"], *ends, len(rounds), goal, rounds)

    @classmethod
    def rate(cls, name: str, unit: str, amount: float, seconds: Mapping[str, Any], goal: float | None = None) -> Self:
        """Return how much a second that is: `amount` in each round, divided by its seconds, the dict of a `Figure`."""
        turned = {
            "median": amount / seconds["median"],
            "low": amount / seconds["high"],
            "high": amount / seconds["low"],
        }
        rounds = [amount / value for value in seconds["rounds"]]
        return cls.of(name, unit, {**turned, "coverage": seconds.get("coverage"), "rounds": rounds}, goal)

    @property
    def less_is_better(self) -> bool:
        """Whether a lower figure is the better one."""
        return self.unit == SECONDS

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None where there is none."""
        if self.goal is None:
            return None
        return self.median <= self.goal if self.less_is_better else self.median >= self.goal

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Return what `dataclasses.asdict` gave; raises KeyError or TypeError where it did not."""
        return cls(**{**told, "rounds": tuple(told.get("rounds", ()))})


@dataclass(frozen=True)
class Record:
    """One run of a benchmark.

    Attributes
    ----------
    name
        Of the benchmark.
    measures
        What it measures, in one sentence.
    figures
        The key figures.
    when
        ISO 8601, UTC.
    environment
        Processor, threads, versions.
    detail
        Everything else that was measured, as the benchmark itself arranges it.
    """

    name: str
    measures: str
    figures: tuple[Measure, ...]
    when: str
    environment: Mapping[str, Any]
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def now(cls, name: str, measures: str, figures: tuple[Measure, ...], detail: Mapping[str, Any]) -> Self:
        """Return what was measured just now, on this machine."""
        here = environment()
        here["versions"] |= versions(PACKAGES)
        return cls(name, measures, figures, datetime.now(UTC).isoformat(timespec="seconds"), here, detail)

    def __getitem__(self, name: str) -> Measure:
        """Return a figure by its name; raises KeyError where there is none."""
        return {figure.name: figure for figure in self.figures}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON stores."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of `to_dict`; raises OptionError where it is something else."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if (told.pop("kind"), told.pop("schema")) == (KIND, SCHEMA):
                return replace(cls(**told), figures=tuple(map(Measure.from_dict, told["figures"])))
        except OSError as error:
            raise OptionError(f"{path} cannot be read ({error.strerror}): `make bench` writes such files") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"{path} is no result of a benchmark: `make bench` writes such files") from error
        raise OptionError(f"{path} is not of schema {SCHEMA} of a {KIND}: measure anew with `make bench`")
