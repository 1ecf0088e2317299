"""Work beside the GUI's thread, one piece at a time."""

import threading
from contextlib import suppress
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from unetrt.napari.segmentation import Call


class Cancelled(Exception):  # noqa: N818 - no error: nobody wants the result any more
    """Ends a piece of work that was cancelled, at its next report of progress."""


class Background(QObject):
    """Runs calls on a thread of their own. Signals are emitted on the GUI's thread.

    ::

        idle -- start --> busy -- succeeded, failed or cancel --> idle

    It has no parent, as a thread may hold it longer than any window lives.

    Attributes
    ----------
    progressed
        (int, int): what the call reported, parts done and all parts.
    succeeded
        (object): what the call returned.
    failed
        (object): what the call raised.
    """

    progressed = Signal(int, int)
    succeeded = Signal(object)
    failed = Signal(object)
    _reported = Signal(object, int, int)
    _ended = Signal(object, object, object)

    def __init__(self) -> None:
        super().__init__()
        self._turn: threading.Event | None = None
        self._reported.connect(self._report, Qt.ConnectionType.QueuedConnection)
        self._ended.connect(self._settle, Qt.ConnectionType.QueuedConnection)

    @property
    def busy(self) -> bool:
        """Whether a call runs that was not cancelled."""
        return self._turn is not None

    def start(self, call: Call) -> None:
        """Run a call, which is given a function that reports progress; cancels the one before."""
        self.cancel()
        self._turn = threading.Event()
        threading.Thread(target=self._run, args=(call, self._turn), name="unetrt-napari", daemon=True).start()

    def cancel(self) -> None:
        """Forget the call that runs, at once: no signal of it comes any more, and what it returns is closed."""
        if self._turn is not None:
            self._turn.set()
            self._turn = None

    def _run(self, call: Call, turn: threading.Event) -> None:
        """Run a call on its thread."""

        def progress(done: int, total: int) -> None:
            if turn.is_set():
                raise Cancelled
            self._reported.emit(turn, done, total)

        result, error = None, None
        try:
            result = call(progress)
        except BaseException as raised:  # noqa: BLE001 - it is shown to the user, and may not end the thread unseen
            error = raised
        if turn.is_set():
            _close(result)
            return
        self._ended.emit(turn, result, error)

    def _report(self, turn: threading.Event, done: int, total: int) -> None:
        if turn is self._turn:
            self.progressed.emit(done, total)

    def _settle(self, turn: threading.Event, result: Any, error: BaseException | None) -> None:
        if turn is not self._turn:
            _close(result)
            return
        self._turn = None
        if error is None:
            self.succeeded.emit(result)
        else:
            self.failed.emit(error)


def _close(result: Any) -> None:
    """Free a model that nobody wants any more."""
    with suppress(AttributeError):
        result.close()
