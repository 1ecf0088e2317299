"""The tables of `unetrt plan`."""

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from unetrt.runtime.calibration import Calibration
    from unetrt.runtime.planner import Budget, PlannedTile


def print_comparison(calibration: "Calibration", measured_as: str) -> None:
    """Print predicted against measured time, tile by tile."""
    from rich.console import Console
    from rich.table import Table

    from unetrt.runtime.calibration import TOLERANCE

    table = Table("other tile", "measured", "predicted", "error", title="predicted against measured")
    for one in calibration.compared:
        table.add_row(_size(one.tile), _time(one.measured), _time(one.predicted), f"{one.error:+.1%}")
    Console().print(table)
    click.echo(f"{measured_as}; {_accuracy(calibration)}")
    if calibration.unsettled:
        click.echo(f"{calibration.unsettled} tiles took different times in every round: something else computes here")
    if not calibration.reliable:
        click.echo(
            f"the worst prediction is off by more than {TOLERANCE:.0%}: the seconds are neither kept nor used; measure "
            "again while nothing else computes here"
        )


def print_plan(
    rows: "list[PlannedTile]",
    best: "PlannedTile",
    usual: "PlannedTile | None",
    budget: "Budget",
    calibration: "Calibration | None",
) -> None:
    """Print the tiles, the best marked, and what it saves against the usual one."""
    from rich.console import Console
    from rich.table import Table

    table = Table("tile", "passes", "GMAC", "useful", "memory", *(("predicted",) if calibration else ()), "")
    for row in [*rows, *([usual] if usual and usual not in rows else [])]:
        fits = "" if row.memory <= budget.memory else "does not fit"
        mark = "best" if row == best else ("the paper's tile" if row is usual else fits)
        table.add_row(
            _size(row.tile), str(row.passes), f"{row.macs / 1e9:.0f}", f"{row.useful:.1%}",
            f"{row.memory / 2**30:.2f} GiB", *_predicted(row), mark,
        )  # fmt: skip
    Console().print(table)
    if usual:
        click.echo(
            f"the best tile needs {best.macs / usual.macs:.0%} of the arithmetic of 572-tiles{_and(best, usual)}"
        )
    click.echo(_source(calibration))
    if calibration and not calibration.covers(best.tile):
        click.echo(f"the largest tile that was measured is {_size(calibration.largest)}: the best one is extrapolated")


def _predicted(row: "PlannedTile") -> tuple[str, ...]:
    return () if row.seconds is None else (_time(row.seconds),)


def _and(best: "PlannedTile", usual: "PlannedTile") -> str:
    if best.seconds is None or usual.seconds is None:
        return ""
    return f" and {best.seconds / usual.seconds:.0%} of their time, as predicted"


def _source(calibration: "Calibration | None") -> str:
    if calibration is None:
        return "ranked by arithmetic: there are no seconds of such a network on this machine (--measure)"
    where = f"on {calibration.measured_on} on this machine ({calibration.setting})"
    return f"seconds as measured {where}; {_accuracy(calibration)}"


def _accuracy(calibration: "Calibration") -> str:
    off = f"{calibration.median:.1%} (median), {calibration.worst:.1%} (worst)"
    return f"predictions were off by {off} over {len(calibration.compared)} tiles that they were not made from"


def _size(tile: tuple[int, int]) -> str:
    return f"{tile[0]}x{tile[1]}"


def _time(seconds: float) -> Any:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
