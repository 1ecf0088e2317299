"""What a host program may do to a live segmenter, and must not break."""

import concurrent.futures
import copy
import gc
import logging
import pickle
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from tests.runtime.live.live_cases import flat, gated
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.errors import OptionError
from unetrt.runtime.model.spec import Decoding


@pytest.fixture
def live():
    """A live segmenter whose model is always ready."""
    segmenter, session = gated()
    session.let()
    with LiveSegmenter(segmenter, policy="block") as live:
        yield live


def works(live):
    return live.submit(flat(1)).result(30).outcome == "done"


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_holds_an_engine_stays_in_its_process(live, attempt):
    with pytest.raises(
        OptionError, match=r"a LiveSegmenter .* cannot be pickled or copied: send the path of the model"
    ):
        attempt(live)
    with pytest.raises(OptionError, match=r"a Segmenter .* cannot be pickled"):
        attempt(live.segmenter)
    assert works(live)


def test_a_result_can_be_sent_to_another_process(live):
    result = live.submit(flat(1), {"t": 3}).result(30)
    copied = pickle.loads(pickle.dumps(result))
    assert (copied.index, copied.outcome, copied.objects) == (result.index, result.outcome, result.objects)
    np.testing.assert_array_equal(copied.labels, result.labels)


def test_iterators_come_and_go_from_other_threads(live):
    stop, interval = threading.Event(), sys.getswitchinterval()

    def ask():
        while not stop.is_set():
            live.results()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        assert all(works(live) for _ in range(300))
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()


def test_a_callback_of_a_future_that_wants_to_exit(live):
    future = live.submit(flat(1))
    future.add_done_callback(lambda done: sys.exit("no"))
    future.result(30)
    assert works(live)


class Speechless(Exception):  # noqa: N818
    def __str__(self):
        raise RuntimeError("no words")


def test_an_error_that_cannot_format_itself(live):
    live.segmenter.session.compute = None

    class Frame:
        shape = (12, 16)

        def __getattr__(self, name):
            raise Speechless

    assert live.submit(Frame()).result(30).outcome == "failed"
    assert "Speechless" in live.status().last_error


def test_a_log_that_cannot_be_written():
    class Full(logging.Handler):
        def emit(self, record):
            raise OSError("no space left on the disk")

    segmenter, session = gated()
    session.let()
    handler = Full()
    logging.getLogger("unetrt.live").addHandler(handler)
    try:
        with LiveSegmenter(segmenter, policy="block", on_result=lambda result: 1 / 0) as live:
            assert works(live)
            assert works(live)
    finally:
        logging.getLogger("unetrt.live").removeHandler(handler)
    assert live.status().output_errors == 2


def test_a_failed_frame_is_released_at_once(live):
    frame = np.full((12, 16), np.nan, np.float32)
    gone = weakref.ref(frame)
    gc.disable()
    try:
        future = live.submit(frame, copy=False)
        assert future.result(30).outcome == "failed"
        assert live.flush(30)
        del frame, future
        assert gone() is None
    finally:
        gc.enable()


def test_threads_that_wait_for_a_cancelled_and_dropped_frame_are_released():
    segmenter, session = gated()
    with LiveSegmenter(segmenter, policy="drop_oldest", capacity=1) as live:
        live.submit(flat(1))
        session.began.acquire(timeout=30)
        cancelled = live.submit(flat(2))
        assert cancelled.cancel()
        live.submit(flat(3))
        assert concurrent.futures.wait([cancelled], 10).done == {cancelled}
        session.let()


def test_a_frame_that_waited_for_room_belongs_to_the_sequence_that_began_meanwhile():
    segmenter, session = gated()
    with LiveSegmenter(segmenter, policy="block", capacity=1) as live:
        first, second = live.submit(flat(1)), live.submit(flat(2)) if session.began.acquire(timeout=30) else None
        futures = []
        late = threading.Thread(target=lambda: futures.append(live.submit(flat(3))))
        late.start()
        late.join(0.1)
        live.sequenceStarted("plan")
        session.let()
        late.join(30)
        results = [future.result(30) for future in (first, second, *futures)]
    assert [result.sequence and result.sequence.plan for result in results] == [None, None, "plan"]
    assert results[2].sequence.first == results[2].number == 2


def test_frames_dropped_in_one_sequence_are_not_those_of_the_next():
    segmenter, session = gated()
    with LiveSegmenter(segmenter, policy="latest") as live:
        stream = live.results()
        live.sequenceStarted("first")
        live.submit(flat(1))
        session.began.acquire(timeout=30)
        live.submit(flat(2))
        live.sequenceFinished()
        live.sequenceStarted("second")
        live.submit(flat(3))
        session.let()
    assert [(result.number, result.dropped) for result in stream] == [(0, 0), (2, 0)]


class Told:
    """An output that records its calls."""

    def __init__(self):
        self.of = []

    def sequence_started(self, sequence):
        self.of.append(f"sequence {sequence.number}")

    def result(self, result):
        self.of.append((result.number, str(result.outcome), result.index))

    def dropped(self, frames):
        self.of.append((frames.first, frames.last, "dropped", frames.sequence and frames.sequence.number))

    def sequence_finished(self, sequence):
        self.of.append(f"end of {sequence.number}")

    def close(self):
        self.of.append("closed")


def test_outputs_get_every_result_in_order_and_callbacks_those_of_segmented_frames():
    segmenter, session = gated()
    output, called = Told(), []
    live = LiveSegmenter(segmenter, policy="latest", outputs=[output], on_result=called.append)
    stream = live.results()
    live.sequenceStarted("first")
    live.submit(flat(1), "a")
    session.began.acquire(timeout=30)
    for name in "bc":
        live.submit(flat(2), name)
    live.sequenceFinished()
    live.sequenceStarted("second")
    live.submit(flat(3), "d").cancel()
    failing = live.submit(flat(13), "e")
    session.let(2)
    assert failing.result(30).outcome == "failed"
    session.began.acquire(timeout=30)
    live.submit(flat(4), "f")
    session.began.acquire(timeout=30)
    last = live.submit(flat(4), "g")
    live.sequenceFinished()
    closing = threading.Thread(target=live.close, kwargs={"drain": False})
    closing.start()
    assert last.result(30).outcome == "dropped"
    session.let()
    closing.join(30)
    assert output.of == [
        "sequence 0",
        (0, "done", "a"),
        (1, 2, "dropped", 0),
        "end of 0",
        "sequence 1",
        (3, 3, "dropped", 1),
        (4, "failed", "e"),
        "end of 1",
        "closed",
    ]
    assert [result.number for result in called] == [result.number for result in stream] == [0, 4]


def test_very_many_dropped_frames_are_one_notice():
    segmenter, session = gated()
    output = Told()
    with LiveSegmenter(segmenter, policy="latest", outputs=[output]) as live:
        live.submit(flat(1))
        session.began.acquire(timeout=30)
        for _ in range(3000):
            live.submit(flat(2))
        session.let()
    assert output.of == [(0, "done", None), (1, 2999, "dropped", None), (3000, "done", None), "closed"]


def test_frames_cancelled_at_the_end_are_a_notice_when_the_queue_drains():
    segmenter, session = gated()
    output = Told()
    live = LiveSegmenter(segmenter, policy="drop_oldest", outputs=[output])
    live.submit(flat(1))
    session.began.acquire(timeout=30)
    for _ in range(3):
        assert live.submit(flat(2)).cancel()
    session.let()
    live.close()
    assert output.of == [(0, "done", None), (1, 3, "dropped", None), "closed"]


class Slow(Told):
    """An output that takes its time for each call."""

    seconds = 0.2

    def __getattribute__(self, name):
        if name in ("sequence_started", "result", "dropped", "sequence_finished"):
            time.sleep(Slow.seconds)
        return super().__getattribute__(name)


@pytest.mark.parametrize("kind", ["classes", "instances"])
def test_a_slow_output_costs_a_call_for_a_result_and_one_for_what_was_dropped_before_it(kind):
    segmenter, session = gated(annotation="instances", decoding=Decoding("components", 1))
    session.let()
    output = Slow()
    with LiveSegmenter(segmenter, policy="latest", kind=kind, outputs=[output]) as live:
        begin, submitted = time.perf_counter(), 0
        while live.status().done < 3:
            live.submit(flat(1))
            submitted += 1
            time.sleep(0.001)
            assert time.perf_counter() - begin < 60
    calls = [len(call) for call in output.of if call != "closed"]
    status = live.status()
    assert status.dropped > 2 * status.done  # of an output call for each, the model would see one frame in a minute
    assert len(calls) <= 2 * status.done
    assert sum(call[1] - call[0] + 1 for call in output.of if "dropped" in call) == status.dropped
    assert status.submitted == submitted == status.done + status.dropped


@pytest.mark.parametrize("kind", ["classes", "instances"])
def test_closing_without_draining_waits_for_one_call_of_a_slow_output(kind):
    segmenter, session = gated(annotation="instances", decoding=Decoding("components", 1))
    session.let()
    output = Slow()
    live = LiveSegmenter(segmenter, policy="drop_oldest", kind=kind, outputs=[output])
    for plan in range(20):
        live.sequenceStarted(plan)
        futures = [live.submit(flat(1)) for _ in range(20)]
        live.sequenceFinished(plan)
    while not output.of:
        time.sleep(0.01)
    before = len(output.of)
    live.close(drain=False)
    assert len(output.of) <= before + 3  # the call in progress, the end of its sequence, and `close`
    assert output.of[-1] == "closed"
    assert all(future.result(0).outcome == "dropped" for future in futures)
    assert live.status().pending == 0


def test_frames_submitted_while_closing_are_not_delivered_to_outputs():
    segmenter, session = gated()
    output = Told()
    live = LiveSegmenter(segmenter, policy="latest", outputs=[output])
    live.sequenceStarted("first")
    live.submit(flat(1), "a")
    session.began.acquire(timeout=30)
    closing = threading.Thread(target=live.close)
    closing.start()
    while live.status().state != "closing":
        time.sleep(0.001)
    live.sequenceStarted("second")
    assert live.submit(flat(2), "late").result(0).outcome == "dropped"
    session.let()
    closing.join(30)
    assert output.of == ["sequence 0", (0, "done", "a"), "closed"]
    assert live.status().dropped == 1


def test_delivering_a_result_counts_as_segmenting():
    segmenter, session = gated()
    session.let()
    went, go = threading.Event(), threading.Event()

    def output(result):
        went.set()
        go.wait(30)

    with LiveSegmenter(segmenter, on_result=output) as live:
        live.submit(flat(1)).result(30)
        assert went.wait(30)
        status = live.status()
        assert (status.state, status.pending) == ("segmenting", 0)
        go.set()
        assert live.flush(30)
        assert live.status().state == "waiting"


class Stubborn(np.ndarray):
    def copy(self, order="C"):
        raise OSError("the disk behind this array is gone")


class Raises(dict):
    """An event or metadata of a host program with a defect."""

    def __getattribute__(self, name):
        raise OSError("the device is gone")

    def get(self, key, default=None):
        raise OSError("the device is gone")


def test_nothing_is_raised_at_a_camera(live):
    meta, event = np.zeros(3), type("Event", (), {"index": 7, "channel": "red"})
    assert live.submit(flat(1), meta=meta).result(30).meta is meta
    live.frameReady(flat(1), event, meta)
    live.frameReady(flat(1), event, {"camera_metadata": "none"})
    failed = live.submit(flat(1).view(Stubborn)).result(30)
    assert (failed.outcome, str(failed.error)) == ("failed", "the disk behind this array is gone")
    live.sequenceStarted(np.zeros(3), meta)
    live.sequenceFinished()
    live.frameReady(flat(1), Raises(), Raises())
    assert live.flush(30)
    assert (live.status().done, live.status().failed) == (4, 1)
