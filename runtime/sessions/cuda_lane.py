"""One lane on a GPU: a CUDA stream, the memory that it copies between, and the events that time it.

A launch gives the stream all it has to do, asynchronously: copy in, the engine's pass, copy out. The host waits for the
last event alone.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.device import Buffer, CudaDevice, Event, Stream
from unetrt.runtime.errors import CudaError, SessionClosedError
from unetrt.runtime.sessions.protocol import Step
from unetrt.runtime.spec import ModelSpec
from unetrt.runtime.timings import Passed

EMPTY: NDArray[Any] = np.empty(0)


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


class Turn:
    """Lets lanes that share an engine's scratch memory compute one after another, each in its own stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Event | None = None

    @contextmanager
    def taken(self, stream: Stream, computed: Event) -> Iterator[None]:
        """Let what the stream is given inside wait for the turn before; `computed` is recorded after it."""
        with self._lock:
            if self._last is not None:
                stream.wait_for(self._last)
            try:
                yield
                computed.record(stream)
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


class _Points(NamedTuple):
    """A lane's events, in the order in which they come to pass."""

    begin: Event
    uploaded: Event
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
        self._device, self._turn, self._flying = device, turn, False
        self._lock = threading.RLock()
        with ExitStack() as owned, device.current():
            stream = owned.enter_context(device.stream())
            points = _Points(*(owned.enter_context(device.event()) for _ in _Points._fields))
            self.input, device_input = self._staged(spec.new_input(), owned)
            self.output, device_output = self._staged(spec.new_output(), owned)
            self.place = Place(device_input.handle, device_output.handle, stream)
            engine_pass = owned.enter_context(closing(new_pass(self.place)))
            owned.callback(self._settle, stream)
            self._open: _Open | None = _Open(points, clock, engine_pass, owned.pop_all())

    def launch(self, before: Sequence[Step] = (), after: Sequence[Step] = ()) -> None:
        """Give a pass to the stream; what was given is waited for if one of the calls fails."""
        with self._lock:
            self.wait()
            if self._open is None:
                raise SessionClosedError("the lane is closed: ask the session for another")
            with self._device.current():
                try:
                    self._give(self._open, before or [self._upload], after or [self._download])
                except BaseException:
                    self._settle(self.place.stream)
                    raise
            self._flying = True

    def wait(self) -> None:
        """Sleep until the last event has come to pass."""
        with self._lock:
            if not self._flying or self._open is None:
                return
            with self._device.current():
                try:
                    self._open.points.done.synchronize()
                    self.passed = self._open.times()
                except BaseException:
                    self._settle(self.place.stream)
                    raise
                finally:
                    self._flying = False

    def close(self) -> None:
        """Wait for the stream, then free everything, the youngest first; idempotent."""
        with self._lock:
            if self._open is None:
                return
            opened, self._open, self._flying = self._open, None, False
            with self._device.current():
                self._settle(self.place.stream)
                self.input = self.output = EMPTY
                if self._turn is not None:
                    self._turn.forget(opened.points.computed)
                opened.owned.close()

    def _give(self, opened: "_Open", before: Sequence[Step], after: Sequence[Step]) -> None:
        points, stream = opened.points, self.place.stream
        points.begin.record(stream)
        for step in before:
            step(stream.handle)
        points.uploaded.record(stream)
        if self._turn is None:
            opened.engine_pass.enqueue()
            points.computed.record(stream)
        else:
            with self._turn.taken(stream, points.computed):
                opened.engine_pass.enqueue()
        for step in after:
            step(stream.handle)
        points.done.record(stream)

    def _upload(self, stream: int) -> None:
        self._device.driver.copy_in(self.place.input, self.input.ctypes.data, self.input.nbytes, stream)

    def _download(self, stream: int) -> None:
        self._device.driver.copy_out(self.output.ctypes.data, self.place.output, self.output.nbytes, stream)

    def _staged(self, like: NDArray[Any], owned: ExitStack) -> tuple[NDArray[Any], Buffer]:
        """Return memory on the host and on the device for an array like that."""
        pinned = self._device.pinned(like.shape, like.dtype)
        return pinned, owned.enter_context(self._device.buffer(like.nbytes))

    @staticmethod
    def _settle(stream: Stream) -> None:
        """Leave nothing in the stream, whatever it is; the arrays are the caller's again."""
        with suppress(CudaError):  # the first error is already on its way, or the device is lost
            stream.synchronize()


@dataclass
class _Open:
    """What a lane has until it is closed."""

    points: _Points
    clock: Event
    engine_pass: EnginePass
    owned: ExitStack

    def times(self) -> Passed:
        """Return the times of the pass that has come to an end."""
        points = self.points
        return Passed(
            upload=points.uploaded.since(points.begin),
            compute=points.computed.since(points.uploaded),
            download=points.done.since(points.computed),
            begin=points.uploaded.since(self.clock),
        )
