"""From a layer that changes to labels that follow it.

The labels layer that follows an image layer.
"""

import threading
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from unetrt.napari.segmentation import explained, figures, image_of, placement, shown_frame
from unetrt.napari.work import tell
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.results import LiveResult, Outcome
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.segment.segmenter import Segmenter


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


class LiveLabels:
    """Shows the results of a feed in a layer of its own, until either layer is removed.

    Parameters
    ----------
    viewer
        The viewer.
    feed
        Where labels come from; closed with this object.
    ended
        Called once a layer was removed.
    """

    def __init__(self, viewer: Any, feed: LiveFeed, ended: Callable[[], None]) -> None:
        self.layer: Any = None
        self.feed = feed
        self._viewer, self._ended, self._told = viewer, ended, ""
        feed.found.connect(self._show)
        viewer.layers.events.removed.connect(self._removed)

    def close(self) -> None:
        """Follow nothing more; the labels stay."""
        self._viewer.layers.events.removed.disconnect(self._removed)
        self.feed.close()

    def _show(self, result: LiveResult) -> None:
        if result.outcome is not Outcome.DONE:
            self._tell_once(result)
        elif self.layer is None:
            source = self.feed.layer
            name = f"{source.name} (unetrt live)"
            self.layer = self._viewer.add_labels(result.labels, name=name, **placement(source, 2))
            self.layer.editable = False
        else:
            self.layer.data = result.labels

    def _tell_once(self, result: LiveResult) -> None:
        """Tell of an error, but not again with each frame."""
        assert result.error is not None
        message = explained(result.error)
        if message != self._told:
            self._told = message
            tell(result.error)

    def _removed(self, event: Any) -> None:
        if event.value in (self.feed.layer, self.layer):
            self._ended()
