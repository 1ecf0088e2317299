"""The sections of the page: what each says of a result, as HTML."""

import numpy as np

from unetrt.benchmarks import page_plots as plots
from unetrt.benchmarks.markup import Markup, element, joined
from unetrt.benchmarks.page_tables import pairs, table
from unetrt.benchmarks.percentiles import WHY, percentiles
from unetrt.benchmarks.result import PREDICT, SEGMENT, SESSION, WAYS, Measured, Result
from unetrt.benchmarks.table import on_top
from unetrt.benchmarks.verdict import is_ours
from unetrt.benchmarks.wording import count, digits, flat, interval_name, memory, percent, pixels, rate, time, unit_for

# Share of the median that the axis of single runs shows to both sides at least: else steady ones would look wild.
LEAST_SPAN = 0.05


def bars(result: Result) -> Markup:
    """Return the bars, and what their marks are."""
    seconds = [one.seconds[SEGMENT] for one in result.contenders]
    marks = [element("span", element("i", class_="key whisker"), f"{interval_name(seconds)} of the median")]
    if any(one.share for one in result.contenders):
        marks.append(element("span", element("i", class_="key limit"), "the least its arithmetic takes at the limit"))
    return joined(element("p", *marks, class_="legend"), plots.bars(result.contenders))


def contenders(result: Result) -> Markup:
    """Return the table of all figures."""
    unit = unit_for(one.seconds[SEGMENT].median for one in result.contenders)
    rows = []
    for one in result.contenders:
        figure = one.seconds[SEGMENT]
        rows.append(
            {
                "contender": one.title,
                f"median, {unit.name}": digits(figure.median / unit.seconds),
                interval_name([one.seconds[SEGMENT] for one in result.contenders]): unit.interval(figure),
                "times as fast": digits(one.speedup.median),
                "of its limit": f"{percent(one.share.median)} of {one.limit}" if one.share else "",
                "pixels off": pixels(one.pixels_off),
                "peak memory": memory(one.host_memory),
                "memory of the GPU": memory(one.device_memory),
                "joules": digits(one.joules.median) if one.joules else "",
                "tiles": f"{one.tiles} of {one.tile[0]} x {one.tile[1]}",
                "computes in": f"{one.precision}, {one.device}",
            }
        )
    return table(rows, [is_ours(one) for one in result.contenders])


def own_ways(result: Result) -> Markup:
    """Return what unetrt adds to its engine, and what files add."""
    ours = [one for one in result.contenders if is_ours(one)]
    rows = [
        {"contender": one.title, SESSION: "", SEGMENT: "", "on top of the engine": on_top(one), PREDICT: ""}
        for one in ours
    ]
    for told, one in zip(rows, ours, strict=True):
        told |= {way: time(one.seconds[way].median) for way in WAYS if way in one.seconds}
    return table(rows, [True] * len(rows)) if rows else element("p", "unetrt itself was not timed.")


def phases(result: Result) -> Markup:
    """Return each contender's phases as bars against its whole frame."""
    told = [one for one in result.contenders if one.phases]
    return joined(*map(_phases, told)) if told else element("p", "No contender told its phases.")


def _phases(one: Measured) -> Markup:
    whole = one.seconds[SEGMENT].median
    most = max(whole, *one.phases.values())
    rows = [
        element("div", element("span", name), plots.phase_bar(name, seconds, most), element("span", time(seconds)))
        for name, seconds in one.phases.items()
    ]
    heading = element("h3", one.title, element("small", f" {time(whole)} a frame"))
    return element("div", heading, *rows, class_=f"phases {'ours' if is_ours(one) else 'other'}")


def latencies(result: Result) -> Markup:
    """Return all single runs, and their percentiles."""
    told = [one for one in result.contenders if one.latencies]
    if not told:
        return element("p", "No single runs were stored.")
    relative = np.concatenate([np.asarray(one.latencies) / np.median(one.latencies) for one in told])
    low, high = min(1 - LEAST_SPAN, float(relative.min()) - 0.01), max(1 + LEAST_SPAN, float(relative.max()) + 0.01)
    strips = [plots.row(one, plots.strip(one, low, high), count(len(one.latencies), "run")) for one in told]
    rows = [{"contender": one.title, "runs": str(len(one.latencies)), **_percentiles(one)} for one in told]
    few = min(len(one.latencies) for one in told) < 100
    notes = [element("p", WHY, class_="quiet")] if few else []
    return joined(*strips, plots.strip_axis(low, high), table(rows, [is_ours(one) for one in told]), *notes)


def _percentiles(one: Measured) -> dict[str, str]:
    known = percentiles(one.latencies)
    return {f"p{share}": "too few runs" if value is None else time(value) for share, value in known.items()}


def checks(result: Result) -> Markup:
    """Return what was checked of each before it was timed."""
    return table(
        [
            {"contender": one.title, "checked": one.checked, "pixels off": pixels(one.pixels_off)}
            for one in result.contenders
        ],
        [is_ours(one) for one in result.contenders],
    )


def left_out(result: Result) -> Markup:
    """Return who was not timed, and why."""
    if not result.left_out:
        return element("p", "None: every contender was timed.")
    return pairs((one.title, one.reason) for one in result.left_out)


def limits(result: Result) -> Markup:
    """Return what the machine can do at most."""
    if not result.limits:
        return element("p", "No limit was measured.")
    names = {"FLOP/s": "of multiplying matrices", "B/s": "of copying"}
    rows = [
        {
            "limit": one.name,
            "what": f"rate {names.get(one.unit, '')}".strip(),
            "median": rate(one.rate.median, one.unit),
            interval_name(
                [limit.rate for limit in result.limits]
            ): f"{rate(one.rate.low, one.unit)} to {rate(one.rate.high, one.unit)}",
        }
        for one in result.limits
    ]
    return table(rows, [False] * len(rows))


def environment(result: Result) -> Markup:
    """Return the machine and the versions."""
    return pairs(flat(result.environment))
