"""Processes that take part in runs over blocks: what they open for the tasks of a run, and whether they can.

A process opens model and image once for a run, at its first task. The process that began the run has opened them
already; it lets its tasks use them with `begin_work`. Those of a cluster get the model's files through the scratch
store, so that the model may be on the disk of the first process alone. The image and the folder of the results are on
disks that all share, which `require_fit` checks before the run.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetrt._version import __version__
from unetrt.runtime.blockwise.scratch import RUN, Scratch
from unetrt.runtime.blockwise.stages import MODEL, BlockWorker, Job
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.engines.engine_file import sidecar_path
from unetrt.runtime.errors import BackendUnavailableError, FrameError, OptionError, OutputError, UnetrtError, one_line
from unetrt.runtime.files.sources import ImageSource
from unetrt.runtime.files.windows import ArraySource
from unetrt.runtime.model.integrity import external_files
from unetrt.runtime.sessions import AUTO, chosen_backend

if TYPE_CHECKING:
    from unetrt.runtime.blockwise.scheduling import Scheduler

# Bytes of an image that is sent to workers with each task at most: a dask array of a Zarr array takes some 2000.
MOST_SENT = 1 << 20
# Seconds without a task after which a process closes what a run has opened, if it takes part in another one.
IDLE = 60.0


@dataclass
class _OpenWork:
    """What a process has opened for a run, the number of tasks that use it, and when the last one ended."""

    worker: BlockWorker
    tasks: int = 0
    ended: float = field(default_factory=time.monotonic)


_open: dict[str, _OpenWork] = {}
_opening = threading.Lock()


def run_stage(job: Job, stage: str, arguments: tuple[Any, ...], *after: Any) -> Any:
    """Run a stage of a job in this process, which opens model and image the first time.

    `after` are the results of tasks that have to be complete. Those of `count` are arguments of `measure`.
    """
    with _used(job) as worker:
        return getattr(worker, stage)(*arguments, *(after if stage == "measure" else ()))


@contextmanager
def _used(job: Job) -> Iterator[BlockWorker]:
    with _opening:
        if job.name not in _open:
            _close_idle()
            _open[job.name] = _OpenWork(_opened_here(job))
        work = _open[job.name]
        work.tasks += 1
    try:
        yield work.worker
    finally:
        with _opening:
            work.tasks -= 1
            work.ended = time.monotonic()
            is_ended = job.name not in _open and not work.tasks
        if is_ended:
            work.worker.close()


def _close_idle() -> None:
    """Close what runs have opened that seem to have been abandoned; their processes may have been killed."""
    for name, work in list(_open.items()):
        if not work.tasks and time.monotonic() - work.ended > IDLE:
            del _open[name]
            work.worker.close()


def begin_work(worker: BlockWorker) -> None:
    """Let tasks of a job in this process use a worker, until `end_work`."""
    with _opening:
        _open[worker.job.name] = _OpenWork(worker, tasks=1)


def end_work(name: str) -> None:
    """Close what this process has opened for a run, once no task uses it any more."""
    with _opening:
        work = _open.pop(name, None)
        is_idle = work is not None and not work.tasks  # else its last task closes it
    if work is not None and is_idle:
        work.worker.close()


def _opened_here(job: Job) -> BlockWorker:
    """Open model and image in a worker of a cluster; errors begin with its address."""
    from distributed import get_worker

    worker = get_worker()
    try:
        engine = engine_of(job.engine, worker.name, worker.state.nthreads)
        return BlockWorker(replace(job, engine=engine))
    except UnetrtError as error:
        raise type(error)(f"worker {worker.address}: {error}") from error


def engine_of(engine: Mapping[str, Any], name: object, threads: int) -> dict[str, Any]:
    """Return the arguments of `Segmenter` in a worker of a cluster: its GPU, or its number of threads.

    Workers of one machine that have whole numbers for names, as `LocalCluster` gives them, take its GPUs in turn.
    Workers that see one GPU, as those of dask-cuda, take that.

    Parameters
    ----------
    engine
        The arguments that all workers have in common; those given here are kept.
    name, threads
        Name of the worker, and number of tasks that it runs at once.
    """
    from unetrt.runtime.cuda.driver import loaded_binding

    chosen = dict(engine)
    backend = chosen_backend(chosen.get("backend", AUTO), chosen.get("device"))
    chosen["backend"] = backend.name
    if backend.gpu and chosen.get("device") is None and str(name).isdecimal():
        chosen["device"] = int(str(name)) % len(loaded_binding().devices())
    elif not backend.gpu and backend.takes_options:
        chosen["backend_options"] = {"threads": threads, **(chosen.get("backend_options") or {})}
    return chosen


# Before a run on a cluster


def require_sendable(source: ImageSource | ArraySource, model: Path | None) -> None:
    """Raise OptionError unless workers of a cluster can open an image and a model that have no files here alone."""
    from distributed.protocol.pickle import dumps

    if model is None:
        raise OptionError("workers of a cluster cannot use an open Segmenter: give the path of the model")
    remedy = "give its file, a Zarr or dask array that is stored, or a whole memory map of a file"
    if isinstance(source, ArraySource) and isinstance(source.array, np.ndarray) and not source.is_mapped:
        raise OptionError(f"{source} is in the memory of this process, and workers of a cluster need it: {remedy}")
    try:
        size = len(dumps(source))
    except (TypeError, ValueError, AttributeError) as error:
        raise OptionError(f"{source} cannot be sent to workers of a cluster ({one_line(error)}): {remedy}") from error
    if size > MOST_SENT:
        raise OptionError(f"{source} takes {size >> 20} MiB to send with each block to workers of a cluster: {remedy}")


def send_model(model: Path, scratch: Scratch) -> None:
    """Copy a model file to the scratch store, with what belongs to it: external weights, or an engine's sidecar."""
    is_engine = model.suffix.lower() in SUFFIXES
    for file in (model, *([sidecar_path(model)] if is_engine else external_files(model))):
        scratch.put_file(f"{MODEL}/{file.relative_to(model.parent).as_posix()}", file)


def require_fit(scheduler: "Scheduler", job: Job, folder: Path) -> None:
    """Check that all processes have this version of unetrt and reach the image, the scratch store and the results.

    Parameters
    ----------
    scheduler
        Where the tasks run.
    job
        The run; its scratch store is there.
    folder
        Folder, which exists, that labels are written to.

    Raises
    ------
    BackendUnavailableError
        A process has another version of unetrt, or lacks a package.
    FrameError
        A process cannot read the image.
    OutputError
        A process does not reach the scratch store or the folder.
    """
    for worker, found in scheduler.everywhere(version).items():
        if found != __version__:
            has = f"has unetrt {found}" if isinstance(found, str) else f"does not run unetrt ({one_line(found)})"
            raise BackendUnavailableError(
                f"worker {worker} {has}, and this is {__version__}: install 'unetrt[distributed]=={__version__}' there"
            )
    source = job.image
    sizes = {str(path): _size(path) for path in _files(source)}
    for check, arguments, error, rule in (
        (why_unread, (sizes,), FrameError, "the image must be on a disk that all workers share"),
        (why_no_scratch, (job.scratch,), OutputError, "give --scratch DIR on a disk that all workers share"),
        (why_unwritable, (str(folder),), OutputError, "results must be on a disk that all workers share"),
    ):
        for worker, reason in scheduler.everywhere(check, *arguments).items():
            if reason is not None:
                text = one_line(reason) if isinstance(reason, Exception) else reason
                raise error(f"worker {worker} cannot {text}: {rule}")


def version() -> str:
    """Return the version of unetrt in this process."""
    return __version__


def why_unread(sizes: Mapping[str, int | None]) -> str | None:
    """Return which of some files, with their sizes in bytes, this process cannot read and why; None for none."""
    for path, size in sizes.items():
        try:
            if _size(Path(path)) != size:
                return f"read {path} (another file is there)"
        except OSError as error:
            return f"read {path} ({error.strerror or one_line(error)})"
    return None


def why_no_scratch(scratch: Scratch) -> str | None:
    """Return why this process does not reach the scratch store of a run; None if it does."""
    try:
        return None if scratch.get_json(RUN) is not None else f"read {scratch.address} (it is not there)"
    except (OSError, UnetrtError) as error:
        return f"read {scratch.address} ({one_line(error)})"


def why_unwritable(folder: str) -> str | None:
    """Return why this process cannot write to a folder; None if it can."""
    return None if os.access(folder, os.W_OK | os.X_OK) else f"write to {folder}"


def _files(source: ImageSource | ArraySource) -> tuple[Path, ...]:
    """Return the files of an image, as far as they are known."""
    if isinstance(source, ImageSource):
        return source.path, *source.files
    return (Path(source.array.filename),) if isinstance(source.array, np.memmap) and source.array.filename else ()


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes, None for a folder; raises OSError unless it can be read."""
    if path.is_dir():
        os.scandir(path).close()
        return None
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size
