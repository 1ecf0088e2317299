"""A live segmentation from its first frame to its last, while a person looks on.

What a run comes to: the errors that its end reports.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from time import perf_counter
from typing import Protocol

from unetrt.live_view.terminal import counted
from unetrt.runtime.errors import FrameError, InferenceError, OutputError, UnetrtError
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.status import LiveStatus, one_line


def verdict(status: LiveStatus, failure: BaseException | None, unread: Mapping[Path, FrameError]) -> UnetrtError | None:
    """Return the error that a run ends with; None where all went well. Frames that were dropped are no error.

    Parameters
    ----------
    status
        Of the closed live segmenter.
    failure
        The error of the last frame that failed.
    unread
        Why files were left out.
    """
    if status.output_errors:
        return OutputError(f"labels were lost {counted(status.output_errors, 'time')}; last error: {status.last_error}")
    if failure is not None:
        kind = type(failure) if isinstance(failure, UnetrtError) else InferenceError
        said = f"{status.failed} of {status.submitted} frames could not be segmented; the last: {one_line(failure)}"
        return kind(said)
    if len(unread) == 1:
        return next(iter(unread.values()))
    if unread:
        return FrameError(f"{len(unread)} images could not be read, the first: {next(iter(unread.values()))}")
    return None


# Seconds between two looks: four a second can be followed by eye.
PERIOD = 0.25


class Source(Protocol):
    """Where frames come from.

    Attributes
    ----------
    name
        What a person calls it.
    unread
        Files that are none, and why.
    """

    name: str
    unread: dict[Path, FrameError]

    def feed(self, live: LiveSegmenter, stop: threading.Event) -> None:
        """Submit frames until there are no more, or until soon after `stop` is set. Runs on a thread of its own."""


def run(
    source: Source,
    live: LiveSegmenter,
    show: Callable[[], None],
    *,
    seconds: float | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> bool:
    """Feed a live segmenter until the source ends, time is up, or the user asks; then close it.

    Parameters
    ----------
    source
        Where frames come from.
    live
        What segments them; closed when this returns, its outputs too. Frames that wait are segmented first, unless the
        user asked.
    show
        Called a few times a second, and once at the end.
    seconds
        When time is up; None: never.
    asked
        Whether the user asked for the end.

    Returns
    -------
    Whether the user asked.

    Raises
    ------
    Exception
        What the source raised; frames that came before it are segmented.
    """
    stop = threading.Event()
    until = perf_counter() + (seconds or float("inf"))
    feeding = _begun(source, live, stop)
    try:
        while not (asked() or _ended(feeding, live)):
            if perf_counter() >= until:
                stop.set()
            show()
    finally:
        stop.set()
        stopped = asked()
        live.close(drain=not stopped and feeding.done())  # lets a source go that waits for room
    while not feeding.done():  # in steps: on Windows nothing ends a wait without a limit
        wait_for([feeding], PERIOD)
    show()
    feeding.result()
    return stopped


def _begun(source: Source, live: LiveSegmenter, stop: threading.Event) -> "Future[None]":
    """Start a source on a thread that cannot keep the process from ending, should a camera never answer."""
    feeding: Future[None] = Future()

    def feed() -> None:
        try:
            source.feed(live, stop)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            feeding.set_exception(error)
        else:
            feeding.set_result(None)

    threading.Thread(target=feed, name="unetrt-source", daemon=True).start()
    return feeding


def _ended(feeding: "Future[None]", live: LiveSegmenter) -> bool:
    """Wait for a moment, and tell whether all frames came and are through."""
    wait_for([feeding], PERIOD)
    return feeding.done() and live.flush(PERIOD)
