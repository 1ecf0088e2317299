"""What the widget shows: fields and buttons, without what they do."""

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
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
