"""Contenders in processes of their own: the allocator and the threads of one neither help nor hinder another."""

import multiprocessing
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.job import Job
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import InferenceError

TIME, LABELS = "time", "labels"


class Worker(Closable):
    """A process that has loaded the contenders of one module and runs them when asked.

    Parameters
    ----------
    module
        With `contenders(job)`, which returns what to run, by name.
    job
        What to load.

    Raises
    ------
    InferenceError
        A contender failed, or its process died; the message says which.
    """

    def __init__(self, module: str, job: Job) -> None:
        # Spawned, not forked: a fork would inherit this process's threads and memory.
        context = multiprocessing.get_context("spawn")
        self._module = module
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, module, job), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def seconds(self, name: str) -> float:
        """Run a contender once and return how long it took, by its own process's clock."""
        return float(self._ask(TIME, name))

    def labels(self, name: str) -> NDArray[Any]:
        """Run a contender once and return its labels (H, W)."""
        return np.asarray(self._ask(LABELS, name))

    def close(self) -> None:
        """End the process; idempotent."""
        if self._process.is_alive():
            self._process.terminate()
        self._process.join()
        self._connection.close()

    def _ask(self, what: str, name: str) -> Any:
        self._connection.send((what, name))
        return self._receive()

    def _receive(self) -> Any:
        try:
            failed, answer = self._connection.recv()
        except EOFError as error:
            raise InferenceError(f"the process of {self._module} died; is there enough memory?") from error
        if failed:
            raise InferenceError(f"{self._module} failed: {answer}")
        return answer


def _serve(connection: Connection, module: str, job: Job) -> None:
    """Answer requests until the parent is gone; runs in the worker's process."""
    try:
        runs = import_module(module).contenders(job)
        connection.send((False, None))
        while True:
            what, name = connection.recv()
            connection.send((False, _timed(runs[name]) if what == TIME else runs[name]()))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent shall say it
        connection.send((True, f"{type(error).__name__}: {error}"))


def _timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
