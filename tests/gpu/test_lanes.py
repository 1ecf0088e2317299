"""Lanes, batches and threads change when something is computed, never what."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.gpu.engines import COPIES, copies, opened
from unetrt.export.exporter import Options
from unetrt.export.gate import DEFAULTS
from unetrt.runtime.segment.segmenter import Segmenter

pytestmark = pytest.mark.gpu

SIZE = (101, 163)
INPUTS = ("float32", "uint8", "uint16")


def options(batch, dtype):
    return Options((60, 76), "fp16", "labels", batch, dtype)


@pytest.mark.parametrize("dtype", INPUTS)
@pytest.mark.parametrize("batch", [1, 4])
def test_engines(engine, exported, frames, batch, dtype):
    stack = frames(5, SIZE, "uint8" if dtype == "uint8" else "uint16")
    with opened(engine, exported(options(1, dtype))) as session, Segmenter(session, lanes=1) as segmenter:
        expected = np.stack([segmenter.segment(frame).labels for frame in stack])
    assert 0 < expected.mean() < 1
    # In a batch a kernel may add up in another order than it does for one tile.
    most = 0 if batch == 1 else DEFAULTS["fp16"].flips
    with opened(engine, exported(options(batch, dtype))) as session:
        for lanes in (1, 2, 4):
            with Segmenter(session, lanes=lanes) as segmenter:
                labels = segmenter.segment(stack).labels
                assert (labels != expected).mean() <= most
                np.testing.assert_array_equal(segmenter.segment(stack).labels, labels)


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 4])
def test_copies(frames, lanes, batch):
    stack = frames(5, SIZE, "float32")
    with copies(batch=batch) as session, Segmenter(session, lanes=lanes) as segmenter:
        for frame in stack:
            np.testing.assert_array_equal(segmenter.scores(frame)[1], frame)


def test_eight_threads_get_what_one_gets(backend, plain, frames):
    stack = frames(16, SIZE, "float32" if backend == COPIES else "uint16")
    with opened(backend, plain) as session:
        with Segmenter(session, lanes=1) as segmenter:
            expected = [segmenter.scores(frame) for frame in stack]
        with Segmenter(session, lanes=3) as one, Segmenter(session) as other, ThreadPoolExecutor(8) as threads:
            for segmenter in (one, other):
                results = list(threads.map(segmenter.scores, stack))
                np.testing.assert_array_equal(np.stack(results), np.stack(expected))
            both = list(threads.map(lambda pair: pair[0].scores(pair[1]), zip([one, other] * 8, stack, strict=True)))
            np.testing.assert_array_equal(np.stack(both), np.stack(expected))


def test_timings_are_the_gpus(backend, plain, frames):
    stack = frames(8, SIZE)
    with opened(backend, plain) as session, Segmenter(session, lanes=2) as segmenter:
        segmenter.segment(stack)
        timings = segmenter.segment(stack).timings
    assert len(timings.frames) == 8
    for phase in ("upload", "compute", "download"):
        assert 0 < getattr(timings, phase) < 10 * timings.total
        assert sum(getattr(frame, phase) for frame in timings.frames) == pytest.approx(getattr(timings, phase))
    assert 0 < timings.in_flight <= timings.span <= timings.total
