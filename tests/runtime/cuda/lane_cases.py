"""Cases of lanes over the real Python packages: a session that copies, on whatever libcuda there is."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from tests.conftest import small_spec
from tests.runtime.cuda.copy_session import CopySession
from tests.runtime.cuda.workbench import DEVICE, raised
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.driver import open_driver
from unetrt.runtime.errors import CudaError, OutOfMemoryError, SessionClosedError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter

AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))
FRAMES = np.arange(3 * 90 * 130, dtype=np.float32).reshape(3, 90, 130)


def session(**fields):
    return CopySession(small_spec(normalisation=AS_IT_IS, **fields), CudaDevice(open_driver(DEVICE, os.environ)))


def frames_come_out_as_they_went_in():
    for lanes in (1, 2, 4):
        for batch in (1, 4):
            with session(batch=batch) as opened, Segmenter(opened, lanes=lanes) as segmenter:
                for frame in FRAMES:
                    np.testing.assert_array_equal(segmenter.scores(frame)[1], frame)
                timings = segmenter.segment(FRAMES).timings
                assert timings.compute > 0
                assert 0 < timings.in_flight <= timings.span


def threads():
    with session() as opened, Segmenter(opened) as segmenter, ThreadPoolExecutor(8) as pool:
        for frame, scores in zip(FRAMES, pool.map(segmenter.scores, FRAMES), strict=True):
            np.testing.assert_array_equal(scores[0], frame)


def left_open():
    """Everything that was not closed is freed at the end of the process."""
    global kept  # noqa: PLW0603
    opened = session()
    kept = opened, Segmenter(opened), opened.lanes(1)[0].input
    kept[1].scores(FRAMES[0])


def ended_in_the_middle_of_a_frame():
    """The process ends while a daemon thread segments."""
    opened = session()
    begun = threading.Event()

    def work():
        with suppress(SessionClosedError), Segmenter(opened) as segmenter:
            while True:
                segmenter.scores(FRAMES[0])
                begun.set()

    threading.Thread(target=work, daemon=True).start()
    begun.wait()


def a_call_fails():
    """The environment makes copies out fail: the first pass says so, and nothing hangs."""
    assert "cuMemcpyDtoHAsync failed" in raised(CudaError, segment_one)


def memory_runs_out():
    assert "cuMemAlloc failed" in raised(OutOfMemoryError, segment_one)


def segment_one():
    with session() as opened, Segmenter(opened, lanes=3) as segmenter:
        segmenter.scores(FRAMES[0])


LANE_CASES = (
    frames_come_out_as_they_went_in,
    threads,
    left_open,
    ended_in_the_middle_of_a_frame,
    a_call_fails,
    memory_runs_out,
)
