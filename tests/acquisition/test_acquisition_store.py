"""Frames and labels of acquisitions without a known plan, stored together."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import defaultdict
from dataclasses import replace
from queue import Queue

import numpy as np
import pytest
import useq
import yaozarrs
import zarr

from tests.acquisition.cameras import two_cameras
from tests.acquisition.files import rows_of
from tests.acquisition.segmenters import classes_of, segmenter
from tests.acquisition.stored_run import FAILS, frame_of
from unetrt.runtime import LiveSegmenter, acquisition, list_images
from unetrt.runtime.acquisition import AcquisitionStore
from unetrt.runtime.errors import BackendUnavailableError, OutputError
from unetrt.runtime.files.images import read_stack
from unetrt.runtime.live.results import DroppedFrames, LiveResult, LiveSequence, Outcome, StreamKey

GREY = np.random.default_rng(0).integers(1, 60000, (40, 56)).astype(np.uint16)


def result_of(frame, number=0, *, labels=True, size=None, **more):
    """A result whose labels are object numbers, those of the pixels' columns."""
    height, width = size or np.shape(frame)[-2:]
    found = np.tile(np.arange(width, dtype=np.int32), (height, 1)) if labels else None
    outcome = Outcome.DONE if labels else Outcome.FAILED
    error = None if labels else ValueError("no labels")
    defaults = {"index": {"t": number}, "meta": {}, "sequence": None}
    return LiveResult(outcome, number, frame=frame, labels=found, error=error, **{**defaults, **more})


def images_of(path):
    """Check a store as a reader finds it, and return (image, labels) of each series; labels may be None."""
    yaozarrs.validate_zarr_store(str(path))
    found = []
    for name in zarr.open_group(path / "OME", mode="r").attrs["ome"]["series"]:
        image = path / name
        pixels = zarr.open_array(image / "0", mode="r")  # before the labels, which are never behind
        labels = None
        if (image / "labels" / "zarr.json").is_file():
            yaozarrs.validate_zarr_store(str(image / "labels" / "objects"))
            labels = zarr.open_array(image / "labels" / "objects" / "0", mode="r")
        found.append((pixels, labels))
    return found


def places_of(table):
    """Return the rows of the frames that a table says are stored, by (series, index on the first axis)."""
    places = {}
    for row in rows_of(table):
        if row["frame"]:
            about = json.loads(row["index"])
            places[about["series"], about["series_frame"]] = row
    return places


def test_events_decided_by_results_are_stored_and_read_while_they_come(core, tmp_path):
    """The number of frames of each position follows from the labels; the reader sees whole frames only."""
    path, events, given, read, ended = tmp_path / "run.ome.zarr", Queue(), {}, {}, threading.Event()
    core.setROI(0, 0, 96, 64)

    def decide(result):
        number = result.index["n"] + 1
        if number == 40:
            events.put(None)
            return
        position = int(result.labels.sum()) % 3
        name = ("../a", "b/c", "")[position]
        channel = ("DAPI", "FITC")[number % 2]
        index = {"n": number, "p": position}
        events.put(useq.MDAEvent(index=index, channel=channel, pos_name=name, x_pos=position * 10, y_pos=5))

    def look():
        while not ended.is_set():
            if (path / "zarr.json").is_file():
                for number, (pixels, labels) in enumerate(images_of(path)):
                    assert labels.shape[0] >= pixels.shape[0]
                    read[number, pixels.shape[0] - 1] = (pixels[-1], labels[pixels.shape[0] - 1])

    def note(image, event, _meta):
        given[event.index["n"]] = image.copy()

    errors = []
    reader = threading.Thread(target=lambda: errors.append(_raised(look)))
    reader.start()
    events.put(useq.MDAEvent(index={"n": 0, "p": 0}, channel="DAPI"))
    core.mda.events.frameReady.connect(note)
    store = AcquisitionStore(path)
    with LiveSegmenter(segmenter(), policy="drop_oldest", kind="classes", outputs=[store], on_result=decide) as live:
        core.mda.run(iter(events.get, None), output=[live])
        live.flush()
        assert live.status().output_errors == 0, live.status().last_error
    ended.set()
    reader.join()
    assert errors == [None]
    assert read, "the store was to be read while it grew"

    places, images = places_of(tmp_path / "run.csv"), images_of(path)
    assert len(places) == len(given) == 40
    assert sum(pixels.shape[0] for pixels, _ in images) == 40
    keys = defaultdict(set)
    for (series, place), row in places.items():
        number = json.loads(row["index"])["n"]
        keys[series].add((row["p"], row["channel"], row["position"]))
        pixels, labels = images[series]
        np.testing.assert_array_equal(pixels[place], given[number])
        np.testing.assert_array_equal(labels[place], classes_of(given[number]))
        assert row["outcome"] == "done"
    assert all(len(own) == 1 for own in keys.values())
    for (series, place), (pixels, labels) in read.items():
        np.testing.assert_array_equal(pixels, images[series][0][place])
        np.testing.assert_array_equal(labels, images[series][1][place])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.csv", "run.ome.zarr"]


def test_the_cameras_of_a_multi_camera_are_images_of_their_own(core, tmp_path):
    two_cameras(core)
    given = defaultdict(list)
    core.mda.events.frameReady.connect(lambda image, event, _meta: given[event.index["cam"]].append(image.copy()))
    store, events = AcquisitionStore(tmp_path / "run.ome.zarr"), Queue()
    for number in range(3):
        events.put(useq.MDAEvent(index={"n": number}))
    events.put(None)
    with LiveSegmenter(segmenter(), policy="drop_oldest", kind="classes", outputs=[store]) as live:
        core.mda.run(iter(events.get, None), output=[live])
    images = images_of(tmp_path / "run.ome.zarr")
    assert [pixels.shape for pixels, _ in images] == [(3, 64, 96), (3, 64, 96)]
    for number, (pixels, _) in enumerate(images):
        np.testing.assert_array_equal(pixels[...], np.stack(given[number]))
        attributes = zarr.open_group(tmp_path / "run.ome.zarr" / str(number), mode="r").attrs["unetrt"]
        assert attributes["camera"] == ("Camera", "Camera2")[number]


def _raised(work):
    try:
        work()
    except Exception as error:  # noqa: BLE001 - shown by the test
        return error
    return None


@pytest.mark.parametrize("seed", range(3))
def test_a_store_is_valid_after_a_kill_at_a_random_moment(tmp_path, seed):
    path, table = tmp_path / "run.ome.zarr", tmp_path / "run.csv"
    process = subprocess.Popen([sys.executable, "-m", "tests.acquisition.stored_run", str(path)])
    end = time.monotonic() + 60
    while not (table.is_file() and table.read_bytes().count(b"\n") > 25):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(random.Random(seed).uniform(0, 0.1))
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()

    images, places = images_of(path), places_of(table)
    stored = sum(pixels.shape[0] for pixels, _ in images)
    assert len(places) <= stored <= len(places) + 1, "each frame of the table is in the store"
    for position, (pixels, labels) in enumerate(images):
        for place in range(pixels.shape[0]):
            number = 2 * place + position
            np.testing.assert_array_equal(pixels[place], frame_of(number))
            failed = number % FAILS == FAILS - 1
            np.testing.assert_array_equal(labels[place], 0 if failed else classes_of(frame_of(number)))
            row = places.get((position, place))
            assert row is None or row["outcome"] == ("failed" if failed else "done")


@pytest.mark.parametrize(
    ("frame", "labelled", "stored"),
    [
        (GREY, True, GREY),
        (GREY[None, None], True, GREY),
        (GREY[..., None], False, GREY),
        (np.stack([GREY, GREY + 1]), True, np.stack([GREY, GREY + 1])),
        (np.stack([GREY, GREY + 1, GREY], axis=-1), False, np.stack([GREY, GREY + 1, GREY])),
        (GREY > 30000, True, (GREY > 30000).astype(np.uint8)),
        (GREY.astype(">u2"), True, GREY),
        (GREY.astype(np.float32), True, GREY.astype(np.float32)),
        (GREY.T, True, GREY.T),
        (GREY.tolist(), True, GREY.astype(np.int64)),
    ],
    ids=["grey", "one plane", "one channel", "planes", "colour", "mask", "big-endian", "float", "transposed", "list"],
)
def test_pixels_are_stored_as_they_came(tmp_path, frame, labelled, stored):
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    for number in range(2):
        store.result(result_of(frame, number, labels=labelled))
    store.close()
    ((pixels, labels),) = images_of(tmp_path / "run.ome.zarr")
    assert pixels.dtype == stored.dtype
    np.testing.assert_array_equal(pixels[...], np.stack([stored, stored]))
    if labelled:
        assert (labels.dtype, labels.shape) == (np.uint32, (2, *stored.shape[-2:]))


def test_what_differs_is_an_image_of_its_own(tmp_path):
    streams = [StreamKey(camera, channel) for camera in ("Camera-1", "Camera-2") for channel in ("", "DAPI")]
    results = [result_of(GREY, stream=stream) for stream in streams]
    results += [result_of(GREY, index={"p": 0}), result_of(GREY, index={"p": 0, "g": 1}), result_of(GREY[:20])]
    results += [result_of(GREY.astype(np.uint8)), result_of(GREY, index={"p": 0, "z": 3, "t": 8})]
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    for number, result in enumerate(results):
        store.result(replace(result, number=number))
    store.close()
    assert [pixels.shape[0] for pixels, _ in images_of(tmp_path / "run.ome.zarr")] == [1, 1, 1, 1, 2, 1, 1, 1]
    names = {item.name for item in (tmp_path / "run.ome.zarr").iterdir()}
    assert names == {"zarr.json", "OME", *map(str, range(8))}


def test_places_and_sizes_are_kept(tmp_path):
    event = useq.MDAEvent(index={"t": 0, "p": 4}, pos_name="../x", channel="DAPI", x_pos=1.5)
    meta = {"mda_event": event, "position": {"x": 1.5, "y": 2.0, "z": float("nan")}, "pixel_size_um": 0.25}
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    store.result(result_of(GREY, index={"t": 0, "p": 4, "odd": {1, 2}, 7: 3}, meta=meta))
    store.close()
    attributes = zarr.open_group(tmp_path / "run.ome.zarr" / "0", mode="r").attrs
    scales = attributes["ome"]["multiscales"][0]
    assert scales["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 0.25, 0.25]
    assert scales["name"] == "../x DAPI"
    about = attributes["unetrt"]
    assert (about["position"], about["channel"], about["x_um"], about["index"]["p"]) == ("../x", "DAPI", 1.5, 4)
    assert "z_um" not in about
    row = places_of(tmp_path / "run.csv")[0, 0]
    assert (row["position"], row["x_um"], row["p"]) == ("../x", "1.5", "4")
    (source,) = list_images(tmp_path / "run.ome.zarr")
    np.testing.assert_array_equal(read_stack(source).squeeze(), GREY)


def test_frames_without_labels_come_with_background(tmp_path):
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    for number, labels in enumerate([False, False, True, False]):
        store.result(result_of(GREY + number, number, labels=labels))
        ((pixels, found),) = images_of(tmp_path / "run.ome.zarr")
        assert pixels.shape[0] == number + 1
        assert found is None if number < 2 else found.shape == pixels.shape
    store.close()
    ((pixels, found),) = images_of(tmp_path / "run.ome.zarr")
    assert [bool(found[number].any()) for number in range(4)] == [False, False, True, False]
    assert len(list((tmp_path / "run.ome.zarr" / "0" / "labels" / "objects" / "0" / "c").iterdir())) == 4
    assert [row["outcome"] for row in rows_of(tmp_path / "run.csv")] == ["failed", "failed", "done", "failed"]


def test_dropped_frames_are_one_row(tmp_path):
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    store.result(result_of(GREY, 0))
    store.dropped(DroppedFrames(1, 1_000_000))
    store.result(result_of(GREY, 1_000_001))
    store.close()
    rows = rows_of(tmp_path / "run.csv")
    assert [(row["frame"], row["frames"], row["outcome"]) for row in rows] == [
        ("0", "1", "done"), ("", "1000000", "dropped"), ("1", "1", "done"),
    ]  # fmt: skip
    assert images_of(tmp_path / "run.ome.zarr")[0][0].shape[0] == 2


def test_objects_are_rows_of_their_table(tmp_path):
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    store.result(result_of(GREY, 0, table={"label": np.array([1, 2]), "area": np.array([4.0, 5.0])}))
    with pytest.raises(OutputError, match="do not fit"):
        store.result(result_of(GREY, 1, table={"label": np.array([1])}))
    store.close()
    assert rows_of(tmp_path / "run_objects.csv")[1] == {"frame": "0", "label": "2", "area": "5"}
    assert [bool(row["error"]) for row in rows_of(tmp_path / "run.csv")] == [False, True]
    assert images_of(tmp_path / "run.ome.zarr")[0][0].shape[0] == 2


@pytest.mark.parametrize(
    "frame", [GREY[0], np.array([["a"]]), GREY.astype(complex), np.empty((0, 4), np.uint8), None, "text"], ids=repr
)
def test_what_is_no_image_is_a_row_and_an_error(tmp_path, frame):
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    with pytest.raises(OutputError, match="is not stored"):
        store.result(result_of(frame, size=(4, 4)))
    store.result(result_of(GREY, 1))
    store.close()
    assert [row["outcome"] for row in rows_of(tmp_path / "run.csv")] == ["failed", "done"]
    assert images_of(tmp_path / "run.ome.zarr")[0][0].shape[0] == 1


def test_each_sequence_has_its_own_store(tmp_path):
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    for number in range(2):
        sequence = LiveSequence(number, first=number)
        store.sequence_started(sequence)
        store.result(result_of(GREY + number, number, sequence=sequence))
        store.sequence_finished(sequence)
    store.close()
    for number, name in enumerate(["run", "run_001"]):
        assert images_of(tmp_path / f"{name}.ome.zarr")[0][0][0, 0, 0] == GREY[0, 0] + number


def test_an_image_keeps_no_frame_in_memory(tmp_path):
    """A night has thousands of images: positions, channels and tiles."""
    noise = np.random.default_rng(0).integers(0, 60000, (400, 500), np.uint16)

    def store_images(store, numbers):
        for number in numbers:
            store.result(result_of(noise, number, index={"p": number}))

    with AcquisitionStore(tmp_path / "run.ome.zarr") as store:
        store_images(store, range(3))
        tracemalloc.start()
        store_images(store, range(3, 13))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept < 10 * noise.nbytes / 2


def test_nothing_is_replaced_unless_asked(tmp_path):
    path = tmp_path / "run.ome.zarr"
    for _ in range(2):
        store = AcquisitionStore(path, overwrite=True)
        store.result(result_of(GREY))
        store.close()
        assert images_of(path)[0][0].shape[0] == 1
    with pytest.raises(OutputError, match="exists"):
        AcquisitionStore(path)
    other = tmp_path / "data.ome.zarr"
    zarr.create_group(other)
    with pytest.raises(OutputError, match="not replaced"):
        AcquisitionStore(other, overwrite=True)
    with pytest.raises(OutputError, match=r"\.ome\.zarr"):
        AcquisitionStore(tmp_path / "run.tif")


def test_a_full_disk_loses_the_frame_and_not_the_store(tmp_path):
    resource = pytest.importorskip("resource", reason="this system has no limit for the size of files")
    store = AcquisitionStore(tmp_path / "run.ome.zarr")
    noise = np.random.default_rng(1).integers(0, 60000, (400, 400)).astype(np.uint16)
    store.result(result_of(noise, 0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            store.result(result_of(noise + 1, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.result(result_of(noise + 2, 2))
    store.close()
    ((pixels, labels),) = images_of(tmp_path / "run.ome.zarr")
    np.testing.assert_array_equal(pixels[...], np.stack([noise, noise + 2]))
    assert labels.shape == (2, 400, 400)
    assert [row["outcome"] for row in rows_of(tmp_path / "run.csv")] == ["done", "failed", "done"]


@pytest.mark.parametrize("name", ["a", "../b", "<&>", "\x00\x1b[31m \ud800"])
def test_other_readers_open_an_image_with_its_labels_and_the_collection(tmp_path, name):
    io, reader = pytest.importorskip("ome_zarr.io"), pytest.importorskip("ome_zarr.reader")
    ome_types, napari = pytest.importorskip("ome_types"), pytest.importorskip("napari_ome_zarr")
    path, store = tmp_path / "run.ome.zarr", AcquisitionStore(tmp_path / "run.ome.zarr")
    meta = {"mda_event": useq.MDAEvent(pos_name=name), "pixel_size_um": 0.5}
    for number in range(5):
        store.result(result_of(GREY + number, number, index={"p": number % 2}, meta=meta))
    store.close()
    nodes = [node for node in reader.Reader(io.parse_url(path / "0"))() if node.data]
    assert [node.data[0].shape for node in nodes] == [(3, 40, 56), (3, 40, 56)]
    np.testing.assert_array_equal(np.asarray(nodes[0].data[0][2]), GREY + 4)
    images = ome_types.from_xml((path / "OME" / "METADATA.ome.xml").read_bytes()).images
    assert [(image.pixels.size_t, image.pixels.physical_size_x) for image in images] == [(3, 0.5), (2, 0.5)]
    layers = napari.napari_get_reader(str(path))(str(path))
    assert [(layer[2], layer[0][0].shape[0]) for layer in layers] == [
        ("image", 3),
        ("labels", 3),
        ("image", 2),
        ("labels", 2),
    ]


def test_a_missing_package_is_named(monkeypatch):
    for name in ("unetrt.runtime.acquisition.acquisition_store", "unetrt.runtime.acquisition.growing_zarr"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(BackendUnavailableError, match=r"AcquisitionStore needs zarr: pip install 'unetrt\[acquire\]'"):
        _ = acquisition.AcquisitionStore
