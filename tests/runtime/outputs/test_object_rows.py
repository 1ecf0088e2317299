"""Objects of frames that are measured and traced by windows: all files are those of the frame in memory."""

import tracemalloc

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from tests.runtime.outputs.label_maps import MAPS, random_maps
from unetrt.benchmarks.saving import discs
from unetrt.runtime.errors import FrameError, OptionError, OutputError
from unetrt.runtime.files.outputs import opened_outputs, polygons
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.object_rows import SavedParts, assembled
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.model import measurements
from unetrt.runtime.model.measurements import measure_part

RNG = np.random.default_rng(0)
FILES = {"table": "objects.csv", "parquet": "objects.parquet", "geojson": "geojson/a.geojson", "rois": "rois/a.zip"}


def windows(shape, size):
    """Return the windows of a grid on a frame, row by row."""
    return [
        (slice(row, row + size[0]), slice(column, column + size[1]))
        for row in range(0, shape[0], size[0])
        for column in range(0, shape[1], size[1])
    ]


def saved_parts(folder, labels, frame, places):
    """Measure the windows of a frame (H, W), and save each as a file."""
    paths = [folder / f"{number}.npz" for number in range(len(places))]
    for path, at in zip(paths, places, strict=True):
        with path.open("wb") as file:
            measure_part(labels[at], frame[:, *at], tuple(along.start for along in at)).save(file)
    return SavedParts(paths)


def by_windows(folder, image, size=(40, 70)):
    """Return an image whose labels are a Zarr array, and its objects measured by parts."""
    rows = []
    for number, (plane, frame) in enumerate(zip(image.planes, image.frames, strict=True)):
        (parts := folder / f"parts{number}").mkdir(parents=True)
        found = saved_parts(parts, plane, frame, windows(plane.shape, size))
        rows.append(assembled(folder / f"rows{number}", found))
    labels = zarr.create_array(
        folder / "labels.zarr", data=image.labels, chunks=(*[1] * (image.labels.ndim - 2), 32, 32)
    )
    known = {name: getattr(image, name) for name in ("kind", "frames", "axes", "pixel_size", "confidence", "source")}
    return LabelledImage(image.name, labels, **known, rows=rows)


def written(folder, image, kinds=tuple(FILES)):
    with opened_outputs(folder, kinds, channels=image.channels, confident=image.confidence is not None) as outputs:
        outputs.write(image)
    return {kind: (folder / FILES[kind]).read_bytes() for kind in kinds}


@pytest.fixture
def small_groups(monkeypatch):
    """Let the objects of small images be in several groups and windows."""
    monkeypatch.setattr("unetrt.runtime.files.outputs.object_rows.GROUP", 7)
    monkeypatch.setattr(measurements, "GROUP", 7)
    monkeypatch.setattr(polygons, "SIDE", 50)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("confident", [True, False])
def test_the_files_of_an_image_are_the_same_by_windows(tmp_path, confident):
    labels = discs(5)
    labels[10:150, 3] = labels.max() + 1  # a line across several windows, larger than one
    labels[159, 20:] = labels.max() + 1
    frames = RNG.integers(0, 60000, (1, 2, *labels.shape)).astype(np.uint16)
    confidence = [RNG.random(labels.max()).astype(np.float32)] if confident else None
    image = LabelledImage("a", labels, frames=frames, pixel_size=PixelSize(0.5, 0.5), confidence=confidence)
    assert written(tmp_path / "a", by_windows(tmp_path, image)) == written(tmp_path / "b", image)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(("axes", "lengths"), [("ZYX", (3,)), ("TZYX", (2, 2))])
def test_the_files_of_a_stack_are_the_same_by_windows(tmp_path, axes, lengths):
    planes = [discs(3) * (number != 1) for number in range(int(np.prod(lengths)))]  # one frame has no objects
    labels = np.stack(planes).reshape(*lengths, *planes[0].shape)
    image = LabelledImage("a", labels, frames=RNG.normal(size=(len(planes), 1, *planes[0].shape)) > 0, axes=axes)
    assert written(tmp_path / "a", by_windows(tmp_path, image)) == written(tmp_path / "b", image)


@pytest.mark.usefixtures("small_groups")
def test_outlines_of_classes_are_the_same_by_windows(tmp_path):
    labels = (discs(4) % 3).astype(np.uint8)
    image = LabelledImage("a", labels, "classes", frames=labels[None, None])
    kinds = ("geojson", "rois")
    assert written(tmp_path / "a", by_windows(tmp_path, image), kinds) == written(tmp_path / "b", image, kinds)


def test_labels_with_all_that_outlines_can_have(tmp_path, monkeypatch):
    for number, labels in enumerate([*MAPS.values(), *random_maps(16)]):
        monkeypatch.setattr(polygons, "SIDE", 1 + number % 12)
        image = LabelledImage("a", labels, frames=labels[None, None])
        folder, size = tmp_path / str(number), (1 + number % 5, 1 + number % 7)
        found = written(folder / "a", by_windows(folder, image, size), ("table", "geojson"))
        assert found == written(folder / "b", image, ("table", "geojson"))


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("seed", range(4))
def test_touching_objects_whose_boxes_overlap(tmp_path, seed):
    """A Voronoi tessellation, so that windows show parts of other objects; numbers are in no order."""
    seeds = np.random.default_rng(seed).uniform(0, 120, (60, 2))
    labels = cKDTree(seeds).query(np.indices((120, 120)).transpose(1, 2, 0))[1] + 1
    image = LabelledImage("a", labels, frames=labels[None, None].astype(np.uint8))
    assert written(tmp_path / "a", by_windows(tmp_path, image)) == written(tmp_path / "b", image)


@given(st.data())
def test_parts_may_have_any_order(tmp_path_factory, data):
    folder, labels = tmp_path_factory.mktemp("order"), discs(3)
    labels[:, 50] = labels.max() + 1
    places = windows(labels.shape, (data.draw(st.integers(9, 99)), data.draw(st.integers(9, 99))))
    parts = [
        measure_part(labels[at], None, tuple(along.start for along in at)) for at in data.draw(st.permutations(places))
    ]
    (found,) = assembled(folder / "rows", parts).groups()
    for name, values in measurements.measurements(labels)._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), values, name)


def test_outlines_as_pngs_are_refused_before_anything_is_written(tmp_path):
    labels = discs(1)
    image = by_windows(tmp_path / "in", LabelledImage("a", labels, frames=labels[None, None]))
    message = "PNG of outlines needs all of 'a' in memory.*: use --save geojson, rois or ome-zarr instead of outlines"
    with pytest.raises(OptionError, match=message):
        written(tmp_path / "out", image, ["table", "geojson", "outlines"])
    assert not list((tmp_path / "out").rglob("*.*"))


def test_an_object_beyond_the_largest_window_is_refused(tmp_path, monkeypatch):
    labels = np.zeros((60, 80), np.int32)
    labels[5, 5], labels[10:40, 20:70] = 1, 2
    image = by_windows(tmp_path / "in", LabelledImage("a", labels, frames=labels[None, None]))
    monkeypatch.setattr(polygons, "SIDE", 10)
    monkeypatch.setattr(polygons, "MOST", 30 * 50)
    written(tmp_path / "a", image, ["geojson"])
    monkeypatch.setattr(polygons, "MOST", 30 * 50 - 1)
    for kind in ("geojson", "rois"):
        with pytest.raises(FrameError, match="label 2 covers 30 x 50 px, and outlines are traced up to 1499 px: use"):
            written(tmp_path / "b", image, [kind])
    assert not list((tmp_path / "b").rglob("*.*"))


def test_more_rois_than_a_file_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("unetrt.runtime.files.outputs.imagej_rois.MOST", 3)
    written(tmp_path / "a", LabelledImage("a", discs(2)[:, : 32 * 2] % 4), ["rois"])
    with pytest.raises(FrameError, match=r"a\.zip would hold more than 3 ROIs.*: save geojson"):
        written(tmp_path / "b", LabelledImage("a", discs(2)), ["rois"])
    assert not list((tmp_path / "b").rglob("*.*"))


def test_labels_that_were_not_measured_are_refused(tmp_path, monkeypatch):
    labels = discs(2)
    image = by_windows(tmp_path / "in", LabelledImage("a", labels, frames=labels[None, None]))
    image.labels[...] = 0
    monkeypatch.setattr(polygons, "SIDE", 10)
    with pytest.raises(FrameError, match="label 1 has no pixel in rows .* where it was measured"):
        written(tmp_path / "a", image, ["geojson"])


def test_parts_and_frames_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FrameError, match="at least one part"):
        assembled(tmp_path / "rows", [])
    parts = [measure_part(np.ones((2, 2), np.uint8), frame) for frame in (None, np.zeros((1, 2, 2)))]
    with pytest.raises(FrameError, match="the same channels"):
        assembled(tmp_path / "rows", parts)
    assert not list(tmp_path.iterdir())
    rows = assembled(tmp_path / "rows", parts[:1])
    with pytest.raises(FrameError, match="a has 2 frames, and measurements of 1"):
        LabelledImage("a", np.ones((2, 2, 2), np.uint8), rows=[rows])


def test_a_file_of_measurements_that_was_cut_is_refused(tmp_path):
    rows = assembled(tmp_path / "rows", [measure_part(discs(3))])
    assert sum(len(found.labels) for found in rows.groups()) == 9
    rows.path.write_bytes(rows.path.read_bytes()[: -rows.record.itemsize])
    with pytest.raises(FrameError, match=r"rows has \d+ bytes, not \d+: measure the objects again"):
        list(rows.groups())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        assembled(tmp_path / "file" / "rows", [measure_part(np.ones((2, 2), np.uint8))])


class Counted:
    """Labels of a frame that are computed: a disc in each square of 32 pixels. Counts the pixels that are read."""

    def __init__(self, side):
        self.side, self.shape, self.ndim, self.read = side, (32 * side, 32 * side), 2, 0
        y, x = np.indices((32, 32)) - 15.5
        self.disc = y**2 + x**2 < 13**2

    def __getitem__(self, index):
        rows, columns = (np.arange(*along.indices(length)) for along, length in zip(index, self.shape, strict=True))
        self.read += len(rows) * len(columns)
        number = (rows // 32 * self.side)[:, None] + columns // 32 + 1
        return np.where(self.disc[np.ix_(rows % 32, columns % 32)], number, 0).astype(np.int32)


def test_memory_is_bounded_and_windows_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "GROUP", 2**7)
    monkeypatch.setattr("unetrt.runtime.files.outputs.object_rows.GROUP", 2**7)
    peaks = []
    for side in (24, 48):
        labels = Counted(side)
        paths = [tmp_path / f"{side}-{number}.npz" for number in range(len(windows(labels.shape, (200, 100))))]
        for path, at in zip(paths, windows(labels.shape, (200, 100)), strict=True):
            with path.open("wb") as file:
                measure_part(labels[at], None, tuple(along.start for along in at)).save(file)
        labels.read = 0
        tracemalloc.start()
        rows = assembled(tmp_path / f"rows{side}", SavedParts(paths))
        with opened_outputs(tmp_path / str(side), ["table", "geojson"], channels=0) as outputs:
            outputs.write(LabelledImage("a", labels, rows=[rows]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert labels.read < 1.5 * labels.shape[0] ** 2
        assert (tmp_path / str(side) / "objects.csv").read_text().count("\n") == side**2 + 1
    assert peaks[1] < 1.3 * peaks[0]
