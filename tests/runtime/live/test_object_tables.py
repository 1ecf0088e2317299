"""Each result has a table of its objects, measured on the thread that numbers them."""

import threading

import numpy as np
import pytest

from tests.conftest import small_spec
from tests.runtime.live.live_cases import flat, gated
from tests.runtime.test_segmented_objects import CORES, ClassSession, class_maps
from unetrt.runtime import LiveSegmenter, Segmenter
from unetrt.runtime.cuda.arrays import DeviceArray
from unetrt.runtime.errors import OptionError
from unetrt.runtime.live import worker as module
from unetrt.runtime.model.measurements import columns, measurements, object_columns
from unetrt.runtime.model.spec import Decoding
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.sessions.cpu import CropSession
from unetrt.trainer.drawn_cells import draw

NAMES = ["label", "area", "centroid-0", "centroid-1", "bbox-0", "bbox-1", "bbox-2", "bbox-3", "mean_intensity"]
OBJECTS = {"annotation": "instances", "decoding": Decoding("components", 1)}


def results_of(segmenter, frames, **options):
    with LiveSegmenter(segmenter, policy="block", kind="instances", **options) as live:
        return [future.result(30) for future in [live.submit(frame, copy=False) for frame in frames]]


def assert_tables_equal(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, bool])
def test_the_table_has_the_first_columns_of_the_tables_of_predict(dtype):
    maps = [np.zeros((20, 30), dtype), *class_maps(5).astype(dtype)]
    with ClassSession(classes=("background", "cell"), decoding=Decoding()) as session, Segmenter(session) as segmenter:
        for result, frame in zip(results_of(segmenter, maps), maps, strict=True):
            assert list(result.table) == NAMES
            assert result.objects == len(result.table["label"]) == result.labels.max()
            grey = (frame.view(np.uint8) if dtype is bool else frame)[None]
            whole = columns(measurements(result.labels, grey), None, None)
            assert_tables_equal(result.table, {name: whole[name] for name in NAMES})
            assert result.timings.decode >= result.timings.table > 0


def test_a_model_gives_the_table_that_its_file_gives(tiny_model):
    frames = [draw((100, 130), seed=seed).frame for seed in range(3)]
    with Segmenter(tiny_model) as segmenter:
        results = results_of(segmenter, frames)
        found = segmenter.objects(np.stack(frames))
    for result, labels, frame in zip(results, found.labels, frames, strict=True):
        np.testing.assert_array_equal(result.labels, labels)
        assert_tables_equal(result.table, object_columns(labels, frame[None]))


def test_each_channel_has_a_mean():
    fixed = Normalisation("fixed", offset=(0.5,) * 3, scale=(1.0,) * 3)
    segmenter = Segmenter(CropSession(small_spec(channels=3, normalisation=fixed, head="labels", **OBJECTS)))
    frame = np.stack([np.full((9, 8), value, np.uint8) for value in (2, 3, 5)])
    (result,) = results_of(segmenter, [frame])
    assert list(result.table)[-3:] == ["mean_intensity-0", "mean_intensity-1", "mean_intensity-2"]
    assert [result.table[f"mean_intensity-{channel}"].tolist() for channel in range(3)] == [[2], [3], [5]]


def test_frames_that_numpy_converts_have_a_table(tmp_path):
    np.save(tmp_path / "frame.npy", class_maps(1)[0])
    stored = np.load(tmp_path / "frame.npy", mmap_mode="r")
    with ClassSession() as session, Segmenter(session) as segmenter:
        tables = [result.table for result in results_of(segmenter, [stored, stored.tolist(), stored.astype(">u2")])]
    for table in tables:
        assert_tables_equal(table, tables[0])
        assert table["label"].tolist() == [1]


@pytest.mark.parametrize("axes", [(1, 100, 130), (100, 130, 3), (100, 130, 4), (1, 1, 100, 130)])
def test_the_table_is_that_of_the_grey_values_that_were_segmented(tiny_model, axes):
    frame = draw((100, 130), seed=1).frame
    given = frame.reshape(axes) if axes[-1] == 130 else np.repeat(frame[..., None], axes[-1], axis=-1)
    given = given // np.arange(1, 1 + axes[-1], dtype=given.dtype) if axes[-1] < 5 else given
    with Segmenter(tiny_model) as segmenter:
        (result,) = results_of(segmenter, [given])
    assert result.frame.shape == (100, 130)
    assert_tables_equal(result.table, object_columns(result.labels, result.frame[None]))


@pytest.mark.parametrize("kind", ["cores", "components"])
def test_the_confidence_is_that_of_the_segmenter(kind):
    maps = class_maps(4)
    with ClassSession(decoding=CORES if kind == "cores" else Decoding()) as session, Segmenter(session) as segmenter:
        found = segmenter.objects(maps, confidence=True).confidence_of_frames
        results = results_of(segmenter, maps, confidence=True)
    assert [list(result.table) for result in results] == [[*NAMES, "confidence"]] * 4
    for result, expected in zip(results, found, strict=True):
        assert result.table["confidence"].dtype == np.float32
        np.testing.assert_array_equal(result.table["confidence"], expected)


def test_the_confidence_of_a_stream_that_is_normalised_as_one(tiny_model):
    frames = [draw((100, 130), seed=seed).frame for seed in range(2)]
    with Segmenter(tiny_model) as segmenter:
        first, _ = results_of(segmenter, frames, normalisation="running", confidence=True)
        expected = segmenter.objects(frames[0], confidence=True)
    np.testing.assert_array_equal(first.labels, expected.labels)
    np.testing.assert_array_equal(first.table["confidence"], expected.confidence)


def test_a_confidence_that_cannot_be_is_refused():
    scores, labels = Segmenter(ClassSession()), Segmenter(ClassSession(head="labels"))
    with pytest.raises(OptionError, match="labels of kind classes have none: use kind instances, or leave it out"):
        LiveSegmenter(scores, kind="classes", confidence=True)
    with pytest.raises(OptionError, match="head outputs labels only: export it with --head logits"):
        LiveSegmenter(labels, kind="instances", confidence=True)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("unetrt-live")] == []


def test_other_results_have_no_table():
    segmenter, session = gated(**OBJECTS)
    session.let()
    failed, wrong = results_of(segmenter, [flat(13), np.zeros(3)])
    assert (failed.outcome, failed.table, wrong.table) == ("failed", None, None)
    with LiveSegmenter(segmenter, kind="classes") as live:
        assert live.submit(flat(1)).result(30).table is None
    assert live.submit(flat(1)).result(30).outcome == "dropped"
    assert live.submit(flat(1)).result(30).table is None


def test_a_frame_on_a_gpu_has_a_table_without_intensities(monkeypatch):
    monkeypatch.setattr(module, "array_of", lambda frame: DeviceArray.packed(0, frame.shape, frame.dtype))
    segmenter, session = gated(**OBJECTS)
    session.let()
    (result,) = results_of(segmenter, [flat(1)])
    assert (list(result.table), result.table["area"].tolist()) == (NAMES[:-1], [12 * 16])


def test_objects_are_measured_on_the_thread_that_numbers_them_while_the_next_frame_is_segmented(monkeypatch):
    began, go, threads = threading.Semaphore(0), threading.Semaphore(0), []

    def waiting(*given):
        threads.append(threading.current_thread())
        began.release()
        assert go.acquire(timeout=30)
        return object_columns(*given)

    monkeypatch.setattr(module, "object_columns", waiting)
    segmenter, session = gated(**OBJECTS)
    session.let()
    with LiveSegmenter(segmenter, policy="drop_oldest") as live:
        first, second = live.submit(flat(1)), live.submit(flat(1))
        assert began.acquire(timeout=30)
        for _ in range(2):
            assert session.began.acquire(timeout=30)  # the second frame's pass, before the first is measured
        assert not first.done()
        go.release(2)
        assert [future.result(30).objects for future in (first, second)] == [1, 1]
        assert threads == [live.thread] * 2


def test_an_error_in_the_table_is_a_result(monkeypatch):
    def failing(*_):
        raise MemoryError("no room for the table")

    monkeypatch.setattr(module, "object_columns", failing)
    segmenter, session = gated(**OBJECTS)
    session.let()
    (result,) = results_of(segmenter, [flat(1)])
    assert (result.outcome, str(result.error), result.labels, result.table) == (
        "failed", "no room for the table", None, None,
    )  # fmt: skip
