"""The terminal: tables of results and comparisons, and errors in one line."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unetrt._exit_codes import STOPPED, exit_code
from unetrt.benchmarks.compare import Change, ChangeVerdict, Comparison
from unetrt.benchmarks.figures import (
    Unit,
    count,
    digits,
    interval_name,
    memory,
    percent,
    percentiles,
    pixels,
    rate,
    shown,
    time,
    unit_for,
)
from unetrt.benchmarks.findings import case, doubts, headline, leader
from unetrt.benchmarks.result import OBJECTS, PREDICT, SEGMENT, SESSION, BenchResult, CaseResult, Measure, Measured
from unetrt.runtime.errors import UnetrtError, one_line

# Cells below which a column of titles is hard to read.
NARROWEST = 20
# Columns of figures that only some results have, by heading.
OPTIONAL: dict[str, Callable[[Measured], str]] = {
    "peak\nmemory": lambda one: memory(one.host_memory),
    "of the\nGPU": lambda one: memory(one.device_memory),
    "J a\nframe": lambda one: digits(one.joules.median) if one.joules else "",
}
STYLES = {
    ChangeVerdict.FASTER: "bold green",
    ChangeVerdict.SLOWER: "bold red",
    ChangeVerdict.SAME: "",
    ChangeVerdict.TOO_FEW: "dim",
}
HOW = (
    "outside the noise: the 95 % intervals do not overlap. Where the machine's limit changed outside the noise, the"
    " verdict is of the time relative to it."
)


class OneLine(click.Command):
    """A command that prints errors of unetrt in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; exit with the status of our errors."""
        try:
            return super().invoke(ctx)
        except UnetrtError as error:
            text, status = one_line(error), exit_code(error)
        except KeyboardInterrupt:
            text, status = "stopped by the user", STOPPED
        click.echo(f"Error: {text}", err=True)
        return ctx.exit(status)


class FoldingTable:
    """A table for a terminal of any width: titles on the left, figures on the right, which are never broken or cut.

    Where it does not fit, each row becomes a title and a line of figures below it.

    Parameters
    ----------
    title
        Heading of the titles.
    headings
        Headings of the figures; may have several lines.
    """

    def __init__(self, title: str, *headings: str) -> None:
        self.title, self.headings = title, headings
        self._rows: list[tuple[str, tuple[str, ...], str]] = []

    def add(self, title: str, figures: Iterable[str], style: str = "") -> None:
        """Add a row; `title` is plain text, without markup."""
        self._rows.append((title, tuple(figures), style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table()
        if Measurement.get(console, options.update(width=1000), table).minimum <= options.max_width:
            yield table
            return
        yield Text(self.title, "bold")
        for title, figures, style in self._rows:
            yield Text(title, style)
            yield Padding(Text(self._line(figures)), (0, 0, 0, 2))

    def _table(self) -> Table:
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
        drawn.add_column(self.title, overflow="fold", min_width=NARROWEST)
        for column, heading in enumerate(self.headings):
            cells = [row[1][column] for row in self._rows]
            # Without a minimum width a column may be broken between two words.
            drawn.add_column(heading, justify="right", min_width=max(map(cell_len, (*heading.split("\n"), *cells))))
        for title, figures, style in self._rows:
            drawn.add_row(Text(title), *map(Text, figures), style=style)
        return drawn

    def _line(self, figures: tuple[str, ...]) -> str:
        names = (heading.replace("\n", " ") for heading in self.headings)
        return ", ".join(f"{name} {figure}" for name, figure in zip(names, figures, strict=True) if figure)


def figures_table(result: CaseResult) -> RenderableType:
    """Return the key figures of a benchmark of this repository."""
    drawn = FoldingTable("figure", "median", "from", "to", "goal")
    for one in result.figures:
        ends = ["" if end is None else shown(end, one.unit) for end in (one.low, one.high)]
        drawn.add(one.name, [shown(one.median, one.unit), *ends, goal(one)])
    return Group(Text(f"{result.name}, {result.environment.get('processor', 'unknown processor')}", "bold"), drawn)


def goal(figure: Measure) -> str:
    """Return the goal and whether it is met; an empty text without one."""
    if figure.goal is None:
        return ""
    return f"{shown(figure.goal, figure.unit)}, {'met' if figure.met else 'MISSED'}"


def bench_table(result: BenchResult) -> RenderableType:
    """Return a result for 100 columns: headline, doubts, all contenders, and the figures behind them."""
    first = [Text(headline(result), "bold"), *(Text(f"! {doubt}", "yellow") for doubt in doubts(result))]
    rounds = min(len(one.segment.rounds) for one in result.contenders)
    about = Text(f"{case(result)}, {count(rounds, 'round')}", "dim")
    behind = (
        *_to_objects(result),
        *_own_ways(result),
        *_latencies(result),
        *_phases(result),
        *_left_out(result),
        _limits(result),
    )
    return Group(*first, about, _contenders(result), *behind)


def _contenders(result: BenchResult) -> FoldingTable:
    seconds = [one.segment for one in result.contenders]
    unit = unit_for(figure.median for figure in seconds)
    optional = {heading: cell for heading, cell in OPTIONAL.items() if any(map(cell, result.contenders))}
    headings = (
        f"median\n({unit.name})",
        interval_name(seconds).replace("% ", "%\n"),
        "times\nas fast",
        "of\nlimit",
        "pixels\noff",
        *optional,
    )
    drawn = FoldingTable(SEGMENT, *headings)
    best = leader(result)
    for one in result.contenders:
        style = "bold green" if one is best else "bold" if one.is_ours else ""
        drawn.add(one.title, [*_figures(one, unit), *(cell(one) for cell in optional.values())], style)
    return drawn


def _figures(one: Measured, unit: Unit) -> Iterator[str]:
    yield digits(one.segment.median / unit.seconds)
    yield unit.interval(one.segment)
    yield digits(one.speedup.median)
    yield percent(one.share.median) if one.share else ""
    yield pixels(one.pixels_off)


def _to_objects(result: BenchResult) -> Iterator[FoldingTable]:
    """Yield the times from frame to objects, with scikit-image's watershed but for unetrt."""
    timed = [one for one in result.contenders if OBJECTS in one.seconds]
    if not timed:
        return
    drawn = FoldingTable(OBJECTS, "median", f"times as fast as\n{result.reference}")
    usual = result[result.reference].seconds.get(OBJECTS)
    for one in timed:
        ratio = "" if usual is None else digits((usual / one.seconds[OBJECTS]).median)
        drawn.add(one.title, [time(one.seconds[OBJECTS].median), ratio], "bold" if one.is_ours else "")
    yield drawn


def _own_ways(result: BenchResult) -> Iterator[FoldingTable]:
    """Yield unetrt's time with the engine alone, in memory, and from file to file."""
    ours = [one for one in result.contenders if one.is_ours]
    if not ours:
        return
    drawn = FoldingTable("unetrt's own ways", SESSION, SEGMENT, "on top", PREDICT, "Mpixel/s")
    height, width = result.frame
    for one in ours:
        times = [time(one.seconds[way].median) if way in one.seconds else "" for way in (SESSION, SEGMENT, PREDICT)]
        times.insert(2, _on_top(one))
        drawn.add(one.title, [*times, digits(height * width / one.segment.median / 1e6)])
    yield drawn


def _on_top(one: Measured) -> str:
    """Return the time that unetrt adds to its engine's, in per cent of it, round by round."""
    if SESSION not in one.seconds:
        return ""
    return f"{100 * ((one.segment / one.seconds[SESSION]).median - 1):+.1f} %"


def _latencies(result: BenchResult) -> Iterator[RenderableType]:
    """Yield percentiles of those of unetrt's contenders that have enough runs for p95."""
    found = {one.title: percentiles(one.latencies) for one in result.contenders if one.is_ours}
    enough = {title: ranks for title, ranks in found.items() if ranks[95] is not None}
    if enough:
        yield Text("latencies of single frames", "dim")
    for title, ranks in enough.items():
        yield _item(title, ", ".join(f"p{rank} {time(value)}" for rank, value in ranks.items() if value is not None))


def _phases(result: BenchResult) -> Iterator[RenderableType]:
    known = [one for one in result.contenders if one.phases]
    if known:
        yield Text("phases of a frame, median; they may overlap", "dim")
    for one in known:
        yield _item(one.title, ", ".join(f"{name} {time(seconds)}" for name, seconds in one.phases.items()))


def _left_out(result: BenchResult) -> Iterator[RenderableType]:
    if result.left_out:
        yield Text("left out", "dim")
    for one in result.left_out:
        yield _item(one.title, one.reason)


def _limits(result: BenchResult) -> RenderableType:
    rates = [f"{one.name} {rate(one.rate.median, one.unit)}" for one in result.limits]
    return Text("limits of the machine: ", "dim").append(", ".join(rates) or "not measured", "default")


def _item(title: str, what: str) -> RenderableType:
    return Padding(Text.assemble((title, "bold"), ": ", what), (0, 0, 0, 2))


def compare_table(comparison: Comparison) -> RenderableType:
    """Return a comparison: warnings, what changed in sentences, then all figures and every other difference."""
    return Group(*_sentences(comparison), *_changes(comparison), *_rest(comparison))


def _sentences(comparison: Comparison) -> Iterator[Text]:
    for warning in comparison.warnings:
        yield Text(f"! {warning}", "yellow")
    for sentence in comparison.summary:
        yield Text(sentence, "bold")


def _changes(comparison: Comparison) -> Iterator[RenderableType]:
    if not comparison.changes:
        return
    drawn = FoldingTable("median", "before", "after", "after /\nbefore", "relative to\nthe limit", "verdict")
    for change in comparison.changes:
        drawn.add(change.title, _row(change), STYLES[change.verdict])
    yield drawn
    yield Text(HOW, "dim")


def _row(change: Change) -> list[str]:
    seconds = change.seconds
    relative = digits(change.relative.ratio) if change.relative else ""
    times = [time(seconds.before.median), time(seconds.after.median)]
    return [*times, digits(seconds.ratio), relative, change.verdict.value]


def _rest(comparison: Comparison) -> Iterator[Text]:
    for name, (shift, unit) in comparison.limits.items():
        known = "outside the noise" if shift.outside else "within the noise" if shift.enough else "too few rounds"
        rates = f"{rate(shift.before.median, unit)} -> {rate(shift.after.median, unit)}, {known}"
        yield _difference("limit", f"{name} {rates}")
    for mismatch in comparison.mismatches:
        yield _difference("differs", str(mismatch))
    for one in comparison.went:
        yield _difference("only before", one)
    for one in comparison.came:
        yield _difference("only after", one)


def _difference(heading: str, what: str) -> Text:
    return Text.assemble((f"{heading}  ", "dim"), what)
