"""Micro-Manager's live mode: the newest image of a camera that runs on and on, for a live segmenter.

What a feed of live mode has done, as a snapshot.

Looks at a running camera of Micro-Manager for its newest image.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OptionError
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.status import NUMBER, one_line


@dataclass(frozen=True)
class FeedStatus:
    """What a feed has done so far.

    Attributes
    ----------
    running
        Whether the camera runs and its images are looked at.
    submitted
        Images that were passed on.
    skipped
        Images that nobody looked at, as a newer one was there: live mode shows the newest. The camera made them; none
        is missing.
    overflows
        How often a camera was stopped because the core's buffer was full, as `stopOnOverflow` wants it.
    errors
        How often the core raised while it was asked for images.
    last_error
        The last of these, one line; empty where there was none.
    """

    running: bool = False
    submitted: int = 0
    skipped: int = 0
    overflows: int = 0
    errors: int = 0
    last_error: str = ""


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


# Seconds between two looks at the camera: a hundred images a second, more than a person sees.
INTERVAL = 0.01


class LiveModeFeed(Closable):
    """Passes the newest image of a running camera to a live segmenter, each image once.

    ::

        with LiveSegmenter("model.onnx") as live, LiveModeFeed(core, live):
            core.startContinuousSequenceAcquisition()  # or the button "Live" of the program around
            for result in live.results():
                ...

    It looks at the core's buffer and takes nothing out of it, so that a viewer sees all images too. It starts and stops
    with the camera, whoever does that, but not with the sequences of `core.mda`, whose frames come to `frameReady`.
    Each run of the camera is a sequence without a plan; its results have the index {"image": the camera's number}.

    How much is lost: nothing that a look at the newest image needs. A continuous acquisition empties a full buffer and
    goes on; a sequence with `stopOnOverflow` stops, which counts as an overflow and is logged. Images between two looks
    count as `skipped` here, not as `missed` there: `LiveStatus.missed` is for cameras that lose frames.

    Parameters
    ----------
    core
        A `CMMCorePlus`.
    live
        What segments; it stays open.
    interval
        Seconds between two looks.

    Raises
    ------
    OptionError
        The interval is not positive.
    """

    def __init__(self, core: Any, live: "LiveSegmenter", interval: float = INTERVAL) -> None:
        if not interval > 0:
            raise OptionError(f"an interval of {interval} s is none: use 0.01 for a hundred looks a second")
        self._poller = poller = Poller(core, live, interval)
        thread = threading.Thread(target=poller.run, name="unetrt-live-mode", daemon=True)
        # Also when this object is forgotten, and when the interpreter ends: a thread inside the core must not see that.
        self._finalizer = weakref.finalize(self, _end, poller, thread, live.thread)
        poller.connect()
        thread.start()

    def status(self) -> FeedStatus:
        """Return what was done so far."""
        return self._poller.status

    def close(self) -> None:
        """End the thread; the camera goes on. Idempotent."""
        self._finalizer()


def _end(poller: Poller, thread: threading.Thread, results: threading.Thread) -> None:
    """End a poller and wait for its thread; but not on itself, nor on the thread of results, for which it may wait."""
    poller.end()
    if threading.current_thread() not in (thread, results):
        thread.join()
