"""Threads on which a host program hands over frames from a queue without a bound.

With the policy `block` a camera waits in `LiveSegmenter.frameReady`, if that runs on the camera's thread. On two others
it does not wait, and its frames would only move into the queue behind them:

- pymmcore-plus calls the outputs of `core.mda.run(..., output=[...])` on a relay thread (`mda/_thread_relay.py`);
- Qt calls the slots of another thread's signal in the event loop of the thread that connected them: the GUI's, whose
  work delays them. Without a running event loop they are not called.
"""

import sys
import threading
from contextlib import suppress
from enum import StrEnum

# Class of the relay threads of pymmcore-plus, and module of its acquisition engine, on whose thread slots can wait.
RELAY_THREAD, RUNNER = "MDARelayThread", "pymmcore_plus.mda._runner"
QT = ("PyQt6", "PySide6", "PyQt5", "PySide2")


class HostQueue(StrEnum):
    """A queue without a bound between a camera and a live segmenter; the value is the advice to a host program."""

    RELAY = (
        "policy block cannot hold up an acquisition that hands over frames by output=[live]: frames that find no room "
        "are dropped; connect live's slots to core.mda.events instead, or use the policy drop_oldest"
    )
    GUI = (
        "frames arrive in the event loop of the GUI: they are late while it is busy, and the policy block cannot wait; "
        "use core.mda.run(..., output=[live]), or connect live's slots with Qt's DirectConnection"
    )


def host_queue() -> HostQueue | None:
    """Return the queue from which the current thread hands over a frame; None for a camera's thread. Never raises."""
    thread = threading.current_thread()
    if thread is threading.main_thread():
        return HostQueue.GUI if _in_event_loop() and not _is_acquiring() else None
    is_relay = any(kind.__name__ == RELAY_THREAD for kind in type(thread).__mro__)
    return HostQueue.RELAY if is_relay else None


def _in_event_loop() -> bool:
    """Return whether the current thread runs Qt's event loop; Qt is not imported."""
    for qt in filter(None, (sys.modules.get(f"{binding}.QtCore") for binding in QT)):
        with suppress(Exception):  # a binding that is only half imported, or is being shut down
            if qt.QCoreApplication.instance() is not None and qt.QThread.currentThread().loopLevel() > 0:
                return True
    return False


def _is_acquiring() -> bool:
    """Return whether the acquisition itself runs on the current thread, and has called the slot directly."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        if caller.f_globals.get("__name__") == RUNNER:
            return True
        frame = caller
    return False
