"""From a layer that changes to labels that follow it."""

import threading
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from unetrt.napari.frames import image_of, shown_frame
from unetrt.napari.segmentation import figures
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.results import LiveResult
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.spec import Annotation


class LiveFeed(QObject):
    """Submits the shown frame of a layer whenever it changes, and hands on the newest result; the GUI never waits.

    Results are made on the live segmenter's thread and cross into the GUI's by a queued signal; where the GUI is slower
    than they come, the newest alone is handed on.

    Parameters
    ----------
    layer
        An image layer.
    where
        Returns where the viewer's sliders are, in world units.
    segmenter
        What segments; stays open.
    kind
        As for `LiveSegmenter`.

    Attributes
    ----------
    found
        (LiveResult): the newest result, `done` or `failed`, on the GUI's thread.

    Raises
    ------
    FrameError
        The layer is in colour, and the model takes no three channels.
    """

    found = Signal(object)
    _changed = Signal()
    _came = Signal()

    def __init__(
        self, layer: Any, where: Callable[[], tuple[float, ...]], segmenter: Segmenter, kind: Annotation
    ) -> None:
        super().__init__()
        image_of(layer, segmenter.spec.channels)
        self.layer = layer
        self._where, self._channels = where, segmenter.spec.channels
        self._lock = threading.Lock()
        self._newest: LiveResult | None = None
        self._objects: int | None = None
        self._submits = False  # at the GUI's next turn
        self._changed.connect(self._submit, Qt.ConnectionType.QueuedConnection)
        self._came.connect(self._hand_on, Qt.ConnectionType.QueuedConnection)
        self._live = LiveSegmenter(segmenter, kind=kind, on_result=self._take)
        self._sources: tuple[Any, ...] = (layer.events.data, layer.events.set_data)
        for source in self._sources:
            source.connect(self._note)
        self._note()

    def figures(self) -> str:
        """Return how fast it is, for people."""
        return figures(self._live.status(), self._objects)

    def close(self) -> None:
        """Follow the layer no more and end the thread; returns at once, idempotent."""
        for source in self._sources:
            source.disconnect(self._note)
        self._sources = ()
        # Whoever closes a live segmenter waits for the tile in flight; the GUI does not.
        threading.Thread(target=self._live.close, kwargs={"drain": False}, name="unetrt-live-end").start()

    def _note(self, event: Any = None) -> None:  # noqa: ARG002
        # Several changes until the GUI's next turn are one frame.
        if not self._submits:
            self._submits = True
            self._changed.emit()

    def _submit(self) -> None:
        self._submits = False
        if self._sources:
            self._live.submit(shown_frame(self.layer, self._where(), self._channels))

    def _take(self, result: LiveResult) -> None:
        """Keep a result for the GUI; on the live segmenter's thread."""
        with self._lock:
            waiting, self._newest = self._newest, result
        if waiting is None:
            self._came.emit()

    def _hand_on(self) -> None:
        with self._lock:
            result, self._newest = self._newest, None
        if result is not None and self._sources:
            self._objects = result.objects
            self.found.emit(result)
