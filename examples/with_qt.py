"""Show a camera and its labels in a Qt window, which neither the model nor the camera holds up.

    python examples/with_qt.py model.onnx

The acquisition engine hands frames to the live segmenter on its own threads, and a signal brings each result to the
window's thread. Closing it ends everything, also in the middle of an acquisition; it closes itself after the last
frame. Needs: pip install 'unetrt[cpu,acquire]' qtpy PyQt6
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from pymmcore_plus import CMMCorePlus
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QCloseEvent, QImage, QPainter, QPixmap
from qtpy.QtWidgets import QApplication, QLabel
from useq import MDASequence

from unetrt.runtime import LiveResult, LiveSegmenter

# Colours of the labels, as 0xAARRGGBB: transparent, then 255 that alternate.
COLOURS = [0, *(0x90000000 | int(colour) for colour in np.random.default_rng(0).integers(0, 1 << 24, 255))]


class Window(QLabel):  # type: ignore[misc]
    """The newest segmented frame under its labels."""

    came = Signal(object)

    def __init__(self, core: CMMCorePlus, model: Path, frames: int, interval: float) -> None:
        super().__init__()
        self.setWindowTitle("unetrt")
        self.resize(512, 512)
        # `emit` returns at once on any thread, and a queued connection calls `show_result` on the window's.
        self.came.connect(self.show_result, Qt.ConnectionType.QueuedConnection)
        self.live = LiveSegmenter(model, kind="instances", on_result=self.came.emit)
        self.core, self.frames, self.shown = core, frames, 0
        plan = MDASequence(time_plan={"interval": interval, "loops": frames})  # type: ignore[arg-type]
        # As an output, and not as a slot of `core.mda.events`: pymmcore-plus's signals are Qt's in a Qt program, which
        # would bring the frames to this thread.
        self.acquisition = core.run_mda(plan, output=[self.live])

    def show_result(self, result: LiveResult) -> None:
        """Draw a frame and its labels; on the window's thread."""
        self.shown += 1
        if result.labels is not None:
            frame = result.frame if result.frame.ndim == 2 else result.frame.mean(axis=0)  # of several channels
            grey = np.uint8(255 * (frame - frame.min()) / max(np.ptp(frame), 1))
            picture = QPixmap.fromImage(image(grey, QImage.Format.Format_Grayscale8))
            labels = image(np.uint8(result.labels % 255 + (result.labels > 0)), QImage.Format.Format_Indexed8)
            labels.setColorTable(COLOURS)
            painter = QPainter(picture)
            painter.drawImage(0, 0, labels)
            painter.end()
            self.setPixmap(picture)
        if result.index["t"] == self.frames - 1:  # never dropped: `latest` keeps the newest frame
            self.close()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """End the acquisition and the live segmenter; waits for one exposure and one tile at most."""
        self.core.mda.cancel()
        self.live.close(drain=False)  # callbacks do not wait for this thread, so it can wait for them
        self.acquisition.join()
        super().closeEvent(event)


def image(values: Any, form: QImage.Format) -> QImage:
    """Return a Qt image of an array, (H, W) uint8."""
    height, width = values.shape
    return QImage(values.tobytes(), width, height, width, form).copy()  # the copy owns its memory


def main() -> None:
    """Open the window, and leave when it is closed."""
    arguments = parse()
    application = QApplication([])
    core = CMMCorePlus()
    core.loadSystemConfiguration(arguments.config)
    window = Window(core, arguments.model, arguments.frames, arguments.interval)
    window.show()
    application.exec()
    status = window.live.status()
    print(f"{window.shown} results shown; {status.submitted} frames: {status.done} segmented, {status.dropped} dropped")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("--config", default="MMConfig_demo.cfg", help="Micro-Manager configuration")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between frames")
    return parser.parse_args()


if __name__ == "__main__":
    main()
