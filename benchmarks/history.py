"""The history of all benchmarks: benchmarks/results/history.jsonl, one line a run.

A benchmark of this repository adds its line when it writes its JSON. For the contenders of `unetrt bench`::

    python -m unetrt.benchmarks.cases history benchmarks/results/cpu.json
"""

import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import which
from typing import Self

from unetrt.benchmarks.result import BenchResult, CaseResult, Measure
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import locked, whole_file
from unetrt.runtime.records import from_json, to_json

FILE = "history.jsonl"
# Paths in a clone that a measurement itself changes.
NOT_CODE = (":(exclude,top)benchmarks/results", ":(exclude,top)docs")


@dataclass(frozen=True)
class HistoryEntry:
    """A line.

    Attributes
    ----------
    name
        Name of the benchmark.
    when
        ISO 8601, UTC.
    version
        Version of unetrt; None where it was not noted.
    commit
        Git's short hash of the code, with `-dirty` where it had changes; None outside a clone.
    processor
        Name of the processor.
    figures
        The key figures, without their rounds.
    """

    name: str
    when: str
    version: str | None
    commit: str | None
    processor: str | None
    figures: tuple[Measure, ...]

    @classmethod
    def of(cls, name: str, result: BenchResult | CaseResult) -> Self:
        """Return the line of a result of this code."""
        version = result.environment.get("versions", {}).get("unetrt")
        figures = tuple(replace(figure, rounds=()) for figure in result.figures)
        processor = result.environment.get("processor")
        return cls(name, result.when, version, commit_of(Path(__file__)), processor, figures)

    def line(self) -> str:
        """Return the line of JSON, with its line break."""
        stored = asdict(self)
        for figure in stored["figures"]:
            del figure["rounds"]
        return to_json(stored, indent=0) + "\n"


def keep(result: CaseResult, path: Path) -> None:
    """Write a result as JSON, and add its line to the history in the same folder."""
    result.save(path)
    add(HistoryEntry.of(result.name, result), path.with_name(FILE))


def add(entry: HistoryEntry, path: Path) -> bool:
    """Add a run to a history unless it is there; return whether it was new.

    The file is replaced atomically, under a lock: no line is ever cut off or lost.

    Raises
    ------
    OptionError
        The file is damaged; it is left as it is.
    OutputError
        The folder cannot be written to, or the disk is full.
    """
    with locked(path):
        if any((known.name, known.when) == (entry.name, entry.when) for known in read(path)):
            return False
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        with whole_file(path, durable=True) as temporary:
            temporary.write_text(before + entry.line(), encoding="utf-8")
    return True


def read(path: Path) -> list[HistoryEntry]:
    """Return all runs in the order of the file, [] without a file; raises OptionError where it is damaged."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        raise OptionError(f"the last line of {path} is cut off: end it with a line break, or remove it")
    return [_entry(line, f"line {number} of {path}") for number, line in enumerate(text.splitlines(), 1)]


def _entry(line: str, name: str) -> HistoryEntry:
    try:
        return from_json(line, HistoryEntry, name, OptionError)
    except OptionError as error:
        raise OptionError(f"{error}; each line is a run of a benchmark: remove this one") from error


def commit_of(file: Path) -> str | None:
    """Return git's name of the code that holds a file; None without git, outside a clone, or for an untracked file."""
    git = which("git")
    if git is None or _git(git, file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    changed = _git(git, file, "status", "--porcelain", "--untracked-files=no", "--", ":/", *NOT_CODE)
    return f"{_git(git, file, 'rev-parse', '--short=10', 'HEAD')}{'-dirty' if changed else ''}"


def _git(git: str, file: Path, *arguments: str) -> str | None:
    done = subprocess.run([git, *arguments], cwd=file.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
