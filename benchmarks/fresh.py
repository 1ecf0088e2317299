"""Rounds that can be believed: each in a process of its own, on one core, with a warm-up, its runs in turn."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unetrt.trainer.drawn_cells import Drawing, draw

# In a round everything runs so often uncounted, then counted; what counts is one value.
WARM_UP, COUNTED = 1, 3

T = TypeVar("T")


def fresh(work: Callable[..., T], *given: Any) -> T:
    """Return what a function of a module gives in a new process: rounds are then independent of each other.

    How fast a process runs depends on where its memory happens to lie, and that luck must not last for all rounds.
    What the function raises is raised here; RuntimeError where the process dies. It does not outlive this process.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, given), daemon=True)
    process.start()
    theirs.close()
    try:
        failed, answer = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a process of a benchmark died (exit status {process.exitcode})") from None
    finally:
        ours.close()  # a process that is still at work ends when it finds nobody to answer
    process.join()
    if failed:
        raise answer
    return answer  # type: ignore[no-any-return]


def _answer(connection: Connection, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    """Send what a function gives or raises; runs in the new process."""
    try:
        answer = (False, work(*given))
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller raises it
        answer = (True, error)
    with suppress(BrokenPipeError):
        connection.send(answer)


def in_turn(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Call all in turn, `WARM_UP` and then `COUNTED` times; return the median seconds of each, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(WARM_UP + COUNTED):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values[WARM_UP:])) for name, values in seconds.items()}


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


def store_drawn(folder: Path, size: tuple[int, int], count: int) -> None:
    """Draw `count` micrographs (H, W) into a folder: drawing takes longer than what is measured."""
    for seed in range(count):
        drawing = draw(size, seed)
        np.savez(folder / f"{seed:03}.npz", frame=drawing.frame, labels=drawing.labels)


def stored(folder: Path) -> list[Drawing]:
    """Return what `store_drawn` drew, in order."""
    drawings = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            drawings.append(Drawing(arrays["frame"], arrays["labels"]))
    return drawings
