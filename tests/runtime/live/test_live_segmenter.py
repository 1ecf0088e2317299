import gc
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from tests.runtime.live.live_cases import flat, gated
from unetrt.runtime import LiveSegmenter, Segmenter, StreamKey, instances
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.live.results import UNKNOWN_STREAM
from unetrt.runtime.model.spec import Decoding
from unetrt.runtime.pixels.normalisation import Normalisation


def live_threads():
    return [thread for thread in threading.enumerate() if thread.name == "unetrt-live"]


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    if live_threads():
        gc.collect()
    assert not live_threads()


def adds_up(status):
    return status.submitted == status.done + status.dropped + status.failed + status.pending


@pytest.fixture
def rig():
    """An open live segmenter, `rig(**options)`, whose passes wait for `let`."""
    opened = []

    def build(**options):
        segmenter, session = gated()
        live = LiveSegmenter(segmenter, **options)
        opened.append((live, session))
        return live, session

    yield build
    for live, session in opened:
        session.let()
        live.close(drain=False)


def test_a_result_has_the_index_and_metadata_of_its_frame(rig):
    live, session = rig()
    session.let()
    meta = {"exposure_ms": 10}
    result = live.submit(flat(7), {"t": 3}, meta).result(30)
    assert result.outcome == "done"
    np.testing.assert_array_equal(result.labels, flat(7))
    assert result.labels.dtype == np.uint8
    assert (result.number, result.index, result.meta) == (0, {"t": 3}, meta)
    assert (result.error, result.objects, result.sequence) == (None, None, None)
    assert 0 <= result.queueing <= result.latency
    assert result.queueing + result.compute <= result.latency + 1e-9
    assert result.timings.tiles == 1


def test_the_caller_never_waits_while_the_model_computes(rig):
    live, session = rig(policy="drop_oldest", capacity=2)
    first = live.submit(flat(1))
    session.began.acquire(timeout=30)
    begin = time.perf_counter()
    futures = [live.submit(flat(n)) for n in range(2, 40)]
    assert time.perf_counter() - begin < 5  # one pass would wait for 30 s
    assert [future.done() for future in futures] == [True] * 36 + [False] * 2
    assert {(future.result().outcome, future.result().frame) for future in futures[:36]} == {("dropped", None)}
    status = live.status()
    assert (status.state, status.pending, status.dropped) == ("segmenting", 3, 36)
    session.let()
    assert live.flush(30)
    assert first.result().labels[0, 0] == 1
    assert [future.result().dropped for future in futures[36:]] == [36, 0]
    status = live.status()
    assert (status.state, status.done, status.pending) == ("waiting", 3, 0)
    assert adds_up(status)


def test_results_come_in_the_order_of_the_frames_to_iterators_callbacks_and_futures(rig):
    called = []
    live, session = rig(policy="block", capacity=3, on_result=called.append)
    streams = [live.results(), live.results(capacity=4)]
    session.let()
    futures = [live.submit(flat(n), index=n) for n in range(12)]
    live.close()
    numbers = list(range(12))
    assert [result.index for result in called] == numbers
    assert [result.index for result in streams[0]] == numbers
    assert [result.index for result in streams[1]] == numbers[-4:]
    assert (streams[0].missed, streams[1].missed) == (0, 8)
    assert [future.result(0) for future in futures] == called


def test_an_error_is_a_result_and_the_next_frame_is_segmented(rig):
    live, session = rig(policy="block")
    session.let()
    wrong = [flat(13), np.zeros((2, 9, 9), np.uint8), np.zeros(4), "no frame", np.full((9, 9), np.nan), None]
    results = [live.submit(frame).result(30) for frame in wrong]
    assert {result.outcome for result in results} == {"failed"}
    assert [type(result.error) for result in results] == [ValueError, *[FrameError] * 5]
    assert {result.labels is None for result in results} == {True}
    assert live.submit(flat(5)).result(30).labels.max() == 5
    status = live.status()
    assert (status.failed, status.done) == (6, 1)
    assert status.last_error.startswith("FrameError: ")
    assert "\n" not in status.last_error


def test_one_line_of_the_last_error(rig):
    live, session = rig()
    session.let()
    live.submit(flat(13)).result(30)
    assert live.status().last_error == "ValueError: the model broke on 13"


def test_an_exception_of_an_output_is_counted_and_contained(rig, caplog):
    seen = []

    def callback(result):
        seen.append(result.number)
        raise SystemExit("the host's own mistake")

    live, session = rig(policy="block", on_result=callback)
    session.let()
    with caplog.at_level(logging.ERROR, "unetrt.live"):
        for n in range(3):
            live.submit(flat(n))
        assert live.flush(30)
    assert seen == [0, 1, 2]
    status = live.status()
    assert (status.done, status.failed, status.output_errors) == (3, 0, 3)
    assert status.last_error == "SystemExit: the host's own mistake"
    assert "the host's own mistake" in caplog.text


def test_sizes_and_dtypes_change_from_frame_to_frame(rig):
    live, session = rig(policy="block")
    session.let()
    for size, dtype in [((12, 16), np.uint8), ((100, 64), np.uint16), ((7, 5), np.float32), ((12, 16), np.uint8)]:
        np.testing.assert_array_equal(live.submit(flat(3, size, dtype)).result(30).labels, flat(3, size))


def test_instances_are_numbered_as_predict_does():
    segmenter, session = gated(annotation="instances", decoding=Decoding("components", 1))
    session.let()
    frame = np.zeros((30, 40), np.uint8)
    frame[2:8, 3:9] = frame[12:18, 3:9] = frame[12:18, 10:20] = 1
    with LiveSegmenter(segmenter) as live:
        result = live.submit(frame).result(30)
    np.testing.assert_array_equal(result.labels, instances(frame, Decoding("components", 1)))
    assert (result.objects, result.labels.dtype) == (3, np.int32)
    with LiveSegmenter(segmenter, kind="classes") as live:
        assert live.submit(frame).result(30).labels.dtype == np.uint8


def test_a_frame_is_copied_by_default(rig):
    live, session = rig(policy="drop_oldest")
    camera = flat(1)
    copied, shared = live.submit(camera), live.submit(camera, copy=False)
    camera[:] = 9
    session.let()
    assert copied.result(30).labels.max() == 1
    assert shared.result(30).labels.max() == 9
    assert shared.result().frame is camera


def test_closing_drains(rig):
    live, session = rig(policy="drop_oldest")
    futures = [live.submit(flat(n)) for n in range(4)]
    session.let()
    live.close()
    assert [future.result(0).labels.max() for future in futures] == [0, 1, 2, 3]
    assert live.status().state == "closed"
    live.close()


def test_closing_can_abandon_even_the_frame_in_flight(rig):
    live, session = rig(policy="drop_oldest")
    large = np.zeros((400, 30), np.uint8)
    futures = [live.submit(frame) for frame in (large, flat(1), flat(2))]
    session.began.acquire(timeout=30)
    closing = threading.Thread(target=live.close, kwargs={"drain": False})
    closing.start()
    assert futures[2].result(30).outcome == "dropped"
    session.let(1)  # one tile of many
    closing.join(30)
    assert not closing.is_alive()
    assert futures[0].result(0).outcome == "dropped"
    status = live.status()
    assert (status.dropped, status.pending, status.failed) == (3, 0, 0)


def test_an_exception_in_a_with_block_abandons_queued_frames():
    segmenter, session = gated()
    with pytest.raises(KeyError), LiveSegmenter(segmenter, policy="drop_oldest") as live:
        futures = [live.submit(flat(n)) for n in range(3)]
        session.let(1)
        raise KeyError
    assert {future.result(0).outcome for future in futures[1:]} == {"dropped"}


def test_frames_after_closing_are_dropped_and_counted(rig):
    live, session = rig()
    session.let()
    live.close()
    assert live.submit(flat(1)).result(0).outcome == "dropped"
    live.frameReady(flat(1), None)
    assert (live.status().submitted, live.status().dropped) == (2, 2)
    assert list(live.results()) == []


def test_a_cancelled_future_drops_its_frame(rig):
    live, session = rig(policy="drop_oldest")
    live.submit(flat(1))
    session.began.acquire(timeout=30)
    second, third = live.submit(flat(2)), live.submit(flat(3))
    assert second.cancel()
    session.let()
    assert third.result(30).dropped == 1
    assert live.flush(30)
    assert (live.status().done, live.status().dropped) == (2, 1)


def test_flush_has_a_limit_and_counts_what_outputs_do(rig):
    slow = threading.Event()
    live, session = rig(on_result=lambda result: slow.wait(30))
    live.submit(flat(1))
    assert not live.flush(0.05)
    session.let()
    assert not live.flush(0.2)
    assert adds_up(live.status())
    slow.set()
    assert live.flush(30)


def test_a_callback_may_submit_close_and_not_flush(rig):
    done = []

    def callback(result):
        done.append(result.number)
        if result.number == 0:
            for n in range(5):  # more than the capacity; this thread is the worker
                live.submit(flat(n))
        with pytest.raises(OptionError, match="flush would deadlock"):
            live.flush()
        if len(done) == 3:
            live.close()

    live, session = rig(policy="block", capacity=2, on_result=callback)
    session.let()
    live.submit(flat(1)).result(30)
    deadline = time.monotonic() + 30
    while live.status().state != "closed" and time.monotonic() < deadline:
        time.sleep(0.01)
    status = live.status()
    assert (status.state, status.output_errors) == ("closed", 0)
    assert adds_up(status)
    assert done == [0, 4, 5]


def test_a_forgotten_live_segmenter_ends_its_thread():
    segmenter, session = gated()
    session.let()
    live = LiveSegmenter(segmenter)
    live.submit(flat(1)).result(30)
    (thread,) = live_threads()
    del live
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


def test_a_model_is_closed_only_if_it_was_opened_here(tiny_model):
    frame = np.zeros((64, 64), np.uint16)
    with LiveSegmenter(tiny_model) as live:
        assert live.submit(frame).result(60).outcome == "done"
    with pytest.raises(Exception, match="closed"):
        live.segmenter.segment(frame)
    with Segmenter(tiny_model) as segmenter:
        with LiveSegmenter(segmenter) as live, LiveSegmenter(segmenter) as second:
            both = [one.submit(frame) for one in (live, second)]
            np.testing.assert_array_equal(*[future.result(60).labels for future in both])
        segmenter.segment(frame)


def test_labels_are_those_of_the_segmenter(tiny_model):
    frames = [np.random.default_rng(n).integers(0, 999, (90 + n, 130)).astype(np.uint16) for n in range(3)]
    with Segmenter(tiny_model) as segmenter, LiveSegmenter(segmenter, policy="block") as live:
        for frame in frames:
            expected = instances(segmenter.segment(frame).labels, segmenter.spec.decoding)
            np.testing.assert_array_equal(live.submit(frame).result(60).labels, expected)


def test_results_and_statuses_print_short(rig):
    live, session = rig(policy="drop_oldest")
    session.let()
    result = live.submit(flat(7), {"t": 3}, {"much": "x" * 1000}).result(30)
    live.submit(flat(13)).result(30)
    assert re.fullmatch(
        r"LiveResult\(outcome=.*'done'.*, number=0, index=\{'t': 3\}, objects=None, error=None, dropped=0, "
        r"stream=StreamKey\(camera='', channel=''\), "
        r"queueing=[\d.e-]+, compute=[\d.e-]+, latency=[\d.e-]+\)",
        repr(result),
    )
    live.flush(30)
    assert re.fullmatch(
        r"waiting: 2 submitted, 1 done, 0 dropped, 1 failed, 0 pending, 0 missed; [\d.]+/s; "
        r"latency p50 \d+ ms, p99 \d+ ms; last error: ValueError: the model broke on 13",
        str(live.status()),
    )


def test_a_misspelt_option_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'polcy'"):
        LiveSegmenter("model.onnx", polcy="block")


def test_an_interrupt_while_it_closes_leaves_the_next_close_to_wait():
    """After an interrupt, `Thread.join` takes a running thread for ended, in this version of Python."""
    segmenter, session = gated()
    live = LiveSegmenter(segmenter)
    live.submit(flat(1))
    session.began.acquire(timeout=30)
    interrupt = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        live.close(drain=False)
    assert live.status().state == "closing"
    session.let()
    live.close(drain=False)
    status = live.status()
    assert (status.state, status.pending) == ("closed", 0)


def test_an_interpreter_that_ends_without_close_ends(tiny_model):
    code = (
        "import numpy as np; from unetrt import LiveSegmenter\n"
        f"live = LiveSegmenter({str(tiny_model)!r}, policy='drop_oldest')\n"
        "[live.submit(np.zeros((300, 300), np.uint16)) for _ in range(8)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Event:
    """Has the attributes of a useq.MDAEvent."""

    def __init__(self, channel=None, **index):
        self.index = index
        self.channel = type("Channel", (), {"config": channel})() if channel else None


def test_a_sequence_comes_with_its_results_and_frames_by_reference():
    told = []

    class Output:
        def sequence_started(self, sequence):
            told.append(("started", sequence.number, sequence.plan))

        def result(self, result):
            told.append((result.index, result.sequence.number))

        def dropped(self, frames):
            told.append(frames)

        def sequence_finished(self, sequence):
            told.append(("finished", sequence.number))

        def close(self):
            told.append("closed")

    segmenter, session = gated()
    session.let()
    frame = flat(1)
    with LiveSegmenter(segmenter, policy="block", outputs=[Output()]) as live:
        stream = live.results()
        for plan in ("first", "second"):
            live.sequenceStarted(plan, {"image_infos": ()})
            for t in range(2):
                live.frameReady(frame, Event(t=t), {})
            live.sequenceFinished(plan)
    assert told == [
        *[("started", 0, "first"), ({"t": 0}, 0), ({"t": 1}, 0), ("finished", 0)],
        *[("started", 1, "second"), ({"t": 0}, 1), ({"t": 1}, 1), ("finished", 1)],
        "closed",
    ]
    assert {result.frame is frame for result in stream} == {True}


def test_only_the_channel_that_was_asked_for():
    segmenter, session = gated()
    session.let()
    with LiveSegmenter(segmenter, policy="block", channel="DAPI") as live:
        stream = live.results()
        for event in (Event("DAPI", c=0), Event("FITC", c=1), Event(), None):
            live.frameReady(flat(1), event)
    assert [result.index for result in stream] == [{"c": 0}]


def test_gaps_in_the_cameras_numbers_are_counted():
    segmenter, session = gated()
    session.let()
    with LiveSegmenter(segmenter) as live:
        for number in (0, 1, 4, 5, 0, 2):  # 2 and 3 are missing; after the restart 1 is
            live.frameReady(flat(1), Event(), {"camera_metadata": {"ImageNumber": str(number), "Camera": "A"}})
        live.frameReady(flat(1), Event(), {"camera_metadata": {"ImageNumber": "7", "Camera": "B"}})
        live.frameReady(flat(1), Event(), {"camera_metadata": {"ImageNumber": "none"}})
        assert live.status().missed == 3
        live.sequenceStarted()
        live.frameReady(flat(1), Event(), {"camera_metadata": {"ImageNumber": "9", "Camera": "A"}})
        assert live.status().missed == 3


def test_gaps_are_those_of_a_camera_through_all_its_channels():
    segmenter, session = gated()
    session.let()
    with LiveSegmenter(segmenter, channel="red") as live:
        for number in range(6):  # one hardware sequence through two channels, of two cameras
            for camera in "AB":
                meta = {"camera_device": camera, "camera_metadata": {"ImageNumber": str(number)}}
                if (camera, number) != ("B", 3):
                    live.frameReady(flat(1), Event("red" if number % 2 else "blue"), meta)
        for channel in ("red", "blue"):  # one hardware sequence for each channel
            for number in range(3):
                meta = {"camera_device": "A", "camera_metadata": {"ImageNumber": str(number), "Camera": "Multi"}}
                live.frameReady(flat(1), Event(channel), meta)
        assert live.status().missed == 1


@pytest.mark.parametrize(
    ("event", "meta", "stream"),
    [
        (Event("DAPI"), {"camera_device": "Camera-1"}, ("Camera-1", "DAPI")),
        (Event("DAPI"), {"camera_device": None, "camera_metadata": {"Camera": "B"}}, ("B", "DAPI")),
        (Event(), {"camera_device": 3, "camera_metadata": {"Camera": 4}}, ("", "")),
        (None, {"camera_metadata": "none"}, ("", "")),
        (Event(7), None, ("", "")),
        (Event(), np.zeros(3), ("", "")),
    ],
)
def test_a_result_has_the_camera_and_the_channel_of_its_frame(event, meta, stream):
    segmenter, session = gated()
    session.let()
    results = []
    with LiveSegmenter(segmenter, on_result=results.append) as live:
        live.frameReady(flat(1), event, meta)
    assert [result.stream for result in results] == [stream]


@pytest.mark.parametrize("stream", ["DAPI", None, [1], ("A", "DAPI"), StreamKey(["A"]), StreamKey("A", None)])
def test_a_stream_that_is_none_is_a_failed_result(stream):
    segmenter, session = gated()
    session.let()
    with LiveSegmenter(segmenter) as live:
        result = live.submit(flat(1), stream=stream).result(20)
    assert isinstance(result.error, OptionError)
    assert re.search(r"^stream=.* is not a camera and a channel: use StreamKey\('Camera', 'DAPI'\)$", str(result.error))
    assert result.stream == UNKNOWN_STREAM


def test_a_running_average_is_that_of_the_stream():
    contrasts, side = [], UNetShape(2).geometry.side_for(64)
    segmenter, session = gated(normalisation=Normalisation("percentile"), head="logits", tile=(side, side))
    session.compute = lambda frames, scores: contrasts.append(float(frames.max() - frames.min()))
    texture = np.kron(np.random.default_rng(0).normal(size=(10, 10)), np.ones((6, 6)))
    with LiveSegmenter(segmenter, policy="block", normalisation="running") as live:
        for gain, stream in [(100, ("A", "red")), (200, ("A", "red")), (200, ("A", "blue")), (200, ("B", "red"))]:
            live.submit((texture * gain + 1000).astype(np.uint16), stream=StreamKey(*stream))
        live.sequenceStarted()
        live.submit((texture * 200 + 1000).astype(np.uint16), stream=StreamKey("A", "red"))
    alone, averaged, other_channel, other_camera, restarted = contrasts
    assert averaged == pytest.approx(alone * 200 / 150, rel=0.05)
    assert other_channel == pytest.approx(alone, rel=0.05)
    assert other_camera == pytest.approx(alone, rel=0.05)
    assert restarted == pytest.approx(alone, rel=0.05)


class Earlier:
    """An output of an earlier version, which got a result for each dropped frame."""

    sequence_started = result = sequence_finished = close = print

    def __repr__(self):
        return "Earlier"


async def not_awaited(*arguments):
    """What a program of asyncio may give by mistake."""


class Awaited(Earlier):
    dropped = not_awaited


class AwaitedObject:
    __call__ = not_awaited


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "fastest"}, "policy 'fastest' is unknown"),
        ({"kind": "cells"}, "labels of kind 'cells' are unknown: use instances or classes"),
        ({"normalisation": "fixed"}, "normalisation 'fixed' is not one of a stream: use model or running"),
        ({"normalisation": "running"}, "fixed normalisation is not measured"),
        ({"lanes": 3}, "lanes"),
        ({"channels": [0, 1]}, r"channels=\[0, 1\]: the model takes 1 channel, name as many"),
        ({"channels": 1}, "channels=1 are not indices from 0: give a list, such as .1. for green"),
        ({"channels": ["green"]}, "are not indices from 0: give a list"),
        ({"on_result": 3}, "on_result=3 cannot be called: give a function"),
        ({"outputs": "labels.ome.zarr"}, "outputs='labels.ome.zarr' are not a list of result outputs: give one"),
        ({"outputs": [print]}, "are not a list of result outputs: give one, such as"),
        ({"outputs": [Earlier()]}, "^output Earlier has no method dropped: add it, it may do nothing$"),
        ({"outputs": [Earlier]}, r"^output Earlier is a class: give an object of it, Earlier\(\.\.\.\)$"),
        (
            {"outputs": [Awaited()]},
            r"^Awaited.dropped is a coroutine function, .*: give a plain function, which",
        ),
        ({"on_result": not_awaited}, "^on_result is a coroutine function, .* call asyncio.run_coroutine_threadsafe"),
        ({"on_result": partial(not_awaited, 1)}, "^on_result is a coroutine function"),
        ({"on_result": AwaitedObject()}, "^on_result is a coroutine function"),
        ({"channel": 5}, "^channel=5 is not the name of a channel: give one, such as 'DAPI'$"),
        ({"channel": ["DAPI"]}, r"^channel=\['DAPI'\] is not the name of a channel"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        LiveSegmenter(gated()[0], **options)


def test_a_model_that_is_refused_leaves_nothing_open(tmp_path):
    before = threading.active_count()
    with pytest.raises(Exception, match="does not exist"):
        LiveSegmenter(tmp_path / "none.onnx")
    assert threading.active_count() == before


def test_a_frame_whose_last_axis_may_be_channels_fails_and_says_why(tiny_model):
    with LiveSegmenter(tiny_model, backend="onnxruntime") as live:
        result = live.submit(np.zeros((64, 64, 1), np.uint8)).result(60)
    assert isinstance(result.error, FrameError)
    assert "64 frames of 64 x 1 px, or 64 x 64 px with the channels last, 1" in str(result.error)
