import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import useq
import yaozarrs
import zarr

from tests.acquisition.files import positions_of, rows_of
from tests.acquisition.label_results import frames, result_with
from tests.acquisition.segmenters import classes_of, segmenter
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.acquisition import LabelWriter
from unetrt.runtime.acquisition.label_layout import LabelLayout
from unetrt.runtime.errors import BackendUnavailableError, OptionError, OutputError
from unetrt.runtime.live.results import DroppedFrames, LiveSequence

TIME = {"interval": 0, "loops": 4}
PLANS = {
    "time": useq.MDASequence(time_plan=TIME),
    "time and channels": useq.MDASequence(time_plan=TIME, channels=["DAPI", "FITC"]),
    "z inside channels": useq.MDASequence(channels=["DAPI", "FITC"], z_plan={"range": 4, "step": 2}),
    "channels inside z": useq.MDASequence(
        axis_order="tpzc", time_plan=TIME, channels=["DAPI", "FITC"], z_plan={"range": 4, "step": 2}
    ),
    "positions inside time": useq.MDASequence(
        time_plan=TIME, stage_positions=[(0, 0), (10, 0), (20, 0)], channels=["DAPI", "FITC"]
    ),
    "time inside positions": useq.MDASequence(axis_order="ptc", time_plan=TIME, stage_positions=[(0, 0), (10, 0)]),
    "a grid": useq.MDASequence(time_plan=TIME, grid_plan={"rows": 1, "columns": 2}),
}


@pytest.fixture
def camera(core):
    """The core, with a region of 64 x 96 pixels that one pass segments."""
    core.setROI(0, 0, 96, 64)
    return core


def acquire(core, plan, folder, raw=True, **how):
    """Run a plan, with raw data beside labels; returns the results."""
    results = []
    writer = LabelWriter(folder / "labels.ome.zarr")
    how = {"policy": "drop_oldest", "capacity": 1000, "kind": "classes", "model": segmenter(), **how}
    with LiveSegmenter(outputs=[writer], on_result=results.append, **how) as live:
        core.mda.run(plan, output=[folder / "raw.ome.zarr", live] if raw else [live])
        live.flush()
        assert live.status().output_errors == 0, live.status().last_error
    return results


@pytest.mark.parametrize(("plan", "bits"), [("time and channels", "8bit"), *((plan, "16bit") for plan in PLANS)])
def test_labels_lie_beside_their_raw_frames(camera, tmp_path, plan, bits):
    camera.setProperty("Camera", "PixelType", bits)
    if bits == "16bit":
        camera.setProperty("Camera", "Mode", "Noise")  # the usual waves come again after 16 frames
    acquire(camera, PLANS[plan], tmp_path)
    raw, labels = positions_of(tmp_path / "raw.ome.zarr"), positions_of(tmp_path / "labels.ome.zarr")
    assert len(raw) == len(labels)
    assert str(raw[0].dtype) == {"8bit": "uint8", "16bit": "uint16"}[bits]
    frames = np.concatenate([position.reshape(-1, 64, 96) for position in raw])
    assert len(np.unique(frames, axis=0)) == len(frames), "frames that are alike show nothing"
    for position, of_it in zip(raw, labels, strict=True):
        np.testing.assert_array_equal(of_it, classes_of(position))
    assert [row["outcome"] for row in rows_of(tmp_path / "labels.csv")] == ["done"] * len(frames)


def test_an_ome_zarr_of_labels_is_valid_and_has_the_pixel_size(camera, tmp_path):
    acquire(camera, PLANS["time and channels"], tmp_path)
    yaozarrs.validate_zarr_store(str(tmp_path / "labels.ome.zarr"))
    found, expected = (
        zarr.open_group(tmp_path / f"{name}.ome.zarr").attrs["ome"]["multiscales"][0] for name in ("labels", "raw")
    )
    assert found == expected
    assert camera.getPixelSizeUm() > 0
    ours = zarr.open_group(tmp_path / "labels.ome.zarr").attrs["unetrt"]
    assert ours == {"labels": "classes", "frames": "labels.csv"}


@pytest.mark.parametrize("policy", ["latest", "drop_oldest"])
def test_dropped_frames_leave_their_places_empty(camera, tmp_path, policy):
    plan = useq.MDASequence(time_plan={"interval": 0.01, "loops": 30}, channels=["DAPI"])
    results = acquire(camera, plan, tmp_path, policy=policy, capacity=None, model=segmenter(0.06))
    raw, labels = positions_of(tmp_path / "raw.ome.zarr")[0], positions_of(tmp_path / "labels.ome.zarr")[0]
    done = {result.index["t"] for result in results}
    assert len(done) < 30, "a segmenter this slow was to drop frames"
    for at, of_it in enumerate(labels):
        expected = classes_of(raw[at]) if at in done else np.zeros_like(of_it)
        np.testing.assert_array_equal(of_it, expected)
    assert len(labels) == 30
    outcomes = [row["outcome"] for row in rows_of(tmp_path / "labels.csv") for _ in range(int(row["frames"]))]
    assert outcomes == ["done" if at in done else "dropped" for at in range(30)]


def test_frames_that_failed_leave_their_places_empty(camera, tmp_path):
    acquire(camera, PLANS["time"], tmp_path, model=segmenter(fails=lambda number: number == 2))
    raw, labels = positions_of(tmp_path / "raw.ome.zarr")[0], positions_of(tmp_path / "labels.ome.zarr")[0]
    np.testing.assert_array_equal(labels[[0, 2, 3]], classes_of(raw[[0, 2, 3]]))
    assert not labels[1].any()
    rows = rows_of(tmp_path / "labels.csv")
    assert [row["outcome"] for row in rows] == ["done", "failed", "done", "done"]
    assert "did not like it" in rows[1]["error"]


@pytest.mark.parametrize("plan", ["time and channels", "time inside positions", "positions inside time"])
def test_a_cancelled_acquisition_leaves_a_whole_file(camera, tmp_path, plan):
    came = []

    def frame_ready(image, event, meta):
        came.append(image.copy())
        if len(came) == 5:
            camera.mda.cancel()

    camera.mda.events.frameReady.connect(frame_ready)
    acquire(camera, PLANS[plan], tmp_path, raw=False)
    positions = positions_of(tmp_path / "labels.ome.zarr")
    stored = [frame for position in positions for frame in position.reshape(-1, 64, 96) if frame.any()]
    expected = sorted(classes_of(frame).tobytes() for frame in came)
    assert len(came) == 5
    assert sorted(frame.tobytes() for frame in stored) == expected
    assert len(rows_of(tmp_path / "labels.csv")) == 5


def test_a_frame_without_objects_is_stored_and_a_skipped_one_is_not(tmp_path):
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number in (0, 2):
            writer.result(result_with(np.zeros((40, 30), np.int32), number, sequence=LiveSequence(0)))
    array = zarr.open_array(tmp_path / "l.ome.zarr" / "0", mode="r")
    assert (array.nchunks_initialized, array.shape) == (2, (3, 40, 30))


def test_a_single_channel_is_stored_alone(camera, tmp_path):
    acquire(camera, PLANS["time and channels"], tmp_path, channel="FITC")
    raw, labels = positions_of(tmp_path / "raw.ome.zarr")[0], positions_of(tmp_path / "labels.ome.zarr")[0]
    np.testing.assert_array_equal(labels, classes_of(raw[:, 1:]))
    channels = zarr.open_group(tmp_path / "labels.ome.zarr").attrs["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in channels] == ["FITC"]


def test_instances_are_stored_as_the_results_have_them(camera, tmp_path):
    results = acquire(camera, PLANS["time"], tmp_path, kind="instances")
    labels = positions_of(tmp_path / "labels.ome.zarr")[0]
    assert labels.dtype == np.uint16
    assert max(result.objects for result in results) > 1
    np.testing.assert_array_equal(labels, [result.labels for result in results])
    assert [int(row["objects"]) for row in rows_of(tmp_path / "labels.csv")] == [result.objects for result in results]


def test_events_without_a_plan_become_a_series(camera, tmp_path):
    events = iter([useq.MDAEvent(index={"t": 3 * number}) for number in range(3)])
    acquire(camera, events, tmp_path)
    raw, labels = positions_of(tmp_path / "raw.ome.zarr")[0], positions_of(tmp_path / "labels.ome.zarr")[0]
    np.testing.assert_array_equal(labels, classes_of(raw))
    assert [(row["frame"], row["t"]) for row in rows_of(tmp_path / "labels.csv")] == [
        ("0", "0"),
        ("1", "3"),
        ("2", "6"),
    ]


def test_a_plan_that_no_array_can_hold_becomes_a_series(camera, tmp_path):
    ragged = useq.MDASequence(time_plan=TIME, channels=["DAPI", {"config": "FITC", "acquire_every": 2}])
    acquire(camera, ragged, tmp_path)
    raw, labels = positions_of(tmp_path / "raw.ome.zarr")[0], positions_of(tmp_path / "labels.ome.zarr")[0]
    assert len(labels) == 6
    np.testing.assert_array_equal(labels, classes_of(raw))


def test_each_sequence_has_its_own_file(camera, tmp_path):
    writer = LabelWriter(tmp_path / "labels.ome.zarr")
    (tmp_path / "labels_001.csv").touch()
    with LiveSegmenter(segmenter(), policy="block", kind="classes", outputs=[writer]) as live:
        for size in (96, 64):
            camera.setROI(0, 0, size, 64)
            camera.mda.run(PLANS["time"], output=[live])
    assert positions_of(tmp_path / "labels.ome.zarr")[0].shape == (4, 64, 96)
    assert positions_of(tmp_path / "labels_002.ome.zarr")[0].shape == (4, 64, 64)


def test_frames_without_an_announced_sequence_become_a_series(tmp_path):
    images = frames(*[(40, 30)] * 3)
    with LiveSegmenter(
        segmenter(), policy="block", kind="classes", outputs=[LabelWriter(tmp_path / "l.ome.zarr")]
    ) as live:
        for image in images:
            live.submit(image)
    np.testing.assert_array_equal(positions_of(tmp_path / "l.ome.zarr")[0], classes_of(images))


def test_a_frame_of_another_size_is_refused_and_the_rest_goes_on(tmp_path):
    images = frames((40, 30), (50, 30), (40, 30))
    writer = LabelWriter(tmp_path / "l.ome.zarr")
    with LiveSegmenter(segmenter(), policy="block", kind="classes", outputs=[writer]) as live:
        for image in images:
            live.submit(image)
        live.flush()
        assert live.status().output_errors == 1
        assert "labels of 50 x 30 pixels do not fit l.ome.zarr, which holds 40 x 30" in live.status().last_error
    labels = positions_of(tmp_path / "l.ome.zarr")[0]
    np.testing.assert_array_equal(labels[[0, 2]], classes_of([images[0], images[2]]))
    assert not labels[1].any()
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["done", "failed", "done"]


def test_more_objects_than_the_dtype_numbers_are_an_error_never_wrapped(tmp_path):
    many = np.arange(70000, dtype=np.int32).reshape(200, 350)
    with LabelWriter(tmp_path / "a.ome.zarr") as writer, pytest.raises(OutputError, match=r"69999 .* dtype='uint32'"):
        writer.result(result_with(many))
    with LabelWriter(tmp_path / "b.ome.zarr", dtype="uint32") as writer:
        writer.result(result_with(many))
    np.testing.assert_array_equal(positions_of(tmp_path / "b.ome.zarr")[0], [many])


MORE_PLANS = {
    "phases": useq.MDASequence(time_plan=[{"interval": 0, "loops": 2}, {"interval": 0, "loops": 3}]),
    "planes of each tile": useq.MDASequence(
        axis_order="tpgcz",
        time_plan=TIME,
        stage_positions=[(0, 0), (10, 0)],
        grid_plan={"rows": 2, "columns": 1},
        channels=["DAPI", "FITC"],
        z_plan={"range": 4, "step": 2},
    ),
    "tiles before positions": useq.MDASequence(
        axis_order="tgp", time_plan=TIME, stage_positions=[(0, 0), (10, 0)], grid_plan={"rows": 1, "columns": 3}
    ),
    "tiles of one position": useq.MDASequence(
        time_plan=TIME,
        axis_order="tpg",
        stage_positions=[
            useq.Position(x=0, y=0, sequence=useq.MDASequence(grid_plan={"rows": 1, "columns": 2})),
            (10, 0),
        ],
    ),
    "a plate": useq.MDASequence(
        time_plan=TIME,
        channels=["DAPI"],
        stage_positions=useq.WellPlatePlan(
            plate=96,
            a1_center_xy=(0, 0),
            selected_wells=([0, 1], [0, 1]),
            well_points_plan=useq.RandomPoints(num_points=2, random_seed=1),
        ),
    ),
    "an autofocus": useq.MDASequence(
        time_plan=TIME, channels=["DAPI", "FITC"], autofocus_plan={"autofocus_motor_offset": 1.0, "axes": ("c",)}
    ),
}


@pytest.mark.parametrize("plan", {**PLANS, **MORE_PLANS}.values(), ids=[*PLANS, *MORE_PLANS])
def test_the_place_of_an_event_is_its_number_in_the_plan_and_its_slot_its_own(plan):
    layout = LabelLayout(LiveSequence(0, plan))
    events = [dict(event.index) for event in plan if event.action.type == "acquire_image"]
    places = [layout.places.place(result_with(None, index=index)) for index in events]
    assert places == list(range(len(events)))
    assert layout.places.count() == len(events)
    assert [dict(layout.places.index(place)) for place in places] == events
    assert len({layout.slot(place) for place in places}) == len(events)


def test_a_frame_outside_the_plan_is_an_error_and_those_after_it_are_stored(tmp_path):
    sequence, image = LiveSequence(0, PLANS["time"]), frames((40, 30))[0]
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number, t in enumerate((0, 9, 2, 1, 3)):
            message = {9: r"no frame with the index \{'t': 9\}", 1: "has passed"}.get(t)
            came = result_with(image, number, {"t": t}, sequence=sequence)
            with pytest.raises(OutputError, match=message) if message else nullcontext():
                writer.result(came)
    assert [(row["frame"], row["outcome"]) for row in rows_of(tmp_path / "l.csv")] == [
        ("0", "done"),
        ("", "failed"),
        ("1", "missing"),
        ("2", "done"),
        ("", "failed"),
        ("3", "done"),
    ]
    stored = positions_of(tmp_path / "l.ome.zarr")[0].any(axis=(-2, -1))
    assert stored.tolist() == [True, False, True, True]


def test_metadata_that_are_no_mapping_cost_no_row(tmp_path):
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        writer.result(replace(result_with(frames((40, 30))[0]), meta="none"))
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["done"]


def test_labels_of_another_run_do_not_stay_beside_a_new_table(tmp_path):
    measured = {"label": np.arange(1, 4), "area": np.ones(3)}
    with LabelWriter(tmp_path / "l.ome.zarr", overwrite=True) as writer:
        writer.result(result_with(frames((40, 30))[0], table=measured))
    with LabelWriter(tmp_path / "l.ome.zarr", overwrite=True) as writer:
        writer.dropped(DroppedFrames(0, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["l.csv"]
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["dropped"]


@pytest.mark.parametrize("plan", ["time and channels", "positions inside time"])
def test_a_sequence_that_ends_in_dropped_frames_has_a_place_for_each(tmp_path, plan):
    sequence = LiveSequence(0, PLANS[plan])
    events = [dict(event.index) for event in PLANS[plan]]
    image = frames((40, 30))[0]
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        writer.sequence_started(sequence)
        for number, index in enumerate(events[:6]):
            writer.result(result_with(image, number, index, sequence=sequence))
        writer.dropped(DroppedFrames(6, len(events) - 1, sequence))
        writer.sequence_finished(sequence)
    positions = positions_of(tmp_path / "l.ome.zarr")
    assert sum(position.any(axis=(-2, -1)).sum() for position in positions) == 6
    assert sum(position[..., 0, 0].size for position in positions) == len(events)
    *done, last = rows_of(tmp_path / "l.csv")
    assert [row["outcome"] for row in done] == ["done"] * 6
    assert [{axis: int(row[axis]) for axis in index} for row, index in zip(done, events, strict=False)] == events[:6]
    assert (last["outcome"], last["frame"], last["frames"]) == ("dropped", "6", str(len(events) - 6))
    assert {axis: int(last[axis]) for axis in events[6]} == events[6]


def test_a_sequence_of_dropped_frames_alone_has_a_table_and_counts_among_the_files(tmp_path):
    image = frames((40, 30))[0]
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number, name in enumerate(("first", "second", "third")):
            sequence = LiveSequence(number, None, {}, first=2 * number)
            writer.sequence_started(sequence)
            if name == "second":
                writer.dropped(DroppedFrames(2 * number, 2 * number + 1, sequence))
            else:
                for frame in (2 * number, 2 * number + 1):
                    writer.result(result_with(image, frame, sequence=sequence))
            writer.sequence_finished(sequence)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "l.csv", "l.ome.zarr", "l_001.csv", "l_002.csv", "l_002.ome.zarr",
    ]  # fmt: skip
    assert [(row["frame"], row["frames"], row["outcome"]) for row in rows_of(tmp_path / "l_001.csv")] == [
        ("0", "2", "dropped"),
    ]


def test_the_table_says_when_and_where_each_frame_was_taken(camera, tmp_path):
    grid = useq.MDASequence(grid_plan=useq.GridRowsColumns(rows=1, columns=2, fov_width=100, fov_height=100))
    places = [useq.Position(x=0, y=20, name="well A", sequence=grid), useq.Position(x=300, y=40, z=5)]
    acquire(camera, useq.MDASequence(stage_positions=places, channels=["DAPI", "FITC"]), tmp_path)
    rows = rows_of(tmp_path / "labels.csv")
    assert [(row["p"], row["g"], row["position"], row["channel"]) for row in rows] == [
        ("0", "0", "well A", "DAPI"),
        ("0", "1", "well A", "DAPI"),
        ("0", "0", "well A", "FITC"),
        ("0", "1", "well A", "FITC"),
        ("1", "", "", "DAPI"),
        ("1", "", "", "FITC"),
    ]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 60
    assert [round(float(row["x_um"])) for row in rows[-2:]] == [300, 300]
    assert [round(float(row["z_um"])) for row in rows[-2:]] == [5, 5]
    assert all(float(row["latency_ms"]) > 0 for row in rows)


REFUSED = {
    "labels.zarr": "name them labels.ome.zarr$",
    "labels.tif": "name them labels.ome.zarr, and convert them afterwards: unetrt convert labels.ome.zarr -o DIR",
    "labels.ome.TIFF": "name them labels.ome.zarr, and convert them afterwards: unetrt convert labels.ome.zarr -o DIR",
    "labels.png": "name them labels.ome.zarr$",
    "labels": "name them labels.ome.zarr$",
    ".ome.zarr": "name them labels.ome.zarr$",
}


@pytest.mark.parametrize(("name", "better"), REFUSED.items())
def test_another_ending_is_refused_with_the_nearest_one(tmp_path, name, better):
    with pytest.raises(OutputError, match=better):
        LabelWriter(tmp_path / name)


@pytest.mark.parametrize("there", ["l.ome.zarr", "l.csv", "l_objects.csv"])
def test_what_exists_is_refused_unless_it_may_be_replaced(tmp_path, there):
    (tmp_path / there).mkdir()
    with pytest.raises(OutputError, match="exists: give another name, remove it"):
        LabelWriter(tmp_path / "l.ome.zarr")


def test_overwriting_leaves_nothing_of_the_old(tmp_path):
    for images in (frames(*[(40, 30)] * 3), frames((50, 30))):
        with LabelWriter(tmp_path / "l.ome.zarr", overwrite=True) as writer:
            for number, image in enumerate(images):
                writer.result(result_with(classes_of(image), number))
    np.testing.assert_array_equal(positions_of(tmp_path / "l.ome.zarr")[0].reshape(-1, 50, 30), classes_of(images))


def test_an_unsupported_dtype_is_refused(tmp_path):
    with pytest.raises(OptionError, match="float32"):
        LabelWriter(tmp_path / "l.ome.zarr", dtype="float32")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ome_writers", None)
    with pytest.raises(BackendUnavailableError, match=r"ome_writers.*unetrt\[acquire\]"):
        LabelWriter(tmp_path / "l.ome.zarr")


def test_the_acquisition_is_not_slowed(camera, tmp_path):
    plan = useq.MDASequence(time_plan={"interval": 0.03, "loops": 25})
    at = []

    def seconds(*outputs):
        at.clear()
        camera.mda.run(plan, output=list(outputs) or None)
        return at[-1] - at[0]

    def frame_ready(image, event, meta):
        at.append(time.perf_counter())

    camera.mda.events.frameReady.connect(frame_ready)
    writer = LabelWriter(tmp_path / "labels.ome.zarr")
    alone = seconds()
    with LiveSegmenter(segmenter(0.1), policy="drop_oldest", capacity=4, kind="classes", outputs=[writer]) as live:
        beside = seconds(live)
        live.flush()
        assert live.status().dropped > 5
    assert beside < 2 * alone  # each of 25 frames waited for: 0.1 s instead of 0.03 s
