"""Running the tasks of a run over blocks: Dask's scheduler of threads, or a cluster by its address.

All scheduling is Dask's. Tasks communicate through stores only, so that the loss of a worker loses nothing but the
blocks that it was computing. https://docs.dask.org/en/stable/scheduling.html
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import dask
import dask.threaded
from dask.callbacks import Callback

from unetrt.runtime.errors import (
    BackendUnavailableError,
    InferenceError,
    OptionError,
    UnetrtError,
    one_line,
    printable,
    shown,
)

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("unetrt")

# Called with the number of finished tasks and of all tasks of a step.
Progress = Callable[[int, int], None]
# Seconds to wait for a scheduler at an address.
CONNECT = 10
# Seconds between two looks at whether a task has ended, and at whether there are workers.
POLL, CHECK = 0.05, 5.0
# Times that Dask computes a task again that failed.
RETRIES = 2


class Scheduler(Protocol):
    """Where tasks run."""

    def compute(self, tasks: Sequence[Any], progress: Progress) -> list[Any]:
        """Compute tasks, `dask.delayed` objects, and return their results.

        Raises the exception of the first task that fails; no task begins then.
        """

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Call a function in each process that tasks run in; return its result, or its exception, by their names."""


class Threads:
    """Dask's scheduler of threads in this process, or the one that Dask's configuration names.

    Parameters
    ----------
    number
        Threads: one computes while another reads the next block and a third writes the last one.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def compute(self, tasks: Sequence[Any], progress: Progress) -> list[Any]:
        """Compute tasks."""
        keys = {task.key for task in tasks}
        done = 0

        def finished(key: Any, *_: Any) -> None:
            nonlocal done
            if key in keys:
                done += 1
                progress(done, len(tasks))

        pool = ThreadPoolExecutor(self._number, thread_name_prefix="unetrt-block")
        try:
            with Callback(posttask=finished):
                # The function, as a name makes Dask import distributed.
                scheduler = dask.config.get("scheduler", dask.threaded.get)
                return list(dask.compute(*tasks, traverse=False, pool=pool, scheduler=scheduler))
        finally:
            pool.shutdown(cancel_futures=True)

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Call a function."""
        return {"this process": function(*arguments)}


class Cluster:
    """A cluster of `dask.distributed`.

    Parameters
    ----------
    client
        Connected to its scheduler.
    address
        Address of the scheduler, for messages.
    """

    def __init__(self, client: "Client", address: str) -> None:
        self._client, self._address = client, address

    def compute(self, tasks: Sequence[Any], progress: Progress) -> list[Any]:
        """Compute tasks; those of a worker that is lost are computed by others."""
        futures = self._client.compute(list(tasks), retries=RETRIES, traverse=False)
        try:
            with self._explained():
                for done, future in enumerate(self._completed(futures), start=1):
                    future.result()
                    progress(done, len(futures))
                return list(self._client.gather(futures))
        finally:
            # Tasks that nobody wants are forgotten, or not begun. `Client.cancel` fails for those with dependents.
            for future in futures:
                future.release()

    def _completed(self, futures: Sequence[Any]) -> Iterator[Any]:
        """Yield futures as they complete; log a warning where the cluster has no workers that could compute them."""
        from distributed import as_completed

        waiting, is_warned, checked = as_completed(futures, loop=self._client.loop), False, time.monotonic()
        while not waiting.is_empty():
            if waiting.has_ready():
                yield next(waiting)
            elif is_warned or time.monotonic() - checked < CHECK:
                time.sleep(POLL)
            else:
                checked = time.monotonic()
                if is_warned := self._has_no_workers():
                    where = printable(self._address)
                    log.warning("the Dask scheduler at %s has no workers any more: blocks wait for new ones", where)

    def _has_no_workers(self) -> bool:
        with suppress(OSError):  # the connection is lost, which the tasks will tell
            return self._client.status == "running" and not self._client.nthreads()
        return False

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Call a function in each worker."""
        with self._explained():
            if self._client.status != "running":  # else the call waits for the connection to come back
                raise ConnectionError("it was closed")
            return dict(self._client.run(function, *arguments, on_error="return"))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the errors of Dask into those of unetrt."""
        from distributed import CancelledError, KilledWorker

        try:
            yield
        except KilledWorker as error:
            raise InferenceError(
                f"{error.allowed_failures + 1} workers were lost while they computed {printable(str(error.task))}, and "
                "may lack memory: give smaller blocks with --block, or workers more memory"
            ) from error
        except (CancelledError, OSError) as error:
            if isinstance(error, UnetrtError) or self._client.status == "running":
                raise
            raise BackendUnavailableError(
                f"the connection to the Dask scheduler at {printable(self._address)} was lost: start it again, with "
                "its workers, and go on with --resume"
            ) from error


@contextmanager
def scheduler_at(address: str | None, threads: int) -> Iterator[Scheduler]:
    """Yield the scheduler at an address, or threads of this process.

    Raises
    ------
    OptionError
        The address is not valid.
    BackendUnavailableError
        No scheduler answers there, or it has no workers.
    """
    if address is None:
        yield Threads(threads)
        return
    from distributed import Client
    from distributed.comm.addressing import get_address_host_port

    with _silent():
        try:
            if not address.startswith("inproc:"):  # of this process, without host and port
                get_address_host_port(address)  # else a client is left that hangs when it is deleted
            client = Client(address, timeout=CONNECT, set_as_default=False)
        except ValueError as error:
            raise OptionError(
                f"--scheduler {shown(address)} is not an address ({one_line(error)}): give tcp://HOST:PORT"
            ) from error
        except (OSError, TimeoutError) as error:
            raise BackendUnavailableError(
                f"no Dask scheduler answers at {printable(address)} within {CONNECT} s ({one_line(error)}): start one "
                "with `dask scheduler`, and workers with `dask worker`"
            ) from error
        with client:
            if not client.nthreads():
                raise BackendUnavailableError(
                    f"the Dask scheduler at {printable(address)} has no workers: start some with `dask worker`"
                )
            yield Cluster(client, address)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep distributed from logging what becomes an error here: lost connections, failed tasks, and interrupts."""
    loggers = [logging.getLogger(name) for name in ("distributed.client", "tornado.application")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
