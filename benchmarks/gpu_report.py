"""What a GPU's figures are for people: a table, the goals, and for each that is missed where the time goes."""

from collections.abc import Iterator
from typing import Any

from unetrt.benchmarks.gpu_goals import GOALS, Verdict
from unetrt.benchmarks.gpu_ours import PHASES

# What phases are of: those by the host's clock, one after another, and those by the GPU's, which overlap with them.
ON_GPU = ("upload", "compute", "download")


def table(case: dict[str, Any]) -> Any:
    """Return a case's figures as a rich renderable."""
    from rich.table import Table

    columns = ("frames/s", "range", "Mpixel/s", "GPU computes", "of matmul", "p50", "p99")
    tile, matmul = "x".join(map(str, case["tile"])), case["matmul_teraflops"]["median"]
    title = f"{case['case']}, tile {tile}; dense FP16 matmul {matmul:.0f} TFLOP/s; {case['session']}"
    drawn = Table("contender", *columns, title=title)
    for name, figure in case["torch"].items():
        if "alone" not in name:
            drawn.add_row(f"torch, {name}", *_speed(figure, case["size"]))
    for name, one in case["unetrt"].items():
        shares = (f"{100 * one[share]:.1f} %" for share in ("busy", "matmul_share"))
        latency = (_milliseconds(one["latency"][rank]) for rank in ("p50", "p99"))
        drawn.add_row(name, *_speed(one["seconds"], case["size"]), *shares, *latency)
    return drawn


def lines(case: dict[str, Any]) -> Iterator[str]:
    """Yield each goal with its figure, and the phases of the fastest where one is missed."""
    told = [_verdict(stored) for stored in case["verdicts"]]
    yield from map(str, told)
    if not all(verdict.met for verdict in told):
        yield from phase_lines(case["unetrt"][case["fastest"]])


def phase_lines(one: dict[str, Any]) -> Iterator[str]:
    """Yield where the time of a frame goes; what the GPU's clock says overlaps with what the host's does."""
    yield f"where the {_milliseconds(one['seconds']['median'])} of a frame go:"
    for phase in PHASES:
        clock = "GPU" if phase in ON_GPU else "host"
        share = one["phases"][phase] / one["seconds"]["median"]
        yield f"  {phase:10s} {_milliseconds(one['phases'][phase]):>10s}  {100 * share:5.1f} %  ({clock})"


def _verdict(stored: dict[str, Any]) -> Verdict:
    goal = next(goal for goal in GOALS if goal.name == stored["goal"])
    return Verdict(goal, stored["value"])


def _speed(figure: dict[str, Any], size: tuple[int, int]) -> tuple[str, str, str]:
    slow, fast = 1 / figure["high"], 1 / figure["low"]
    megapixels = size[0] * size[1] / figure["median"] / 1e6
    return f"{1 / figure['median']:.2f}", f"{slow:.2f} - {fast:.2f}", f"{megapixels:.1f}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f} ms"
