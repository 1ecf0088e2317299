"""Looks at a running camera of Micro-Manager for its newest image."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from unetrt.runtime.acquisition.feed_status import FeedStatus
from unetrt.runtime.live.image_numbers import NUMBER
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.status import one_line

log = logging.getLogger("unetrt.live")
Answer = TypeVar("Answer")

# Seconds after which it is tried again when the core did not answer.
RETRY = 0.2
# The metadata by which two images of one number are told apart (MMCore, `TimeReceivedByCore`).
RECEIVED = "TimeReceivedByCore"
# What tells that the camera was started, by whomever.
STARTS = ("continuousSequenceAcquisitionStarted", "sequenceAcquisitionStarted")


class Poller:
    """Looks at a core while its camera runs, on a thread of its own.

    Parameters
    ----------
    core
        A `CMMCorePlus`.
    live
        What segments.
    interval
        Seconds between two looks.

    Attributes
    ----------
    status
        What was done so far; replaced by the thread, read by any.
    closing
        Set when `run` is to return.
    """

    def __init__(self, core: Any, live: LiveSegmenter, interval: float) -> None:
        self.status = FeedStatus()
        self.closing = threading.Event()
        self._core, self._live, self._interval = core, live, interval
        self._changed = threading.Event()
        self._changed.set()  # the camera may run already
        self._last: tuple[int | None, Any] = (None, None)

    def wake(self, *_: Any) -> None:
        """Look whether the camera runs; from any thread."""
        self._changed.set()

    def run(self) -> None:
        """Wait for the camera, follow it until it stops, and so on; until closed."""
        while not self.closing.is_set():
            self._changed.wait()
            self._changed.clear()
            if not self.closing.is_set() and self._runs(otherwise=False):
                self._follow()

    def connect(self) -> None:
        """Hear when the camera starts."""
        for signal in STARTS:
            getattr(self._core.events, signal).connect(self.wake)

    def end(self) -> None:
        """Let `run` return, and hear no more of the camera."""
        for signal in STARTS:
            getattr(self._core.events, signal).disconnect(self.wake)
        self.closing.set()
        self._changed.set()

    def _follow(self) -> None:
        """Look at the camera until it stops: one sequence."""
        self._last = (None, None)
        self.status = replace(self.status, running=True)
        unknown: list[dict[str, Any]] = []
        self._live.sequenceStarted(None, {"image_infos": self._asked(self._cameras, unknown)})
        runs = True
        while runs and not self.closing.is_set():
            errors = self.status.errors
            runs = self._runs(otherwise=True)  # asked before the look: the last image comes before the stop
            self._asked(self._look, None)
            self.closing.wait(self._interval if errors == self.status.errors else RETRY)
        self._asked(self._finish, None)
        self.status = replace(self.status, running=False)

    def _runs(self, otherwise: bool) -> bool:
        """Return whether the camera runs, and not for `core.mda`; `otherwise` where the core does not say."""
        core = self._core
        return bool(self._asked(lambda: core.isSequenceRunning() and not core.mda.is_running(), otherwise))

    def _cameras(self) -> list[dict[str, Any]]:
        """Return what Micro-Manager's metadata of a sequence say of a camera, as far as it matters here."""
        return [{"pixel_size_um": self._core.getPixelSizeUm()}]

    def _look(self) -> None:
        """Pass on the newest image, if it was not passed on before."""
        try:
            image, metadata = self._core.getLastImageAndMD()
        except IndexError:  # none is there yet, or somebody took the last one
            return
        found = dict(metadata)
        newest = (int(found[NUMBER]) if found.get(NUMBER, "").isdigit() else None, found.get(RECEIVED))
        if newest == self._last and newest != (None, None):
            return
        self._count(self._last[0], newest[0])
        self._last = newest
        # By reference: the core makes an array for each who asks.
        self._live.submit(image, {"image": newest[0]}, {"camera_metadata": found}, copy=False)

    def _count(self, before: int | None, number: int | None) -> None:
        # A number that is lower: the camera was stopped and started again between two looks.
        skipped = 0 if before is None or number is None else max(0, number - before - 1)
        status = self.status
        self.status = replace(status, submitted=status.submitted + 1, skipped=status.skipped + skipped)

    def _finish(self) -> None:
        if self._core.isBufferOverflowed():
            self.status = replace(self.status, overflows=self.status.overflows + 1)
            log.warning("the camera stopped as the core's buffer was full: enlarge it, or acquire continuously")
        if not self._core.mda.is_running():  # else what is to be finished is not ours
            self._live.sequenceFinished()

    def _asked(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        """Return the core's answer; what it raises is counted and logged, and `otherwise` returned."""
        try:
            return question()
        except Exception as error:  # a device says what it likes, and the program around must not hear of it
            said = one_line(error)
            if said != self.status.last_error:
                log.exception("the core raised in live mode")
            self.status = replace(self.status, errors=self.status.errors + 1, last_error=said)
            return otherwise
