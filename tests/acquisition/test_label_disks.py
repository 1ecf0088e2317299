"""Labels on disks that are full, or stall."""

import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import useq

from tests.acquisition.files import positions_of, rows_of
from tests.acquisition.label_results import FORMATS, NOISE, dropped, frames, result_with
from unetrt.runtime.acquisition import LabelWriter, label_stream
from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import LiveSequence

pytestmark = pytest.mark.alone


@pytest.fixture
def full_disk():
    """A context that limits the size of files, in bytes."""
    resource = pytest.importorskip("resource", reason="this system has no limit for the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def full(size=200_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return full


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("ignore")  # ome-writers warns from its thread
def test_a_disk_that_is_full_is_an_output_error(tmp_path, form, full_disk):
    writer = LabelWriter(tmp_path / f"l.{form}")
    with pytest.raises(OutputError, match=f"l.{form}"), full_disk(), writer:
        for number in range(3):
            writer.result(result_with(NOISE, number))


def test_labels_lost_while_the_disk_was_full_are_reported_and_the_rest_is_stored(tmp_path, full_disk):
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        with full_disk(), pytest.raises(OutputError, match=r"l.ome.zarr"):
            writer.result(result_with(NOISE, 0))
        writer.result(result_with(NOISE, 1))
    np.testing.assert_array_equal(positions_of(tmp_path / "l.ome.zarr")[0], [np.zeros_like(NOISE), NOISE])
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["failed", "done"]


def test_a_tiff_on_a_full_disk_is_whole_and_goes_on_when_there_is_room(small_disk):
    ballast = small_disk / "ballast"
    with LabelWriter(small_disk / "l.ome.tiff") as writer:
        writer.result(result_with(NOISE, 0))
        ballast.write_bytes(bytes(4 * 2**20))
        with pytest.raises(OutputError, match=r"disk has no room for more labels: 1\d MiB are free"):
            writer.result(result_with(NOISE, 1))
        ballast.unlink()
        writer.result(result_with(NOISE, 2))
    np.testing.assert_array_equal(positions_of(small_disk / "l.ome.tiff")[0], [NOISE, np.zeros_like(NOISE), NOISE])
    assert [row["outcome"] for row in rows_of(small_disk / "l.csv")] == ["done", "failed", "done"]


@pytest.mark.filterwarnings("ignore")
def test_a_tiff_reports_the_first_lost_frame_and_ends_at_once(tmp_path, full_disk):
    writer, lost = LabelWriter(tmp_path / "l.ome.tiff"), []
    begin = time.monotonic()
    with full_disk(1_000_000):  # one frame has 320 000
        for number in range(5):
            try:
                writer.result(result_with(NOISE, number))
            except OutputError as error:
                lost.append((number, str(error)))
        with pytest.raises(OutputError, match=r"l.ome.tiff"):
            writer.close()
    assert time.monotonic() - begin < 10
    assert [number for number, _ in lost] == [3, 4]
    assert all("l.ome.tiff cannot be extended, its writer has stopped: is the disk full?" in said for _, said in lost)
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["done"] * 3 + ["failed"] * 2


def slow_at(number, seconds, monkeypatch):
    """Delay the TIFF writer at one frame."""
    write, came = tifffile.TiffWriter.write, iter(range(100))

    def slow(*arguments, **options):
        if next(came) == number:
            time.sleep(seconds)
        return write(*arguments, **options)

    monkeypatch.setattr(tifffile.TiffWriter, "write", slow)


def test_a_disk_that_stalls_is_given_up_and_taken_again_and_no_frame_is_shifted(tmp_path, monkeypatch):
    monkeypatch.setattr(label_stream, "PATIENCE", 0.2)
    slow_at(1, 1.5, monkeypatch)
    image = frames((40, 30))[0]
    with LabelWriter(tmp_path / "l.ome.tiff") as writer:
        writer.result(result_with(image, 0))
        begin = time.monotonic()
        for number in (1, 2, 3):
            with pytest.raises(OutputError, match="has not grown for 0 s: is the disk still connected"):
                writer.result(result_with(image + number, number))
        assert time.monotonic() - begin < 1, "who gave up once does not wait for each frame"
        time.sleep(2)
        writer.result(result_with(image + 4, 4))
    labels = positions_of(tmp_path / "l.ome.tiff")[0]
    empty = np.zeros_like(image)
    np.testing.assert_array_equal(labels, [image, image + 1, empty, empty, image + 4])  # the second came late
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["done", "failed", "failed", "failed", "done"]


def test_a_tiff_of_planes_keeps_room_for_the_rest_of_its_step(small_disk):
    plan = useq.MDASequence(time_plan={"interval": 0, "loops": 3}, z_plan={"range": 4, "step": 2})
    sequence, image, kept = LiveSequence(0, plan), np.ones((1200, 1000), np.int32), 0  # 2.3 MiB a frame as uint16
    writer = LabelWriter(small_disk / "l.ome.tiff")
    for number, event in enumerate(plan):
        with suppress(OutputError):
            writer.result(replace(result_with(image, number, dict(event.index)), sequence=sequence))
            kept += 1
    with suppress(OutputError):
        writer.close()
    assert kept in (0, 3), "a step has three planes: there is room for one step, or none"


def test_labels_that_fail_behind_dropped_frames_are_one_error(tmp_path, full_disk):
    writer = LabelWriter(tmp_path / "l.ome.zarr")
    writer.result(result_with(np.zeros_like(NOISE), 0))
    for number in (1, 2):
        writer.result(dropped(number))
    with full_disk(), pytest.raises(OutputError, match=r"l.ome.zarr"):
        writer.result(result_with(NOISE, 3))
    writer.close()
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["done", "dropped", "dropped", "failed"]
