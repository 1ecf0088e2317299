"""The one thread of a live segmenter: takes frames from the queue, and gives their results out."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from unetrt.runtime.errors import FrameError
from unetrt.runtime.instance_labels import instances
from unetrt.runtime.live.frame_queue import FrameQueue, WaitingFrame
from unetrt.runtime.live.results import LiveResult, LiveSequence, Outcome, ResultOutput, ResultStream
from unetrt.runtime.live.status import Record, one_line
from unetrt.runtime.normalisation import Measure
from unetrt.runtime.segmenter import Segmentation, Segmenter
from unetrt.runtime.spec import Annotation

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("unetrt.live")


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
    measures
        Returns how to normalise a frame with that index; None for the model's own way.
    outputs
        Where results go.

    Attributes
    ----------
    record
        What a status says beside the counts.
    streams
        Who iterates over results.
    at_end
        What is closed after everything else.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        queue: FrameQueue,
        kind: Annotation,
        measures: Callable[[Any], Measure | None],
        outputs: Sequence[ResultOutput],
    ) -> None:
        self.segmenter, self.queue, self.kind = segmenter, queue, kind
        self.record = Record()
        self.streams: WeakSet[ResultStream] = WeakSet()
        self.at_end = ExitStack()
        self._measures, self._outputs = measures, outputs
        self._last = -1  # the number of the frame of the last result

    def run(self) -> None:
        """Work until the queue is closed; then close outputs, streams, and the model if it is nobody else's."""
        while (item := self.queue.take()) is not None:
            if isinstance(item, WaitingFrame):
                self._settle(item)
            else:
                self._guarded(item)
            del item  # a frame is not kept while the next is waited for
        for output in self._outputs:
            self._guarded(output.close)
        for stream in list(self.streams):
            stream.close()
        self._guarded(self.at_end.close)

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Tell the outputs of a sequence, after all frames that came before it."""
        for output in self._outputs:
            self._guarded(output.sequence_started, sequence)

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Tell the outputs that a sequence has ended, after its frames."""
        for output in self._outputs:
            self._guarded(output.sequence_finished, sequence)

    def drop(self, items: Sequence[WaitingFrame]) -> None:
        """Tell who waits for frames that the queue dropped."""
        for item in items:
            _resolve(item, _result(item, Outcome.DROPPED))

    def _settle(self, item: WaitingFrame) -> None:
        """Segment a frame, count it, and give out its result."""
        if not item.future.set_running_or_notify_cancel():
            self.queue.settle(Outcome.DROPPED)
            return
        taken = perf_counter()
        outcome, found = self._segmented(item)
        end = perf_counter()
        self.queue.settle(outcome)
        times = {"queueing": taken - item.submitted, "compute": end - taken, "latency": end - item.submitted}
        result = _result(item, outcome, dropped=item.number - self._last - 1, **times, **found)
        self.record.add(result)
        _resolve(item, result)
        if outcome is not Outcome.DROPPED:
            self._last = item.number
            self._give_out(result)

    def _segmented(self, item: WaitingFrame) -> tuple[Outcome, dict[str, Any]]:
        try:
            if item.error is not None:
                raise item.error
            found = self.segmenter.segment(item.frame, progress=self._go_on, measure=self._measures(item.index))
            return Outcome.DONE, self._labelled(found)
        except _Abandoned:
            return Outcome.DROPPED, {}
        except BaseException as error:  # noqa: BLE001 - nothing that a frame does may end the thread
            log.debug("frame %s: %s", item.number, one_line(error))
            return Outcome.FAILED, {"error": error}

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

    def _give_out(self, result: LiveResult) -> None:
        for output in self._outputs:
            self._guarded(output.result, result)
        for stream in list(self.streams):
            stream.offer(result)

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call what somebody else wrote; what it raises is logged and counted."""
        try:
            call(*arguments)
        except BaseException as error:
            self.record.output_failed(error)
            log.exception("an output of a live segmenter failed")


class Callback:
    """An output that passes results to a function and does nothing else."""

    def __init__(self, function: Callable[[LiveResult], None]) -> None:
        self.result = function

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _result(item: WaitingFrame, outcome: Outcome, **found: Any) -> LiveResult:
    frame = None if outcome is Outcome.DROPPED else item.frame  # who keeps the future does not keep what was given up
    return LiveResult(outcome, item.number, item.index, item.meta, item.sequence, frame, **found)


def _resolve(item: WaitingFrame, result: LiveResult) -> None:
    # Whoever waits may have cancelled meanwhile.
    with suppress(Exception):
        item.future.set_result(result)
