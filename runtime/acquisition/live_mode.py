"""`LiveModeFeed`: segments Micro-Manager's live mode, the newest image of a camera that runs continuously.

A thread, the `Poller`, wakes when the core reports that its camera started, reads the newest image about a hundred
times a second, and submits each new one. Nothing is removed from the core's buffer, so viewers still get all images.

    with LiveSegmenter("model.onnx") as live, LiveModeFeed(core, live):
        core.startContinuousSequenceAcquisition()  # or the button "Live" of the host program
        for result in live.results():
            ...
"""

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OptionError, one_line, shown
from unetrt.runtime.live.results import IMAGE_NUMBER

if TYPE_CHECKING:
    from unetrt.runtime.live.live_segmenter import LiveSegmenter

log = logging.getLogger("unetrt.live")
Answer = TypeVar("Answer")

# Polling interval in seconds: a hundred images a second, more than a display shows.
INTERVAL = 0.01
# Seconds before the core is called again after it raised.
RETRY = 0.2
# The metadata that distinguishes two images of one number (MMCore, `TimeReceivedByCore`).
RECEIVED = "TimeReceivedByCore"
# Signals of the core for the start of a camera.
STARTS = ("continuousSequenceAcquisitionStarted", "sequenceAcquisitionStarted")


@dataclass(frozen=True)
class FeedStatus:
    """Snapshot of a feed.

    Attributes
    ----------
    running
        Whether the camera runs and its images are submitted.
    submitted
        Number of images submitted.
    skipped
        Number of images not submitted because a newer one was ready.
    overflows
        Number of times the camera stopped because the core's buffer was full (`stopOnOverflow`).
    errors
        Number of exceptions raised by the core.
    last_error
        The last of these, in one line; empty if there was none.
    """

    running: bool = False
    submitted: int = 0
    skipped: int = 0
    overflows: int = 0
    errors: int = 0
    last_error: str = ""


class LiveModeFeed(Closable):
    """Submits the newest image of a running camera to a live segmenter, each image once.

    It follows every run of the camera, regardless of which code starts or stops it, except for the sequences of
    `core.mda`, whose frames are delivered to `LiveSegmenter.frameReady`. Each run of the camera is a sequence without a
    plan; its results have the index {"image": the camera's image number}.

    A continuous acquisition clears a full buffer and continues; a sequence with `stopOnOverflow` stops, which is
    counted as an overflow and logged. Images between two polls are counted in `FeedStatus.skipped`, not in
    `LiveStatus.missed`: the camera delivered them.

    Parameters
    ----------
    core
        A `CMMCorePlus`.
    live
        The live segmenter; not closed by this object.
    interval
        Polling interval in seconds.
    most
        Maximum number of images submitted; None for no limit. The camera keeps running.

    Raises
    ------
    OptionError
        The interval is not positive.
    """

    def __init__(
        self, core: Any, live: "LiveSegmenter", interval: float = INTERVAL, *, most: int | None = None
    ) -> None:
        if not interval > 0:
            raise OptionError(f"invalid interval {interval} s: use a positive one, such as 0.01 for 100 polls a second")
        if not hasattr(core, "mda"):
            raise OptionError(f"core must be a CMMCorePlus (got {shown(core)})")
        self._poller = poller = Poller(core, live, interval, most)
        thread = threading.Thread(target=poller.run, name="unetrt-live-mode", daemon=True)
        # Runs also when this object is collected, and at the interpreter's end, which a thread inside the core must not
        # outlive.
        self._finalizer = weakref.finalize(self, _end, poller, thread, live.thread)
        poller.connect()
        thread.start()

    def status(self) -> FeedStatus:
        """Return a snapshot; from any thread."""
        return self._poller.status

    def close(self) -> None:
        """Stop the thread; the camera keeps running. Idempotent."""
        self._finalizer()


class Poller:
    """The thread of a feed: polls a core for its newest image while the camera runs.

    Parameters
    ----------
    core
        A `CMMCorePlus`.
    live
        The live segmenter.
    interval, most
        As for `LiveModeFeed`.

    Attributes
    ----------
    status
        Snapshot; replaced by the thread, read by any.
    closing
        Set when `run` is to return.
    """

    def __init__(self, core: Any, live: "LiveSegmenter", interval: float, most: int | None) -> None:
        self.status = FeedStatus()
        self.closing = threading.Event()
        self._core, self._live = core, live
        self._interval, self._most = interval, most
        self._changed = threading.Event()
        self._changed.set()  # the camera may run already
        self._last: tuple[int | None, Any] = (None, None)

    def wake(self, *_: Any) -> None:
        """Check whether the camera runs; from any thread."""
        self._changed.set()

    def run(self) -> None:
        """Wait for the camera to start, follow it until it stops, and repeat until closed."""
        while not self.closing.is_set():
            self._changed.wait()
            self._changed.clear()
            if not self.closing.is_set() and self._runs(default=False):
                self._follow()

    def connect(self) -> None:
        """Connect to the signals of the core."""
        for signal in STARTS:
            getattr(self._core.events, signal).connect(self.wake)

    def end(self) -> None:
        """Disconnect from the core and let `run` return."""
        for signal in STARTS:
            getattr(self._core.events, signal).disconnect(self.wake)
        self.closing.set()
        self._changed.set()

    def _follow(self) -> None:
        """Submit the images of a running camera until it stops: one sequence."""
        self._last = (None, None)
        self.status = replace(self.status, running=True)
        unknown: list[dict[str, Any]] = []
        self._live.sequenceStarted(None, {"image_infos": self._ask(self._cameras, unknown)})
        runs = True
        while runs and not self.closing.is_set():
            errors = self.status.errors
            runs = self._runs(default=True)  # before the poll: the last image arrives before the camera stops
            self._ask(self._look, None)
            self.closing.wait(self._interval if errors == self.status.errors else RETRY)
        self._ask(self._finish, None)
        self.status = replace(self.status, running=False)

    def _runs(self, default: bool) -> bool:
        """Return whether the camera runs, and not for `core.mda`; `default` if the core raises."""
        core = self._core
        return bool(self._ask(lambda: core.isSequenceRunning() and not core.mda.is_running(), default))

    def _cameras(self) -> list[dict[str, Any]]:
        """Return the camera metadata of a sequence that labels need, keyed as in Micro-Manager's `image_infos`."""
        return [{"pixel_size_um": self._core.getPixelSizeUm()}]

    def _look(self) -> None:
        """Submit the newest image, unless it was submitted before."""
        if self.status.submitted == self._most:
            return
        try:
            image, metadata = self._core.getLastImageAndMD()
        except IndexError:  # no image yet, or another program removed the last one
            return
        found = dict(metadata)
        newest = (int(found[IMAGE_NUMBER]) if found.get(IMAGE_NUMBER, "").isdigit() else None, found.get(RECEIVED))
        if newest == self._last and newest != (None, None):
            return
        self._count(self._last[0], newest[0])
        self._last = newest
        # Not copied: the core returns a new array for each call.
        self._live.submit(image, {"image": newest[0]}, {"camera_metadata": found}, copy=False)

    def _count(self, before: int | None, number: int | None) -> None:
        # A lower number: the camera was restarted between two polls.
        skipped = 0 if before is None or number is None else max(0, number - before - 1)
        status = self.status
        self.status = replace(status, submitted=status.submitted + 1, skipped=status.skipped + skipped)

    def _finish(self) -> None:
        if self._core.isBufferOverflowed():
            self.status = replace(self.status, overflows=self.status.overflows + 1)
            log.warning("the camera stopped because the core's buffer was full: enlarge it, or acquire continuously")
        if not self._core.mda.is_running():  # else the current sequence is that of the acquisition
            self._live.sequenceFinished()

    def _ask(self, question: Callable[[], Answer], default: Answer) -> Answer:
        """Return the result of a call to the core; if it raises, log and count the error, and return `default`."""
        try:
            return question()
        except Exception as error:  # device adapters raise anything; the host program must not see it
            message = one_line(error, kind=True)
            if message != self.status.last_error:
                log.exception("the core raised in live mode")
            self.status = replace(self.status, errors=self.status.errors + 1, last_error=message)
            return default


def _end(poller: Poller, thread: threading.Thread, results: threading.Thread) -> None:
    """Stop a poller and join its thread, unless called on it, or on the thread of results, for which it may wait."""
    poller.end()
    if threading.current_thread() not in (thread, results):
        thread.join()
