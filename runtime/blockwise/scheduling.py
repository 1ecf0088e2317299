"""Running the tasks of a run over blocks: Dask's scheduler of threads, or a cluster by its address.

All scheduling is Dask's. Tasks communicate through stores only, so that the loss of a worker loses nothing but the
blocks that it was computing. https://docs.dask.org/en/stable/scheduling.html
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import dask
from dask.callbacks import Callback

from unetrt.runtime.errors import BackendUnavailableError, OptionError, one_line

if TYPE_CHECKING:
    from distributed import Client

# Called with the number of finished tasks and of all tasks of a step.
Progress = Callable[[int, int], None]
# Seconds to wait for a scheduler at an address.
CONNECT = 10
# Times that Dask computes a task again that failed.
RETRIES = 2


class Scheduler(Protocol):
    """Where tasks run."""

    def compute(self, tasks: Sequence[Any], progress: Progress) -> list[Any]:
        """Compute tasks, `dask.delayed` objects, and return their results.

        Raises the exception of the first task that fails; no task runs any more then, or begins.
        """

    def everywhere(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in each process that tasks run in."""


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
            with Callback(posttask=finished), dask.config.set({"scheduler": dask.config.get("scheduler", "threads")}):
                return list(dask.compute(*tasks, traverse=False, pool=pool))
        finally:
            pool.shutdown(cancel_futures=True)

    def everywhere(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function."""
        function(*arguments)


class Cluster:
    """A cluster of `dask.distributed`.

    Parameters
    ----------
    client
        Connected to its scheduler.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client

    def compute(self, tasks: Sequence[Any], progress: Progress) -> list[Any]:
        """Compute tasks; those of a worker that is lost are computed by others."""
        from distributed import as_completed

        futures = self._client.compute(list(tasks), retries=RETRIES, traverse=False)
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(done, len(futures))
            return list(self._client.gather(futures))
        finally:
            self._client.cancel(futures)

    def everywhere(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in each worker."""
        self._client.run(function, *arguments)


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

    try:
        client = Client(address, timeout=CONNECT)
    except ValueError as error:
        raise OptionError(
            f"--scheduler {address!r:.60} is not an address ({one_line(error)}): give tcp://HOST:PORT"
        ) from error
    except (OSError, TimeoutError) as error:
        raise BackendUnavailableError(
            f"no Dask scheduler answers at {address} within {CONNECT} s ({one_line(error)}): start one with `dask "
            "scheduler`, and workers with `dask worker`"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise BackendUnavailableError(
                f"the Dask scheduler at {address} has no workers: start some with `dask worker`"
            )
        yield Cluster(client)
