"""Micro-Manager's core with its demo devices: a microscope without a microscope."""

import pytest

from tests import requirements


@pytest.fixture
def core():
    """A core of Micro-Manager with its demo configuration, headless: a camera of 512 x 512 uint16 at 10 ms."""
    pytest.importorskip("mm_test_adapters", reason=requirements.MICRO_MANAGER)
    from pymmcore import CMMCore
    from pymmcore_plus import CMMCorePlus

    core = CMMCorePlus()
    core.loadSystemConfiguration("MMConfig_demo.cfg")
    core.setExposure(10)
    core.setProperty("Camera", "PixelType", "16bit")
    yield core
    core.mda.cancel()
    if core.isSequenceRunning():
        core.stopSequenceAcquisition()
    core.unloadAllDevices()
    # The core's callback thread aborts the process if it finds the interpreter finalizing.
    CMMCore.registerCallback(core, None)
