"""Threads on which Micro-Manager's engine hands over frames: its own, its relay, and the GUI's."""

import subprocess
import sys
import threading

import pytest
import useq

from tests import requirements
from tests.acquisition.slow_model import Notes, adds_up, slow_segmenter
from unetrt.runtime import LiveSegmenter

pytestmark = pytest.mark.alone
FRAMES = 30


class Backlog:
    """An output that notes how many signals wait in the relay thread of pymmcore-plus."""

    def __init__(self):
        self.most = 0

    def frameReady(self, image, event):  # noqa: N802
        self.most = max(self.most, threading.current_thread().remaining())


def run(core, **how):
    core.mda.run(useq.MDASequence(time_plan={"interval": 0.01, "loops": FRAMES}), **how)


def test_the_policy_block_never_fills_the_relay_of_the_engine(core, caplog):
    backlog, notes = Backlog(), Notes()
    options = {"policy": "block", "capacity": 2, "kind": "classes", "outputs": [notes]}
    with slow_segmenter(0.1) as segmenter, LiveSegmenter(segmenter, **options) as live:
        run(core, output=[live, backlog])
        assert live.flush(60)
        status = live.status()
    assert backlog.most < FRAMES // 3  # it was most of them
    assert status.submitted == FRAMES
    assert adds_up(status)
    assert sum(last - first + 1 for first, last in notes.lost) == status.dropped > 0
    assert "connect live's slots to core.mda.events" in status.warning
    assert [record.message for record in caplog.records if record.name == "unetrt.live"] == [status.warning]


@pytest.mark.parametrize("policy", ["latest", "drop_oldest"])
def test_the_other_policies_have_nothing_to_warn_of(core, policy):
    with slow_segmenter() as segmenter, LiveSegmenter(segmenter, policy=policy, kind="classes") as live:
        run(core, output=[live])
        assert live.status().warning == ""


def test_slots_of_the_engine_wait_and_lose_nothing(core):
    options = {"policy": "block", "capacity": 1, "kind": "classes"}
    with slow_segmenter(0.03) as segmenter, LiveSegmenter(segmenter, **options) as live:
        core.mda.engine.use_hardware_sequencing = False
        for name in ("sequenceStarted", "frameReady", "sequenceFinished"):
            getattr(core.mda.events, name).connect(getattr(live, name))
        run(core)
        assert live.flush(60)
        status = live.status()
    assert (status.done, status.warning) == (FRAMES, "")


GUI = f"""
import sys
from PyQt6.QtCore import Qt, QTimer
from PyQt6.QtWidgets import QApplication
app = QApplication([])
import useq
from pymmcore import CMMCore
from pymmcore_plus import CMMCorePlus
from tests.acquisition.slow_model import slow_segmenter
from unetrt.runtime import LiveSegmenter
how, policy = sys.argv[1:]
core = CMMCorePlus()
core.loadSystemConfiguration("MMConfig_demo.cfg")
core.setExposure(5)
events = core.mda.events
assert type(events).__name__ == "QMDASignaler"
plan = useq.MDASequence(time_plan={{"interval": 0, "loops": {FRAMES}}})
core.mda.engine.use_hardware_sequencing = False
with slow_segmenter(0.03) as segmenter, LiveSegmenter(segmenter, policy=policy, kind="classes") as live:
    if how == "slot":
        events.frameReady.connect(live.frameReady)
    elif how == "direct":
        events.frameReady.connect(live.frameReady, Qt.ConnectionType.DirectConnection)
    elif how == "on the GUI thread":
        events.frameReady.connect(live.frameReady)
        QTimer.singleShot(0, lambda: core.mda.run(plan))
    events.sequenceFinished.connect(lambda: QTimer.singleShot(300, app.quit))
    if how != "on the GUI thread":
        thread = core.run_mda(plan, output=[live] if how == "output" else None)
    app.exec()
    live.flush()
    status = live.status()
    print(status.submitted, status.dropped, status.warning, sep=";")
core.unloadAllDevices()
CMMCore.registerCallback(core, None)
"""


@pytest.mark.parametrize(
    ("how", "policy", "warns"),
    [
        ("slot", "drop_oldest", True),
        ("slot", "block", True),
        ("direct", "block", False),
        ("on the GUI thread", "block", False),
        ("output", "drop_oldest", False),
    ],
)
def test_frames_on_the_thread_of_a_gui_are_warned_of(how, policy, warns, monkeypatch):
    pytest.importorskip("mm_test_adapters", reason=requirements.MICRO_MANAGER)
    pytest.importorskip("PyQt6")
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    done = subprocess.run(
        [sys.executable, "-c", GUI, how, policy], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    submitted, dropped, warning = done.stdout.strip().split(";", 2)
    assert int(submitted) == FRAMES
    assert ("DirectConnection" in warning) == warns
    assert ("frames arrive in the event loop of the GUI" in done.stderr) == warns
    if policy == "block":
        assert (int(dropped) > 0) == warns
