"""Memory on the GPU: what does not fit is refused with numbers, weights are shared, and nothing grows."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from tests.gpu.engines import COPIES, copies, opened, used
from unetrt.benchmarks.networks import untrained, write_model
from unetrt.export.exporter import Options
from unetrt.runtime.errors import OutOfMemoryError
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cuda import RESERVE, LaneMemory

pytestmark = pytest.mark.gpu

MIB = 2**20
# What a driver and an engine keep for each context and stream, beyond what is asked for.
SLACK = 24 * MIB
MANY = 10_000
SIZE = (101, 163)


def test_what_does_not_fit_is_refused_before_it_is_taken(backend, plain, frames):
    stack = frames(2, SIZE)
    with opened(backend, plain) as session, Segmenter(session) as segmenter:
        expected, before = segmenter.scores(stack[0]), used()
        too_many = 2 * session.cuda.memory()[1] // session.spec.tensors().nbytes
        with pytest.raises(OutOfMemoryError, match=rf"{too_many} lanes need .* [MG]iB .* are free: use \d+ lanes"):
            session.lanes(too_many)
        assert used() - before < SLACK
        np.testing.assert_array_equal(segmenter.scores(stack[0]), expected)


def test_lanes_take_turns_where_their_scratch_memory_does_not_fit(frames, caplog):
    frame = frames(1, SIZE, "float32")[0]
    with copies() as session:
        free, _ = session.cuda.memory()
    short = int(0.6 * (free - RESERVE))
    with caplog.at_level("INFO", "unetrt"), copies(scratch=short) as session, Segmenter(session, lanes=3) as segmenter:
        for _ in range(5):
            np.testing.assert_array_equal(segmenter.scores(frame)[0], frame)
    assert "3 lanes take turns" in caplog.text


def test_the_driver_says_that_memory_ran_out():
    with copies() as session:
        free, _ = session.cuda.memory()
        with pytest.raises(OutOfMemoryError, match="cuMemAlloc failed"):
            session.cuda.buffer(2 * free)
        with session.cuda.buffer(MIB) as buffer:
            assert buffer.handle


def test_segmenters_share_their_weights(tensorrt, tmp_path):
    model = tmp_path / "paper.onnx"
    write_model(untrained(base=64, depth=4), Options((204, 204), "fp16", "labels"), model)
    with Segmenter(model, backend=tensorrt, lanes=1) as one:
        one.segment(np.zeros((100, 100), np.uint16))
        weights, alone = one.session._loaded.sidecar.size, used()
        assert weights > 2 * SLACK
        with Segmenter(model, backend=tensorrt, lanes=1) as other:
            other.segment(np.zeros((100, 100), np.uint16))
            need = LaneMemory(1, other.spec.tensors().nbytes, other.session.scratch())
            assert used() - alone < need.apart + SLACK
        assert used() - alone < SLACK


def test_closed_segmenters_give_their_memory_back(backend, plain, frames):
    frame = frames(1, SIZE)[0]
    taken = []
    with opened(backend, plain) as session:
        for _ in range(20):
            with Segmenter(session, lanes=4) as segmenter:
                segmenter.scores(frame)
            taken.append(used())
    assert taken[-1] - taken[4] < SLACK


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what a process holds")
def test_ten_thousand_frames_leave_memory_as_it_is(backend, plain, frames):
    """Within 1 % between frame 1000 and frame 10,000, on the host and on the device."""
    stack = frames(8, (37, 41), "float32" if backend == COPIES else "uint16")
    with opened(backend, plain) as session, Segmenter(session) as segmenter:
        for number in range(1, MANY + 1):
            segmenter.segment(stack[number % len(stack)])
            if number == MANY // 10:
                early = held()
        late = held()
    for before, after in zip(early, late, strict=True):
        assert abs(after - before) <= 0.01 * before


def held():
    """Bytes that this process holds in memory, and that are taken on the device."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), used()
