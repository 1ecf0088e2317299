"""Figures for people, at a terminal and on a page."""

from typing import Any

from unetrt.benchmarks.record import Measure, Record


def table(record: Record) -> Any:
    """Return a record's figures for a terminal, a rich renderable."""
    from rich.table import Table

    title = f"{record.name}, {record.environment.get('processor', 'unknown processor')}"
    drawn = Table("figure", "median", "from", "to", "goal", title=title, box=None)
    for figure in record.figures:
        drawn.add_row(figure.name, shown(figure.median, figure.unit), *ends(figure), verdict(figure))
    return drawn


def shown(value: float, unit: str) -> str:
    """Return a value with its unit, in three digits or more; seconds below 1 in milliseconds."""
    if unit == "s" and value < 1:
        return f"{_digits(1e3 * value)} ms"
    return f"{_digits(value)} {unit}"


def ends(figure: Measure) -> tuple[str, str]:
    """Return the ends of a figure's interval; nothing where there is none."""
    if figure.low is None or figure.high is None:
        return "", ""
    return shown(figure.low, figure.unit), shown(figure.high, figure.unit)


def verdict(figure: Measure) -> str:
    """Return the goal and whether it was reached; nothing where there is none."""
    if figure.goal is None:
        return ""
    return f"{shown(figure.goal, figure.unit)}, {'met' if figure.met else 'MISSED'}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
