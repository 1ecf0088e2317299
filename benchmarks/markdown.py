"""Figures and their history as Markdown, for docs/benchmarks.md."""

from collections.abc import Iterator, Sequence
from textwrap import fill

from unetrt.benchmarks.history import Run
from unetrt.benchmarks.record import Measure, Record
from unetrt.benchmarks.terminal import shown, verdict

# Runs of each benchmark that are shown.
LAST = 4


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def paragraph(text: str) -> str:
    """Return text in lines of the width that this repository has."""
    return fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def figures(record: Record) -> str:
    """Return a table of a record's figures."""
    rows = [(one.name, shown(one.median, one.unit), interval(one), verdict(one)) for one in record.figures]
    return table(("", "median", "interval", "goal"), rows)


def interval(figure: Measure) -> str:
    """Return the ends of a figure's interval, said to be a range where none is claimed; nothing of a single round."""
    if figure.low is None or figure.high is None:
        return "one round"
    low, high = shown(figure.low, figure.unit), shown(figure.high, figure.unit)
    (number, unit) = low.split(" ", 1)
    both = f"{number} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"
    return f"{both}{'' if figure.coverage is not None else ' (range)'}"


def history(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a table of the last of some runs, a row a figure, and by how much the last one changed it."""
    if not runs:
        return
    runs = runs[-LAST:]
    known = [{figure.name: figure for figure in run.figures} for run in runs]
    # Those of the last run first, in its order.
    names = dict.fromkeys(name for figures in reversed(known) for name in figures)
    alike = len(runs) > 1 and runs[-1].processor == runs[-2].processor
    rows = []
    for name in names:
        told = [figures.get(name) for figures in known]
        medians = [shown(one.median, one.unit) if one else "" for one in told]
        rows.append((name, *medians, changed(*told[-2:]) if alike else ""))
    yield "The last runs:\n"
    yield table(("", *map(title, runs), "change"), rows)


def title(run: Run) -> str:
    """Return when a run was, and of which code."""
    return f"{day(run.when)}, {run.commit or run.version or 'unknown code'}"


def day(when: str) -> str:
    """Return day and minute of an ISO 8601 time."""
    return when[:16].replace("T", " ")


def changed(before: Measure | None, now: Measure | None) -> str:
    """Return by how much a figure changed, in bold where the intervals do not overlap."""
    if before is None or now is None:
        return ""
    change = f"{100 * (now.median / before.median - 1):+.1f} %"
    if before.low is None or before.high is None or now.low is None or now.high is None:
        return change
    better = (now.median < before.median) == now.less_is_better
    apart = now.low > before.high or now.high < before.low
    return f"**{change}, {'better' if better else 'worse'}**" if apart else change
