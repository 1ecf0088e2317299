"""Sessions and lanes on a GPU: what TensorRT and ONNX Runtime have in common there.

`CudaSession` makes lanes that share one engine. Before anything is allocated, `LaneMemory` compares what the lanes need
with what is free: each lane has its own scratch memory where that fits, else they share one and take turns (`Turn`),
else the session refuses with the numbers. New lanes are warm: each has run `WARM_UP` passes. Sessions that are still
open when the process ends are closed then, before interpreter shutdown frees their parts one by one.

A `CudaLane` is a CUDA stream, the memory it copies between, and the events that time it. A launch enqueues everything
asynchronously on the lane's stream::

    begin | copy input to the device | uploaded | wait for the turn | started | engine | computed | copy output | done

where words in the row of events are records of `_Events`. The host waits for `done` alone. `launch_with` replaces the
copies by other work on the stream, for frames and labels that stay on the device. An engine's pass is replayed as a
CUDA graph where it can be captured (`CapturedPass`).
"""

import atexit
import logging
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from unetrt.runtime.cuda.device import Buffer, CudaDevice, Event, Graph, Stream
from unetrt.runtime.errors import CudaError, InferenceError, OutOfMemoryError, SessionClosedError
from unetrt.runtime.machine import format_bytes
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions import Lane, Session
from unetrt.runtime.timings import Passed

log = logging.getLogger("unetrt")

# Enqueues work on the CUDA stream with this handle.
Step = Callable[[int], None]


class Place(NamedTuple):
    """Where an engine works for one lane: device addresses of its input and output, and the lane's stream."""

    input: int
    output: int
    stream: Stream


class EnginePass(Protocol):
    """What an engine computes in one lane, at one place."""

    def enqueue(self) -> None:
        """Enqueue a pass on the lane's stream; asynchronous. The device is current. Raises InferenceError."""

    def close(self) -> None:
        """Free what belongs to this lane alone; its stream is idle, and the device is current."""


class Turn:
    """Serialises the passes of lanes that share an engine's scratch memory, each in its own stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Event | None = None

    @contextmanager
    def taken(self, stream: Stream, computed: Event) -> Iterator[None]:
        """Make what is enqueued inside wait for the previous turn; the body must record `computed` at its end."""
        with self._lock:
            if self._last is not None:
                stream.wait_for(self._last)
            try:
                yield
            except BaseException:
                with suppress(CudaError):  # no event marks the end of what was enqueued so far
                    stream.synchronize()
                raise
            self._last = computed

    def forget(self, computed: Event) -> None:
        """Drop the reference to a completed event that is about to be destroyed."""
        with self._lock:
            if self._last is computed:
                self._last = None


class CudaLane(Lane):
    """A lane of a session on a GPU. Attributes: see `Lane`, and `place`, which `launch_with` reads and writes.

    Parameters
    ----------
    device
        The device of all memory, events and the stream.
    spec
        Gives the shapes and dtypes of input and output.
    clock
        The event from which the begin of each pass is counted.
    turn
        Shared by the lanes that share the engine's scratch memory; None where this lane has its own.
    new_pass
        Makes the engine's part.
    """

    def __init__(
        self,
        device: CudaDevice,
        spec: ModelSpec,
        clock: Event,
        turn: Turn | None,
        new_pass: Callable[[Place], EnginePass],
    ) -> None:
        self.passed = Passed()
        self._flying, self._lock = False, threading.RLock()
        with ExitStack() as owned, device.current():
            stream = owned.enter_context(device.stream())
            events = _Events(*(owned.enter_context(device.event()) for _ in _Events._fields))
            tensors = spec.tensors()
            self.input, self.output = (device.pinned(tensor.shape, tensor.dtype) for tensor in tensors)
            source, target = (owned.enter_context(device.buffer(tensor.nbytes)) for tensor in tensors)
            self.place = Place(source.handle, target.handle, stream)
            engine_pass = owned.enter_context(closing(new_pass(self.place)))
            self._open = _Open(device, stream, events, clock, turn, engine_pass, owned.pop_all())
        # Also for a lane that is dropped while a pass is in flight.
        self._finalizer = weakref.finalize(self, self._open.close)

    def launch(self) -> None:
        """Enqueue copy in, pass and copy out; where a call fails, what was enqueued is waited for."""
        self.launch_with()

    def launch_with(self, before: Sequence[Step] = (), after: Sequence[Step] = ()) -> None:
        """Launch a pass whose input or output stays on the device.

        Parameters
        ----------
        before
            Steps that write to `place.input`, instead of the copy of `input`; empty: the copy.
        after
            Steps that read `place.output`, instead of the copy to `output`; empty: the copy.

        Raises
        ------
        SessionClosedError, InferenceError
            As `Lane.launch` does.
        """
        with self._lock:
            self.wait()
            opened = self._opened()
            self._flying = True
            with self._settled_if_it_fails(opened):
                opened.enqueue(before or [self._upload], after or [self._download])

    def wait(self) -> None:
        """Block until the last event has completed; raises SessionClosedError where the lane was closed."""
        with self._lock:
            opened = self._opened()
            if not self._flying:
                return
            with self._settled_if_it_fails(opened):
                opened.events.done.synchronize()
                self.passed = opened.times()
            self._flying = False

    def close(self) -> None:
        """Wait for the stream, then free everything but the arrays, in reverse order; idempotent."""
        with self._lock:
            self._flying = False
            self._finalizer()

    def restart_clock(self) -> None:
        """Record the clock event again: CUDA's times are float32 milliseconds, coarse after hours."""
        with self._lock, self._opened().device.current():
            self._open.clock.record(self._open.stream)
            self._open.clock.synchronize()

    def _opened(self) -> "_Open":
        if not self._finalizer.alive:
            raise SessionClosedError("the lane is closed, by its session or its segmenter: open the model again")
        return self._open

    @contextmanager
    def _settled_if_it_fails(self, opened: "_Open") -> Iterator[None]:
        with opened.device.current():
            try:
                yield
            except BaseException:
                opened.settle()
                self._flying = False
                raise

    def _upload(self, stream: int) -> None:
        driver = self._open.device.driver
        driver.copy_in(self.place.input, self.input.ctypes.data, self.input.nbytes, stream)

    def _download(self, stream: int) -> None:
        driver = self._open.device.driver
        driver.copy_out(self.output.ctypes.data, self.place.output, self.output.nbytes, stream)


class _Events(NamedTuple):
    """A lane's events, in the order in which they complete."""

    begin: Event
    uploaded: Event
    started: Event
    computed: Event
    done: Event


@dataclass
class _Open:
    """The resources of a lane until it is closed. All methods but `close` need the device to be current.

    Separate from the lane, so that the lane's finalizer can hold it.
    """

    device: CudaDevice
    stream: Stream
    events: _Events
    clock: Event
    turn: Turn | None
    engine_pass: EnginePass
    owned: ExitStack

    def enqueue(self, before: Sequence[Step], after: Sequence[Step]) -> None:
        """Enqueue a whole pass on the stream."""
        events, stream = self.events, self.stream
        events.begin.record(stream)
        for step in before:
            step(stream.handle)
        events.uploaded.record(stream)
        with nullcontext() if self.turn is None else self.turn.taken(stream, events.computed):
            events.started.record(stream)
            self.engine_pass.enqueue()
            events.computed.record(stream)
        for step in after:
            step(stream.handle)
        events.done.record(stream)

    def times(self) -> Passed:
        """Return the times of the completed pass, in seconds."""
        events = self.events
        return Passed(
            upload=events.uploaded.since(events.begin),
            queue=events.started.since(events.uploaded),
            compute=events.computed.since(events.started),
            download=events.done.since(events.computed),
            begin=events.started.since(self.clock),
        )

    def settle(self) -> None:
        """Wait until the stream is idle; the arrays are then the caller's again."""
        with suppress(CudaError):  # the first error is already being raised, or the device is lost
            self.stream.synchronize()

    def close(self) -> None:
        """Wait for the stream, then free everything."""
        if self.device.is_inherited:
            return
        with self.device.current():
            self.settle()
            if self.turn is not None:
                self.turn.forget(self.events.computed)
            self.owned.close()


class CapturedPass:
    """A pass that replays as a CUDA graph: one launch instead of one a kernel.

    It is captured when it is enqueued for the second time, as the first pass may allocate memory and load kernels. An
    engine that cannot be captured keeps running kernel by kernel, which is logged.

    Parameters
    ----------
    inner
        The engine's pass.
    place
        Where it works: a graph stores the addresses.
    """

    def __init__(self, inner: EnginePass, place: Place) -> None:
        self._inner, self._stream = inner, place.stream
        self._graph: Graph | None = None
        self._may_capture = self._stream.device.driver.captures
        self._ran = False

    def enqueue(self) -> None:
        """Launch the graph, or the pass itself while there is no graph."""
        if self._graph is None and self._ran and self._may_capture:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self._stream)
            return
        self._inner.enqueue()
        self._ran = True

    def close(self) -> None:
        """Free the graph, then the pass."""
        if self._graph is not None:
            self._graph.close()
        self._inner.close()

    def _capture(self) -> None:
        try:
            self._graph = Graph.of(self._stream, self._inner.enqueue)
        except InferenceError as error:
            self._may_capture = False
            log.info("no CUDA graph: %s", str(error))  # a log record of the error itself would hold the lane


# Bytes that stay free for what is not counted: the driver's streams and graphs, kernels that are loaded when they first
# run, sizes that are rounded up. An estimate, not measured.
RESERVE = 128 * 2**20
# Passes of a new lane before it is returned: engines prepare in the first, and a graph is captured in the second.
WARM_UP = 2


class CudaSession(Session):
    """Base class of sessions on a GPU; an engine implements its memory needs and its passes.

    Parameters
    ----------
    spec
        The model's spec.
    name
        Engine and device, for messages.
    device
        Where the model is loaded; nothing is allocated on another device.
    """

    def __init__(self, spec: ModelSpec, name: str, device: CudaDevice) -> None:
        self.spec, self.name, self.device = spec, name, device.driver.index
        self._cuda: CudaDevice | None = device
        self._lock = threading.Lock()
        self._lanes: weakref.WeakSet[CudaLane] = weakref.WeakSet()
        _close_at_exit(self)

    @property
    def cuda(self) -> CudaDevice:
        """The device; raises SessionClosedError after `close`."""
        if self._cuda is None:
            raise SessionClosedError(f"the session ({self.name}) is closed: open the model again")
        return self._cuda

    @abstractmethod
    def scratch(self) -> int:
        """Return the bytes of scratch memory that a pass needs for activations; 0 where the engine allocates them."""

    def own_memory(self) -> int:
        """Return the bytes that the engine itself allocates for each lane; 0 by default."""
        return 0

    @abstractmethod
    def new_pass(self, scratch: Buffer | None, place: Place) -> EnginePass:
        """Return the engine's part of a lane, which must hold `scratch`; the device is current."""

    @abstractmethod
    def unload(self) -> None:
        """Free the engine; all lanes are closed, and the device is current."""

    def warmed(self) -> None:
        """Save what the engine compiled in the first passes of new lanes; the device is current."""

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` lanes, warm; that they share scratch memory is logged."""
        with self._lock:
            device = self.cuda  # first: a closed session has no engine to ask
            memory = LaneMemory(count, self.spec.tensors().nbytes, self.scratch(), self.own_memory())
            failure = ""
            for share in memory.sharing(device, self.name):
                try:
                    return self._new_lanes(memory, share=share)
                except OutOfMemoryError as error:
                    how = "that take turns" if share else "with scratch memory for each"
                    log.info("%s: %d lanes %s: %s", self.name, count, how, str(error))
                    failure = str(error)  # the error itself would hold what was allocated
            raise OutOfMemoryError(f"{failure}; {memory.refusal(device, self.name)}")

    def close(self) -> None:
        """Wait for passes in flight, then free the lanes, the engine and the device's context; idempotent."""
        with self._lock:
            if self._cuda is None:
                return
            device, self._cuda = self._cuda, None
            with device.current(), ExitStack() as closing:
                closing.callback(self.unload)
                for lane in tuple(self._lanes):
                    closing.callback(lane.close)

    def _new_lanes(self, memory: "LaneMemory", *, share: bool) -> list[Lane]:
        """Return warm lanes; an error leaves none."""
        device = self.cuda
        turn = Turn() if share else None
        shared = device.buffer(memory.scratch) if share and memory.scratch else None
        clock = device.event()
        with ExitStack() as owned:
            lanes: list[Lane] = []
            for _ in range(memory.lanes):
                scratch = shared or (device.buffer(memory.scratch) if memory.scratch else None)
                lane = CudaLane(device, self.spec, clock, turn, partial(self.new_pass, scratch))
                owned.callback(lane.close)
                self._lanes.add(lane)
                lanes.append(lane)
            lanes[0].restart_clock()
            for _ in range(WARM_UP):
                for one in lanes:
                    one.launch()
                for one in lanes:
                    one.wait()
            with device.current():
                self.warmed()
            owned.pop_all()
            return lanes


@dataclass(frozen=True)
class LaneMemory:
    """Device memory that a number of lanes needs, in bytes.

    Attributes
    ----------
    lanes
        Number of lanes.
    staging
        Input and output of one lane.
    scratch
        Activations of one pass, in memory that lanes can share.
    own
        What the engine itself allocates for each lane (weights, activations, workspace); not shared.
    """

    lanes: int
    staging: int
    scratch: int
    own: int = 0

    @property
    def apart(self) -> int:
        """Total with scratch memory for each lane."""
        return self.lanes * (self.staging + self.scratch + self.own)

    @property
    def shared(self) -> int:
        """Total with one scratch memory for all lanes."""
        return self.lanes * (self.staging + self.own) + self.scratch

    def sharing(self, device: CudaDevice, name: str) -> tuple[bool, ...]:
        """Return whether to share scratch memory: the possible answers, in the order to try them.

        Raises
        ------
        OutOfMemoryError
            The lanes do not fit even if they share it; the message states the sizes.
        """
        free, _ = device.memory()
        may_share = self.lanes > 1 and self.scratch > 0
        if self.apart + RESERVE <= free:
            return (False, True) if may_share else (False,)
        if may_share and self.shared + RESERVE <= free:
            log.info(
                "%s: %d lanes take turns, as scratch memory for each needs %s and %s are free",
                name, self.lanes, format_bytes(self.apart), format_bytes(free),
            )  # fmt: skip
            return (True,)
        raise self.refusal(device, name)

    def refusal(self, device: CudaDevice, name: str) -> OutOfMemoryError:
        """Return the error for lanes that do not fit, with numbers and advice."""
        free, total = device.memory()
        need = "1 lane needs" if self.lanes == 1 else f"{self.lanes} lanes need"
        parts = [f"{self.lanes} x {format_bytes(self.staging)} for tiles"]
        parts += [f"{self.lanes} x {format_bytes(self.own)} for weights, activations and workspace"] if self.own else []
        parts += [f"{format_bytes(self.scratch)} for activations"] if self.scratch or not self.own else []
        return OutOfMemoryError(
            f"{name}: {need} {format_bytes(self.shared)} ({', '.join(parts)}) and a reserve of "
            f"{format_bytes(RESERVE)}, and {format_bytes(free)} of {format_bytes(total)} are free: {self._advice(free)}"
        )

    def _advice(self, free: int) -> str:
        fitting = min(self.lanes - 1, (free - RESERVE - self.scratch) // (self.staging + self.own))
        if fitting < 1:
            return "use a smaller tile or batch (`unetrt plan --memory`)"
        return "use 1 lane" if fitting == 1 else f"use {fitting} lanes"


_open: "weakref.WeakSet[CudaSession]" = weakref.WeakSet()


def _close_at_exit(session: CudaSession) -> None:
    """Close a session when the process ends; threads that still segment then get SessionClosedError."""
    if not _open:
        # atexit runs hooks in reverse order: registered after the hook of `weakref.finalize`, this one runs before it.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(session)


def _close_all() -> None:
    for session in tuple(_open):
        with suppress(InferenceError, SessionClosedError):
            if not session.cuda.is_inherited:
                session.close()
