"""Where results go: outputs that other people wrote, and iterators."""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from unetrt.runtime.live.results import LiveResult, LiveSequence, Outcome, ResultOutput, ResultStream
from unetrt.runtime.live.status import Record

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
