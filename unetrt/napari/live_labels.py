"""The labels layer that follows an image layer."""

from collections.abc import Callable
from typing import Any

from unetrt.napari.frames import placement
from unetrt.napari.live_feed import LiveFeed
from unetrt.napari.messages import tell
from unetrt.napari.segmentation import explained
from unetrt.runtime.live.results import LiveResult, Outcome


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
