"""Benchmarks of this repository: a case says what runs in each round, and which figures follow.

    result = measure(WeightMap(sides=(512,)), rounds=9)

A case is a frozen dataclass whose fields are its options. `prepare` draws the inputs and checks that what is compared
agrees. Each round calls `round` in a fresh process (or the steps of the case, in turn), whose floating-point results
become one `Figure` each. `python -m unetrt.benchmarks` runs the cases by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from unetrt.benchmarks.environment import environment
from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.journal import Journal, Patience
from unetrt.benchmarks.processes import fresh
from unetrt.benchmarks.result import CaseResult, Measure, now
from unetrt.runtime.files.atomic import scratch_folder
from unetrt.trainer.drawn_cells import Drawing, draw

Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class BenchCase(ABC):
    """A benchmark with options as fields: its inputs, its rounds, and the figures made of them.

    A case overrides `round`, or `steps` where several functions take turns.
    """

    NAME: ClassVar[str]
    # One sentence for the result and the page.
    MEASURES: ClassVar[str]
    # Help of the command.
    HELP: ClassVar[str]
    ROUNDS: ClassVar[int] = 9

    def facts(self) -> dict[str, Any]:
        """Return what must be equal for results to be resumed, as JSON."""
        return asdict(self)

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Write the inputs of all rounds into a folder, and check that what is compared agrees.

        Raises
        ------
        ParityError
            It does not; nothing is timed then.
        """

    def steps(self, folder: Path) -> Mapping[str, Callable[[], Any]]:
        """Return what is taken in turn in each round, by name; by default `round` in a fresh process."""
        return {self.NAME: partial(fresh, self.round, folder)}

    def round(self, folder: Path) -> dict[str, Any]:
        """Measure once, with the inputs in a folder; floating-point values become figures."""
        raise NotImplementedError

    @abstractmethod
    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield the key figures."""

    @abstractmethod
    def detail(self, seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return everything else that is stored, from the figures and the results of all rounds."""


def measure(case: BenchCase, rounds: int, path: Path | None = None, patience: Patience | None = None) -> CaseResult:
    """Measure a case.

    Parameters
    ----------
    case
        What is measured.
    rounds
        Rounds, one after another.
    path
        File of a journal, which a later run can resume; None for none.
    patience
        Time limit, and whether to resume.

    Raises
    ------
    ParityError
        What is compared does not agree.
    OptionError
        The file to resume holds another run.
    """
    here = environment()
    facts = {"case": case.NAME, **case.facts(), "processor": here["processor"], "versions": here["versions"]}
    journal = Journal(path, facts, patience, lambda journal: _result(case, journal, here).to_dict())
    with scratch_folder() as folder:
        case.prepare(folder)
        journal.take_turns(rounds, case.steps(folder))
    return _result(case, journal, here)


def _result(case: BenchCase, journal: Journal, here: dict[str, Any]) -> CaseResult:
    """Return the result so far."""
    rounds = list(journal.results.values())
    names = dict.fromkeys(name for one in rounds for name, value in one.items() if isinstance(value, float))
    seconds = {name: Figure.of(one[name] for one in rounds if name in one) for name in names}
    figures = tuple(case.figures(seconds)) if seconds else ()
    detail = case.detail(seconds, rounds) if seconds else {}
    return CaseResult(now(), here, case.NAME, case.MEASURES, figures, detail, tuple(journal.missing))


def store_drawn(folder: Path, size: tuple[int, int], count: int) -> None:
    """Draw micrographs (H, W) into a folder: drawing takes longer than what is measured."""
    folder.mkdir(exist_ok=True)
    for seed in range(count):
        drawing = draw(size, seed)
        np.savez(folder / f"{seed:03}.npz", frame=drawing.frame, labels=drawing.labels)


def stored(folder: Path) -> list[Drawing]:
    """Return the micrographs that `store_drawn` wrote, in order."""
    drawings = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            drawings.append(Drawing(arrays["frame"], arrays["labels"]))
    return drawings
