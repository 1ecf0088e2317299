"""`Worker`: the threads of a live segmenter, which segment frames, number and measure objects, and deliver results."""

import logging
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import inf
from queue import Queue
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.arrays import DeviceArray
from unetrt.runtime.errors import FrameError
from unetrt.runtime.live.frame_queue import FrameQueue, Notice, WaitingFrame
from unetrt.runtime.live.results import Delivery, LiveSequence, Outcome, Record
from unetrt.runtime.model.confidence import confidence as confidence_of_objects
from unetrt.runtime.model.measurements import object_columns
from unetrt.runtime.model.objects import instances
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.frames import FrameLayout, array_of, as_planes
from unetrt.runtime.pixels.running import Streams
from unetrt.runtime.segment.segmenter import Segmentation, Segmenter

log = logging.getLogger("unetrt.live")


class _Abandoned(Exception):  # noqa: N818 - control flow, not an error
    """Ends the segmentation of a frame that is to be dropped."""


@dataclass(frozen=True, eq=False)
class SegmentedFrame:
    """A frame on its way from the segmenter to its result.

    Attributes
    ----------
    item
        The frame.
    taken, compute
        When it was taken from the queue (seconds of `perf_counter`), and seconds in the segmenter.
    found
        Its class map, (H, W), and with confidence its probabilities; None if it failed or is to be dropped.
    error
        The exception, if it failed.
    """

    item: WaitingFrame
    taken: float
    compute: float
    found: Segmentation | None = None
    error: BaseException | None = None


class Worker:
    """The threads of a live segmenter: they process the frames of a queue, in order, until it is closed; never raise.

    ::

        classes      run:            queue.take -> segment -> deliver
        instances    segment_ahead:  queue.take -> segment -> slot, wait until it is empty
                     run:            slot -> number and measure objects -> deliver

    The slot holds one frame, and the next is taken from the queue when the slot is empty: one frame is segmented or
    waits in the slot while the one before is decoded and delivered, so that slow outputs do not let frames grow old.

    Parameters
    ----------
    segmenter
        Segments the frames; others may use it at the same time.
    queue
        Source of frames.
    kind
        Whether labels are object numbers or class indices.
    averages
        Running normalisation over the stream.
    delivery, record
        Receive each result.
    layout
        Arranges the axes of frames.
    confident
        Whether the confidence of objects is measured.

    Attributes
    ----------
    at_end
        Callbacks that run after everything else is closed.
    ended
        Set when everything is closed.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        queue: FrameQueue,
        kind: Annotation,
        averages: Streams,
        delivery: Delivery,
        record: Record,
        layout: FrameLayout,
        confident: bool,
    ) -> None:
        self.segmenter, self.queue = segmenter, queue
        self.delivery, self.record = delivery, record
        self.at_end, self.ended = ExitStack(), threading.Event()
        self._averages, self._layout, self._confident = averages, layout, confident
        # Between the two threads; None where one thread does everything.
        self._slot: Queue[SegmentedFrame | Notice | None] | None = Queue(1) if kind == "instances" else None
        self._next = 0  # submission index of the first frame without a delivered result
        self._announced: LiveSequence | None = None  # the last sequence whose start outputs were notified of

    def start(self) -> tuple[threading.Thread, ...]:
        """Start the threads and return them, first the one that delivers results."""
        targets = {"unetrt-live": self.run}
        if self._slot is not None:
            targets["unetrt-live-segment"] = self.segment_ahead
        threads = tuple(threading.Thread(target=run, name=name, daemon=True) for name, run in targets.items())
        try:
            for thread in reversed(threads):
                thread.start()
        except RuntimeError:  # the system has no more threads
            self.queue.close(drain=False)
            raise
        return threads

    def run(self) -> None:
        """Deliver all results until the queue is closed; then close outputs, streams, and the model if it is owned."""
        while (item := self._segmented() if self._slot is None else self._handed_over(self._slot)) is not None:
            if isinstance(item, SegmentedFrame):
                self._complete(item)
            else:
                self._pass_notice(item)
            del item  # do not keep the frame alive while waiting for the next
            if self._slot is not None:
                self.queue.finish()
        self._deliver_dropped(inf)
        self.delivery.close()
        self.delivery.guarded(self.at_end.close)
        self.ended.set()

    def segment_ahead(self) -> None:
        """Segment the frames of the queue, and hand over each; for the second thread."""
        assert self._slot is not None
        while (item := self._segmented()) is not None:
            self.queue.pass_on()
            self._slot.put(item)
            del item
            self._slot.join()
        self._slot.put(None)

    @staticmethod
    def _handed_over(slot: "Queue[SegmentedFrame | Notice | None]") -> SegmentedFrame | Notice | None:
        """Wait for the next item that the second thread has segmented, and empty the slot."""
        item = slot.get()
        slot.task_done()
        return item

    def _segmented(self) -> SegmentedFrame | Notice | None:
        """Take the next item and, if it is a frame, segment it; None once the queue is closed and empty."""
        item = self.queue.take()
        if isinstance(item, WaitingFrame):
            return self._segment(item)
        if item is not None and item.is_start:
            self._averages.restart()
        return item

    def _segment(self, item: WaitingFrame) -> SegmentedFrame:
        taken, found, error = perf_counter(), None, None
        try:
            if item.future.set_running_or_notify_cancel():
                found = self._class_map(item)
        except _Abandoned:
            pass
        except BaseException as failure:  # noqa: BLE001 - the frame's result
            error = _logged(failure)
        return SegmentedFrame(item, taken, perf_counter() - taken, found, error)

    def _class_map(self, item: WaitingFrame) -> Segmentation:
        if item.error is not None:
            raise item.error
        item.frame = self._layout.arrange(item.frame)
        measure = self._averages.measure_for(item.stream)
        found = self.segmenter.segment(
            item.frame, probabilities=self._confident, progress=self._check_abandoned, measure=measure
        )
        if found.labels.ndim != 2:
            stack = found.labels.shape[:-2]
            raise FrameError(f"a stack of {stack} frames was submitted: submit its frames one by one")
        return found

    def _check_abandoned(self, done: int, total: int) -> None:  # noqa: ARG002
        if self.queue.abandoned:
            raise _Abandoned

    def _pass_notice(self, notice: Notice) -> None:
        """Deliver the start or end of a sequence; of an abandoned queue only the end of one that outputs know."""
        self._next = notice.number
        if not self.queue.abandoned or (notice.sequence is self._announced and not notice.is_start):
            self._announced = notice.sequence
            self._deliver_dropped(notice.number)
            self.delivery.guarded(notice.deliver, notice.sequence)

    def _deliver_dropped(self, before: float) -> None:
        for frames in self.queue.take_dropped(before):
            self.delivery.dropped(frames)

    def _complete(self, frame: SegmentedFrame) -> None:
        """Decode a frame, count its outcome, and deliver its result."""
        item = frame.item
        if item.future.cancelled():
            self.queue.settle(item, Outcome.DROPPED)
            return
        outcome, found = self._decoded(frame)
        if self.queue.abandoned:
            outcome, found = Outcome.DROPPED, {}
        latency = perf_counter() - item.submitted
        self.queue.settle(item, outcome)
        times = {"queueing": frame.taken - item.submitted, "compute": frame.compute, "latency": latency}
        result = item.result(outcome, dropped=max(0, item.number - self._next), **times, **found)
        self.record.add(result)
        self.delivery.guarded(item.future.set_result, result)
        if outcome is not Outcome.DROPPED:
            self._next = item.number + 1
            self._deliver_dropped(item.number)
            self.delivery.deliver(result)

    def _decoded(self, frame: SegmentedFrame) -> tuple[Outcome, dict[str, Any]]:
        """Return a frame's outcome, and the fields of its result that follow from it."""
        found = frame.found
        if frame.error is not None:
            return Outcome.FAILED, {"error": frame.error}
        if found is None:
            return Outcome.DROPPED, {}
        if self._slot is None:
            return Outcome.DONE, {"labels": found.labels, "timings": found.timings}
        if self.queue.abandoned:
            return Outcome.DROPPED, {}
        try:
            with found.timings.phase("decode"):
                numbered = instances(found.labels, self.segmenter.spec.decoding)
                with found.timings.phase("table"):
                    table = self._table(frame.item.frame, numbered, found.probabilities)
        except BaseException as failure:  # noqa: BLE001 - the frame's result
            return Outcome.FAILED, {"error": _logged(failure)}
        objects = len(table["label"])
        return Outcome.DONE, {"labels": numbered, "objects": objects, "table": table, "timings": found.timings}

    def _table(
        self, frame: Any, labels: NDArray[np.int32], probabilities: NDArray[np.float32] | None
    ) -> dict[str, NDArray[Any]]:
        """Return the table of a frame's objects."""
        spec, pixels = self.segmenter.spec, array_of(frame)
        planes = None if isinstance(pixels, DeviceArray) else as_planes(pixels[()], spec.channels)
        certain = None if probabilities is None else confidence_of_objects(labels, probabilities, spec.decoding)
        return object_columns(labels, planes, certain)


def _without_tracebacks(error: BaseException) -> BaseException:
    """Return an exception without tracebacks, which would keep frame and labels alive in a reference cycle."""
    part: BaseException | None = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


def _logged(failure: BaseException) -> BaseException:
    """Log the exception of a frame, and return it as a result holds it."""
    with suppress(BaseException):
        log.debug("a frame of a live segmenter failed", exc_info=failure)
    return _without_tracebacks(failure)
