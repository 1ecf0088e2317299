"""What the widget runs on other threads: calls in the background, and labels that follow a layer live.

`Background` runs one call at a time; `LiveLabels` owns a `LiveSegmenter`; `Work` owns both and the loaded model.
Results cross to the GUI thread by queued signals, and the GUI never waits for a thread. These objects have no Qt
parent, because a thread can hold them longer than any window lives.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from unetrt.napari.segmentation import (
    PLACEMENT,
    Call,
    explained,
    figures,
    image_of,
    load,
    notified,
    notify,
    place,
    placement,
    shown_frame,
)
from unetrt.runtime import LiveResult, LiveSegmenter, Outcome, Segmenter
from unetrt.runtime.model.spec import Annotation


class Cancelled(Exception):  # noqa: N818 - control flow, not an error
    """Ends a cancelled call, at its next report of progress."""


class Background(QObject):
    """Runs calls on a thread, one at a time. Signals are emitted on the GUI thread.

    ::

        idle -- start --> busy -- succeeded, failed or cancel --> idle

    Attributes
    ----------
    progressed
        (int, int): progress of the call, parts done and all parts.
    succeeded
        (object): return value of the call.
    failed
        (object): exception raised by the call.
    """

    progressed = Signal(int, int)
    succeeded = Signal(object)
    failed = Signal(object)
    _reported = Signal(object, int, int)
    _ended = Signal(object, object, object)

    def __init__(self) -> None:
        super().__init__()
        self._turn: threading.Event | None = None  # identifies the current call; set when it is cancelled
        self._reported.connect(self._report, Qt.ConnectionType.QueuedConnection)
        self._ended.connect(self._settle, Qt.ConnectionType.QueuedConnection)

    @property
    def busy(self) -> bool:
        """Whether a call runs that was not cancelled."""
        return self._turn is not None

    def start(self, call: Call) -> None:
        """Run a call, which gets a function to report its progress; cancels the previous call."""
        self.cancel()
        self._turn = threading.Event()
        threading.Thread(target=self._run, args=(call, self._turn), name="unetrt-napari", daemon=True).start()

    def cancel(self) -> None:
        """Cancel the current call without waiting: it emits no more signals, and its return value is closed."""
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
        except BaseException as raised:  # noqa: BLE001 - shown to the user instead of ending the thread unseen
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
    """Close the result of a cancelled call, if it is a model."""
    with suppress(AttributeError):
        result.close()


class LiveLabels(QObject):
    """A labels layer that follows an image layer: segments the shown frame whenever it changes, and moves with it.

    Results come from the live segmenter's thread; if the GUI is slower, only the newest is shown. It ends when either
    layer is removed.

    Parameters
    ----------
    viewer
        The viewer.
    source
        The image layer.
    segmenter
        The model; not closed by this object.
    kind
        As for `LiveSegmenter`.
    ended
        Called when one of the layers was removed.

    Attributes
    ----------
    source
        The image layer.
    layer
        The labels layer; None before the first result.
    live
        The live segmenter.

    Raises
    ------
    FrameError
        The layer is in colour, and the model does not have three channels.
    """

    _changed = Signal()
    _moved = Signal()
    _came = Signal()

    def __init__(
        self, viewer: Any, source: Any, segmenter: Segmenter, kind: Annotation, ended: Callable[[], None]
    ) -> None:
        super().__init__()
        image_of(source, segmenter.spec.channels)
        self.source = source
        self.layer: Any = None
        self._viewer, self._ended = viewer, ended
        self._lock = threading.Lock()
        self._newest: LiveResult | None = None
        self._objects: int | None = None
        self._message = ""  # the last error shown
        self._scheduled = False  # whether a frame is submitted in the next GUI cycle
        self._changed.connect(self._submit, Qt.ConnectionType.QueuedConnection)
        self._came.connect(self._show_newest, Qt.ConnectionType.QueuedConnection)
        self.live = LiveSegmenter(segmenter, kind=kind, on_result=self._keep)
        self._moved.connect(self._place)  # at once in the GUI thread, and queued from others
        data = source.events.data, source.events.set_data
        places = [getattr(source.events, name) for name in PLACEMENT if hasattr(source.events, name)]
        # An image with another number of axes gets another transform, without an event of it.
        followers = {self._schedule: data, self._move: (source.events.data, *places)}
        self._links = [(event, follower) for follower, events in followers.items() for event in events]
        for event, follower in self._links:
            event.connect(follower)
        viewer.layers.events.removed.connect(self._removed)
        self._schedule()

    def figures(self) -> str:
        """Return number of objects, rate, latency and counts as text."""
        return figures(self.live.status(), self._objects)

    def close(self) -> None:
        """Stop following the layer, without waiting for the thread; the labels stay. Idempotent."""
        if not self._links:
            return
        self._viewer.layers.events.removed.disconnect(self._removed)
        for event, follower in self._links:
            event.disconnect(follower)
        self._links = []
        # Closing waits for the tile in flight, which the GUI must not.
        threading.Thread(target=self.live.close, kwargs={"drain": False}, name="unetrt-live-end").start()

    def _schedule(self, event: Any = None) -> None:  # noqa: ARG002
        # Several changes in one GUI cycle make one frame.
        if not self._scheduled:
            self._scheduled = True
            self._changed.emit()

    def _move(self, event: Any = None) -> None:  # noqa: ARG002
        self._moved.emit()

    def _place(self) -> None:
        if self._links and self.layer is not None:
            place(self.layer, self.source)

    def _submit(self) -> None:
        self._scheduled = False
        if self._links:
            channels = self.live.segmenter.spec.channels
            self.live.submit(shown_frame(self.source, self._viewer.dims, channels))

    def _keep(self, result: LiveResult) -> None:
        """Keep the newest result for the GUI; on the live segmenter's thread."""
        with self._lock:
            waiting, self._newest = self._newest, result
        if waiting is None:
            self._came.emit()

    def _show_newest(self) -> None:
        with self._lock:
            result, self._newest = self._newest, None
        if result is not None and self._links:
            self._objects = result.objects
            self._show(result)

    def _show(self, result: LiveResult) -> None:
        if result.outcome is not Outcome.DONE:
            self._notify_once(result)
            return
        assert result.labels is not None
        if self.layer is None:
            name = f"{self.source.name} (unetrt live)"
            self.layer = self._viewer.add_labels(
                result.labels, name=name, **placement(self.source, result.labels.shape)
            )
            self.layer.editable = False
        else:
            self.layer.data = result.labels

    def _notify_once(self, result: LiveResult) -> None:
        """Show an error, unless the last one had the same message."""
        assert result.error is not None
        message = explained(result.error)
        if message != self._message:
            self._message = message
            notify(result.error)

    def _removed(self, event: Any) -> None:
        if event.value in (self.source, self.layer):
            self._ended()


class Work(QObject):
    """The model, the background call and the live labels of a widget. Errors become notifications.

    Attributes
    ----------
    changed
        (str): description of the call in the background; empty when it has ended.
    loaded
        (Segmenter): the model was loaded.
    background
        Runs calls.
    segmenter, path
        The loaded model, and its file; None and empty before.
    live
        The live labels; None if there are none.
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
        """Run a call in the background, and then `then` with its return value."""
        self._then = then
        self.background.start(call)
        self.changed.emit(text)

    def cancel(self) -> None:
        """Cancel the call in the background."""
        if self.background.busy:
            self.background.cancel()
            self.changed.emit("")

    def with_model(self, path: str, then: Callable[[Segmenter], None]) -> None:
        """Run `then` with the model of a file, once it is loaded; the previous model is closed first."""
        if self.segmenter is not None and self.path == path:
            then(self.segmenter)
            return
        self.forget_model()
        self.run("loading the model …", lambda _: load(path), lambda model: self._take(path, model, then))

    def forget_model(self) -> None:
        """Close the model; calls that still use it end at their next tile."""
        self.end_live()
        if self.segmenter is not None:
            self.segmenter.close()
        self.segmenter, self.path = None, ""

    def end_live(self) -> None:
        """End the live labels, without waiting for their thread."""
        if self.live is not None:
            self.live.close()
        self.live = None

    def close(self, *_: object) -> None:
        """End everything, without waiting; idempotent."""
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
            with notified():
                then(result)

    def _failed(self, error: BaseException) -> None:
        self._then = None
        self.changed.emit("")
        notify(error)
