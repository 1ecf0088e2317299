"""The dock widget "unetrt: segment"."""

from collections.abc import Callable
from functools import partial
from typing import Any

from qtpy.QtCore import QEvent, QSettings, QTimer
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget

from unetrt.napari.form import Form
from unetrt.napari.frames import image_of, placement
from unetrt.napari.image_choice import ImageChoice
from unetrt.napari.live_feed import LiveFeed
from unetrt.napari.live_labels import LiveLabels
from unetrt.napari.messages import told
from unetrt.napari.segmentation import Request, about, labels_of
from unetrt.napari.work import Work
from unetrt.runtime.errors import FrameError
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.spec import Annotation

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
