"""Sessions on the CPU: one worker thread computes, so that the caller cuts and stitches in the meantime.

All lanes share the thread: the engines spread a pass over all cores themselves, and two passes at once would only take
twice the memory. An engine derives from `WorkerSession` and implements `compute`.

`CropSession`, the backend `numpy`, is the reference: its output is its input without the halo. It shows where every
pixel of a frame goes, and what the work around the network costs.
"""

import re
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import OptionError, OutOfMemoryError, SessionClosedError
from unetrt.runtime.machine import format_bytes, free_memory
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions import Lane, Session
from unetrt.runtime.timings import Passed

Array = NDArray[Any]

# A pass of fewer bytes is not compared with the free memory.
SMALL = 1 << 28


# The options of an engine without any.
DEFAULTS: Mapping[str, str] = MappingProxyType({})


def require_options(options: Mapping[str, str]) -> None:
    """Raise OptionError for an option that engines on the CPU do not have: they have `threads`, from 1."""
    for name, value in options.items():
        if name != "threads":
            raise OptionError(f"engines on the CPU have no backend option {name!r:.60}: use threads")
        if not (re.fullmatch("[0-9]{1,4}", value) and int(value) > 0):
            raise OptionError(f"threads must be a whole number from 1 to 9999 (got {value!r:.60})")


def threads_of(options: Mapping[str, str]) -> int:
    """Return the threads of a pass that options name; 0: the engine's default."""
    return int(options.get("threads", 0))


def require_fitting(path: Path, memory: int | None = None) -> None:
    """Check a model file before an engine on the CPU opens it.

    Parameters
    ----------
    path
        The ONNX file.
    memory
        Limit in bytes of what a pass holds at once; None for the memory that is free.

    Raises
    ------
    ModelFileError
        The file is not safe to open, see `require_safe`.
    OutOfMemoryError
        A pass needs more. On Linux an allocation beyond the free memory succeeds, and ends the process later.
    """
    needed = require_safe(path)
    if memory is None and needed > SMALL:
        memory = free_memory()
    if memory is not None and needed > memory:
        raise OutOfMemoryError(
            f"{path}: a pass holds at least {format_bytes(needed)} at once, the limit (memory) is "
            f"{format_bytes(memory)}: use a smaller tile or batch, or free memory"
        )


class WorkerSession(Session):
    """A session that computes on its worker thread; an engine implements `compute`.

    Parameters
    ----------
    spec
        The model's spec.
    name
        Engine and device, for messages.
    """

    device: int | None = None

    def __init__(self, spec: ModelSpec, name: str) -> None:
        self.spec, self.name = spec, name
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="unetrt")
        # Without waiting: the last reference may be dropped on the worker thread itself.
        self._finalizer = weakref.finalize(self, self._worker.shutdown, wait=False)

    @abstractmethod
    def compute(self, frames: Array, scores: Array) -> None:
        """Fill a lane's `output` from its `input`; runs on the worker thread, one call at a time."""

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` lanes, each with its own arrays."""
        return [WorkerLane(self) for _ in range(count)]

    def submit(self, work: Callable[[], Passed]) -> Future[Passed]:
        """Queue `work` on the worker thread; raises SessionClosedError after `close`."""
        try:
            return self._worker.submit(work)
        except RuntimeError as error:  # what an executor raises after its shutdown
            raise SessionClosedError(f"the session ({self.name}) is closed: open the model again") from error

    def close(self) -> None:
        """Wait for passes in flight and end the worker thread; idempotent."""
        self._finalizer.detach()
        self._worker.shutdown(wait=True)


class WorkerLane(Lane):
    """A lane whose pass is `WorkerSession.compute` on the worker thread."""

    def __init__(self, session: WorkerSession) -> None:
        self.input: Array = session.spec.new_input()
        self.output: Array = session.spec.new_output()
        self.passed = Passed()
        self._session: WorkerSession | None = session
        self._pending: Future[Passed] | None = None

    def launch(self) -> None:
        """Queue the pass; a pass in flight is waited for first."""
        self.wait()
        if self._session is None:
            raise SessionClosedError("the lane is closed: ask the session for another")
        self._pending = self._session.submit(self._pass)

    def wait(self) -> None:
        """Block until the pass has ended, and raise what it raised."""
        if self._pending is None:
            return
        try:
            self.passed = self._pending.result()
        finally:
            # An interrupt can end the wait before the pass: then it is still in flight.
            if self._pending.done():
                self._pending = None

    def close(self) -> None:
        """Wait for the pass, ignoring its error; idempotent."""
        with suppress(Exception):
            self.wait()
        self._session = None

    def _pass(self) -> Passed:
        assert self._session is not None
        begin = time.perf_counter()
        self._session.compute(self.input, self.output)
        return Passed(compute=time.perf_counter() - begin, begin=begin)


class CropSession(WorkerSession):
    """Each class's score is the first channel of the normalised frame, cropped to the core; a labels head casts it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, "numpy (reference: crops, computes nothing)")

    def compute(self, frames: Array, scores: Array) -> None:
        """Crop; raw grey values are normalised, as a graph that takes them does."""
        inner = slice(self.spec.halo, -self.spec.halo or None)
        core = frames[..., inner, inner]
        if self.spec.takes_raw:
            core = self.spec.normalisation.measure(core[0]).apply(core.astype(np.float32))
        core = core[:, :1]
        scores[...] = core if scores.ndim == core.ndim else core[:, 0]


def probe() -> str | None:
    """Return None: the reference is always usable."""
    return None


def open_session(path: Path) -> WorkerSession:
    """Return a reference session with the spec of an ONNX file, whose graph is not read."""
    return CropSession(read_spec(path))
