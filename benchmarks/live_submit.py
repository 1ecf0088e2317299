"""How long `LiveSegmenter.submit` keeps a camera's thread, while the model computes all the time.

::

    python -m unetrt.benchmarks.live_submit model.onnx --json benchmarks/results/live.json
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, product
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.environment import environment, processor
from unetrt.runtime.artifacts import require_writable, whole_file
from unetrt.runtime.live.frame_queue import Policy
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.segmenter import Segmenter
from unetrt.trainer.drawn_cells import draw

SCHEMA = 1
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
    """Return what JSON stores of one case: times in seconds, counts at the end."""
    with LiveSegmenter(segmenter, policy=policy) as live:
        seconds = submissions(live, frames, WAYS[way], **pace)
        status = live.status()
        live.close(drain=False)
    p50, p99 = np.percentile(seconds, (50, 99)).tolist()
    counts = {name: getattr(status, name) for name in ("submitted", "done", "dropped", "failed", "pending")}
    times = {"p50": p50, "p99": p99, "highest": max(seconds)}
    return {"policy": str(policy), "frame": way, "submit": times, **counts, "compute": asdict(status.compute)}


def table(result: dict[str, Any]) -> Any:
    """Return a table for a terminal, a rich renderable."""
    from rich.table import Table

    height, width = result["frame"]
    title = f"submit of {height} x {width} uint16 at {result['fps']:.0f}/s, {processor()}; milliseconds"
    drawn = Table("policy", "frame", "p50", "p99", "highest", "submitted", "done", title=title, box=None)
    for one in result["cases"]:
        times = [f"{1e3 * seconds:.3f}" for seconds in one["submit"].values()]
        drawn.add_row(one["policy"], one["frame"], *times, str(one["submitted"]), str(one["done"]))
    return drawn


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--side", default=2048, show_default=True, help="Height and width of the drawn frames, pixels.")
@click.option("--count", default=1000, show_default=True, help="Frames of each case.")
@click.option("--fps", default=100.0, show_default=True, help="Frames a second.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
def command(model: Path, side: int, count: int, fps: float, json_path: Path | None) -> None:
    """Time `submit` while MODEL computes without a pause."""
    from rich.console import Console

    if json_path is not None:
        require_writable(json_path.parent)
    frames = [draw((side, side), seed).frame for seed in range(BUFFERS)]
    with Segmenter(model) as segmenter:
        cases = [case(segmenter, frames, policy, way, count=count, fps=fps) for policy, way in product(POLICIES, WAYS)]
        engine, spec = segmenter.session.name, segmenter.spec
    network = {"tile": list(spec.tile), **spec.network}
    result = {
        "schema": SCHEMA,
        "frame": [side, side],
        "fps": fps,
        "goal": GOAL,
        "engine": engine,
        "network": network,
        "cases": cases,
        "environment": environment(),
    }
    if json_path is not None:
        with whole_file(json_path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    Console(width=100).print(table(result))
    worst = max(cases, key=lambda one: one["submit"]["p99"])
    slowest = 1e3 * worst["submit"]["p99"]
    click.echo(f"the slowest p99 is {slowest:.3f} ms ({worst['policy']}, {worst['frame']}); the goal is {1e3 * GOAL:g}")


if __name__ == "__main__":
    command()
