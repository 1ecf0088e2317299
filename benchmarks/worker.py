"""Contenders in processes of their own: the allocator and the threads of one neither help nor hinder another."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks import resources
from unetrt.benchmarks.contenders import Contender
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.ready import About, Ready
from unetrt.benchmarks.result import SEGMENT
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import InferenceError

# A round of a contender is one uncounted turn of all its ways, then at most this many counted ones.
MOST = 30
# Seconds that a process has to end by itself.
PATIENCE = 20.0
# Letters of what it says went wrong; a compiler says pages.
TOLD = 300


@dataclass(frozen=True)
class Round:
    """What a contender's process measured.

    Attributes
    ----------
    seconds
        Of every counted run, by way.
    phases
        Median seconds of a frame's phases, by name.
    host_memory, device_memory, joules
        As `Measured` has them; of the whole round, and of a frame.
    """

    seconds: dict[str, list[float]]
    phases: dict[str, float]
    host_memory: int | None = None
    device_memory: int | None = None
    joules: float | None = None


class Worker(Closable):
    """A process that has loaded a contender and runs it when asked.

    Parameters
    ----------
    contender
        Its module's `ready(job, contender)` returns what to run.
    job
        What to load.

    Raises
    ------
    InferenceError
        The contender failed, or its process died; the message says how.
    """

    def __init__(self, contender: Contender, job: Job) -> None:
        # Spawned, not forked: a fork would inherit this process's threads and memory.
        context = multiprocessing.get_context("spawn")
        self._title = contender.title
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender, job), daemon=True)
        self._process.start()
        theirs.close()
        self.about: About = self._receive()

    def labels(self) -> NDArray[Any]:
        """Take one frame and return its labels (H, W)."""
        return np.asarray(self._receive("labels"))

    def round(self) -> Round:
        """Run all ways in turn, by the process's own clock."""
        answer: Round = self._receive("round")
        return answer

    def close(self) -> None:
        """End the process; idempotent."""
        # A contender that is asked to end ends its own processes, as torch's compiler has; one that is killed does not.
        self._connection.close()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _receive(self, asked: str | None = None) -> Any:
        """Ask for something, if anything, and return the answer."""
        try:
            if asked is not None:
                self._connection.send(asked)
            failed, answer = self._connection.recv()
        except (EOFError, OSError) as error:  # OSError: a pipe that broke
            raise InferenceError(f"{self._title}: its process died; is there enough memory?") from error
        if failed:
            raise InferenceError(f"{self._title}: {answer}")
        return answer


def _serve(connection: Connection, contender: Contender, job: Job) -> None:
    """Answer requests until the parent is gone; runs in the worker's process."""
    try:
        used = resources.device_memory() if job.device == "gpu" else None
        loaded: Ready = import_module(contender.module).ready(job, contender)
        connection.send((False, loaded.about))
        while True:
            if connection.recv() == "labels":
                connection.send((False, loaded.ways[SEGMENT]()))
            else:
                connection.send((False, measured(loaded, job, used)))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent shall say it
        told = " ".join(f"{type(error).__name__}: {error}".split())
        connection.send((True, told[:TOLD]))


def measured(loaded: Ready, job: Job, used: int | None = None, clock: Callable[[], float] = time.perf_counter) -> Round:
    """Run the ways of a contender in turn: a warm-up, then counted turns.

    Parameters
    ----------
    loaded
        The contender.
    job
        Where it computes, and how long.
    used
        Bytes in use on that GPU before the contender was loaded.
    clock
        In seconds.
    """
    turns, gpu = _Turns({name: [] for name in loaded.ways}, clock), job.device == "gpu"
    for run in loaded.ways.values():
        run()
    begin = clock()
    while turns.count < MOST and (turns.count == 0 or clock() - begin < job.enough):
        turns.take(loaded, gpu)
    phases = {name: float(np.median([one[name] for one in turns.phases])) for name in turns.phases[0]}
    energy = [value for value in turns.joules if value is not None]
    now = resources.device_memory() if gpu else None
    return Round(
        turns.seconds,
        phases,
        resources.peak_memory(),
        None if now is None or used is None else now - used,
        float(np.mean(energy)) if energy else None,
    )


@dataclass
class _Turns:
    """The counted turns of a round."""

    seconds: dict[str, list[float]]
    clock: Callable[[], float]
    phases: list[dict[str, float]] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.joules)

    def take(self, loaded: Ready, gpu: bool) -> None:
        """Run each way once; the energy is that of the first, from frame to labels."""
        for name, run in loaded.ways.items():
            before, begin = resources.joules(gpu), self.clock()
            run()
            self.seconds[name].append(self.clock() - begin)
            if name == SEGMENT:
                self.joules.append(resources.between(before, resources.joules(gpu)))
                self.phases.append(dict(loaded.phases()))
