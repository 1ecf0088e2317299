"""Resumable measurements: each result is on disk before the next is measured, and a later run continues from there.

A benchmark takes its steps through a `Journal`. Results that the file holds are not measured again, no step starts once
the time is up, and after each step the file is complete and names what is missing. `take_turns` interleaves the steps
of several rounds, so that what slows the machine for a while slows everything that is compared.

    journal = Journal(path, {"network": "depth 4, base 64"}, Patience(seconds=200, resume=True))
    journal.take_turns(6, {"eager": time_eager, "compiled": time_compiled})
    journal.rounds("eager")  # its results, round by round
    journal.missing  # names of the steps that were not begun
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.atomic import require_regular, whole_file
from unetrt.runtime.records import parse, to_json, validated

# Keys of a journal's file: what is measured, the results by name, and the steps that were not begun.
ABOUT, RESULTS, MISSING = "about", "results", "missing"
# The key of a finished result's format, beside which no results remain that a run could continue from.
KIND = "kind"
# The key of a result that says why a step failed.
REASON = "reason"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Patience:
    """Time limit of a benchmark, and whether it continues an earlier run.

    Attributes
    ----------
    seconds
        No step starts after this time, in seconds; None for no limit. A step that has started is finished.
    resume
        Whether the results that the file holds are kept.
    begun
        Start of the time, on the clock of `time.monotonic`.
    """

    seconds: float | None = None
    resume: bool = False
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise OptionError(f"{self.seconds:g} seconds measure nothing: use more than 0, or leave --seconds out")

    @property
    def left(self) -> float:
        """Seconds in which a step may start; infinite without a limit, negative afterwards."""
        return inf if self.seconds is None else self.begun + self.seconds - time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether no further step may start."""
        return self.left <= 0


class Journal:
    """A JSON file of results, replaced atomically after each step.

    Parameters
    ----------
    path
        The file; None keeps the results in memory alone.
    about
        What is measured, as JSON: results of anything else are refused.
    patience
        Time limit, and whether to resume.
    document
        Returns what the file holds besides the results; called with the journal after each step.

    Attributes
    ----------
    results
        By name, in the order in which they were measured.
    missing
        Names of steps that were not begun, as the time was up.

    Raises
    ------
    OptionError
        The file to resume from holds results of something else, or none.
    """

    def __init__(
        self,
        path: Path | None = None,
        about: Facts | None = None,
        patience: Patience | None = None,
        document: Callable[["Journal"], Facts] = lambda _: {},
    ) -> None:
        self._path, self._document = path, document
        self._about: Any = json.loads(json.dumps(about or {}))
        self._patience = patience or Patience()
        self.missing: list[str] = []
        self.results: dict[str, Any] = self._stored() if self._patience.resume else {}
        self._require_usable()

    def take(self, name: str, step: Callable[[], Any]) -> Any:
        """Return the result of a step: the stored one, or a new one, which is stored first.

        Parameters
        ----------
        name
            Name of the step.
        step
            Returns the result, as JSON; what it raises is raised here, and nothing is stored.

        Returns
        -------
        None where the time is up.
        """
        if name not in self.results:
            if self._patience.is_over:
                self.missing.append(name)
                self.store()
                return None
            self.results[name] = step()
            self.store()
        return self.results[name]

    def take_turns(self, rounds: int, steps: Mapping[str, Callable[[], Any]]) -> None:
        """Take all steps in turn, round by round; one that failed (its result has a reason) is not taken again."""
        for number in range(rounds):
            for name, step in steps.items():
                if self.reason(name) is None:
                    self.take(_of_round(number, name), step)

    def rounds(self, name: str) -> list[Any]:
        """Return the results of a step that took turns, in order."""
        end = f": {name}"
        return [one for full, one in self.results.items() if full.startswith("round ") and full.endswith(end)]

    def has(self, number: int, name: str) -> bool:
        """Tell whether a step has a result in a round, counted from 0."""
        return _of_round(number, name) in self.results

    def round(self, number: int, name: str) -> Any:
        """Return the result of a step in a round, counted from 0."""
        return self.results[_of_round(number, name)]

    def reason(self, name: str) -> str | None:
        """Return why a step that took turns failed; None where it did not."""
        return next((str(one[REASON]) for one in self.rounds(name) if _failed(one)), None)

    def forget_failures(self) -> None:
        """Drop the results of steps that failed, so that they are tried again."""
        for name in [name for name, one in self.results.items() if _failed(one)]:
            del self.results[name]

    def store(self) -> None:
        """Write the file."""
        if self._path is None:
            return
        with whole_file(self._path) as temporary:
            temporary.write_text(to_json(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {**self._document(self), ABOUT: self._about, RESULTS: self.results, MISSING: self.missing}

    def _require_usable(self) -> None:
        """Raise OptionError where no document can be made of the stored results: they are damaged."""
        try:
            self._document(self)
        except (ArithmeticError, AttributeError, LookupError, OptionError, TypeError, ValueError) as error:
            if not self.results:
                raise
            raise self._unusable() from error

    def _unusable(self) -> OptionError:
        return OptionError(f"{self._path} holds no results to continue from: leave --resume out")

    def _stored(self) -> dict[str, Any]:
        """Return the results in the file; raises OptionError where they cannot be continued."""
        if self._path is None or not self._path.exists():
            return {}
        try:
            stored = parse(require_regular(self._path).read_bytes(), str(self._path), OptionError)
            finished = KIND in stored and MISSING in stored and RESULTS not in stored
            results = {} if finished else validated(stored.get(RESULTS), dict[str, Any], RESULTS, OptionError)
        except (FrameError, OSError, OptionError) as error:
            raise self._unusable() from error
        if finished:
            raise OptionError(f"{self._path} is finished: leave --resume out to measure anew")
        if ABOUT not in stored:
            raise self._unusable()
        if stored[ABOUT] != self._about:
            raise OptionError(
                f"{self._path} holds results of another run ({_first_difference(stored[ABOUT], self._about)}): give "
                "another file, or leave --resume out"
            )
        return results


def _failed(result: Any) -> bool:
    return isinstance(result, dict) and REASON in result


def _of_round(number: int, name: str) -> str:
    return f"round {number + 1}: {name}"


def _first_difference(there: Any, here: Any) -> str:
    """Return the first fact in which two runs differ, in a few words."""
    for name in here:
        if not isinstance(there, dict) or there.get(name) != here[name]:
            given = there.get(name) if isinstance(there, dict) else there
            return f"{name}: {_short(given)} there, {_short(here[name])} here"
    return "it names more facts than this one"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
