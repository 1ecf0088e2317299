"""Contenders that only sleep, fail, die or answer wrongly: for tests of the worker and of the benchmark."""

import os
import time
from pathlib import Path

import numpy as np

from unetrt.benchmarks.contenders import REFERENCE, About, Contender, Ready
from unetrt.benchmarks.result import PREDICT, SEGMENT

ABOUT = About((60, 60), 2, 1000, None, "nothing")
WRONG = About((60, 60), 2, 1000, (20, 20), "a corner")


def contender(name, **fields):
    return Contender(name, f"the {name}", __name__, **fields)


def labels():
    time.sleep(0.02)
    return np.full((96, 130), 7, np.uint8)


def at_once():
    time.sleep(0.002)
    return np.full((96, 130), 7, np.uint8)


def once():
    """Labels for the check, and no more."""
    left = [labels, lambda: os._exit(9)]

    def run():
        return left.pop(0)()

    return run


def phases():
    return {"cut": 0.5}


def ready(job, contender):
    ways = {
        "quick": Ready(ABOUT, {SEGMENT: at_once}),
        "sleeper": Ready(ABOUT, {SEGMENT: labels, PREDICT: lambda: time.sleep(0.2)}, phases),
        "failure": Ready(ABOUT, {SEGMENT: lambda: 1 / 0}),
        "dead": Ready(ABOUT, {SEGMENT: lambda: os._exit(9)}),
        "mortal": Ready(ABOUT, {SEGMENT: once()}),
        "liar": Ready(WRONG, {SEGMENT: labels}),
    }
    ways[REFERENCE] = ways["quick"]
    if contender.name not in ways:
        raise FileNotFoundError(job.folder)
    return ways[contender.name]


def noted(path):
    """Leaves the process's number in a file, and takes minutes."""
    Path(path).with_suffix(".part").write_text(str(os.getpid()))
    Path(path).with_suffix(".part").rename(path)
    time.sleep(300)


def alive(process):
    """Whether a process, by its number, still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
