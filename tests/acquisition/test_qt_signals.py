"""Which thread pymmcore-plus calls from when the host program has a QApplication; what docs/embedding.md says of it."""

import json
import subprocess
import sys

import pytest

from tests import requirements

pytest.importorskip("mm_test_adapters", reason=requirements.MICRO_MANAGER)
pytest.importorskip("qtpy", reason=requirements.NAPARI)

PROGRAM = """
import json, sys, threading
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication
from pymmcore_plus import CMMCorePlus
from useq import MDASequence

def main(with_loop):
    application = QApplication([])
    core = CMMCorePlus()
    core.loadSystemConfiguration("MMConfig_demo.cfg")
    gui, calls = threading.current_thread(), {"output": [], "slot": [], "direct slot": []}

    class Listener:
        def __init__(self, name):
            self.calls = calls[name]
        def frameReady(self, img, event, meta):
            self.calls.append("gui" if threading.current_thread() is gui else "other")

    output, slot, direct = map(Listener, calls)
    core.mda.events.frameReady.connect(slot.frameReady)
    core.mda.events.frameReady.connect(direct.frameReady, type=Qt.ConnectionType.DirectConnection)
    acquisition = core.run_mda(MDASequence(time_plan={"interval": 0, "loops": 3}), output=[output])
    if with_loop:
        timer = QTimer()
        timer.timeout.connect(lambda: acquisition.is_alive() or len(calls["slot"]) < 3 or application.quit())
        timer.start(10)
        application.exec()
    acquisition.join()
    print(json.dumps(calls))

main(sys.argv[1] == "loop")
"""


@pytest.mark.parametrize(("loop", "slot"), [("loop", ["gui"] * 3), ("no loop", [])])
def test_an_output_and_a_direct_slot_get_frames_without_the_gui_thread(monkeypatch, loop, slot):
    """A slot connected as usual runs on the GUI thread; without an event loop it gets nothing."""
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, loop], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "output": ["other"] * 3,
        "slot": slot,
        "direct slot": ["other"] * 3,
    }
