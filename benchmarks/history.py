"""What the benchmarks gave, run by run: benchmarks/results/history.jsonl, one line a run.

What the repository's own benchmarks measure is added as they write their JSON. For the contenders of `unetrt bench`::

    python -m unetrt.benchmarks.history benchmarks/results/cpu.json
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import click

from unetrt.benchmarks.commit import commit_of
from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.one_line import OneLine
from unetrt.benchmarks.record import Measure, Record
from unetrt.benchmarks.result import Result, load
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import locked, whole_file

FILE = "history.jsonl"
# Name of the runs of `unetrt bench` on a processor.
CPU = "cpu"


@dataclass(frozen=True)
class Run:
    """A line.

    Attributes
    ----------
    name
        Of the benchmark.
    when
        ISO 8601, UTC.
    version
        Of unetrt; None where it was not noted.
    commit
        What git calls the code, with `-dirty` where it had changes; None outside a clone.
    processor
        Its name.
    figures
        Without their rounds.
    """

    name: str
    when: str
    version: str | None
    commit: str | None
    processor: str | None
    figures: tuple[Measure, ...]

    @classmethod
    def of(
        cls, name: str, when: str, environment: Mapping[str, Any], figures: tuple[Measure, ...], commit: str | None
    ) -> Self:
        """Return the line of a run on a machine."""
        version = environment.get("versions", {}).get("unetrt")
        few = tuple(replace(figure, rounds=()) for figure in figures)
        return cls(name, when, version, commit, environment.get("processor"), few)

    def line(self) -> str:
        """Return the line, with its end."""
        told = asdict(self)
        for figure in told["figures"]:
            del figure["rounds"]
        return json.dumps(told) + "\n"


def keep(record: Record, path: Path) -> None:
    """Write a record as JSON, and add its line to the history beside it."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(record.to_dict(), indent=1) + "\n", encoding="utf-8")
    run = Run.of(record.name, record.when, record.environment, record.figures, commit_of(Path(__file__)))
    add(run, path.with_name(FILE))


def add(run: Run, path: Path) -> bool:
    """Add a run to a history, once; return whether it was new.

    The file is written anew beside its place and renamed, one process at a time: no line is ever cut off or lost.

    Raises
    ------
    OptionError
        What is there is damaged; it is left as it is.
    OutputError
        The folder cannot be written to, or the disk is full.
    """
    with locked(path):
        if any((known.name, known.when) == (run.name, run.when) for known in read(path)):
            return False
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        with whole_file(path, durable=True) as temporary:
            temporary.write_text(before + run.line(), encoding="utf-8")
    return True


def read(path: Path) -> list[Run]:
    """Return all runs in the order of the file, none where there is no file; raises OptionError where it is damaged."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        raise OptionError(f"the last line of {path} is cut off: end it with a line break, or remove it")
    return [_run(line, f"line {number} of {path}") for number, line in enumerate(text.splitlines(), 1)]


def figures_of(result: Result) -> Iterator[Measure]:
    """Yield the key figures of `unetrt bench`: seconds in each way, times the reference, share of the limit."""
    for one in result.contenders:
        for way, seconds in one.seconds.items():
            yield _named(f"{one.name}, {way}", "s", seconds)
        if one.name != result.reference:
            yield _named(f"{one.name} against {result.reference}", "x", one.speedup)
        if one.share is not None:
            yield _named(f"{one.name}, of {one.limit}", "x", one.share)


@click.command(cls=OneLine)
@click.argument("path", type=click.Path(path_type=Path))
def command(path: Path) -> None:
    """Add what `unetrt bench --json PATH` measured to the history beside PATH, once, under the name of the file."""
    result, history = load(path), path.with_name(FILE)
    figures = tuple(figures_of(result))
    new = add(Run.of(path.stem, result.when, result.environment, figures, commit_of(Path(__file__))), history)
    click.echo(f"{history} {'now has' if new else 'already had'} the run of {result.when}")


def _run(line: str, where: str) -> Run:
    try:
        told = json.loads(line)
        return Run(**{**told, "figures": tuple(map(Measure.from_dict, told["figures"]))})
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{where} is no run of a benchmark: remove that line") from error


def _named(name: str, unit: str, figure: Figure) -> Measure:
    return Measure.of(name, unit, asdict(figure))


if __name__ == "__main__":
    command()
