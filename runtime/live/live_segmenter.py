"""`LiveSegmenter`: segments the frames of a camera without blocking it, and delivers results as they complete.

`submit` puts a frame into a bounded `FrameQueue` and returns. The daemon threads of the `Worker` take frames in order,
segment them, number and measure their objects, and hand each result to a `Delivery`, which calls outputs and fills
result streams. Objects are numbered and results delivered while the next frame is segmented. The threads refer to the
worker only, never to the `LiveSegmenter`, so that an unreferenced one is collected and closed by its finalizer.

    with LiveSegmenter("model.onnx", on_result=print) as live:
        for index, frame in enumerate(camera):
            live.submit(frame, index)
"""

import logging
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from unetrt.runtime.closing import ProcessBound
from unetrt.runtime.errors import OptionError, shown
from unetrt.runtime.live.frame_metadata import ImageNumbers, stream_of
from unetrt.runtime.live.frame_queue import FrameQueue, Policy, WaitingFrame
from unetrt.runtime.live.results import (
    UNKNOWN_STREAM,
    Delivery,
    LiveResult,
    LiveStatus,
    Outcome,
    Record,
    ResultOutput,
    ResultStream,
    State,
    StreamKey,
    require_consumers,
)
from unetrt.runtime.live.worker import Worker
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.frames import FrameLayout
from unetrt.runtime.pixels.running import Streams
from unetrt.runtime.segment.segmenter import LANES, Segmenter
from unetrt.runtime.sessions import AUTO

log = logging.getLogger("unetrt.live")

# Default capacity of a result stream.
STREAM_CAPACITY = 64
# Class of the relay threads of pymmcore-plus, and module of its acquisition engine, on whose thread slots can wait.
RELAY_THREAD, RUNNER = "MDARelayThread", "pymmcore_plus.mda._runner"
QT = ("PyQt6", "PySide6", "PyQt5", "PySide2")


class HostQueue(StrEnum):
    """A queue without a bound between a camera and `LiveSegmenter.frameReady`; the value is advice to the host program.

    With the policy `block` a camera waits in `frameReady`, if that runs on the camera's thread. On two other threads it
    does not wait, as its frames would only move into the queue behind them:

    - pymmcore-plus calls the outputs of `core.mda.run(..., output=[...])` on a relay thread (`mda/_thread_relay.py`);
    - Qt calls the slots of another thread's signal in the event loop of the thread that connected them: the GUI's,
      whose work delays them. Without a running event loop they are not called.
    """

    RELAY = (
        "policy block cannot hold up an acquisition that hands over frames by output=[live]: frames that find no room "
        "are dropped; connect live's slots to core.mda.events instead, or use the policy drop_oldest"
    )
    GUI = (
        "frames arrive in the event loop of the GUI: they are late while it is busy, and the policy block cannot wait; "
        "use core.mda.run(..., output=[live]), or connect live's slots with Qt's DirectConnection"
    )


class LiveSegmenter(ProcessBound):
    """A segmenter with a bounded queue and its own threads: `submit` returns at once, results follow in order.

    ::

        open --> waiting <--> segmenting          submit, frameReady: any thread, never raise
                        |
          close -->  closing --> closed           frames submitted now are dropped

    An error in a frame becomes its result; nothing is raised into the host program. Size and dtype may change from
    frame to frame. With `instances`, a frame's objects are numbered and measured and its result is delivered while the
    next frame is segmented; at most one segmented frame waits for that, and no other is taken from the queue meanwhile.

    A decision is a line on the table of a result's objects:

    >>> def is_crowded(result):  # more than 40 objects of over 50 pixels
    ...     return np.count_nonzero(result.table["area"] > 50) > 40

    It can be an output of a Micro-Manager acquisition (``core.mda.run(sequence, output=["raw.ome.zarr", live])``) and a
    signal slot (``core.mda.events.frameReady.connect(live.frameReady)``), and imports neither pymmcore nor Qt. As an
    output it gets frames from an unbounded queue, and as a slot of Qt's event loop too: there `frameReady` never waits,
    whatever the policy, and `LiveStatus.warning` says what to connect instead (`HostQueue`).

    Parameters
    ----------
    model
        A model file or an engine, opened here, or an open `Segmenter`, which `close` leaves open. Opening can take
        minutes when it builds an engine.
    policy
        What happens when the queue is full: `latest` keeps only the newest frame, for smart microscopy and previews;
        `drop_oldest` keeps the newest `capacity` frames; `block` makes `submit` wait, for frames from files and for
        cameras that call `frameReady` on their own thread.
    capacity
        Maximum number of queued frames, excluding those being segmented and decoded; None for 1 with `latest`, else 8.
    kind
        `instances`: labels are int32 object numbers, as `unetrt predict` writes them; `classes`: labels are uint8 class
        indices; None for the kind the model was trained on.
    normalisation
        `model`: as the model file specifies. `running`: its percentiles, or mean and deviation, averaged over the
        stream, so that brightness does not flicker and a blank frame is not stretched into noise
        (`unetrt.runtime.pixels.running`).
    confidence
        Whether tables have a column `confidence`, 0 to 1: how certain the network is of each object
        (`Segmenter.objects`). The probabilities of all classes are then computed for each frame. Not with `classes`.
    channel
        The only channel (`event.channel.config`) that `frameReady` takes; None for all channels.
    channels
        Channels to take from frames that have several, (C, H, W) or with colours last, by their indices from 0: [1] is
        green. Empty: all; for a model of one channel the grey values of colours (0.299 red, 0.587 green, 0.114 blue).
    on_result
        Called with each `done` or `failed` result, in submission order, on `thread`.
    outputs
        Consumers of results, such as a `LabelWriter`; closed with this object.
    frame, backend, lanes, device, backend_options
        As for `Segmenter`; only if `model` is a path.

    Attributes
    ----------
    segmenter
        The `Segmenter`.
    thread
        The thread that calls outputs and callbacks.

    Raises
    ------
    OptionError
        The policy or kind is unknown, the capacity does not fit the policy, options to open a model were given with an
        open `Segmenter`, `running` is requested for a model with fixed normalisation, or `confidence` for class maps or
        a model whose head is `labels`.
    UnetrtError
        What `Segmenter` raises.
    """

    def __init__(  # noqa: PLR0913 - the options of Segmenter are among them
        self,
        model: str | Path | Segmenter,
        *,
        policy: Policy | str = Policy.LATEST,
        capacity: int | None = None,
        kind: Annotation | None = None,
        normalisation: Literal["model", "running"] = "model",
        confidence: bool = False,
        channel: str | None = None,
        channels: Sequence[int] = (),
        on_result: Callable[[LiveResult], None] | None = None,
        outputs: Sequence[ResultOutput] = (),
        frame: tuple[int, int] | None = None,
        backend: str = AUTO,
        lanes: int = LANES,
        device: int | None = None,
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        queue = FrameQueue(policy, capacity)
        if not (kind is None or (isinstance(kind, str) and kind in ("instances", "classes"))):
            raise OptionError(f"labels of kind {shown(kind)} are unknown: use instances or classes")
        if not (channel is None or isinstance(channel, str)):
            raise OptionError(f"channel={shown(channel)} is not the name of a channel: give one, such as 'DAPI'")
        require_consumers(on_result, outputs)
        with ExitStack() as opened:
            self.segmenter = _segmenter(model, opened, frame, backend, lanes, device, backend_options)
            spec = self.segmenter.spec
            kind = kind or spec.annotation
            if confidence:
                _require_confidence(self.segmenter, kind)
            averages, layout = Streams(spec.normalisation, normalisation), FrameLayout(spec.channels, channels)
            record = Record()
            delivery = Delivery(on_result, outputs, record)
            self._worker = Worker(self.segmenter, queue, kind, averages, delivery, record, layout, confidence)
            self._worker.at_end.push(opened.pop_all())
        self._queue, self._channel = queue, channel
        self._numbers = ImageNumbers()
        self._threads = self._worker.start()
        self.thread = self._threads[0]
        self._finalizer = weakref.finalize(self, _end, self._worker, self._threads, drain=False)

    def submit(
        self,
        frame: Any,
        index: Any = None,
        meta: Mapping[str, Any] | None = None,
        *,
        copy: bool = True,
        stream: StreamKey = UNKNOWN_STREAM,
    ) -> Future[LiveResult]:
        """Queue a frame and return at once; from any thread, never raises. With the policy `block`, waits for room.

        Parameters
        ----------
        frame
            (H, W), or (C, H, W) for a model of C channels, of any size and dtype that `Segmenter.segment` accepts, with
            any number of axes of length one in front. Colours may be last: (H, W, 3), or (H, W, 4) with opacity; see
            `channels`. Anything else becomes a failed result.
        index, meta
            Returned unchanged in the result.
        copy
            Whether to copy the frame first, because a camera driver may write the next frame to the same memory. With
            False the frame must not be modified until its result is ready. Only numpy arrays are copied.
        stream
            The camera and channel that the frame comes from, both texts: each stream has its own running normalisation.
            With anything else the result is a failed one.

        Returns
        -------
        A future of the result. It never holds an exception; see `LiveResult.error`. Its callbacks run on `thread`, or,
        for a dropped frame, on the thread that submitted the frame it was dropped for. Cancelling it drops the frame,
        unless it is already being segmented.
        """
        item = WaitingFrame(frame, index, {} if meta is None else meta)
        if isinstance(stream, StreamKey) and isinstance(stream.camera, str) and isinstance(stream.channel, str):
            item.stream = stream
        else:
            item.error = OptionError(
                f"stream={shown(stream)} is not a camera and a channel: use StreamKey('Camera', 'DAPI')"
            )
        return self._put(item, copy=copy)

    def _put(self, item: WaitingFrame, *, copy: bool, wait: bool = True) -> Future[LiveResult]:
        frame = item.frame
        if copy and isinstance(frame, np.ndarray):
            try:
                item.frame = frame.copy()
            except Exception as error:  # noqa: BLE001 - out of memory, or an array subclass that fails: its result
                item.error = error
        _resolve_dropped(self._queue.put(item, wait))
        return item.future

    def results(self, capacity: int = STREAM_CAPACITY) -> ResultStream:
        """Return an iterator over all later results; it ends when this object is closed.

        Each iterator receives all results and buffers up to `capacity` of them; see `ResultStream`.
        """
        stream = ResultStream(capacity)
        self._worker.delivery.add(stream)
        return stream

    def status(self) -> LiveStatus:
        """Return a snapshot of state, counts, rate and latency; from any thread."""
        record = self._worker.record
        rate, queueing, compute, decode, latency = record.times()
        counts = self._queue.counts()
        return LiveStatus(
            self._state(counts.pending),
            **asdict(counts),
            missed=self._numbers.missed,
            output_errors=record.output_errors,
            last_error=record.last_error,
            warning=record.warning,
            rate=rate,
            queueing=queueing,
            compute=compute,
            latency=latency,
            decode=decode,
        )

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until no frame is pending and all results are delivered; return False after `timeout` seconds.

        Raises
        ------
        OptionError
            Called from an output or a callback, where it would deadlock.
        """
        if threading.current_thread() in self._threads:
            raise OptionError(
                "flush would deadlock in an output or a callback, for which results wait: call it on another thread"
            )
        return self._queue.wait_idle(timeout)

    def close(self, drain: bool = True) -> None:
        """Stop the threads, close outputs and streams, and free the model if it was opened here; idempotent.

        Parameters
        ----------
        drain
            Whether to segment the queued frames first. If False, they are dropped, the frame being segmented is dropped
            at its next tile, and so is one whose objects are not numbered yet; outputs get no further result or notice
            but the end of the current sequence. This method then waits for one tile and one decoding at most, for the
            calls of outputs with the result that is being delivered, and for the outputs to close.

        A `with` block that ends with an exception does not drain. If called from an output or a callback, this method
        returns without waiting for the threads.
        """
        _end(self._worker, self._threads, drain=drain)
        self._finalizer.detach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    def frameReady(self, img: Any, event: Any, meta: Mapping[str, Any] | None = None) -> None:  # noqa: N802
        """Submit a frame of a Micro-Manager acquisition without copying it: pymmcore-plus's handler and slot.

        Parameters
        ----------
        img
            As in `submit`; shared by all listeners: neither they nor this object modify it.
        event
            The `useq.MDAEvent`; its index becomes that of the result.
        meta
            Frame metadata (pymmcore-plus, `FrameMetaV1`). The camera that they name and the event's channel are
            `LiveResult.stream`; gaps in a camera's `ImageNumber` are counted in `LiveStatus.missed`.
        """
        stream, index = UNKNOWN_STREAM, dict[Any, Any]()
        with suppress(Exception):  # a host's own event and metadata may raise: the frame is still segmented
            stream = stream_of(event, meta)
            if isinstance(given := getattr(event, "index", None), Mapping):
                index = dict(given)
            if isinstance(meta, Mapping):
                self._numbers.observe(stream.camera, meta.get("camera_metadata"))
        if self._channel is not None and stream.channel != self._channel:
            return
        queue = host_queue()
        if queue is HostQueue.GUI or (queue is HostQueue.RELAY and self._queue.policy is Policy.BLOCK):
            self._worker.record.warn(queue)
        item = WaitingFrame(img, index, {} if meta is None else meta, stream=stream)
        self._put(item, copy=False, wait=queue is None)

    def sequenceStarted(self, sequence: Any = None, meta: Mapping[str, Any] | None = None) -> None:  # noqa: N802
        """Begin a sequence, to which all later frames belong: a `useq.MDASequence` and its metadata. Never blocks."""
        self._numbers.restart()
        self._queue.begin(sequence, {} if meta is None else meta, self._channel, self._worker.delivery.sequence_started)

    def sequenceFinished(self, sequence: Any = None) -> None:  # noqa: ARG002, N802
        """End the sequence; its queued frames are still segmented. Never blocks."""
        self._queue.end(self._worker.delivery.sequence_finished)

    def _state(self, pending: int) -> State:
        if self._worker.ended.is_set() or not self.thread.is_alive():
            return State.CLOSED
        if self._queue.closing:
            return State.CLOSING
        return State.SEGMENTING if pending or self._queue.busy else State.WAITING


def _segmenter(
    model: str | Path | Segmenter,
    opened: ExitStack,
    frame: tuple[int, int] | None,
    backend: str,
    lanes: int,
    device: int | None,
    backend_options: Mapping[str, Any] | None,
) -> Segmenter:
    """Return an open segmenter as it is, or open a model file, to be closed with `opened`."""
    if not isinstance(model, Segmenter):
        found = Segmenter(
            model, frame=frame, backend=backend, lanes=lanes, device=device, backend_options=backend_options
        )
        return opened.enter_context(found)
    changed = {
        "frame": frame is not None,
        "backend": backend != AUTO,
        "lanes": lanes != LANES,
        "device": device is not None,
        "backend_options": backend_options is not None,
    }
    if given := [name for name, is_given in changed.items() if is_given]:
        raise OptionError(f"{', '.join(given)} apply only to a path of a model: pass them to the Segmenter")
    return model


def _require_confidence(segmenter: Segmenter, kind: Annotation) -> None:
    """Raise OptionError where objects cannot have a confidence."""
    if kind != "instances":
        raise OptionError(
            f"confidence is of objects, and labels of kind {kind} have none: use kind instances, or leave it out"
        )
    segmenter.require_scores()


def _resolve_dropped(items: Sequence[WaitingFrame]) -> None:
    """Set the results of dropped frames, for threads that wait on their futures."""
    for item in items:
        if item.future.set_running_or_notify_cancel():
            item.future.set_result(item.result(Outcome.DROPPED))


def _end(worker: Worker, threads: Sequence[threading.Thread], drain: bool) -> None:
    """Close a worker's queue and wait for its threads."""
    _resolve_dropped(worker.queue.close(drain))
    if threading.current_thread() not in threads:
        # Not `join` alone: interrupted by Ctrl-C, it marks a running thread as ended (bpo-45274).
        while threads[0].is_alive() and not worker.ended.wait(1):
            pass
        for thread in threads:
            thread.join()


def host_queue() -> HostQueue | None:
    """Return the queue from which the current thread hands over a frame; None for a camera's thread. Never raises."""
    thread = threading.current_thread()
    if thread is threading.main_thread():
        return HostQueue.GUI if _in_event_loop() and not _is_acquiring() else None
    is_relay = any(kind.__name__ == RELAY_THREAD for kind in type(thread).__mro__)
    return HostQueue.RELAY if is_relay else None


def _in_event_loop() -> bool:
    """Return whether the current thread runs Qt's event loop; Qt is not imported."""
    for qt in filter(None, (sys.modules.get(f"{binding}.QtCore") for binding in QT)):
        with suppress(Exception):  # a binding that is only half imported, or is being shut down
            if qt.QCoreApplication.instance() is not None and qt.QThread.currentThread().loopLevel() > 0:
                return True
    return False


def _is_acquiring() -> bool:
    """Return whether the acquisition itself runs on the current thread, and has called the slot directly."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        if caller.f_globals.get("__name__") == RUNNER:
            return True
        frame = caller
    return False
