"""What a widget has open beside itself: the model, what runs in the background and what is live.

How an error reaches the user.

Work beside the GUI's thread, one piece at a time.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Qt, Signal

from unetrt.napari.segmentation import Call, explained, load
from unetrt.runtime.errors import UnetrtError
from unetrt.runtime.segment.segmenter import Segmenter

if TYPE_CHECKING:
    from unetrt.napari.live import LiveLabels


def tell(error: BaseException) -> None:
    """Show an error as a notification of napari, in one line."""
    from napari.utils.notifications import show_error

    show_error(explained(error))


@contextmanager
def told() -> Iterator[None]:
    """Tell of an error of ours that is raised within, and go on."""
    try:
        yield
    except UnetrtError as error:
        tell(error)


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


class Work(QObject):
    """The model, the background thread and the live labels of a widget. Errors become notifications.

    It has no parent: `close` can follow the widget's end.

    Attributes
    ----------
    changed
        (str): what runs in the background; empty, where nothing does any more.
    loaded
        (Segmenter): the model that is used from now on.
    background
        What runs.
    segmenter, path
        The model that is loaded, and its file.
    live
        What is live; None where nothing is.
    """

    changed = Signal(str)
    loaded = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.background = Background()
        self.segmenter: Segmenter | None = None
        self.path = ""
        self.live: LiveLabels | None = None
        self._then: Callable[[Any], None] | None = None
        self.background.succeeded.connect(self._succeeded)
        self.background.failed.connect(self._failed)

    def run(self, text: str, call: Call, then: Callable[[Any], None]) -> None:
        """Run a call in the background, and give what it returns to `then`."""
        self._then = then
        self.background.start(call)
        self.changed.emit(text)

    def cancel(self) -> None:
        """Forget what runs in the background."""
        if self.background.busy:
            self.background.cancel()
            self.changed.emit("")

    def with_model(self, path: str, then: Callable[[Segmenter], None]) -> None:
        """Give a model to `then`, once it is loaded; another one is freed first."""
        if self.segmenter is not None and self.path == path:
            then(self.segmenter)
            return
        self.forget_model()
        self.run("loading the model …", lambda _: load(path), lambda model: self._take(path, model, then))

    def forget_model(self) -> None:
        """Free the model; what still uses it ends at its next tile."""
        self.end_live()
        if self.segmenter is not None:
            self.segmenter.close()
        self.segmenter, self.path = None, ""

    def end_live(self) -> None:
        """End what is live, without waiting for its thread."""
        if self.live is not None:
            self.live.close()
        self.live = None

    def close(self, *_: object) -> None:
        """End everything, without waiting for it; idempotent."""
        self.background.cancel()
        self.forget_model()

    def _take(self, path: str, model: Segmenter, then: Callable[[Segmenter], None]) -> None:
        self.path, self.segmenter = path, model
        self.loaded.emit(model)
        then(model)

    def _succeeded(self, result: Any) -> None:
        then, self._then = self._then, None
        self.changed.emit("")
        if then is not None:
            with told():
                then(result)

    def _failed(self, error: BaseException) -> None:
        self._then = None
        self.changed.emit("")
        tell(error)
