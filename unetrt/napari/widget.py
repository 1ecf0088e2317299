"""The dock widget "unetrt: segment".

A list of the viewer's image layers to choose from.

What the widget shows: fields and buttons, without what they do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from qtpy.QtCore import QEvent, QSettings, Qt, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from unetrt.napari.live import LiveFeed, LiveLabels
from unetrt.napari.segmentation import Request, about, image_of, labels_of, placement
from unetrt.napari.work import Work, told
from unetrt.runtime.errors import FrameError
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.segment.segmenter import Segmenter


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


# What the list of results says -> what it means.
KINDS = {"as trained": None, "numbered objects": "instances", "classes": "classes"}

# In pixels: what the longest of these lines takes.
WIDTH = 290


class Form(QWidget):
    """Fields and buttons, by name.

    Parameters
    ----------
    image
        The list of image layers.
    """

    def __init__(self, image: QWidget) -> None:
        super().__init__()
        self.model, self.browse = QLineEdit(), QToolButton()
        self.model.setPlaceholderText("model.onnx, or an engine")
        self.browse.setText("…")
        self.browse.setToolTip("Choose a model file that unetrt export or unetrt build wrote")
        self.about = _note("Loaded with its first use.")
        self.image, self.kind, self.area = image, QComboBox(), QSpinBox()
        for text, kind in KINDS.items():
            self.kind.addItem(text, kind)
        self.area.setRange(0, 1_000_000)
        self.area.setSuffix(" px")
        self.area.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.area.setToolTip("Segment leaves out objects of fewer pixels; live shows all")
        self.segment, self.live = QPushButton("Segment"), QPushButton("Live")
        self.live.setCheckable(True)
        self.live.setToolTip("Segment what the image layer shows, whenever it changes")
        self.progress, self.figures = QProgressBar(), _note("")
        self.progress.setVisible(False)
        self._arrange()

    def show_state(self, running: str, live: bool) -> None:
        """Show what runs, which the first button then cancels, and whether something is live."""
        self.segment.setText("Cancel" if running else "Segment")
        self.live.setChecked(live)
        self.live.setEnabled(not running)
        self.progress.setVisible(bool(running))
        self.progress.setRange(0, 0)
        for field in (self.model, self.browse, self.image, self.kind):
            field.setEnabled(not running and not live)
        self.area.setEnabled(not running)
        if running:
            self.figures.setText(running)

    def show_progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self.progress.setRange(0, total)
        self.progress.setValue(done)

    def _arrange(self) -> None:
        rows = QFormLayout()
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        rows.addRow("model", _beside(self.model, self.browse))
        rows.addRow(self.about)
        rows.addRow("image", self.image)
        rows.addRow("labels", self.kind)
        rows.addRow("least area", self.area)
        column = QVBoxLayout(self)
        column.addLayout(rows)
        column.addWidget(_line())
        column.addWidget(_beside(self.segment, self.live))
        column.addWidget(self.progress)
        column.addWidget(self.figures)
        column.addStretch()
        self.setMinimumWidth(WIDTH)


def _beside(*widgets: QWidget) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return row


def _note(text: str) -> QLabel:
    note = QLabel(text)
    note.setWordWrap(True)
    note.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return note


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    return line


FILES = "Models (*.onnx *.engine *.plan);;All files (*)"
# How often the figures of what is live are written, in milliseconds.
TICK = 500


class SegmentWidget(QWidget):
    """Segments an image layer, once or live; what takes its time runs on other threads.

    Parameters
    ----------
    napari_viewer
        The viewer, which napari gives.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer, self.work = napari_viewer, Work()
        self.images = ImageChoice(napari_viewer.layers)
        self.form = Form(self.images)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.form)
        self._clock = QTimer(self)
        self._connect()
        self.form.model.setText(str(_settings().value("model", "")))

    def choose(self, path: str) -> None:
        """Load a model, and remember it for the next time."""
        self.form.model.setText(path)
        self.work.with_model(path.strip(), lambda _: None)

    def segment(self) -> None:
        """Segment the chosen layer, or cancel what runs."""
        if self.work.background.busy:
            self.work.cancel()
            self.form.figures.setText("cancelled")
        else:
            self._with_model(self._segment)

    def set_live(self, on: bool) -> None:
        """Begin to follow the chosen layer, or end it; the button follows."""
        if on and self.work.live is None:
            self._with_model(self._follow)
        elif not on:
            self.work.end_live()
        self._show_state()

    def event(self, event: QEvent) -> bool:
        """End everything when the widget is closed, or taken out of its dock."""
        removed = event.type() == QEvent.Type.ParentChange and self.parent() is None
        if removed or event.type() == QEvent.Type.Close:
            self._clock.stop()
            self.images.forget()
            self.work.close()
        return bool(super().event(event))

    def _connect(self) -> None:
        form, work = self.form, self.work
        form.browse.clicked.connect(self._browse)
        form.model.returnPressed.connect(self._typed)
        form.segment.clicked.connect(self.segment)
        form.live.clicked.connect(self.set_live)
        work.changed.connect(self._show_state)
        work.loaded.connect(self._describe)
        work.background.progressed.connect(form.show_progress)
        self._clock.timeout.connect(self._show_figures)
        # A viewer that is closed deletes what is docked without closing it.
        self.destroyed.connect(work.close)

    def _with_model(self, then: Callable[[Segmenter], None]) -> None:
        """Go on with the model that the form names, once it is loaded, if there is a layer to segment."""
        with told():
            self._chosen()
            self.work.with_model(self.form.model.text().strip(), then)

    def _chosen(self) -> Any:
        layer = self.images.layer()
        if layer is None:
            raise FrameError("there is no image layer to segment: open an image first")
        return layer

    def _kind(self, segmenter: Segmenter) -> Annotation:
        return self.form.kind.currentData() or segmenter.spec.annotation

    def _segment(self, segmenter: Segmenter) -> None:
        layer, kind = self._chosen(), self._kind(segmenter)
        request = Request(image_of(layer, segmenter.spec.channels), kind, self.form.area.value())
        self.work.run("segmenting …", partial(labels_of, segmenter, request), partial(self._show_labels, layer, kind))

    def _show_labels(self, layer: Any, kind: Annotation, labels: Any) -> None:
        added = self.viewer.add_labels(labels, name=f"{layer.name} ({kind})", **placement(layer, labels.ndim))
        added.metadata = {**layer.metadata, "unetrt": {"model": self.work.path, "image": layer.name, "kind": kind}}
        planes = labels.reshape(-1, *labels.shape[-2:])
        objects = f"{sum(int(plane.max()) for plane in planes)} objects" if kind == "instances" else "done"
        self.form.figures.setText(objects)

    def _follow(self, segmenter: Segmenter) -> None:
        feed = LiveFeed(self._chosen(), lambda: self.viewer.dims.point, segmenter, self._kind(segmenter))
        self.work.live = LiveLabels(self.viewer, feed, partial(self.set_live, False))
        self._clock.start(TICK)
        self._show_state()

    def _show_state(self, running: str = "") -> None:
        """Let the buttons say what runs."""
        busy, live = self.work.background.busy, self.work.live is not None
        self.form.show_state(running if busy else "", live)
        if not live:
            self._clock.stop()

    def _show_figures(self) -> None:
        if self.work.live is not None and not self.work.background.busy:
            self.form.figures.setText(self.work.live.feed.figures())

    def _describe(self, segmenter: Segmenter) -> None:
        _settings().setValue("model", self.work.path)
        self.form.about.setText(about(segmenter))

    def _browse(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Choose a model", self.form.model.text(), FILES)
        if path:
            self.choose(path)

    def _typed(self) -> None:
        self.choose(self.form.model.text())


def _settings() -> QSettings:
    return QSettings("unetrt", "napari")
