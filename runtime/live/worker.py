"""The one thread of a live segmenter: takes frames from the queue, and gives their results out.

Where results go: outputs that other people wrote, and iterators.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from unetrt.runtime.errors import FrameError
from unetrt.runtime.live.frame_queue import FrameQueue, WaitingFrame
from unetrt.runtime.live.results import LiveResult, LiveSequence, Outcome, ResultOutput, ResultStream
from unetrt.runtime.live.status import Record
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.instances import instances
from unetrt.runtime.pixels.running import Streams
from unetrt.runtime.segment.segmenter import Segmentation, Segmenter

if TYPE_CHECKING:
    from numpy.typing import NDArray


log = logging.getLogger("unetrt.live")


class Delivery:
    """Gives results to outputs and streams, on the thread of the worker; nothing that they do gets through.

    Parameters
    ----------
    outputs
        Where results go; closed at the end.
    record
        Takes note of what they raise.
    """

    def __init__(self, outputs: Sequence[ResultOutput], record: Record) -> None:
        self._outputs, self._record = outputs, record
        self._streams: WeakSet[ResultStream] = WeakSet()
        self._lock, self._ended = threading.Lock(), False

    def add(self, stream: ResultStream) -> None:
        """Let somebody iterate over results from now on; from any thread."""
        with self._lock:
            self._streams.add(stream)
            if self._ended:
                stream.close()

    def give_out(self, result: LiveResult) -> None:
        """Give a result to everybody; one of a frame that was dropped to outputs alone."""
        for output in self._outputs:
            self.guarded(output.result, result)
        for stream in self._listening() if result.outcome is not Outcome.DROPPED else ():
            stream.offer(result)

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Tell the outputs of a sequence, after all frames that came before it."""
        for output in self._outputs:
            self.guarded(output.sequence_started, sequence)

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Tell the outputs that a sequence has ended, after its frames."""
        for output in self._outputs:
            self.guarded(output.sequence_finished, sequence)

    def end(self) -> None:
        """Close outputs and streams."""
        for output in self._outputs:
            self.guarded(output.close)
        for stream in self._listening(ended=True):
            stream.close()

    def guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call what somebody else wrote; what it raises is logged and counted."""
        try:
            call(*arguments)
        except BaseException as error:
            self._record.output_failed(error)
            with suppress(BaseException):  # the host's handlers of logs can fail too
                log.exception("an output of a live segmenter failed")

    def _listening(self, ended: bool = False) -> list[ResultStream]:
        with self._lock:  # others add streams meanwhile
            self._ended = self._ended or ended
            return list(self._streams)


class Callback:
    """An output that passes results, `done` and `failed`, to a function and does nothing else."""

    def __init__(self, function: Callable[[LiveResult], None]) -> None:
        self._function = function

    def result(self, result: LiveResult) -> None:
        """Pass it on."""
        if result.outcome is not Outcome.DROPPED:
            self._function(result)

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Abandoned(Exception):  # noqa: N818 - no error: nobody wants the frame any more
    """Ends a call of the segmenter whose frame was given up."""


class Worker:
    """Segments the frames of a queue, one after the other, until it is closed; never raises.

    Parameters
    ----------
    segmenter
        What segments; another program may use it at the same time.
    queue
        Where frames come from.
    kind
        Whether labels number objects or name classes.
    averages
        How frames are measured over the stream.
    delivery, record
        Where results go, and what takes note of them.

    Attributes
    ----------
    at_end
        What is closed after everything else.
    ended
        Set when all of that is done.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        queue: FrameQueue,
        kind: Annotation,
        averages: Streams,
        delivery: Delivery,
        record: Record,
    ) -> None:
        self.segmenter, self.queue, self.kind = segmenter, queue, kind
        self.delivery, self.record = delivery, record
        self.at_end, self.ended = ExitStack(), threading.Event()
        self._averages = averages
        self._next = 0  # the number of the first frame of which nothing was said yet

    def run(self) -> None:
        """Work until the queue is closed; then close outputs, streams, and the model if it is nobody else's."""
        while (item := self.queue.take()) is not None:
            self._give_out_dropped(item.number)
            if isinstance(item, WaitingFrame):
                self._settle(item)
            else:
                self._next = item.number
                self.delivery.guarded(item.tell)
            del item  # a frame is not kept while the next is waited for
        self._give_out_dropped(inf)
        self.delivery.end()
        self.delivery.guarded(self.at_end.close)
        self.ended.set()

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Begin anew what is kept over a sequence, and tell the outputs, after all frames that came before it."""
        self._averages.restart()
        self.delivery.sequence_started(sequence)

    def _give_out_dropped(self, before: float) -> None:
        """Give out the results of frames that the queue dropped, up to a number."""
        for result in self.queue.dropped.take(before):
            self.delivery.give_out(result)

    def _settle(self, item: WaitingFrame) -> None:
        """Segment a frame, count it, and give out its result."""
        if not item.future.set_running_or_notify_cancel():
            self.queue.settle(Outcome.DROPPED)
            self.delivery.give_out(item.result(Outcome.DROPPED))
            return
        taken = perf_counter()
        outcome, found = self._segmented(item.frame, item.index, item.error)
        end = perf_counter()
        self.queue.settle(outcome)
        times = {"queueing": taken - item.submitted, "compute": end - taken, "latency": end - item.submitted}
        result = item.result(outcome, dropped=max(0, item.number - self._next), **times, **found)
        self.record.add(result)
        self.delivery.guarded(item.future.set_result, result)
        if outcome is not Outcome.DROPPED:
            self._next = item.number + 1
        self.delivery.give_out(result)

    def _segmented(self, frame: Any, index: Any, error: Exception | None) -> tuple[Outcome, dict[str, Any]]:
        try:
            if error is not None:
                raise error
            measure = self._averages.measure_for(index)
            found = self.segmenter.segment(frame, progress=self._go_on, measure=measure)
            return Outcome.DONE, self._labelled(found)
        except _Abandoned:
            return Outcome.DROPPED, {}
        except BaseException as failure:
            with suppress(BaseException):
                log.debug("a frame of a live segmenter failed", exc_info=True)
            return Outcome.FAILED, {"error": _light(failure)}

    def _labelled(self, found: Segmentation) -> dict[str, Any]:
        labels: NDArray[Any] = found.labels
        if labels.ndim != 2:
            raise FrameError(f"{labels.shape[:-2]} frames came as one: submit them one by one")
        if self.kind == "classes":
            return {"labels": labels, "timings": found.timings}
        labels = instances(labels, self.segmenter.spec.separation_border)
        return {"labels": labels, "objects": int(labels.max()), "timings": found.timings}

    def _go_on(self, done: int, total: int) -> None:  # noqa: ARG002
        if self.queue.abandoned:
            raise _Abandoned


def tell_dropped(items: Sequence[WaitingFrame]) -> None:
    """Tell who waits for frames that the queue dropped."""
    for item in items:
        if item.future.set_running_or_notify_cancel():
            item.future.set_result(item.result(Outcome.DROPPED))


def _light(error: BaseException) -> BaseException:
    """Return an error without the calls it came through: they would keep frame and labels alive, in a circle."""
    part: BaseException | None = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error
