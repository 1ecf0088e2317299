"""One lane on a GPU: a CUDA stream, the memory that it copies between, and the events that time it.

A launch gives the stream all it has to do, asynchronously: copy in, the engine's pass, copy out. The host waits for the
last event alone.

Turns of lanes that share memory.

An engine's pass as a CUDA graph: launched at once instead of kernel by kernel.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from unetrt.runtime.cuda.device import Buffer, CudaDevice, Event, Graph, Stream
from unetrt.runtime.errors import CudaError, InferenceError, SessionClosedError
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.segment.timings import Passed
from unetrt.runtime.sessions.protocol import Step


class Turn:
    """Lets lanes that share an engine's scratch memory compute one after another, each in its own stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Event | None = None

    @contextmanager
    def taken(self, stream: Stream, computed: Event) -> Iterator[None]:
        """Let what the stream is given inside wait for the turn before; it ends with the record of `computed`."""
        with self._lock:
            if self._last is not None:
                stream.wait_for(self._last)
            try:
                yield
            except BaseException:
                with suppress(CudaError):  # nobody else will wait for what was given so far
                    stream.synchronize()
                raise
            self._last = computed

    def forget(self, computed: Event) -> None:
        """Let go of an event that has come to pass and is about to be freed."""
        with self._lock:
            if self._last is computed:
                self._last = None


class Place(NamedTuple):
    """Where an engine works for one lane: addresses of its input and output on the device, and the lane's stream."""

    input: int
    output: int
    stream: Stream


class EnginePass(Protocol):
    """What an engine computes in one lane, at one place."""

    def enqueue(self) -> None:
        """Give a pass to the lane's stream; asynchronous. The device is current. Raises InferenceError."""

    def close(self) -> None:
        """Free what belongs to this lane alone; its stream has done its work, and the device is current."""


class _Points(NamedTuple):
    """A lane's events, in the order in which they come to pass."""

    begin: Event
    uploaded: Event
    started: Event
    computed: Event
    done: Event


class CudaLane:
    """A lane of a session on a GPU; what `Lane` promises.

    `place` says where the engine works for it: steps before and after a pass write to its input and read its output.

    Parameters
    ----------
    device
        Where all of it lies.
    spec
        Says how large input and output are.
    clock
        The event from which the begin of each pass is counted.
    turn
        Shared with the lanes that share the engine's scratch memory; None where this lane has its own.
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
            points = _Points(*(owned.enter_context(device.event()) for _ in _Points._fields))
            self.input, device_input = _staged(device, spec.new_input(), owned)
            self.output, device_output = _staged(device, spec.new_output(), owned)
            self.place = Place(device_input.handle, device_output.handle, stream)
            engine_pass = owned.enter_context(closing(new_pass(self.place)))
            self._open = _Open(device, stream, points, clock, turn, engine_pass, owned.pop_all())
        # Also for a lane that is dropped in the middle of a pass.
        self._finalizer = weakref.finalize(self, self._open.close)

    def restart_clock(self) -> None:
        """Record the event from which the begin of a pass is counted; no lane that shares it is in flight."""
        with self._lock, self._opened().device.current():
            self._open.clock.record(self._open.stream)
            self._open.clock.synchronize()

    def launch(self, before: Sequence[Step] = (), after: Sequence[Step] = ()) -> None:
        """Give a pass to the stream; what was given is waited for if one of the calls fails."""
        with self._lock:
            self.wait()
            opened = self._opened()
            self._flying = True
            with self._settled_if_it_fails(opened):
                opened.give(before or [self._upload], after or [self._download])

    def wait(self) -> None:
        """Sleep until the last event has come to pass; raises SessionClosedError where the lane was closed."""
        with self._lock:
            opened = self._opened()
            if not self._flying:
                return
            with self._settled_if_it_fails(opened):
                opened.points.done.synchronize()
                self.passed = opened.times()
            self._flying = False

    def close(self) -> None:
        """Wait for the stream, then free all but the arrays, the youngest first; idempotent."""
        with self._lock:
            self._flying = False
            self._finalizer()

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


@dataclass
class _Open:
    """What a lane has until it is closed. Its methods, but for `close`, need the device to be current."""

    device: CudaDevice
    stream: Stream
    points: _Points
    clock: Event
    turn: Turn | None
    engine_pass: EnginePass
    owned: ExitStack

    def give(self, before: Sequence[Step], after: Sequence[Step]) -> None:
        """Give the stream all that a pass is."""
        points, stream = self.points, self.stream
        points.begin.record(stream)
        for step in before:
            step(stream.handle)
        points.uploaded.record(stream)
        with nullcontext() if self.turn is None else self.turn.taken(stream, points.computed):
            points.started.record(stream)
            self.engine_pass.enqueue()
            points.computed.record(stream)
        for step in after:
            step(stream.handle)
        points.done.record(stream)

    def times(self) -> Passed:
        """Return the times of the pass that has come to an end."""
        points = self.points
        return Passed(
            upload=points.uploaded.since(points.begin),
            queue=points.started.since(points.uploaded),
            compute=points.computed.since(points.started),
            download=points.done.since(points.computed),
            begin=points.started.since(self.clock),
        )

    def settle(self) -> None:
        """Leave nothing in the stream, whatever it is; the arrays are the caller's again."""
        with suppress(CudaError):  # the first error is already on its way, or the device is lost
            self.stream.synchronize()

    def close(self) -> None:
        """Wait for the stream, then free everything."""
        if self.device.is_inherited:
            return
        with self.device.current():
            self.settle()
            if self.turn is not None:
                self.turn.forget(self.points.computed)
            self.owned.close()


def _staged(device: CudaDevice, like: NDArray[Any], owned: ExitStack) -> tuple[NDArray[Any], Buffer]:
    """Return memory on the host and on the device for an array like that."""
    return device.pinned(like.shape, like.dtype), owned.enter_context(device.buffer(like.nbytes))


log = logging.getLogger("unetrt")


class CapturedPass:
    """A pass that is captured when it is given to its stream for the second time, as the first may allocate and load.

    An engine that cannot be captured goes on as it is, and the log says so.

    Parameters
    ----------
    inner
        The engine's pass.
    place
        Where it works: a graph keeps the addresses.
    """

    def __init__(self, inner: EnginePass, place: Place) -> None:
        self._inner, self._stream = inner, place.stream
        self._graph: Graph | None = None
        self._may_capture = self._stream.device.driver.captures
        self._ran = False

    def enqueue(self) -> None:
        """Launch the graph, or what is not one yet."""
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
            log.info("no CUDA graph: %s", str(error))  # a record of the error itself would hold the lane
