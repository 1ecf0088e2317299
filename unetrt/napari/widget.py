"""The dock widget "unetrt: segment".

`SegmentWidget` connects a `Form`, fields and buttons without behaviour, with a `Work`, which runs what takes time on
other threads. `ImageChoice` is the list of the viewer's image layers.
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

from unetrt.napari.segmentation import Request, about, fitted, image_of, labels_of, notified, placement
from unetrt.napari.work import LiveLabels, Work
from unetrt.runtime import Segmenter
from unetrt.runtime.errors import FrameError
from unetrt.runtime.model.spec import Annotation

# Text in the list of kinds -> kind of labels; None for the kind the model was trained on.
KINDS = {"as trained": None, "numbered objects": "instances", "classes": "classes"}
# Minimum width in pixels: fits the longest line of figures.
WIDTH = 290
# Filter of the file dialog.
FILES = "Models (*.onnx *.engine *.plan);;All files (*)"
# Milliseconds between two updates of the live figures.
TICK = 500


class ImageChoice(QComboBox):
    """A list of the image layers of a viewer, kept up to date; the newest is chosen by default.

    Parameters
    ----------
    layers
        `viewer.layers`.
    """

    def __init__(self, layers: Any) -> None:
        super().__init__()
        # A long name must not widen the dock.
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(16)
        self._layers = layers
        for event in (layers.events.inserted, layers.events.removed, layers.events.renamed, layers.events.reordered):
            event.connect(self.refresh)
        self.refresh()

    def layer(self) -> Any:
        """Return the chosen layer; None if no layer is chosen."""
        return self.currentData()

    def refresh(self, event: Any = None) -> None:  # noqa: ARG002
        """Update the list."""
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
        """Stop following the viewer."""
        self._layers.events.disconnect(self.refresh)


class Form(QWidget):
    """The fields and buttons of the widget, as attributes.

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
        self.about = _note("The model is loaded on first use.")
        self.image, self.kind, self.area = image, QComboBox(), QSpinBox()
        for text, kind in KINDS.items():
            self.kind.addItem(text, kind)
        self.area.setRange(0, 1_000_000)
        self.area.setSuffix(" px")
        self.area.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.area.setToolTip("Segment removes objects of fewer pixels; live labels keep all")
        self.segment, self.live = QPushButton("Segment"), QPushButton("Live")
        self.live.setCheckable(True)
        self.live.setToolTip("Segment the shown frame of the image layer whenever it changes")
        self.progress, self.figures = QProgressBar(), _note("")
        self.progress.setVisible(False)
        self._arrange()

    def show_state(self, running: str, live: bool) -> None:
        """Show the state: `running` describes the call in the background, which the first button then cancels."""
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
        """Update the progress bar."""
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
    note.setTextFormat(Qt.TextFormat.PlainText)  # names from a model file may look like HTML
    note.setWordWrap(True)
    note.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return note


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    return line


class SegmentWidget(QWidget):
    """Segments an image layer, once or live; long calls run on other threads.

    Parameters
    ----------
    napari_viewer
        The viewer; napari passes it by this name.
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
        """Load a model, and remember it for the next session."""
        self.form.model.setText(path)
        self.work.with_model(path.strip(), lambda _: None)

    def segment(self) -> None:
        """Segment the chosen layer, or cancel the call in the background."""
        if self.work.background.busy:
            self.work.cancel()
            self.form.figures.setText("cancelled")
        else:
            self._with_model(self._segment)

    def set_live(self, on: bool) -> None:
        """Start or end live labels of the chosen layer, and update the button."""
        if on and self.work.live is None:
            self._with_model(self._follow)
        elif not on:
            self.work.end_live()
        self._show_state()

    def event(self, event: QEvent) -> bool:
        """End everything when the widget is closed or removed from its dock."""
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
        # A viewer that closes deletes docked widgets without closing them.
        self.destroyed.connect(work.close)

    def _with_model(self, then: Callable[[Segmenter], None]) -> None:
        """Run `then` with the chosen model, once it is loaded, if a layer is chosen."""
        with notified():
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
        labels = fitted(labels, layer)
        added = self.viewer.add_labels(labels, name=f"{layer.name} ({kind})", **placement(layer, labels.shape))
        added.metadata = {**layer.metadata, "unetrt": {"model": self.work.path, "image": layer.name, "kind": kind}}
        planes = labels.reshape(-1, *labels.shape[-2:])
        objects = f"{sum(int(plane.max()) for plane in planes)} objects" if kind == "instances" else "done"
        self.form.figures.setText(objects)

    def _follow(self, segmenter: Segmenter) -> None:
        ended = partial(self.set_live, False)
        self.work.live = LiveLabels(self.viewer, self._chosen(), segmenter, self._kind(segmenter), ended)
        self._clock.start(TICK)
        self._show_state()

    def _show_state(self, running: str = "") -> None:
        """Update the form after a change of state."""
        busy, live = self.work.background.busy, self.work.live is not None
        self.form.show_state(running if busy else "", live)
        if not live:
            self._clock.stop()

    def _show_figures(self) -> None:
        if self.work.live is not None and not self.work.background.busy:
            self.form.figures.setText(self.work.live.figures())

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
