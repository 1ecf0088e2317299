"""Contenders of one process in turn, round by round: warmed up, each round's runs as one value."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median

from unetrt.benchmarks.figure import Figure

# In each round every contender runs so often uncounted, then counted.
WARM_UP, COUNTED = 1, 2

Runs = Mapping[str, Callable[[], float]]


def interleaved(runs: Runs, rounds: int) -> dict[str, Figure]:
    """Run all contenders in turn, so that a drift of the machine's speed meets all of them alike.

    Parameters
    ----------
    runs
        Each, when called, returns how long it took, in seconds.
    rounds
        How often.
    """
    medians: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        turns = [{name: run() for name, run in runs.items()} for _ in range(WARM_UP + COUNTED)]
        for name in runs:
            medians[name].append(median(turn[name] for turn in turns[WARM_UP:]))
    return {name: Figure.of(values) for name, values in medians.items()}
