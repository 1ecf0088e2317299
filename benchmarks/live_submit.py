"""How long `LiveSegmenter.submit` keeps a camera's thread, while the model computes all the time.

One process a round::

    python -m unetrt.benchmarks.live_submit model.onnx --json benchmarks/results/live.json
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.fresh import fresh, store_drawn, stored
from unetrt.benchmarks.history import keep
from unetrt.benchmarks.one_line import OneLine
from unetrt.benchmarks.record import Measure, Record
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.live.frame_queue import Policy
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.machine import processor
from unetrt.runtime.segment.segmenter import Segmenter

NAME = "live"
MEASURES = (
    "How long `LiveSegmenter.submit` keeps a camera's thread while the model keeps all cores busy: p50 and p99 of a "
    "round's submissions."
)
# Seconds: 99 of 100 submissions are to be shorter.
GOAL = 1e-3
# Buffers that a camera's driver fills in turn.
BUFFERS = 8
# Frames before those that count.
WARM_UP = 50
# Policies that never wait.
POLICIES = (Policy.LATEST, Policy.DROP_OLDEST)
WAYS = {"by reference": False, "copied": True}


def submissions(live: LiveSegmenter, frames: Sequence[NDArray[Any]], copy: bool, count: int, fps: float) -> list[float]:
    """Submit `count` frames, `fps` a second, and return how long each call took, in seconds."""
    seconds: list[float] = []
    due = time.perf_counter()
    for frame in (frame for frame, _ in zip(cycle(frames), range(WARM_UP + count), strict=False)):
        due += 1 / fps
        time.sleep(max(0.0, due - time.perf_counter()))
        begin = time.perf_counter()
        live.submit(frame, copy=copy)
        seconds.append(time.perf_counter() - begin)
    return seconds[WARM_UP:]


def case(segmenter: Segmenter, frames: Sequence[NDArray[Any]], policy: Policy, way: str, **pace: Any) -> dict[str, Any]:
    """Return what JSON stores of one case in a round: times in seconds, counts at the end."""
    with LiveSegmenter(segmenter, policy=policy) as live:
        seconds = submissions(live, frames, WAYS[way], **pace)
        status = live.status()
        live.close(drain=False)
    p50, p99 = np.percentile(seconds, (50, 99)).tolist()
    counts = {name: getattr(status, name) for name in ("submitted", "done", "dropped", "failed", "pending")}
    times = {"p50": p50, "p99": p99, "highest": max(seconds)}
    return {"policy": str(policy), "frame": way, "submit": times, **counts, "compute": asdict(status.compute)}


def live_submit(model: Path, side: int, rounds: int, count: int, fps: float) -> dict[str, Any]:
    """Time `submit` in all cases (policy, by reference or copied).

    Parameters
    ----------
    model
        An exported model.
    side
        Height and width of the drawn frames, pixels.
    rounds
        Processes, one after another.
    count, fps
        Frames of each case in a round, and how many a second.

    Returns
    -------
    What JSON stores as the detail; seconds.
    """
    with TemporaryDirectory() as folder:
        store_drawn(Path(folder), (side, side), BUFFERS)
        taken = [fresh(_round, model, Path(folder), count, fps) for _ in range(rounds)]
    return {"frame": [side, side], "fps": fps, "goal": GOAL, **taken[0], "cases": [one["cases"] for one in taken]}


def figures(detail: Mapping[str, Any]) -> Iterator[Measure]:
    """Yield the key figures of what `live_submit` gave: p50 and p99 of each case, a value a round."""
    for case_of_rounds in zip(*detail["cases"], strict=True):
        name = f"{case_of_rounds[0]['policy']}, {case_of_rounds[0]['frame']}"
        for rank, goal in (("p50", None), ("p99", detail["goal"])):
            figure = Figure.of([one["submit"][rank] for one in case_of_rounds])
            yield Measure.of(f"{name}: {rank}", "s", asdict(figure), goal)


def _round(model: Path, folder: Path, count: int, fps: float) -> dict[str, Any]:
    frames = [drawing.frame for drawing in stored(folder)]
    with Segmenter(model) as segmenter:
        cases = [case(segmenter, frames, policy, way, count=count, fps=fps) for policy, way in product(POLICIES, WAYS)]
        spec = segmenter.spec
        network = {"tile": list(spec.tile), **spec.network}
        return {"engine": segmenter.session.name, "network": network, "cases": cases}


def table(result: Mapping[str, Any]) -> Any:
    """Return a table for a terminal, a rich renderable."""
    from rich.table import Table

    height, width = result["frame"]
    title = f"submit of {height} x {width} uint16 at {result['fps']:.0f}/s, {processor()}; milliseconds"
    drawn = Table("case", "median", "from", "to", title=title, box=None)
    for one in figures(result):
        drawn.add_row(one.name, *(f"{1e3 * value:.3f}" for value in (one.median, one.low, one.high) if value))
    return drawn


@click.command(cls=OneLine)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--side", default=2048, show_default=True, help="Height and width of the drawn frames, pixels.")
@click.option("--rounds", type=click.IntRange(1), default=6, show_default=True, help="Processes.")
@click.option("--count", default=500, show_default=True, help="Frames of each case in a round.")
@click.option("--fps", default=100.0, show_default=True, help="Frames a second.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
def command(model: Path, side: int, rounds: int, count: int, fps: float, json_path: Path | None) -> None:
    """Time `submit` while MODEL computes without a pause."""
    from rich.console import Console

    if json_path is not None:
        require_writable(json_path.parent)
    result = live_submit(model, side, rounds, count, fps)
    if json_path is not None:
        keep(Record.now(NAME, MEASURES, tuple(figures(result)), result), json_path)
    Console(width=100).print(table(result))
    worst = max((one for one in figures(result) if one.goal is not None), key=lambda one: one.median)
    click.echo(f"the slowest p99 is {1e3 * worst.median:.3f} ms ({worst.name}); the goal is {1e3 * GOAL:g}")


if __name__ == "__main__":
    command()
