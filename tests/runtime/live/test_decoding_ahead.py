"""Objects are numbered and results delivered while the next frame is segmented."""

import gc
import random
import threading
import time

import numpy as np
import pytest

from tests.runtime.live.live_cases import flat, gated
from unetrt.runtime import LiveSegmenter, instances
from unetrt.runtime.live import worker as module
from unetrt.runtime.live.results import State
from unetrt.runtime.model.spec import Decoding

HOW = Decoding("components", 1)


def threads():
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("unetrt-live"))


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    gc.collect()
    assert threads() == []


@pytest.fixture
def rig():
    """An open live segmenter of instances, `rig(**options)`, whose passes wait for `let`."""
    opened = []

    def build(**options):
        segmenter, session = gated(annotation="instances", decoding=HOW)
        live = LiveSegmenter(segmenter, **options)
        opened.append((live, session))
        return live, session

    yield build
    for live, session in opened:
        session.let()
        live.close(drain=False)


@pytest.fixture
def gate(monkeypatch):
    """Decoding that waits for `gate.go`; `gate.began` counts what has begun."""

    class Gate:
        began, go, error = threading.Semaphore(0), threading.Semaphore(0), None

    def waiting(classes, decoding):
        Gate.began.release()
        assert Gate.go.acquire(timeout=30)
        if Gate.error is not None:
            raise Gate.error
        return instances(classes, decoding)

    monkeypatch.setattr(module, "instances", waiting)
    yield Gate
    Gate.go.release(1000)


def test_the_next_frame_is_segmented_while_one_is_decoded(rig, gate):
    live, session = rig(policy="drop_oldest")
    session.let()
    first, second = live.submit(flat(1)), live.submit(flat(2))
    assert gate.began.acquire(timeout=30)
    assert session.began.acquire(timeout=30)
    assert session.began.acquire(timeout=30)  # the second frame's pass, before the first is decoded
    assert not first.done()
    assert (live.status().pending, live.status().state) == (2, "segmenting")
    gate.go.release(2)
    assert [future.result(30).number for future in (first, second)] == [0, 1]
    assert live.flush(30)
    assert threads() == ["unetrt-live", "unetrt-live-segment"]


def test_one_frame_waits_for_decoding_and_no_other_is_taken(rig, gate):
    live, session = rig(policy="drop_oldest", capacity=2)
    session.let()
    first = live.submit(flat(1))
    assert gate.began.acquire(timeout=30)
    second = live.submit(flat(2))
    for _ in range(2):
        assert session.began.acquire(timeout=30)
    rest = [live.submit(flat(n)) for n in (3, 4, 5, 6)]
    assert not session.began.acquire(timeout=0.3)  # two are decoded or wait, two are queued, two are dropped
    assert [future.done() for future in (first, second, *rest)] == [False, False, True, True, False, False]
    status = live.status()
    assert (status.pending, status.dropped, status.done) == (4, 2, 0)
    gate.go.release(4)
    assert live.flush(30)
    assert [rest[2].result().dropped, rest[3].result().dropped] == [2, 0]
    assert (live.status().done, live.status().pending) == (4, 0)


def test_a_slow_output_does_not_hold_up_the_next_frame(rig):
    free, called = threading.Event(), []

    def slow(result):
        called.append(threading.current_thread())
        free.wait(30)

    live, session = rig(policy="drop_oldest", on_result=slow)
    session.let()
    live.submit(flat(1)).result(30)
    second = live.submit(flat(2))
    for _ in range(2):
        assert session.began.acquire(timeout=30)
    assert not second.done()
    free.set()
    assert second.result(30).outcome == "done"
    assert live.flush(30)
    assert called == [live.thread] * 2


def test_an_error_of_the_decoding_is_a_result(rig, gate):
    live, session = rig(policy="block")
    session.let()
    gate.go.release(2)
    gate.error = SystemExit("no objects")
    result = live.submit(flat(1)).result(30)
    assert (result.outcome, str(result.error), result.labels) == ("failed", "no objects", None)
    assert result.error.__traceback__ is None
    gate.error = None
    assert live.submit(flat(1)).result(30).objects == 1
    assert (live.status().failed, live.status().done) == (1, 1)


@pytest.mark.parametrize("drain", [True, False])
def test_closing_drains_or_drops_what_waits_for_decoding(rig, gate, drain):
    live, session = rig(policy="drop_oldest")
    session.let()
    futures = [live.submit(flat(n)) for n in (1, 2, 3)]
    assert gate.began.acquire(timeout=30)
    for _ in range(2):
        assert session.began.acquire(timeout=30)
    closing = threading.Thread(target=live.close, kwargs={"drain": drain})
    closing.start()
    while live.status().state is not State.CLOSING:
        time.sleep(0.01)
    gate.go.release(1000)
    closing.join(30)
    assert not closing.is_alive()
    outcomes = [str(future.result(0).outcome) for future in futures]
    assert outcomes == ["done" if drain else "dropped"] * 3
    assert live.status().pending == 0


def test_a_callback_may_submit_close_and_not_flush(rig):
    done = []

    def callback(result):
        done.append(result.number)
        if result.number == 0:
            for n in range(5):  # more than the capacity; this thread delivers
                live.submit(flat(n))
        with pytest.raises(Exception, match="flush would deadlock"):
            live.flush()
        if len(done) == 2:
            live.close()

    live, session = rig(policy="block", capacity=2, on_result=callback)
    session.let()
    live.submit(flat(1)).result(30)
    for thread in threading.enumerate():
        if thread.name.startswith("unetrt-live"):
            thread.join(30)
    status = live.status()
    assert (status.state, status.output_errors, status.pending) == ("closed", 0, 0)


def test_a_forgotten_live_segmenter_ends_both_threads():
    segmenter, session = gated(annotation="instances", decoding=HOW)
    session.let()
    live = LiveSegmenter(segmenter)
    live.submit(flat(1)).result(30)
    both = [thread for thread in threading.enumerate() if thread.name.startswith("unetrt-live")]
    del live
    gc.collect()
    for thread in both:
        thread.join(30)
    assert [thread.is_alive() for thread in both] == [False, False]


def test_class_maps_need_one_thread():
    segmenter, session = gated()
    session.let()
    with LiveSegmenter(segmenter) as live:
        assert live.submit(flat(1)).result(30).timings.decode == 0
        assert threads() == ["unetrt-live"]
        assert live.status().decode.p50 == 0


def test_a_frame_costs_the_longer_of_network_and_objects_not_their_sum(monkeypatch):
    """Both wait without a processor, so that the ratio does not depend on the machine."""
    segmenter, session = gated(annotation="instances", decoding=HOW)
    session.let()
    compute, results, ends = session.compute, [], []

    def slow_network(frames, scores):
        time.sleep(0.04)
        compute(frames, scores)

    def slow_objects(classes, decoding):
        time.sleep(0.04)
        return instances(classes, decoding)

    def note(result):
        results.append(result)
        ends.append(time.perf_counter())

    monkeypatch.setattr(session, "compute", slow_network)
    monkeypatch.setattr(module, "instances", slow_objects)
    with LiveSegmenter(segmenter, policy="block", capacity=1, on_result=note) as live:
        for _ in range(16):
            live.submit(flat(1))
    network, objects = (
        sum(seconds) for seconds in zip(*((r.compute, r.timings.decode) for r in results[1:]), strict=True)
    )
    assert ends[-1] - ends[0] < 0.75 * (network + objects)
    assert min(network, objects) > 15 * 0.04


def test_decoding_counts_in_latency_and_not_in_compute(rig, gate):
    live, session = rig()
    session.let()
    future = live.submit(flat(1))
    assert gate.began.acquire(timeout=30)
    time.sleep(0.1)
    gate.go.release()
    result = future.result(30)
    assert result.timings.decode >= 0.1
    assert result.latency >= result.queueing + result.compute + result.timings.decode
    assert live.status().decode.p50 == result.timings.decode


class Log:
    """An output that notes everything in order."""

    def __init__(self):
        self.noted = []

    def sequence_started(self, sequence):
        self.noted.append(("started", sequence.number))

    def result(self, result):
        self.noted.append((result.number, result.sequence.number, str(result.outcome)))

    def dropped(self, frames):
        for number in range(frames.first, frames.last + 1):
            self.noted.append((number, frames.sequence.number, "dropped"))

    def sequence_finished(self, sequence):
        self.noted.append(("finished", sequence.number))

    def close(self):
        self.noted.append("closed")


@pytest.mark.parametrize("policy", ["latest", "drop_oldest", "block"])
def test_everything_is_delivered_in_order_and_the_counts_add_up(monkeypatch, policy):
    rng, wrong, stop = random.Random(0), [], threading.Event()

    def slow(classes, decoding):
        time.sleep(rng.choice([0, 0.002]))
        if classes.max() == 7:
            raise ValueError("the decoding broke on 7")
        return instances(classes, decoding)

    monkeypatch.setattr(module, "instances", slow)
    segmenter, session = gated(annotation="instances", decoding=HOW)
    session.let()
    log = Log()
    live = LiveSegmenter(segmenter, policy=policy, outputs=[log])

    def look():
        while not stop.is_set():
            seen = live.status()
            if seen.submitted != seen.done + seen.dropped + seen.failed + seen.pending:
                wrong.append(seen)

    looking = threading.Thread(target=look)
    looking.start()
    futures = []
    for sequence in range(3):
        live.sequenceStarted(sequence)
        for n in range(40):
            futures.append(live.submit(flat(n % 14)))
            if n % 10 == 3:
                futures[-1].cancel()
            time.sleep(rng.choice([0, 0.001]))
        live.sequenceFinished(sequence)
    live.close()
    stop.set()
    looking.join(30)
    assert wrong == []
    frames = [noted for noted in log.noted if isinstance(noted[0], int)]
    assert [number for number, _, _ in frames] == list(range(120))
    others = [noted for noted in log.noted if noted not in frames]
    assert others == [one for n in range(3) for one in (("started", n), ("finished", n))] + ["closed"]
    for n in range(3):
        begin, end = log.noted.index(("started", n)), log.noted.index(("finished", n))
        assert {sequence for _, sequence, _ in log.noted[begin + 1 : end]} == {n}
    status = live.status()
    outcomes = [outcome for *_, outcome in frames]
    assert [outcomes.count(name) for name in ("done", "failed", "dropped")] == [
        status.done, status.failed, status.dropped,
    ]  # fmt: skip
    assert status.submitted == 120
    assert all(future.done() for future in futures)


def test_a_frame_is_not_kept_alive_by_idle_threads(rig):
    import weakref

    live, session = rig()
    session.let()
    frame = np.zeros((12, 16), np.uint8).view(type("Frame", (np.ndarray,), {}))
    alive = weakref.ref(frame)
    live.submit(frame, copy=False).result(30)
    assert live.flush(30)
    del frame
    deadline = time.monotonic() + 10
    while alive() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    assert alive() is None
