"""Results that survive a kill: each is on disk before the next is measured, and a later run goes on from there.

A benchmark takes its steps through a `Journal`: results that the file already holds are not measured again, no step
starts once the time is up, and after each step the file is whole and names what is still missing.

    journal = Journal(path, {"network": "depth 4, base 64"}, Patience(seconds=200, resume=True))
    for case in cases:
        journal.take(case.name, lambda: measure(case))
    journal.missing  # names of the steps that were not begun
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import whole_file

# Keys of a journal's file: what is measured, the results by name, and the steps that were not begun.
ABOUT, RESULTS, MISSING = "about", "results", "missing"
# The key of a finished result's format, beside which no results lie that could be taken up.
KIND = "kind"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Patience:
    """How long a benchmark may take, and whether it goes on from an earlier run.

    Attributes
    ----------
    seconds
        No step starts after this time, in seconds; None for no limit. A step that has started is finished.
    resume
        Whether the results that the file holds are kept.
    begun
        When the time began, on the clock of `time.monotonic`.
    """

    seconds: float | None = None
    resume: bool = False
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise OptionError(f"{self.seconds:g} seconds measure nothing: use more than 0, or leave --seconds out")

    @property
    def left(self) -> float:
        """Seconds until nothing new may begin; infinite without a limit, negative afterwards."""
        return inf if self.seconds is None else self.begun + self.seconds - time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether nothing new may begin."""
        return self.left <= 0


class Journal:
    """A JSON file of results, written anew after each.

    Parameters
    ----------
    path
        The file; None keeps the results in memory alone.
    about
        What is measured, as JSON: results of anything else are not taken up.
    patience
        How long, and whether to go on.
    document
        What the file holds besides the results, made of the journal after each step.

    Attributes
    ----------
    results
        By name, in the order of their making.
    missing
        Names of steps that were not begun, as the time was up.

    Raises
    ------
    OptionError
        The results that are to be taken up are of something else, or no results.
    """

    def __init__(
        self,
        path: Path | None,
        about: Facts,
        patience: Patience | None = None,
        document: Callable[["Journal"], Facts] = lambda _: {},
    ) -> None:
        self._path, self._document = path, document
        self._about: Any = json.loads(json.dumps(about))
        self._patience = patience or Patience()
        self.missing: list[str] = []
        self.results: dict[str, Any] = self._known() if self._patience.resume else {}
        self._require_usable()

    def take(self, name: str, step: Callable[[], Any]) -> Any:
        """Return the result of a step: the one that is there, or a new one, which is stored first.

        Parameters
        ----------
        name
            The step's.
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

    def store(self) -> None:
        """Write the file, whole."""
        if self._path is None:
            return
        with whole_file(self._path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON stores."""
        return {**self._document(self), ABOUT: self._about, RESULTS: self.results, MISSING: self.missing}

    def _require_usable(self) -> None:
        """Raise OptionError where the document cannot be made of the results that were taken up: they are damaged."""
        try:
            self._document(self)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if not self.results:
                raise
            raise self._useless() from error

    def _useless(self) -> OptionError:
        return OptionError(f"{self._path} holds no results to go on from: leave --resume out")

    def _known(self) -> dict[str, Any]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            stored = dict(json.loads(self._path.read_text(encoding="utf-8")))
            finished = KIND in stored and MISSING in stored and RESULTS not in stored
            about, results = (None, {}) if finished else (stored[ABOUT], stored[RESULTS])
            if not isinstance(results, dict):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._useless() from error
        if finished:
            raise OptionError(f"{self._path} is finished: leave --resume out to measure anew")
        if about != self._about:
            raise OptionError(
                f"{self._path} holds results of another run ({_difference(about, self._about)}): give another file, or "
                "leave --resume out"
            )
        return results


def _difference(there: Any, here: Any) -> str:
    """Return the first fact of which two runs differ, in a few words."""
    for name in here:
        if not isinstance(there, dict) or there.get(name) != here[name]:
            given = there.get(name) if isinstance(there, dict) else there
            return f"{name}: {_short(given)} there, {_short(here[name])} here"
    return "it says more than this one"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
