"""What the tables of labels tell: cameras, all keys of an index, stage coordinates, runs of dropped frames, objects."""

import csv
import json
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import useq
import yaozarrs
import zarr

from tests.acquisition.cameras import two_cameras
from tests.acquisition.files import positions_of, rows_of
from tests.acquisition.label_results import failed, frames, result_with
from tests.acquisition.segmenters import classes_of, segmenter
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.acquisition import LabelWriter
from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import DroppedFrames, LiveSequence, StreamKey

IMAGE = frames((40, 30))[0]
TIME = {"interval": 0, "loops": 3}
CHANNELS = ["DAPI", "FITC"]
STACK = {"range": 2, "step": 1}


def acquire(core, plan, folder, raw=True, **options):
    writer = LabelWriter(folder / "labels.ome.zarr")
    options = {"policy": "drop_oldest", "capacity": 1000, "kind": "classes", **options}
    with LiveSegmenter(segmenter(), outputs=[writer], **options) as live:
        core.mda.run(plan, output=[folder / "raw.ome.zarr", live] if raw else [live])
        live.flush()
        assert live.status().output_errors == 0, live.status().last_error
    return rows_of(folder / "labels.csv")


def axes_of(path):
    return [axis["name"] for axis in zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]["axes"]]


TWO_CAMERAS = {
    "time": useq.MDASequence(time_plan=TIME),
    "time and channels": useq.MDASequence(time_plan=TIME, channels=CHANNELS),
    "positions": useq.MDASequence(time_plan=TIME, stage_positions=[(0, 0), (5, 0)]),
}


@pytest.mark.filterwarnings("ignore:Multi-camera acquisition combined:UserWarning")
@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("plan", TWO_CAMERAS)
def test_two_cameras_are_an_axis_as_in_the_raw_data(core, tmp_path, plan, hardware):
    two_cameras(core)
    core.mda.engine.use_hardware_sequencing = hardware
    rows = acquire(core, TWO_CAMERAS[plan], tmp_path)
    raw, labels = positions_of(tmp_path / "raw.ome.zarr"), positions_of(tmp_path / "labels.ome.zarr")
    assert len(raw) == len(labels)
    for frames_of_it, labels_of_it in zip(raw, labels, strict=True):
        np.testing.assert_array_equal(labels_of_it, classes_of(frames_of_it))
    first = "0" if plan == "positions" else ""
    axes = axes_of(tmp_path / "labels.ome.zarr" / first)
    assert axes == axes_of(tmp_path / "raw.ome.zarr" / first)
    assert axes.count("cam") == 1
    yaozarrs.validate_zarr_store(tmp_path / "labels.ome.zarr")
    assert [(row["cam"], row["camera"]) for row in rows] == [("0", "Camera"), ("1", "Camera2")] * (len(rows) // 2)
    assert [int(row["frame"]) for row in rows] == list(range(len(rows)))


def test_two_cameras_of_an_event_queue_are_an_axis(core, tmp_path):
    two_cameras(core)
    events = (useq.MDAEvent(index={"t": 2 * number}) for number in range(3))
    rows = acquire(core, events, tmp_path)
    labels = positions_of(tmp_path / "labels.ome.zarr")[0]
    np.testing.assert_array_equal(labels, classes_of(positions_of(tmp_path / "raw.ome.zarr")[0]))
    assert (labels.shape, axes_of(tmp_path / "labels.ome.zarr")) == ((3, 2, 64, 96), ["t", "cam", "y", "x"])
    assert [(row["t"], row["cam"]) for row in rows] == [(t, cam) for t in "024" for cam in "01"]


def test_two_cameras_of_stacks_are_an_axis_though_raw_data_of_them_cannot_be_stored(core, tmp_path):
    two_cameras(core)
    results = {}
    plan = useq.MDASequence(time_plan=TIME, z_plan=STACK)
    rows = acquire(core, plan, tmp_path, raw=False, on_result=lambda came: results.update({came.number: came}))
    yaozarrs.validate_zarr_store(tmp_path / "labels.ome.zarr")
    assert axes_of(tmp_path / "labels.ome.zarr") == ["t", "cam", "z", "y", "x"]
    labels = positions_of(tmp_path / "labels.ome.zarr")[0]
    for number, row in enumerate(rows):
        t, z, cam = (int(row[axis]) for axis in ("t", "z", "cam"))
        np.testing.assert_array_equal(labels[t, cam, z], results[number].labels)


def test_two_cameras_of_more_axes_than_there_may_be_are_channels(core, tmp_path):
    """OME-Zarr has five axes: raw data of the sixth cannot be stored, labels of it can."""
    two_cameras(core)
    results = {}
    plan = useq.MDASequence(time_plan=TIME, channels=CHANNELS, z_plan=STACK)
    rows = acquire(core, plan, tmp_path, raw=False, on_result=lambda came: results.update({came.number: came}))
    yaozarrs.validate_zarr_store(tmp_path / "labels.ome.zarr")
    labels = positions_of(tmp_path / "labels.ome.zarr")[0]
    assert labels.shape == (3, 4, 3, 64, 96)
    named = zarr.open_group(tmp_path / "labels.ome.zarr", mode="r").attrs["ome"]["omero"]["channels"]
    assert [one["label"] for one in named] == ["DAPI, cam 0", "DAPI, cam 1", "FITC, cam 0", "FITC, cam 1"]
    for number, row in enumerate(rows):
        t, c, z, cam = (int(row[axis]) for axis in ("t", "c", "z", "cam"))
        np.testing.assert_array_equal(labels[t, 2 * c + cam, z], results[number].labels)


def test_a_frame_that_one_camera_lacks_shifts_no_other(tmp_path):
    meta = {"image_infos": [{"num_camera_adapter_channels": 2}]}
    for plan in (None, useq.MDASequence(time_plan=TIME)):
        folder = tmp_path / str(plan is None)
        sequence = LiveSequence(0, plan, meta)
        came = [(0, 0), (0, 1), (1, 1), (2, 0), (2, 1)]  # camera 0 failed once: the engine has no event for it
        with LabelWriter(folder / "l.ome.zarr") as writer:
            for number, (t, cam) in enumerate(came):
                image = np.full_like(IMAGE, 10 * t + cam + 1)
                writer.result(result_with(image, number, {"t": t, "cam": cam}, sequence=sequence, meta=meta))
        labels = positions_of(folder / "l.ome.zarr")[0][:, :, 0, 0]
        assert labels.tolist() == [[1, 2], [0, 12], [21, 22]]
        assert [(row["frame"], row["outcome"]) for row in rows_of(folder / "l.csv")][2:4] == [
            ("2", "missing"),
            ("3", "done"),
        ]


def test_all_keys_of_an_index_are_in_the_table(tmp_path):
    given = [
        {"t": 1, "round": 2},
        {"well": "A,1\n", "image": 7},
        {"t": 3, ("odd", 1): {"deep": [1, 2]}},
        None,
        17,
        "text",
        {},
    ]
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number, index in enumerate(given):
            stream = StreamKey("Camera-1", "DAPI") if number % 2 else StreamKey()
            writer.result(result_with(IMAGE, number, index, stream=stream))
    rows = rows_of(tmp_path / "l.csv")
    assert [row["t"] for row in rows] == ["1", "", "3", "", "", "", ""]
    assert rows[1]["image"] == "7"
    more = [json.loads(row["index"]) if row["index"] else None for row in rows]
    assert more == [{"round": 2}, {"well": "A,1\n"}, {"('odd', 1)": {"deep": [1, 2]}}, None, 17, "text", None]
    assert [(row["camera"], row["channel"]) for row in rows] == [("", ""), ("Camera-1", "DAPI")] * 3 + [("", "")]


@pytest.mark.parametrize("hardware", [False, True])
def test_rows_have_stage_coordinates_also_of_a_hardware_sequence(core, tmp_path, hardware):
    core.setROI(0, 0, 96, 64)
    core.mda.engine.use_hardware_sequencing = hardware
    started = []
    core.events.sequenceAcquisitionStarted.connect(started.append)
    plan = useq.MDASequence(axis_order="pt", time_plan=TIME, stage_positions=[(7, 8, 9), (10, 11, 12)])
    rows = acquire(core, plan, tmp_path)
    assert bool(started) == hardware
    found = [[round(float(row[f"{axis}_um"])) for axis in "xyz"] for row in rows]
    assert found == [[7, 8, 9]] * 3 + [[10, 11, 12]] * 3


@pytest.mark.parametrize("planned", [True, False])
def test_a_run_of_dropped_frames_is_one_row_and_costs_nothing(tmp_path, planned):
    """A hundred thousand frames of 4 MB, of which three are segmented."""
    count, image = 100_000, np.ones((2048, 2048), np.uint8)
    plan = useq.MDASequence(time_plan={"interval": 0, "loops": count // 2}, channels=CHANNELS)
    sequence = LiveSequence(0, plan if planned else None)
    done = (0, count // 2, count - 2)
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number, following in pairwise((*done, count)):
            index = {"t": number // 2, "c": number % 2}
            writer.result(result_with(image, number, index, sequence=sequence))
            tracemalloc.start()
            writer.dropped(DroppedFrames(number + 1, following - 1, sequence))
            assert tracemalloc.get_traced_memory()[1] < 100_000
            tracemalloc.stop()
    rows = rows_of(tmp_path / "l.csv")
    assert [(row["frame"], row["frames"], row["outcome"]) for row in rows] == [
        ("0", "1", "done"),
        ("1", "49999", "dropped"),
        ("50000", "1", "done"),
        ("50001", "49997", "dropped"),
        ("99998", "1", "done"),
        ("99999", "1", "dropped"),
    ]
    store = zarr.open_array(tmp_path / "l.ome.zarr" / "0", mode="r")
    assert store.shape[:-2] == ((50_000, 2) if planned else (100_000,))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 + 3  # chunks, metadata of group and array, and the table
    assert sum(path.stat().st_size for path in files) < 2 * image.nbytes
    assert rows[1]["c"] == ("1" if planned else "")


def test_counts_add_up_where_frames_are_dropped_and_others_missing(tmp_path):
    plan = useq.MDASequence(time_plan={"interval": 0, "loops": 10})
    sequence = LiveSequence(0, plan)
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        writer.result(result_with(IMAGE, 0, {"t": 0}, sequence=sequence))
        writer.dropped(DroppedFrames(1, 2, sequence))
        writer.result(result_with(IMAGE, 3, {"t": 6}, sequence=sequence))  # three events of five came
        writer.result(
            result_with(IMAGE, 6, {"t": 7}, sequence=sequence)
        )  # two without a place, of which no notice came
        writer.result(failed(7, {"t": 9}, sequence=sequence))
        writer.dropped(DroppedFrames(8, 9, sequence))
    assert [(row["frame"], row["frames"], row["t"], row["outcome"]) for row in rows_of(tmp_path / "l.csv")] == [
        ("0", "1", "0", "done"),
        ("1", "2", "1", "dropped"),
        ("3", "3", "3", "missing"),
        ("6", "1", "6", "done"),
        ("", "2", "", "dropped"),
        ("7", "1", "7", "done"),
        ("8", "1", "8", "missing"),
        ("9", "1", "9", "failed"),
        ("", "2", "", "dropped"),
    ]


def measured(*labels):
    return {
        "label": np.array(labels, np.int32),
        "area": np.array(labels, np.float64) * 2,
        "centroid-0": np.array(labels, np.float32) / 2,
        "confidence": np.full(len(labels), np.nan),
    }


def test_objects_are_rows_of_a_table_and_of_an_array_in_the_store(tmp_path):
    tables = [measured(1, 2), measured(), measured(5), None, measured(*range(1, 3000))]
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number, table in enumerate(tables):
            writer.result(result_with(IMAGE, number, {"t": number}, table=table))
    with (tmp_path / "l_objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["frame", "label", "area", "centroid-0", "confidence"]
    assert [(row["frame"], row["label"]) for row in rows[:4]] == [("0", "1"), ("0", "2"), ("2", "5"), ("4", "1")]
    assert rows[2] == {"frame": "2", "label": "5", "area": "10", "centroid-0": "2.500", "confidence": ""}
    stored = zarr.open_array(tmp_path / "l.ome.zarr" / "tables" / "objects", mode="r")
    assert stored.attrs["columns"] == list(rows[0])
    assert stored.shape == (len(rows), 5) == (3002, 5)
    np.testing.assert_array_equal(stored[:, :2], [[float(row["frame"]), float(row["label"])] for row in rows])
    yaozarrs.validate_zarr_store(tmp_path / "l.ome.zarr")


def test_other_measurements_than_those_of_the_table_are_an_error(tmp_path):
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        writer.result(result_with(IMAGE, 0, table=measured(1)))
        other = {"label": np.array([1]), "length": np.array([2.0])}
        with pytest.raises(OutputError, match=r"label, length do not fit a table of label, area, centroid-0"):
            writer.result(result_with(IMAGE, 1, table=other))
        writer.result(result_with(IMAGE, 2, table=measured(3)))
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["done", "failed", "done"]
    assert [row["frame"] for row in rows_of(tmp_path / "l_objects.csv")] == ["0", "2"]


def test_a_result_is_stored_when_its_row_is_written(tmp_path):
    """Nothing waits for `close`: a copy of the files after each frame is whole."""
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number in range(3):
            writer.result(replace(result_with(IMAGE + number, number), table=measured(1, 2)))
            labels = positions_of(tmp_path / "l.ome.zarr")[0]
            np.testing.assert_array_equal(labels, [IMAGE + earlier for earlier in range(number + 1)])
            assert len(rows_of(tmp_path / "l.csv")) == number + 1
            assert len(rows_of(tmp_path / "l_objects.csv")) == 2 * (number + 1)
            assert zarr.open_array(tmp_path / "l.ome.zarr" / "tables" / "objects", mode="r").shape == (
                2 * number + 2,
                5,
            )
