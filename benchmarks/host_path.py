"""How fast a host can feed a GPU: measure grey values, cut, normalise and stitch, around lanes that compute nothing.

One process on one core::

    python -m unetrt.benchmarks.host_path --json benchmarks/results/host.json
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.environment import environment, processor
from unetrt.benchmarks.idle_path import HEADS, INPUTS, IdlePath, Seconds
from unetrt.benchmarks.measure import COUNTED, WARM_UP, Figure, summary
from unetrt.runtime.artifacts import require_writable, whole_file
from unetrt.runtime.host_frames import plan_of
from unetrt.trainer.drawn_cells import draw

SCHEMA = 1
# Mpixel/s on one core, or this share of the rate at which memory is copied, whichever is lower.
GOAL, GOAL_OF_COPY = 500.0, 0.1
# Frames in turn, so that no cache still holds one from the last time.
FRAMES = WARM_UP + COUNTED
# Bytes that are copied to learn how fast memory is: far more than a cache holds.
COPIED = 1 << 28


def host_path(size: tuple[int, int], tiles: Sequence[int], rounds: int, copied: int = COPIED) -> dict[str, Any]:
    """Time a plain copy and all cases (tile, input, head), interleaved, on one core.

    Parameters
    ----------
    size
        Height and width of the drawn frames, pixels.
    tiles
        Sides of tiles, legal at depth 4.
    rounds
        How often; each gives `COUNTED` measurements.
    copied
        Bytes of the copy.

    Returns
    -------
    What JSON stores. Rates are in Mpixel/s, 10^6 pixels; the copy's counts the 2 bytes of a uint16.
    """
    frames = [draw(size, seed).frame for seed in range(FRAMES)]
    paths = [IdlePath(size, *case) for case in product(tiles, INPUTS, HEADS)]
    with one_core():
        seconds, copies = _interleaved(paths, frames, _copy(copied), rounds)
    rate = copied / 2 / copies.median / 1e6
    return {
        "schema": SCHEMA,
        "frame": list(size),
        "copy": {"bytes": copied, "seconds": asdict(copies), "rate": rate},
        "goal": min(GOAL, GOAL_OF_COPY * rate),
        "cases": [_case(path, taken) for path, taken in zip(paths, seconds, strict=True)],
        "environment": environment(),
    }


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread on one core, the last that it may use, where the system lets it choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _interleaved(
    paths: Sequence[IdlePath], frames: Sequence[NDArray[Any]], copy: Callable[[], float], rounds: int
) -> tuple[list[list[Seconds]], Figure]:
    """Return what each path took, and the figure of the copy."""
    taken: list[list[Seconds]] = [[] for _ in paths]
    copies: list[float] = []
    for _ in range(rounds):
        copies += [copy() for _ in range(WARM_UP + COUNTED)][WARM_UP:]
        for path, counted in zip(paths, taken, strict=True):
            # Lanes for one case at a time: those of all would not fit into memory together.
            with path.open() as segmenter:
                turns = [path.take(segmenter, frame) for frame in frames]
            counted.extend(turns[WARM_UP:])
    return taken, summary(copies)


def _copy(size: int) -> Callable[[], float]:
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)

    def run() -> float:
        begin = perf_counter()
        np.copyto(target, source)
        return perf_counter() - begin

    return run


def _case(path: IdlePath, taken: list[Seconds]) -> dict[str, Any]:
    figures = {phase: summary(values) for phase, values in zip(Seconds._fields, zip(*taken, strict=True), strict=True)}
    return {
        "tile": path.side,
        "tiles": len(plan_of(path.spec, path.labels.shape)),
        "input": path.input_name,
        "head": path.head_name,
        "rate": path.labels.size / figures["total"].median / 1e6,
        "seconds": {phase: asdict(figure) for phase, figure in figures.items()},
    }


def table(result: dict[str, Any]) -> Any:
    """Return a table for a terminal, a rich renderable."""
    from rich.table import Table

    height, width = result["frame"]
    title = f"{height} x {width} uint16, one core, {processor()}; milliseconds"
    drawn = Table("tiles", "input", "head", *Seconds._fields, "range", "Mpixel/s", title=title, box=None)
    for case in result["cases"]:
        total = case["seconds"]["total"]
        medians = [f"{1e3 * case['seconds'][phase]['median']:.2f}" for phase in Seconds._fields]
        span = f"{1e3 * total['low']:.1f}-{1e3 * total['high']:.1f}"
        tiles = f"{case['tiles']} of {case['tile']}"
        drawn.add_row(tiles, case["input"], case["head"], *medians, span, f"{case['rate']:.0f}")
    return drawn


@click.command()
@click.option("--side", default=2048, show_default=True, help="Height and width of the drawn frames, pixels.")
@click.option("--tile", "tiles", multiple=True, default=(2236, 1212), show_default=True, help="Sides of tiles.")
@click.option("--rounds", default=10, show_default=True, help="Each times every case twice.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
def command(side: int, tiles: tuple[int, ...], rounds: int, json_path: Path | None) -> None:
    """Time what the host does to each frame, around lanes that compute nothing."""
    from rich.console import Console

    if json_path is not None:
        require_writable(json_path.parent)
    result = host_path((side, side), tiles, rounds)
    if json_path is not None:
        with whole_file(json_path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    Console(width=100).print(table(result))
    copied, slowest = result["copy"]["rate"], min(case["rate"] for case in result["cases"])
    click.echo(f"memory is copied at {copied:.0f} Mpixel/s ({2e-3 * copied:.1f} GB/s)")
    click.echo(f"the slowest case makes {slowest:.0f} Mpixel/s; the goal is {result['goal']:.0f}")


if __name__ == "__main__":
    command()
