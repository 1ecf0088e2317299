"""The plots of the page, as SVG whose places are per cent: they fill any width, and their text keeps its size."""

from collections.abc import Callable, Sequence
from math import floor, log10

import numpy as np

from unetrt.benchmarks.markup import Markup, element, joined
from unetrt.benchmarks.result import SEGMENT, Measured
from unetrt.benchmarks.verdict import is_ours, shortest
from unetrt.benchmarks.wording import Unit, digits, interval_name, percent, time, unit_for

# Share of a plot's width up to its largest value.
FILLED = 0.97


def bars(contenders: Sequence[Measured]) -> Markup:
    """Return one bar a contender, with its interval and the least time that its arithmetic takes at the limit."""
    seconds = [one.seconds[SEGMENT] for one in contenders]
    unit, most = unit_for(figure.median for figure in seconds), max(figure.high for figure in seconds) / FILLED
    rows = [
        row(one, _bar(one, unit, most), element("b", unit.of(one.seconds[SEGMENT])), f" {times_as_fast(one)}")
        for one in contenders
    ]
    return joined(*rows, _axis(0, most, lambda value: f"{value / unit.seconds:g}", f"{unit.name} a frame"))


def row(one: Measured, plot: Markup, *value: str) -> Markup:
    """Return a contender's title, plot and value, side by side or, where it is narrow, below each other."""
    title = element("span", one.title, class_="title")
    return element("div", title, plot, element("span", *value, class_="value"), class_=f"row {_side(one)}")


def _bar(one: Measured, unit: Unit, most: float) -> Markup:
    figure, least = one.seconds[SEGMENT], shortest(one)
    told = f"{one.title}: {unit.of(figure)} a frame, {interval_name([figure])} {unit.interval(figure)} {unit.name}"
    marks = [
        element("rect", x="0", y="5", width=_at(figure.median, most), height="18", rx="2", class_="bar"),
        *(_line(value, value, (9, 19), most, "whisker") for value in (figure.low, figure.high)),
        _line(figure.low, figure.high, (14, 14), most, "whisker"),
    ]
    if least is not None:
        told += f"; at the limit its arithmetic takes {time(least.median)}"
        marks.append(_line(least.median, least.median, (1, 27), most, "limit"))
    return picture(told, 28, *marks)


def strip(one: Measured, low: float, high: float) -> Markup:
    """Return every single run of a contender as a dot, in per cent of its median, and the box of the middle half."""
    relative = np.asarray(one.latencies) / np.median(one.latencies) - low
    first, middle, third = (float(value) for value in np.percentile(relative, (25, 50, 75)))
    span = high - low
    box = element("rect", x=_at(first, span), y="7", width=_at(third - first, span), height="16", class_="box")
    # Five heights in turn keep equal runs apart; random ones would differ from page to page.
    dots = [
        element("circle", cx=_at(float(value), span), cy=str(9 + 3 * (index * 2 % 5)), r="2.5", class_="dot")
        for index, value in enumerate(relative)
    ]
    worst = float(relative.max() + low)
    told = f"{one.title}: {len(dots)} runs, the slowest {percent(worst)} of the median"
    return picture(told, 30, box, *dots, _line(middle, middle, (4, 26), span, "middle"))


def strip_axis(low: float, high: float) -> Markup:
    """Return the axis of strips."""
    return _axis(low, high, lambda value: f"{100 * value:.0f}", "% of its own median")


def phase_bar(name: str, seconds: float, most: float) -> Markup:
    """Return the bar of one phase."""
    return picture(
        f"{name}: {time(seconds)}",
        12,
        element("rect", x="0", y="1", width=_at(seconds, most), height="10", class_="bar"),
    )


def picture(told: str, height: int, *marks: Markup) -> Markup:
    """Return an SVG that fills its width; `told` says in words what it shows."""
    return element("svg", element("title", told), *marks, role="img", aria_label=told, height=str(height))


def times_as_fast(one: Measured) -> str:
    """Return how many times as fast as the reference a contender is."""
    return f"{digits(one.speedup.median)} times"


def _axis(low: float, high: float, label: Callable[[float], str], unit: str) -> Markup:
    places = ticks(low, high)
    marks = [
        joined(
            element("line", x1=_at(value - low, high - low), x2=_at(value - low, high - low), y1="0", y2="4"),
            element("text", label(value), x=_at(value - low, high - low), y="17", class_="tick"),
        )
        for value in places
    ]
    line = element("line", x1="0", x2="100%", y1="0.5", y2="0.5")
    drawn = element("svg", line, *marks, class_="axis", height="22", aria_hidden="true")
    return element("div", element("span", class_="title"), drawn, element("span", unit, class_="value"), class_="row")


def ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers between two."""
    rough = (high - low) / 4 * (1 - 1e-9)
    power = 10.0 ** floor(log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [step * index for index in range(first, last + 1)]


def _line(start: float, end: float, heights: tuple[int, int], most: float, kind: str) -> Markup:
    top, bottom = map(str, heights)
    return element("line", x1=_at(start, most), x2=_at(end, most), y1=top, y2=bottom, class_=kind)


def _at(value: float, most: float) -> str:
    return f"{100 * value / most:.3f}%"


def _side(one: Measured) -> str:
    return "ours" if is_ours(one) else "other"
