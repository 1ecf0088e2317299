"""A result for a terminal: who is fastest, by how much, whether to believe it, and what lies behind."""

from collections.abc import Callable, Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from unetrt.benchmarks.folding import FoldingTable
from unetrt.benchmarks.percentiles import percentiles
from unetrt.benchmarks.result import PREDICT, SEGMENT, SESSION, Measured, Result
from unetrt.benchmarks.verdict import case, doubts, headline, is_ours, leader, least_rounds
from unetrt.benchmarks.wording import (
    Unit,
    count,
    digits,
    interval_name,
    memory,
    percent,
    pixels,
    rate,
    time,
    unit_for,
)

# Columns of figures that only some results know, by heading.
OPTIONAL: dict[str, Callable[[Measured], str]] = {
    "peak\nmemory": lambda one: memory(one.host_memory),
    "of the\nGPU": lambda one: memory(one.device_memory),
    "J a\nframe": lambda one: digits(one.joules.median) if one.joules else "",
}


def table(result: Result) -> RenderableType:
    """Return a renderable for 100 columns; in narrower terminals titles are folded, and nothing is cut."""
    told = [Text(headline(result), "bold"), *(Text(f"! {doubt}", "yellow") for doubt in doubts(result))]
    about = Text(f"{case(result)}, {count(least_rounds(result), 'round')}", "dim")
    behind = (*_own_ways(result), *_latencies(result), *_phases(result), *_left_out(result), _limits(result))
    return Group(*told, about, _contenders(result), *behind)


def _contenders(result: Result) -> FoldingTable:
    seconds = [one.seconds[SEGMENT] for one in result.contenders]
    unit = unit_for(figure.median for figure in seconds)
    optional = {heading: told for heading, told in OPTIONAL.items() if any(map(told, result.contenders))}
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
        style = "bold green" if one is best else "bold" if is_ours(one) else ""
        drawn.add(one.title, [*_figures(one, unit), *(told(one) for told in optional.values())], style)
    return drawn


def _figures(one: Measured, unit: Unit) -> Iterator[str]:
    figure = one.seconds[SEGMENT]
    yield digits(figure.median / unit.seconds)
    yield unit.interval(figure)
    yield digits(one.speedup.median)
    yield percent(one.share.median) if one.share else ""
    yield pixels(one.pixels_off)


def _own_ways(result: Result) -> Iterator[FoldingTable]:
    """Yield how much of unetrt's time is the engine's, and how much more it takes with both files."""
    ours = list(filter(is_ours, result.contenders))
    if not ours:
        return
    drawn = FoldingTable("unetrt's own ways", SESSION, SEGMENT, "on top", PREDICT, "Mpixel/s")
    for one in ours:
        times = [_time(one, SESSION), _time(one, SEGMENT), on_top(one), _time(one, PREDICT)]
        drawn.add(one.title, [*times, digits(megapixels(one, result))])
    yield drawn


def megapixels(one: Measured, result: Result) -> float:
    """Return how many million pixels a second a contender labels, by its median."""
    height, width = result.frame
    return height * width / one.seconds[SEGMENT].median / 1e6


def _latencies(result: Result) -> Iterator[RenderableType]:
    """Yield p50, p95 and p99 of those of unetrt's that have runs enough for the second."""
    told = {one.title: percentiles(one.latencies) for one in filter(is_ours, result.contenders)}
    enough = {title: found for title, found in told.items() if found[95] is not None}
    if enough:
        yield Text("latencies of single frames", "dim")
    for title, found in enough.items():
        yield _item(title, ", ".join(f"p{rank} {time(value)}" for rank, value in found.items() if value is not None))


def _time(one: Measured, way: str) -> str:
    return time(one.seconds[way].median) if way in one.seconds else ""


def on_top(one: Measured) -> str:
    """Return what unetrt adds to its engine's time, in per cent of it, round by round; nothing where not timed."""
    if SESSION not in one.seconds:
        return ""
    added = one.seconds[SEGMENT] / one.seconds[SESSION]
    return f"{100 * (added.median - 1):+.1f} %"


def _phases(result: Result) -> Iterator[RenderableType]:
    told = [one for one in result.contenders if one.phases]
    if told:
        yield Text("phases of a frame, median; they may overlap", "dim")
    for one in told:
        yield _item(one.title, ", ".join(f"{name} {time(seconds)}" for name, seconds in one.phases.items()))


def _left_out(result: Result) -> Iterator[RenderableType]:
    if result.left_out:
        yield Text("left out", "dim")
    for one in result.left_out:
        yield _item(one.title, one.reason)


def _limits(result: Result) -> RenderableType:
    told = [f"{one.name} {rate(one.rate.median, one.unit)}" for one in result.limits]
    return Text("limits of the machine: ", "dim").append(", ".join(told) or "not measured", "default")


def _item(title: str, what: str) -> RenderableType:
    return Padding(Text.assemble((title, "bold"), ": ", what), (0, 0, 0, 2))
