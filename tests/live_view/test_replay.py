"""Replayed files, their label files, and the error that a run ends with."""

import threading
import time

import numpy as np
import pytest
import tifffile

from tests.conftest import small_spec
from unetrt._exit_codes import exit_code
from unetrt.cli.live import verdict
from unetrt.live_view.saving import LabelFiles
from unetrt.live_view.sources import FILE, FileFrame, FileReplay
from unetrt.runtime.errors import FrameError, InferenceError, OutOfMemoryError, OutputError
from unetrt.runtime.files.sources import source_of
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.results import LiveResult, LiveStatus, Outcome, Percentiles, State
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import CropSession

pytestmark = pytest.mark.alone


@pytest.fixture
def came():
    """The results of `live`, with their arrival times in seconds."""
    return []


@pytest.fixture
def live(came):
    segmenter = Segmenter(CropSession(small_spec(head="labels")))
    with LiveSegmenter(
        segmenter, policy="block", on_result=lambda result: came.append((result, time.perf_counter()))
    ) as it:
        yield it
        assert it.flush(5)


@pytest.fixture
def paths(tmp_path):
    """A frame, a stack of two, and a file that is not an image."""
    pixels = np.arange(2 * 8 * 9, dtype=np.uint16).reshape(2, 8, 9)
    tifffile.imwrite(tmp_path / "a.tif", pixels[0], photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", pixels, photometric="minisblack")
    (tmp_path / "c.tif").write_text("no image")
    return sorted(tmp_path.iterdir())


def test_frames_come_in_order_and_again(paths, live, came):
    replay = FileReplay(paths, 0, loop=True, most=5)
    replay.feed(live, threading.Event())
    live.close()
    once = [("a.tif", 0, 1, 0), ("b.tif", 0, 2, 0), ("b.tif", 1, 2, 72)]
    assert [result.index for result, _ in came] == [{"t": number} for number in range(5)]
    places = [(result.meta[FILE], int(result.frame[0, 0])) for result, _ in came]
    assert [(it.source.path.name, it.frame, it.frames, pixel) for it, pixel in places] == [*once, *once[:2]]
    assert [source.path.name for source in replay.unread] == ["c.tif"]


def test_frames_come_at_their_pace(paths, live, came):
    FileReplay(paths[:2], 20, loop=True, most=9).feed(live, threading.Event())
    live.close()
    passed = np.diff([when for _, when in came])
    assert passed.mean() > 0.9 * 0.05
    assert np.median(passed) < 3 * 0.05


def test_a_loop_without_a_readable_file_ends(paths, live, came):
    replay = FileReplay(paths[2:], 0, loop=True)
    replay.feed(live, threading.Event())
    live.close()
    assert came == []
    assert len(replay.unread) == 1


def test_a_replay_stops_between_two_frames(paths, live):
    stop = threading.Event()
    thread = threading.Thread(target=FileReplay(paths[:1], 0.01, loop=True).feed, args=(live, stop))
    thread.start()
    stop.set()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert live.status().submitted <= 1


def result(path, frame, frames, value=None):
    labels = None if value is None else np.full((4, 5), value, np.int32)
    outcome = Outcome.DONE if labels is not None else Outcome.FAILED
    return LiveResult(outcome, 0, None, {FILE: FileFrame(source_of(path), frame, frames)}, None, None, labels)


def test_lost_frames_of_a_stack_are_empty_in_its_file(tmp_path):
    files = LabelFiles(tmp_path / "out")
    a, b, c, d = (tmp_path / f"{name}.ome.tif" for name in "abcd")
    # a: the last frame was dropped; b: all were; d: the last has not come at the end.
    for came in (result(a, 0, 3, 7), result(a, 1, 3), result(b, 0, 1), result(c, 0, 1, 300), result(d, 0, 2, 1)):
        files.result(came)
    files.close()
    files.close()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.tif", "c.tif", "d.tif"]
    stack = tifffile.imread(tmp_path / "out" / "a.tif")
    assert stack.shape == (3, 4, 5)
    assert stack[:, 0, 0].tolist() == [7, 0, 0]
    assert tifffile.imread(tmp_path / "out" / "c.tif").dtype == np.uint16
    assert files.written == 3
    assert files.partial == ["a.ome.tif: 2 of 3 frames are empty", "d.ome.tif: 1 of 2 frames are empty"]


def test_a_loop_begins_a_stack_anew(tmp_path):
    files = LabelFiles(tmp_path)
    for value in (1, 2):
        files.result(result(tmp_path / "s.tif", 0, 2, value))
        files.result(result(tmp_path / "s.tif", 1, 2, value))
    assert tifffile.imread(tmp_path / "s.tif")[:, 0, 0].tolist() == [2, 2]
    assert files.written == 2


def status(**fields):
    counts = {"submitted": 5, "done": 3, "dropped": 1, "failed": 1, "pending": 0, "missed": 0}
    times = dict.fromkeys(("queueing", "compute", "latency"), Percentiles())
    return LiveStatus(
        State.CLOSED, **{**counts, "output_errors": 0, "last_error": "it", "rate": 0.0, **times, **fields}
    )


BAD = FrameError("a.tif is not an image")
VERDICTS = {
    "output": ({"output_errors": 2}, BAD, {}, OutputError, 2, "labels were lost 2 times; last error: it"),
    "frame": (
        {},
        FrameError("NaN"),
        {},
        FrameError,
        2,
        "1 of 5 frames failed; the last: FrameError: NaN",
    ),
    "memory": ({}, OutOfMemoryError("full"), {}, OutOfMemoryError, 1, "the last: OutOfMemoryError: full"),
    "defect": ({}, ZeroDivisionError("0"), {}, InferenceError, 1, "the last: ZeroDivisionError: 0"),
    "file": ({}, None, {"a": BAD}, FrameError, 2, "^a.tif is not an image"),
    "files": ({}, None, {"a": BAD, "b": BAD}, FrameError, 2, "2 images could not be read, the first: a.tif"),
}


@pytest.mark.parametrize(("fields", "failure", "unread", "kind", "code", "message"), VERDICTS.values(), ids=VERDICTS)
def test_the_error_that_a_run_ends_with(fields, failure, unread, kind, code, message):
    found = verdict(status(**fields), failure, unread)
    assert type(found) is kind
    assert exit_code(found) == code
    with pytest.raises(kind, match=message):
        raise found


def test_dropped_frames_are_no_error():
    assert verdict(status(), None, {}) is None
