"""Passes of single tiles, timed in rounds so that what slows the machine for a while meets all tiles alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetrt.runtime.sessions import Lane, open_session


@dataclass(frozen=True)
class Wanted:
    """How many passes: so many seconds of them, but within these numbers."""

    seconds: float
    least: int
    most: int


# Of a tile in one round.
WARM_UP, TIMED = Wanted(0.1, least=1, most=5), Wanted(0.5, least=2, most=30)
# Rounds that every tile is measured in; seconds after which none is begun beyond those.
ROUNDS, PATIENCE = 3, 90.0
# How near the two fastest rounds of a tile must be, as a share.
AGREEMENT = 0.05


@dataclass(frozen=True)
class Place:
    """Where passes run: a backend's name, and the number of the GPU as CUDA counts."""

    backend: str
    device: int | None = None


def time_passes(
    models: Sequence[Path], place: Place, done: Callable[[int, int], None] = lambda *_: None
) -> list[list[float]]:
    """Return the seconds of a pass of each model file, one value a round.

    A round opens one model after the other, in an order of its own, so that the memory of one is taken at a time. What
    has not settled after `ROUNDS` is measured again, for `PATIENCE` seconds in all.

    Parameters
    ----------
    models
        ONNX files.
    place
        Where they run.
    done
        Told after each model how many are done, of how many.

    Raises
    ------
    OutOfMemoryError
        A pass does not fit.
    """
    times: list[list[float]] = [[] for _ in models]
    order, end = np.random.default_rng(0), time.monotonic() + PATIENCE
    left, finished = list(range(len(models))), 0
    while left:
        for which in order.permutation(left).tolist():
            times[which].append(pass_seconds(models[which], place))
            finished += 1
            done(finished, max(ROUNDS * len(models), finished + 1))
        if len(times[left[0]]) >= ROUNDS:
            left = [which for which in left if not settled(times[which])] if time.monotonic() < end else []
    return times


def settled(rounds: Sequence[float]) -> bool:
    """Tell whether the two fastest rounds agree, so that nothing else ran in them."""
    ordered = sorted(rounds)
    return len(ordered) > 1 and ordered[1] <= (1 + AGREEMENT) * ordered[0]


def pass_seconds(model: Path, place: Place) -> float:
    """Return the seconds of the fastest of some passes, from its launch to its end, on normally distributed values.

    The fastest: what else runs on a machine only ever adds to a pass. First passes are not timed: they allocate.
    """
    with open_session(model, place.backend, place.device) as session:
        (lane,) = session.lanes(1)
        lane.input[...] = np.random.default_rng(0).standard_normal(lane.input.shape, np.float32)
        _passes(lane, WARM_UP)
        return min(_passes(lane, TIMED))


def _passes(lane: Lane, wanted: Wanted) -> list[float]:
    taken: list[float] = []
    while len(taken) < wanted.least or (len(taken) < wanted.most and sum(taken) < wanted.seconds):
        begin = time.perf_counter()
        lane.launch()
        lane.wait()
        taken.append(time.perf_counter() - begin)
    return taken
