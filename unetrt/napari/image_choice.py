"""A list of the viewer's image layers to choose from."""

from typing import Any

from qtpy.QtWidgets import QComboBox


class ImageChoice(QComboBox):
    """The image layers of a viewer, as they come, go and are renamed; the newest is chosen where none was.

    Parameters
    ----------
    layers
        `viewer.layers`.
    """

    def __init__(self, layers: Any) -> None:
        super().__init__()
        # A long name does not widen the dock.
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(16)
        self._layers = layers
        for event in (layers.events.inserted, layers.events.removed, layers.events.renamed, layers.events.reordered):
            event.connect(self.refresh)
        self.refresh()

    def layer(self) -> Any:
        """Return the layer that is chosen, None where there is none."""
        return self.currentData()

    def refresh(self, event: Any = None) -> None:  # noqa: ARG002
        """Show the layers that there are now."""
        from napari.layers import Image

        images = [layer for layer in reversed(self._layers) if isinstance(layer, Image)]
        chosen = self.layer()
        self.blockSignals(True)
        self.clear()
        for layer in images:
            self.addItem(layer.name, layer)
        self.blockSignals(False)
        if images:
            self.setCurrentIndex(images.index(chosen) if chosen in images else 0)

    def forget(self) -> None:
        """Follow the viewer no more."""
        self._layers.events.disconnect(self.refresh)
