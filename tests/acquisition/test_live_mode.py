import gc
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import useq

from tests.acquisition.files import positions_of, rows_of
from tests.acquisition.segmenters import classes_of, segmenter
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.acquisition import LabelWriter, LiveModeFeed
from unetrt.runtime.errors import OptionError

pytestmark = pytest.mark.alone


@contextmanager
def feeding(core, seconds=0.0, tile=572, interval=0.005, camera=None, **how):
    """A feed from a core to a segmenter of `seconds` a frame; yields it, the live segmenter, and all results."""
    results = []
    how = {"kind": "classes", "on_result": results.append, **how}
    with (
        LiveSegmenter(segmenter(seconds, tile), **how) as live,
        LiveModeFeed(core, live, interval=interval, camera=camera) as feed,
    ):
        yield feed, live, results


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def run_for(images, core, feed, results):
    """Run the camera until a number of further results have come."""
    enough = len(results) + images
    core.startContinuousSequenceAcquisition()
    until(lambda: len(results) >= enough)
    core.stopSequenceAcquisition()
    until(lambda: not feed.status().running)


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("unetrt-live")]


def large(core):
    """Make a camera of 2048 x 2048 that sends an image each 10 ms."""
    core.setProperty("Camera", "OnCameraCCDXSize", 2048)
    core.setProperty("Camera", "OnCameraCCDYSize", 2048)
    core.snapImage()
    core.setProperty("Camera", "FastImage", 1)


def test_the_newest_image_of_live_mode_is_segmented_once(core):
    with feeding(core, policy="drop_oldest", capacity=200) as (feed, live, results):
        assert not feed.status().running
        core.startContinuousSequenceAcquisition()
        until(lambda: len(results) >= 10)
        assert feed.status().running
        core.stopSequenceAcquisition()
        until(lambda: not feed.status().running)
        live.flush()
        status = feed.status()
    numbers = [result.index["image"] for result in results]
    assert numbers == sorted(set(numbers))
    assert [int(result.meta["camera_metadata"]["ImageNumber"]) for result in results] == numbers
    assert status.submitted == len(results)
    assert status.skipped == numbers[-1] - numbers[0] + 1 - len(numbers)
    assert live.status().missed == 0
    assert (status.errors, status.overflows) == (0, 0)
    for result in results:
        np.testing.assert_array_equal(result.labels, classes_of(result.frame))


def test_it_takes_nothing_out_of_the_cores_buffer(core):
    with feeding(core) as (_feed, _live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: len(results) >= 5)
        core.stopSequenceAcquisition()
        last = int(core.getLastImageAndMD()[1]["ImageNumber"])
        assert core.getRemainingImageCount() == last + 1


def test_images_are_the_results_own(core):
    with feeding(core) as (_feed, _live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: len(results) >= 2)
        shown = core.getLastImageAndMD()[0]
        assert not any(np.shares_memory(shown, result.frame) for result in results)
        assert not np.shares_memory(results[0].frame, results[1].frame)


def test_a_camera_that_runs_already_is_followed(core):
    core.startContinuousSequenceAcquisition()
    with feeding(core) as (_feed, _live, results):
        until(lambda: len(results) >= 3)
    assert core.isSequenceRunning(), "closing a feed leaves the camera alone"


def test_a_slow_segmenter_sees_the_newest_of_a_large_fast_camera(core):
    large(core)
    with feeding(core, seconds=0.1, tile=2092) as (feed, live, results):
        core.startContinuousSequenceAcquisition()
        begin = time.perf_counter()
        until(lambda: len(results) >= 5, seconds=20)
        core.stopSequenceAcquisition()
        seconds = time.perf_counter() - begin
        until(lambda: not feed.status().running)
        live.flush()
        status, counts = feed.status(), live.status()
    assert results[0].labels.shape == (2048, 2048)
    last = int(core.getLastImageAndMD()[1]["ImageNumber"])
    assert last > 20 * seconds, "the camera waited for the segmenter"  # 100 a second where nothing else runs
    assert counts.submitted == counts.done + counts.dropped == status.submitted
    assert counts.dropped > 0
    assert status.submitted + status.skipped > 0.8 * last
    assert results[-1].index["image"] >= last - 2


def test_another_region_and_a_restart_need_nothing(core):
    with feeding(core) as (feed, live, results):
        for size in (512, 96):
            core.setROI(0, 0, size, 64)
            run_for(3, core, feed, results)
        live.flush()
        assert feed.status().errors == 0
    assert {result.labels.shape for result in results} == {(64, 512), (64, 96)}
    assert {result.sequence.number for result in results} == {0, 1}


def test_a_region_that_changes_while_the_camera_runs(core):
    with feeding(core) as (_feed, _live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: len(results) >= 3)
        core.setROI(0, 0, 96, 64)
        core.stopSequenceAcquisition()
        core.startContinuousSequenceAcquisition()
        until(lambda: results[-1].labels.shape == (64, 96))


def test_each_run_is_stored_in_its_own_file(core, tmp_path):
    core.setROI(0, 0, 96, 64)
    with feeding(core, outputs=[LabelWriter(tmp_path / "labels.ome.zarr")]) as (feed, _live, results):
        for _ in range(2):
            run_for(3, core, feed, results)
    for number, name in enumerate(["labels", "labels_001"]):
        own = {result.index["image"]: result.labels for result in results if result.sequence.number == number}
        rows = [row for row in rows_of(tmp_path / f"{name}.csv") if row["outcome"] == "done"]
        labels = positions_of(tmp_path / f"{name}.ome.zarr")[0]
        assert [int(row["image"]) for row in rows] == list(own)
        for row in rows:
            np.testing.assert_array_equal(labels[int(row["frame"])], own[int(row["image"])])


def test_a_full_buffer_stops_a_finite_sequence_and_is_reported(core, caplog):
    large(core)
    core.setCircularBufferMemoryFootprint(64)
    with feeding(core, seconds=0.05, tile=2092) as (feed, live, results):
        core.startSequenceAcquisition(200, 0, True)
        until(lambda: feed.status().overflows == 1)
        assert core.isBufferOverflowed()
        live.flush()
        assert results
    assert "buffer was full" in caplog.text


def test_a_full_buffer_of_live_mode_goes_on(core):
    large(core)
    core.setCircularBufferMemoryFootprint(64)
    holds = core.getBufferTotalCapacity()
    with feeding(core, seconds=0.05, tile=2092) as (feed, _live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: results and results[-1].index["image"] > 3 * holds)
        core.stopSequenceAcquisition()
        until(lambda: not feed.status().running)
        assert (feed.status().overflows, feed.status().errors) == (0, 0)


@pytest.mark.filterwarnings("ignore")
def test_exceptions_of_the_core_are_reported_and_survived(core, monkeypatch, caplog):
    original, broken = core.getLastImageAndMD, threading.Event()

    def fake_failing_device(*arguments):  # no demo device can be made to fail here
        if broken.is_set():
            raise RuntimeError("the camera is gone")
        return original(*arguments)

    monkeypatch.setattr(core, "getLastImageAndMD", fake_failing_device)
    with feeding(core) as (feed, _live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: results)
        broken.set()
        begin = time.monotonic()
        until(lambda: feed.status().errors >= 3)
        assert time.monotonic() - begin > 0.3, "a core that fails is not asked all the time"
        assert feed.status().last_error == "RuntimeError: the camera is gone"
        broken.clear()
        came = len(results)
        until(lambda: len(results) > came)
    assert caplog.text.count("Traceback") == 1, "the same error is logged once"


def test_frames_of_an_acquisition_do_not_come_twice(core):
    plan = useq.MDASequence(time_plan={"interval": 0, "loops": 20})
    core.mda.engine.use_hardware_sequencing = True
    started = []
    core.events.sequenceAcquisitionStarted.connect(started.append)
    with feeding(core, policy="drop_oldest", capacity=20) as (feed, live, results):
        core.mda.run(plan, output=[live])
        live.flush()
        assert started, "the camera did not run a hardware sequence"
        assert [result.index for result in results] == [{"t": number} for number in range(20)]
        assert feed.status().submitted == 0


def test_no_thread_is_left(core):
    before, listeners = threads(), len(core.events.continuousSequenceAcquisitionStarted)
    with feeding(core) as (feed, _live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: results)
        assert "unetrt-live-mode" in threads()
        feed.close()
        feed.close()
        assert "unetrt-live-mode" not in threads()
        assert len(core.events.continuousSequenceAcquisitionStarted) == listeners
        submitted = feed.status().submitted
        time.sleep(0.05)
        assert feed.status().submitted == submitted
    assert threads() == before


def test_a_callback_may_end_the_feed_that_waits_for_room(core):
    """With `block` the feed waits for room that only the thread that closes it can make."""
    ended = threading.Event()

    def end(result):
        time.sleep(0.1)  # until there is no room
        feed.close()
        ended.set()

    with LiveSegmenter(segmenter(0.0, 572), policy="block", capacity=1, kind="classes", on_result=end) as live:
        feed = LiveModeFeed(core, live, interval=0.005)
        core.startContinuousSequenceAcquisition()
        assert ended.wait(30)
        core.stopSequenceAcquisition()
    until(lambda: not threads())


def test_a_feed_that_is_forgotten_ends(core):
    with LiveSegmenter(segmenter(), kind="classes") as live:
        feed = LiveModeFeed(core, live)
        assert "unetrt-live-mode" in threads()
        del feed
        gc.collect()
        assert "unetrt-live-mode" not in threads()


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), 1e12, "fast", None])
def test_an_interval_is_positive(interval):
    with pytest.raises(OptionError, match=f"invalid interval {interval!r} s: use one above 0 to 3600"):
        LiveModeFeed(None, None, interval=interval)


@pytest.mark.parametrize("most", [-1, 1.5, "3"])
def test_a_maximum_is_a_whole_number(most):
    with pytest.raises(OptionError, match=f"invalid most={most!r}: use a whole number of images"):
        LiveModeFeed(None, None, most=most)


def add_camera(core, label="Camera-2"):
    """Load a second demo camera, and make both send 16 bits."""
    core.loadDevice(label, "DemoCamera", "DCam")
    core.initializeDevice(label)
    core.setProperty(label, "PixelType", "16bit")
    core.setExposure(label, 10)


@pytest.fixture
def two_cameras(core):
    """A core whose camera is a Multi Camera of `Camera` and `Camera-2`; their images have different ranges."""
    add_camera(core)
    core.loadDevice("Multi", "Utilities", "Multi Camera")
    core.initializeDevice("Multi")
    core.setProperty("Multi", "Physical Camera 1", "Camera")
    core.setProperty("Multi", "Physical Camera 2", "Camera-2")
    core.setProperty("Camera-2", "Mode", "Noise")
    core.setCameraDevice("Multi")
    return core


def numbers_of(results, camera):
    return [result.index["image"] for result in results if result.stream.camera == camera]


def test_the_cameras_of_a_multi_camera_are_not_mixed(two_cameras):
    core = two_cameras
    with feeding(core, policy="drop_oldest", capacity=500) as (feed, live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: min(len(numbers_of(results, camera)) for camera in ("Camera", "Camera-2")) >= 5)
        core.stopSequenceAcquisition()
        until(lambda: not feed.status().running)
        live.flush()
        status = feed.status()
        assert core.getRemainingImageCount() > 10, "nothing is taken out of the core's buffer"
    for which, camera in enumerate(("Camera", "Camera-2")):
        own, numbers = status.cameras[camera], numbers_of(results, camera)
        assert numbers == sorted(set(numbers))
        assert own.submitted == len(numbers)
        assert own.skipped == numbers[-1] - numbers[0] + 1 - len(numbers)
        for result in results:
            if result.stream.camera == camera:
                assert result.meta["camera_metadata"]["Camera"] == camera
                assert result.index == {"image": result.index["image"], "cam": which}
                np.testing.assert_array_equal(result.labels, classes_of(result.frame))
    assert status.submitted == len(results)
    infos = results[0].sequence.meta["image_infos"]
    assert [info["camera_label"] for info in infos] == ["Camera", "Camera-2"]


@pytest.mark.parametrize("camera", ["Camera", "Camera-2"])
def test_one_camera_of_a_multi_camera_can_be_followed(two_cameras, camera):
    core = two_cameras
    with feeding(core, camera=camera) as (feed, live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: len(results) >= 5)
        core.stopSequenceAcquisition()
        live.flush()
        assert list(feed.status().cameras) == [camera]
    assert {result.stream.camera for result in results} == {camera}
    assert set(results[0].index) == {"image"}
    assert numbers_of(results, camera) == sorted(set(numbers_of(results, camera)))


def test_a_slow_camera_beside_a_fast_one_is_not_lost(two_cameras):
    core = two_cameras
    core.setExposure("Camera", 1)
    core.setExposure("Camera-2", 100)
    with feeding(core, policy="drop_oldest", capacity=1000) as (feed, live, results):
        core.startContinuousSequenceAcquisition()
        until(lambda: len(numbers_of(results, "Camera-2")) >= 3)
        core.stopSequenceAcquisition()
        until(lambda: not feed.status().running)
        live.flush()
        slow, fast = (feed.status().cameras[camera] for camera in ("Camera-2", "Camera"))
    numbers = numbers_of(results, "Camera-2")
    assert slow.skipped == numbers[-1] - numbers[0] + 1 - len(numbers)
    assert slow.submitted + slow.skipped < fast.submitted + fast.skipped


def test_another_camera_that_runs_alone_is_followed_only_by_its_label(core):
    add_camera(core)
    with feeding(core) as (mine, _live, none), feeding(core, camera="Camera-2") as (other, live, results):
        core.initializeCircularBuffer()
        core.startSequenceAcquisition("Camera-2", 20, 0, True)
        until(lambda: results and not core.isSequenceRunning("Camera-2"))
        until(lambda: not other.status().running)
        assert (none, mine.status().submitted) == ([], 0)
        assert {result.stream.camera for result in results} == {"Camera-2"}
        core.startContinuousSequenceAcquisition()
        live.flush()
        came = len(results)
        until(lambda: len(none) >= 3)
        core.stopSequenceAcquisition()
        assert {result.stream.camera for result in none} == {"Camera"}
        assert len(results) == came


def test_each_camera_may_have_its_own_region_and_bit_depth(core):
    add_camera(core)
    core.setProperty("Camera-2", "PixelType", "8bit")
    core.setCameraDevice("Camera-2")
    core.setROI("Camera-2", 0, 0, 96, 64)
    core.setCameraDevice("Camera")
    with feeding(core) as (_one, _live, first), feeding(core, camera="Camera-2") as (_two, _other, second):
        for camera, results in (("Camera", first), ("Camera-2", second)):
            core.setCameraDevice(camera)
            core.startContinuousSequenceAcquisition()
            until(lambda results=results: results)
            core.stopSequenceAcquisition()
    assert (second[0].frame.shape, second[0].frame.dtype) == ((64, 96), np.uint8)
    assert (first[0].frame.shape, first[0].frame.dtype) == ((512, 512), np.uint16)


def test_a_camera_that_is_not_there_is_refused_with_those_that_are(core):
    add_camera(core)
    with LiveSegmenter(segmenter(), kind="classes") as live:
        for camera in ("Camera-3", "", "XY", 2):
            with pytest.raises(OptionError, match="use Camera or Camera-2$"):
                LiveModeFeed(core, live, camera=camera)
        core.unloadAllDevices()
        with pytest.raises(OptionError, match="load a configuration"):
            LiveModeFeed(core, live, camera="Camera")
