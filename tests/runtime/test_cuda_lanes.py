"""The order of operations on a GPU, on a fake one: what is asynchronous there is late and out of order here."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import numpy as np
import pytest

from tests.conftest import small_spec
from tests.runtime.cuda.fake_driver import AskedForError, FakeDriver
from tests.runtime.cuda.fake_session import FakeCudaSession
from unetrt.runtime.errors import CudaError, OptionError, OutOfMemoryError, SessionClosedError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cuda import RESERVE

AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))
FREES = ("free", "free_pinned", "destroy_stream", "destroy_event", "destroy_graph", "unload_module")


def frames(count, size=(90, 130)):
    """Frames of other numbers each, so that a misplaced tile names itself."""
    return np.arange(count * size[0] * size[1], dtype=np.float32).reshape(count, *size)


def spec_of(**fields):
    return small_spec(normalisation=AS_IT_IS, **fields)


def check(driver):
    if driver.live or not driver.released:
        gc.collect()  # a traceback may hold some still
    if driver.failed not in FREES:
        assert driver.violations == []
        assert driver.live == {}
        assert driver.released == 1


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("total", [2**30, "shared"])
@pytest.mark.parametrize("seed", range(3))
def test_frames_come_out_as_they_went_in_whatever_ends_first(lanes, batch, total, seed):
    spec, scratch = spec_of(batch=batch), 1000
    staging = spec.new_input().nbytes + spec.new_output().nbytes
    driver = FakeDriver(seed, lanes * staging + scratch if total == "shared" else total)
    image = frames(3)
    with FakeCudaSession(spec, driver, scratch) as session, Segmenter(session, lanes=lanes) as segmenter:
        np.testing.assert_array_equal(segmenter.scores(image[1])[0], image[1])
        result = segmenter.segment(image, probabilities=True)
        np.testing.assert_array_equal(result.labels, 0)
    del segmenter, session
    check(driver)


def test_a_stack_is_pipelined_across_its_frames():
    """Frames of one tile: the next is on its way before the last is waited for."""
    driver = FakeDriver(chance=0)
    spec = spec_of()
    with FakeCudaSession(spec, driver) as session, Segmenter(session, lanes=2) as segmenter:
        driver.calls.clear()
        segmenter.segment(frames(6, (8, 8)))
        names = [call.name for call in driver.calls]
    in_flight, most = 0, 0
    for name in names:
        in_flight = max(0, in_flight + {"copy_in": 1, "synchronize_event": -1}.get(name, 0))
        most = max(most, in_flight)
    assert most == 2
    assert names.count("copy_in") == 6


def test_a_batch_holds_tiles_of_several_frames():
    driver = FakeDriver()
    with FakeCudaSession(spec_of(batch=4), driver) as session, Segmenter(session) as segmenter:
        driver.calls.clear()
        image = frames(8, (8, 8))
        result = segmenter.segment(image, probabilities=True)
        assert [call.name for call in driver.calls].count("copy_in") == 2
    assert result.timings.tiles == 8
    assert [frame.tiles for frame in result.timings.frames] == [1] * 8


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_order_in_each_lane(lanes):
    """Copy in, compute, copy out, and only then the host looks; a lane is used again only after that."""
    driver = FakeDriver(seed=5)
    with FakeCudaSession(spec_of(), driver) as session, Segmenter(session, lanes=lanes) as segmenter:
        driver.calls.clear()
        driver.done.clear()
        segmenter.segment(frames(4))
    streams = {call.stream for call in driver.done if call.stream}
    assert len(streams) == lanes
    per_pass = ["record", "copy_in", "record", "record", "compute", "compute", "record", "copy_out", "record"]
    first = driver.done[0].stream  # its first record is the clock's
    for stream in streams:
        done = [call.name for call in driver.done if call.stream == stream][stream == first :]
        assert done == per_pass * (len(done) // len(per_pass))
        # Between two copies into a lane somebody has waited for the last event of the first.
        last_event = None
        for call in driver.calls:
            if call.name == "copy_in" and call.stream == stream:
                assert last_event is None
            elif call.name == "record" and call.stream == stream:
                seen = [one.name for one in driver.calls[: driver.calls.index(call)] if one.stream == stream]
                last_event = call.arguments[0] if seen[-1:] == ["copy_out"] else last_event
            elif call.name == "synchronize_event" and call.arguments[0] == last_event:
                last_event = None


def test_nothing_runs_on_the_default_stream_and_nothing_is_synchronous():
    driver = FakeDriver()
    with FakeCudaSession(spec_of(), driver) as session, Segmenter(session) as segmenter:
        driver.calls.clear()
        segmenter.segment(frames(2))
        calls = list(driver.calls)
    asynchronous = {"copy_in", "copy_out", "compute", "record"}
    assert all(call.stream for call in calls if call.name in asynchronous)
    assert {call.name for call in calls} == asynchronous | {"synchronize_event", "elapsed"}


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_an_error_at_every_call_leaks_nothing_hangs_nothing_and_the_next_frame_works(step):
    """A life from opening to closing, again and again, each time with another call that fails."""
    failures = []
    for number in count(step=step):
        driver = FakeDriver(seed=number, total=2**20)
        driver.fail_at = number
        with suppress(AskedForError):
            live(driver)
        check(driver)
        if driver.failed is None:
            break
        failures.append(driver.failed)
    assert {"allocate", "allocate_pinned", "copy_in", "record", "synchronize_event", "copy_out"} < set(failures)
    assert len(failures) > 100 / step


def test_an_interrupt_at_every_call_leaves_nothing_in_flight():
    """As Ctrl-C would, in the middle of frames: the lanes can be used at once again."""
    for number in count():
        driver = FakeDriver(seed=number)
        with FakeCudaSession(spec_of(), driver) as session, Segmenter(session, lanes=3) as segmenter:
            driver.count, driver.fail_at, driver.error = 0, number, KeyboardInterrupt
            with suppress(KeyboardInterrupt):
                segmenter.segment(frames(2, (12, 40)))
            interrupted, driver.fail_at = driver.failed, None
            np.testing.assert_array_equal(segmenter.scores(frames(1)[0])[0], frames(1)[0])
        assert driver.violations == []
        if interrupted is None:
            break
    assert number > 50


def live(driver):
    image = frames(3, (8, 20))
    with FakeCudaSession(spec_of(batch=2), driver) as session, Segmenter(session, lanes=2) as segmenter:
        with suppress(AskedForError):
            segmenter.segment(image)
        np.testing.assert_array_equal(segmenter.scores(image[0])[0], image[0])


def test_lanes_share_scratch_memory_only_where_it_is_short(caplog):
    spec = spec_of()
    staging = spec.new_input().nbytes + spec.new_output().nbytes
    for total, shared in ((2 * staging + 2000, False), (2 * staging + 1999, True)):
        driver = FakeDriver(total=total)
        with caplog.at_level("INFO", "unetrt"), FakeCudaSession(spec, driver, 1000) as session:
            session.lanes(2)
        assert ("take turns" in caplog.text) == shared
        assert any(call.name == "wait_for" for call in driver.calls) == shared
        assert driver.violations == []


def test_what_does_not_fit_is_refused_before_anything_is_taken():
    spec = spec_of()
    staging = spec.new_input().nbytes + spec.new_output().nbytes
    driver = FakeDriver(total=2 * staging + 2**22)
    with FakeCudaSession(spec, driver, 2**22) as session:
        with pytest.raises(OutOfMemoryError, match=r"fake engine: 4 lanes need 4 MiB \(4 x .* free: use 2 lanes"):
            session.lanes(4)
        assert not [call for call in driver.calls if call.name == "allocate"]
        kept = session.lanes(2)
        with pytest.raises(OutOfMemoryError, match="use a smaller tile or batch"):
            session.lanes(1)
    del kept, session
    check(driver)


def test_closed_lanes_free_their_memory_for_other_segmenters():
    driver = FakeDriver(total=2**20)
    with FakeCudaSession(spec_of(), driver) as session:
        before = driver.taken
        for _ in range(50):
            with Segmenter(session) as segmenter:
                segmenter.scores(frames(1)[0])
        assert driver.taken == before


def test_arrays_keep_their_pinned_memory_and_the_context():
    driver = FakeDriver()
    session = FakeCudaSession(spec_of(), driver)
    (lane,) = session.lanes(1)
    kept = lane.input
    session.close()
    assert "pinned" in driver.live.values()
    assert driver.released == 0
    kept[...] = 3
    del kept, lane, session
    check(driver)


def test_a_session_that_is_dropped_frees_everything():
    driver = FakeDriver()
    session = FakeCudaSession(spec_of(), driver)
    lanes = session.lanes(2)
    lanes[0].launch()
    lanes[0].wait()
    del lanes, session
    check(driver)


def test_eight_threads_get_what_one_gets():
    driver = FakeDriver()
    image = frames(8)
    with (
        FakeCudaSession(spec_of(), driver) as session,
        Segmenter(session, lanes=3) as one,
        Segmenter(session) as other,
        ThreadPoolExecutor(8) as threads,
    ):
        for segmenter in (one, other):
            results = list(threads.map(segmenter.scores, image))
            np.testing.assert_array_equal(np.stack(results)[:, 0], image)
    del one, other, segmenter, session
    check(driver)


def test_a_closed_session_stops_its_segmenters():
    driver = FakeDriver()
    session = FakeCudaSession(spec_of(), driver)
    segmenter = Segmenter(session)
    session.close()
    session.close()
    assert not session.loaded
    with pytest.raises(SessionClosedError, match="open the model again"):
        segmenter.scores(frames(1)[0])
    with pytest.raises(SessionClosedError, match="open the model again"):
        session.lanes(1)


@pytest.mark.parametrize("which", ["session", "segmenter"])
def test_closing_in_the_middle_of_a_call(which):
    driver = FakeDriver()
    with FakeCudaSession(spec_of(), driver) as session, Segmenter(session) as segmenter:
        if which == "session":
            with pytest.raises(SessionClosedError, match="open the model again"):
                segmenter.segment(frames(2), progress=lambda *_: session.close())
            return
        with pytest.raises(OptionError, match="a progress callback cannot use the segmenter"):
            segmenter.segment(frames(2), progress=lambda *_: segmenter.scores(frames(1)[0]))
        segmenter.segment(frames(2))
        with pytest.raises(SessionClosedError, match="open the model again"):
            segmenter.segment(frames(2), progress=lambda *_: segmenter.close())
        assert "stream" not in driver.live.values()


def test_the_clock_of_passes_starts_anew_with_each_call():
    """CUDA gives times in float32: hours after an event its milliseconds are whole."""
    with FakeCudaSession(spec_of()) as session, Segmenter(session) as segmenter:
        segmenter.scores(frames(1)[0])
        time.sleep(0.2)
        timings = segmenter.segment(frames(1)).timings
        assert max(lane.passed.end for lane in segmenter._lanes) <= timings.total


class Overstating(FakeDriver):
    """A device that can give less than it says is free, as its pages are large."""

    def memory(self):
        free, total = super().memory()
        return free + 2 * RESERVE, total


def test_what_fails_to_be_allocated_is_shared_or_refused_with_numbers(caplog):
    spec = spec_of()
    staging = spec.new_input().nbytes + spec.new_output().nbytes
    driver = Overstating(total=2 * staging + 1000 - RESERVE)
    with caplog.at_level("INFO", "unetrt"), FakeCudaSession(spec, driver, 1000) as session:
        lanes = session.lanes(2)
        assert "2 lanes with scratch memory for each: allocate failed: out of memory" in caplog.text
        del lanes
        with pytest.raises(OutOfMemoryError, match="allocate failed: out of memory; fake engine: 4 lanes need"):
            session.lanes(4)
    del session
    check(driver)


def test_a_child_process_leaves_the_parents_device_alone(monkeypatch):
    driver = FakeDriver()
    session = FakeCudaSession(spec_of(), driver)
    segmenter = Segmenter(session)
    driver.calls.clear()
    with monkeypatch.context() as child:
        child.setattr("unetrt.runtime.cuda.device.os.getpid", lambda: -1)
        del segmenter, session
        gc.collect()
    assert driver.calls == []
    assert driver.released == 0


def test_timings_are_the_devices():
    driver = FakeDriver()
    with FakeCudaSession(spec_of(), driver) as session, Segmenter(session) as segmenter:
        timings = segmenter.segment(frames(3)).timings
    assert len(timings.frames) == 3
    for name in ("upload", "compute", "download", "cut", "stitch"):
        assert getattr(timings, name) > 0
        assert sum(getattr(frame, name) for frame in timings.frames) == pytest.approx(getattr(timings, name))
    assert 0 < timings.in_flight <= timings.span <= timings.total
    assert all(0 < frame.total <= timings.total for frame in timings.frames)


def test_an_error_that_stays_is_raised_again_and_closing_still_works():
    driver = FakeDriver()
    session = FakeCudaSession(spec_of(), driver)
    segmenter = Segmenter(session)

    def lost(*_):
        driver.forget_work()
        raise CudaError("synchronize_event failed: the device is lost")

    driver.synchronize_event = driver.synchronize_stream = lost
    for _ in range(2):
        with pytest.raises(CudaError, match="the device is lost"):
            segmenter.scores(frames(1)[0])
    segmenter.close()
    session.close()
