"""How fast a host can feed a GPU: measure grey values, cut, normalise and stitch, around lanes that compute nothing.

One process on one core::

    python -m unetrt.benchmarks.host_path --json benchmarks/results/host.json
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click
import numpy as np

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.fresh import fresh, one_core, store_drawn, stored
from unetrt.benchmarks.history import keep
from unetrt.benchmarks.idle_path import HEADS, INPUTS, IdlePath, Seconds
from unetrt.benchmarks.one_line import OneLine
from unetrt.benchmarks.record import Measure, Record
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.machine import processor

NAME = "host-path"
MEASURES = (
    "What the host does to each frame, on one core: measure grey values, cut tiles, normalise and stitch, around lanes "
    "that compute nothing, beside a plain copy of memory."
)
# Mpixel/s on one core, or this share of the rate at which memory is copied, whichever is lower.
GOAL, GOAL_OF_COPY = 500.0, 0.1
# In a round each case runs so often uncounted, then counted; each time with another frame, so that no cache still
# holds one from the last time.
WARM_UP, COUNTED = 1, 2
# Bytes that are copied to learn how fast memory is: far more than a cache holds.
COPIED = 1 << 28
# Cases whose rates are kept in the history: what is asked most, what GPUs want, and the least that there is to do.
KEPT = (("percentile", "logits"), ("percentile", "labels"), ("raw uint16", "labels"))

# Of one round: a figure each of the copy, and of the phases of each case.
Round = tuple[float, list[Seconds]]


def host_path(size: tuple[int, int], tiles: Sequence[int], rounds: int, copied: int = COPIED) -> dict[str, Any]:
    """Time a plain copy and all cases (tile, input, head), interleaved, on one core.

    Parameters
    ----------
    size
        Height and width of the drawn frames, pixels.
    tiles
        Sides of tiles, legal at depth 4.
    rounds
        Processes, one after another; each gives the mean of `COUNTED` measurements.
    copied
        Bytes of the copy.

    Returns
    -------
    What JSON stores as the detail. Rates are in Mpixel/s, 10^6 pixels; the copy's counts the 2 bytes of a uint16.
    """
    with TemporaryDirectory() as folder:
        store_drawn(Path(folder), size, WARM_UP + COUNTED)
        taken = [fresh(_round, Path(folder), size, tuple(tiles), copied) for _ in range(rounds)]
    copies = Figure.of([copy for copy, _ in taken])
    rate = copied / 2 / copies.median / 1e6
    by_path = zip(*(cases for _, cases in taken), strict=True)
    return {
        "frame": list(size),
        "copy": {"bytes": copied, "seconds": asdict(copies), "rate": rate},
        "goal": min(GOAL, GOAL_OF_COPY * rate),
        "cases": [_case(path, seconds) for path, seconds in zip(_paths(size, tiles), by_path, strict=True)],
    }


def figures(detail: Mapping[str, Any]) -> Iterator[Measure]:
    """Yield the key figures of what `host_path` gave: rates of whole frames, of cutting and stitching, and of the copy.

    Cutting raw grey values and stitching labels move pixels and do nothing else.
    """
    pixels = detail["frame"][0] * detail["frame"][1] / 1e6
    for case in detail["cases"]:
        name, seconds = f"{case['tile']}: {case['input']}, {case['head']}", case["seconds"]
        if (case["input"], case["head"]) in KEPT:
            yield Measure.rate(name, "Mpixel/s", pixels, seconds["total"], detail["goal"])
        if (case["input"], case["head"]) == ("raw uint16", "labels"):
            yield Measure.rate(f"{case['tile']}: cut alone", "Mpixel/s", pixels, seconds["cut"])
            yield Measure.rate(f"{case['tile']}: stitch alone, labels", "Mpixel/s", pixels, seconds["stitch"])
        if (case["input"], case["head"]) == ("raw uint16", "logits"):
            yield Measure.rate(f"{case['tile']}: stitch alone, logits", "Mpixel/s", pixels, seconds["stitch"])
    worst = max(detail["cases"], key=lambda case: case["seconds"]["total"]["median"])
    yield Measure.rate("slowest case", "Mpixel/s", pixels, worst["seconds"]["total"], detail["goal"])
    yield Measure.rate("copy of uint16", "Mpixel/s", detail["copy"]["bytes"] / 2e6, detail["copy"]["seconds"])


def _paths(size: tuple[int, int], tiles: Sequence[int]) -> list[IdlePath]:
    return [IdlePath(size, *case) for case in product(tiles, INPUTS, HEADS)]


def _round(folder: Path, size: tuple[int, int], tiles: tuple[int, ...], copied: int) -> Round:
    frames, copy = [drawing.frame for drawing in stored(folder)], _copy(copied)
    with one_core():
        copies = [copy() for _ in frames]
        cases = []
        for path in _paths(size, tiles):
            # Lanes for one case at a time: those of all would not fit into memory together.
            with path.open() as segmenter:
                turns = [path.take(segmenter, frame) for frame in frames]
            cases.append(Seconds(*np.mean(turns[WARM_UP:], axis=0).tolist()))
    return float(np.mean(copies[WARM_UP:])), cases


def _copy(size: int) -> Callable[[], float]:
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)

    def run() -> float:
        begin = perf_counter()
        np.copyto(target, source)
        return perf_counter() - begin

    return run


def _case(path: IdlePath, taken: Sequence[Seconds]) -> dict[str, Any]:
    phases = {phase: Figure.of(values) for phase, values in zip(Seconds._fields, zip(*taken, strict=True), strict=True)}
    return {
        "tile": path.side,
        "tiles": len(path.spec.plan(path.labels.shape)),
        "input": path.input_name,
        "head": path.head_name,
        "rate": path.labels.size / phases["total"].median / 1e6,
        "seconds": {phase: asdict(figure) for phase, figure in phases.items()},
    }


def table(result: dict[str, Any]) -> Any:
    """Return a table for a terminal, a rich renderable."""
    from rich.table import Table

    height, width = result["frame"]
    title = f"{height} x {width} uint16, one core, {processor()}; milliseconds"
    drawn = Table("tiles", "input", "head", *Seconds._fields, "interval", "Mpixel/s", title=title, box=None)
    for case in result["cases"]:
        total = case["seconds"]["total"]
        medians = [f"{1e3 * case['seconds'][phase]['median']:.2f}" for phase in Seconds._fields]
        span = f"{1e3 * total['low']:.1f}-{1e3 * total['high']:.1f}"
        tiles = f"{case['tiles']} of {case['tile']}"
        drawn.add_row(tiles, case["input"], case["head"], *medians, span, f"{case['rate']:.0f}")
    return drawn


@click.command(cls=OneLine)
@click.option("--side", default=2048, show_default=True, help="Height and width of the drawn frames, pixels.")
@click.option("--tile", "tiles", multiple=True, default=(2236, 1212), show_default=True, help="Sides of tiles.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Processes.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
def command(side: int, tiles: tuple[int, ...], rounds: int, json_path: Path | None) -> None:
    """Time what the host does to each frame, around lanes that compute nothing."""
    from rich.console import Console

    if json_path is not None:
        require_writable(json_path.parent)
    result = host_path((side, side), tiles, rounds)
    if json_path is not None:
        keep(Record.now(NAME, MEASURES, tuple(figures(result)), result), json_path)
    Console(width=100).print(table(result))
    copied, slowest = result["copy"]["rate"], min(case["rate"] for case in result["cases"])
    click.echo(f"memory is copied at {copied:.0f} Mpixel/s ({2e-3 * copied:.1f} GB/s)")
    click.echo(f"the slowest case makes {slowest:.0f} Mpixel/s; the goal is {result['goal']:.0f}")


if __name__ == "__main__":
    command()
