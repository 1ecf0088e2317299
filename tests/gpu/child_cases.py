"""Runs one case in a separate process: python -m tests.gpu.child_cases CASE BACKEND MODEL [DEVICE]."""

import ctypes
import sys
import time

import numpy as np

from tests.gpu.engines import opened
from unetrt.runtime.segment.segmenter import Segmenter

FRAME = (np.arange(101)[:, None] * 300 + np.arange(163)).astype(np.float32)
READY, DONE = "ready", "done"


def left_open(backend, model, device):
    """Everything that was not closed is freed at the end of the process."""
    global kept  # noqa: PLW0603
    session = opened(backend, model, device)
    kept = session, Segmenter(session), session.lanes(1)[0].input
    kept[1].scores(FRAME)


def interrupted(backend, model, device):
    """Ctrl-C ends a call, not the segmenter."""
    with opened(backend, model, device) as session, Segmenter(session) as segmenter:
        expected = segmenter.scores(FRAME)
        try:
            sys.stdout.write(f"{READY}\n")
            sys.stdout.flush()
            while True:
                segmenter.scores(FRAME)
        except KeyboardInterrupt:
            np.testing.assert_array_equal(segmenter.scores(FRAME), expected)
    sys.stdout.write(f"{DONE}\n")


def interrupted_and_gone(backend, model, device):
    """An uncaught Ctrl-C ends the process with everything open."""
    global kept  # noqa: PLW0603
    kept = Segmenter(opened(backend, model, device))
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    while True:
        kept.scores(FRAME)


def first_frame(backend, model, device):
    """How long it takes from a model file to the first labels, in seconds."""
    begin = time.perf_counter()
    with opened(backend, model, device) as session, Segmenter(session) as segmenter:
        segmenter.scores(FRAME)
        sys.stdout.write(f"{time.perf_counter() - begin}\n")


def one_device(backend, model, device):
    """No other device has a context, so nothing lies on it."""
    with opened(backend, model, device) as session, Segmenter(session) as segmenter:
        segmenter.scores(FRAME)
        assert session.device == device
        assert active_devices() == [device]
    assert active_devices() in ([], [device])  # an engine's libraries may keep the context of theirs


def active_devices():
    """The devices whose primary context is alive, by the driver's own word; asking makes none."""
    libcuda = ctypes.CDLL("libcuda.so.1")
    count, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    assert libcuda.cuInit(0) == 0
    assert libcuda.cuDeviceGetCount(ctypes.byref(count)) == 0
    found = []
    for device in range(count.value):
        assert libcuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) == 0
        found += [device] if active.value else []
    return found


CASES = {case.__name__: case for case in (left_open, interrupted, interrupted_and_gone, first_frame, one_device)}

if __name__ == "__main__":
    case, backend, model, *device = sys.argv[1:]
    CASES[case](backend, model, int(device[0]) if device else 0)
