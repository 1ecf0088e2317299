"""The live segmenter: frames from a camera that must never wait, results when they are there."""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OptionError
from unetrt.runtime.live.frame_queue import FrameQueue, Policy, WaitingFrame
from unetrt.runtime.live.results import LiveResult, ResultOutput, ResultStream
from unetrt.runtime.live.status import ImageNumbers, LiveStatus, Record, State
from unetrt.runtime.live.worker import Callback, Delivery, Worker, tell_dropped
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.running import Streams
from unetrt.runtime.segment.segmenter import Segmenter

if TYPE_CHECKING:
    from concurrent.futures import Future

# Results that a stream keeps for who is slow to fetch them.
STREAM_CAPACITY = 64


class LiveSegmenter(Closable):
    """A segmenter behind a bounded queue, with a thread of its own: whoever has a frame goes on at once.

    ::

        open --> waiting <--> segmenting          submit, frameReady: any thread, never raise
                        |
          close -->  closing --> closed           what is submitted now is dropped

    What goes wrong with a frame is its result; nothing is raised into the program around it. The segmenter takes frames
    of any size and dtype, and another one with the next frame.

    It is an output of a Micro-Manager acquisition as it is: ``core.mda.run(sequence, output=["raw.ome.zarr", live])``,
    or a slot: ``core.mda.events.frameReady.connect(live.frameReady)``. It imports neither.

    Parameters
    ----------
    model
        A model file or an engine, which is loaded here and may take its time, or an open `Segmenter`, which `close`
        then leaves open.
    policy
        What happens to a frame for which there is no room: `latest` keeps the newest frame alone, for smart microscopy
        and previews; `drop_oldest` the newest `capacity`; `block` lets whoever submits wait, for frames from files.
    capacity
        How many frames may wait beside the one that is being segmented; None takes 1 for `latest`, else 8.
    kind
        `instances`: labels number the objects, int32, as `unetrt predict` writes them; `classes`: the class of each
        pixel, uint8; None takes what the model was trained on.
    normalisation
        `model`: as the model file says. `running`: its percentiles, or mean and deviation, as an average over the
        stream, so that brightness does not flicker and a blank frame does not become noise
        (`unetrt.runtime.pixels.running`).
    channel
        The name of the only channel (`event.channel.config`) whose frames `frameReady` takes; None takes all.
    on_result
        Called with each result, `done` or `failed`, in the order of the frames, on this object's thread.
    outputs
        Where results go too, such as a `LabelWriter`; closed with this object.
    lanes, backend, device, backend_options
        As for `Segmenter`; only where it is opened here.

    Attributes
    ----------
    segmenter
        What segments.
    thread
        The thread that segments, and calls callbacks and outputs.

    Raises
    ------
    OptionError
        There is no such policy or kind, capacity does not fit it, or constants of a model (`fixed`) cannot run.
    UnetrtError
        What `Segmenter` raises.
    """

    def __init__(
        self,
        model: str | Path | Segmenter,
        *,
        policy: Policy | str = Policy.LATEST,
        capacity: int | None = None,
        kind: Annotation | None = None,
        normalisation: Literal["model", "running"] = "model",
        channel: str | None = None,
        on_result: Callable[[LiveResult], None] | None = None,
        outputs: Sequence[ResultOutput] = (),
        **opening: Any,
    ) -> None:
        if unknown := sorted(opening.keys() - {"lanes", "backend", "device", "backend_options"}):
            raise TypeError(f"LiveSegmenter() got an unexpected keyword argument {unknown[0]!r}")
        queue = FrameQueue(policy, capacity)
        if kind not in (None, "instances", "classes"):
            raise OptionError(f"labels of kind {kind!r} are unknown: use instances or classes")
        _require_callable(on_result, outputs)
        if opening and isinstance(model, Segmenter):
            raise OptionError(f"{', '.join(opening)} are for a model that is opened here: give them to the Segmenter")
        with ExitStack() as opened:
            self.segmenter = (
                model if isinstance(model, Segmenter) else opened.enter_context(Segmenter(model, **opening))
            )
            spec = self.segmenter.spec
            averages = Streams(spec.normalisation, normalisation)
            everywhere = [*([Callback(on_result)] if on_result else []), *outputs]
            record = Record()
            delivery = Delivery(everywhere, record)
            self._worker = Worker(self.segmenter, queue, kind or spec.annotation, averages, delivery, record)
            self._worker.at_end.push(opened.pop_all())
        self._queue, self._channel = queue, channel
        self._numbers = ImageNumbers()
        self.thread = threading.Thread(target=self._worker.run, name="unetrt-live", daemon=True)
        self.thread.start()
        # The thread knows the worker alone: this object can be forgotten, and is then closed.
        self._finalizer = weakref.finalize(self, _end, self._worker, self.thread, drain=False)

    def submit(
        self, frame: Any, index: Any = None, meta: Mapping[str, Any] | None = None, *, copy: bool = True
    ) -> "Future[LiveResult]":
        """Take a frame and return at once; from any thread, never raises.

        Parameters
        ----------
        frame
            (H, W), or (C, H, W) for a model of C channels, of any size and dtype that `Segmenter.segment` takes. What
            it does not take becomes a failed result.
        index, meta
            The frame's own; the result brings them back.
        copy
            Whether to copy the frame first, as a camera's driver may write the next one to the same memory. Without,
            nobody may write to the frame until its result is there. Arrays that are not numpy's are never copied.

        Returns
        -------
        A future of the result. It never holds an exception: `LiveResult.error` does. Its callbacks run on the thread of
        this object, or for a frame that is dropped on that of who submitted the one that took its place. Cancelling it
        drops the frame, if its turn has not come.

        With the policy `block`, it waits for room.
        """
        item = WaitingFrame(frame, index, {} if meta is None else meta)
        if copy and isinstance(frame, np.ndarray):
            try:
                item.frame = frame.copy()
            except Exception as error:  # noqa: BLE001 - out of memory, or whatever a class of arrays raises: the result
                item.error = error
        tell_dropped(self._queue.put(item))
        return item.future

    def results(self, capacity: int = STREAM_CAPACITY) -> ResultStream:
        """Return an iterator over the results from now on, which ends when this object is closed.

        Each call returns another, and each gets all results. See `ResultStream` for what is kept.
        """
        stream = ResultStream(capacity)
        self._worker.delivery.add(stream)
        return stream

    def status(self) -> LiveStatus:
        """Return what this object does and how fast, at this moment."""
        record = self._worker.record
        rate, queueing, compute, latency = record.times()
        counts = self._queue.counts()
        return LiveStatus(
            self._state(counts.pending),
            **asdict(counts),
            missed=self._numbers.missed,
            output_errors=record.output_errors,
            last_error=record.last_error,
            rate=rate,
            queueing=queueing,
            compute=compute,
            latency=latency,
        )

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until no frame is pending and all results were given out; False where `timeout` seconds were too few.

        Raises
        ------
        OptionError
            An output or a callback asked, for which it would wait.
        """
        if threading.current_thread() is self.thread:
            raise OptionError("an output or a callback cannot wait for results, which wait for it: flush elsewhere")
        return self._queue.wait_idle(timeout)

    def close(self, drain: bool = True) -> None:
        """End the thread, close outputs and streams, and free the model if it was opened here; idempotent.

        Parameters
        ----------
        drain
            Whether frames that wait are segmented first. Without, they are dropped, and so is the one in flight, at its
            next tile.

        A `with` that ends by an exception does not drain. From an output or a callback it only asks for the end.
        """
        _end(self._worker, self.thread, drain=drain)
        self._finalizer.detach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    def frameReady(self, img: Any, event: Any, meta: Mapping[str, Any] | None = None) -> None:  # noqa: N802
        """Take a frame of a Micro-Manager acquisition, by reference: an output and a slot for `frameReady`.

        Parameters
        ----------
        img
            (H, W): shared with all who listen; neither they nor this write to it.
        event
            The `useq.MDAEvent`; its index becomes the result's.
        meta
            Frame metadata; gaps in the camera's `ImageNumber` count as `missed`.
        """
        if isinstance(meta, Mapping):
            self._numbers.see(meta.get("camera_metadata"))
        channel = getattr(getattr(event, "channel", None), "config", None)
        if self._channel is None or channel == self._channel:
            index = getattr(event, "index", None)
            self.submit(img, dict(index) if isinstance(index, Mapping) else {}, meta, copy=False)

    def sequenceStarted(self, sequence: Any = None, meta: Mapping[str, Any] | None = None) -> None:  # noqa: N802
        """Take note of a new acquisition, a `useq.MDASequence` and its metadata; frames from now on belong to it."""
        self._numbers.restart()
        self._queue.begin(sequence, {} if meta is None else meta, self._channel, self._worker.sequence_started)

    def sequenceFinished(self, sequence: Any = None) -> None:  # noqa: ARG002, N802
        """Take note that an acquisition ended; its frames are still segmented. Returns at once."""
        self._queue.end(self._worker.delivery.sequence_finished)

    def _state(self, pending: int) -> State:
        if self._worker.ended.is_set() or not self.thread.is_alive():
            return State.CLOSED
        if self._queue.closing:
            return State.CLOSING
        return State.SEGMENTING if pending or self._queue.busy else State.WAITING


def _require_callable(on_result: Any, outputs: Any) -> None:
    """Raise OptionError where results are to go to what cannot take them."""
    if on_result is not None and not callable(on_result):
        raise OptionError(f"on_result={on_result!r} cannot be called: give a function of one result")
    if not isinstance(outputs, Sequence) or not all(_is_output(one) for one in outputs):
        raise OptionError(f"outputs={outputs!r} take no results: give a list, such as [LabelWriter('labels.ome.zarr')]")


def _is_output(one: Any) -> bool:
    return all(hasattr(one, name) for name in ("sequence_started", "result", "sequence_finished", "close"))


def _end(worker: Worker, thread: threading.Thread, drain: bool) -> None:
    """Close a worker's queue and wait for its thread."""
    tell_dropped(worker.queue.close(drain))
    if thread is not threading.current_thread():
        # Not `join` alone: one that Ctrl-C interrupts takes the thread for one that has ended (bpo-45274).
        while thread.is_alive() and not worker.ended.wait(1):
            pass
        thread.join()
