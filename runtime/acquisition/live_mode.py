"""Micro-Manager's live mode: the newest image of a camera that runs on and on, for a live segmenter."""

import threading
import weakref
from typing import TYPE_CHECKING, Any

from unetrt.runtime.acquisition.feed_status import FeedStatus
from unetrt.runtime.acquisition.poller import Poller
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OptionError

if TYPE_CHECKING:
    from unetrt.runtime.live.live_segmenter import LiveSegmenter

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
