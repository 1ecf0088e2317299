"""Tables of objects, against scikit-image's `regionprops_table`."""

import csv

import numpy as np
import pytest
from pyarrow import parquet
from skimage.measure import regionprops_table

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.object_table import object_table
from unetrt.runtime.files.pixel_size import PixelSize

NAMES = ("label", "area", "centroid", "bbox", "mean_intensity", "max_intensity", "eccentricity", "solidity")
OWN = {"image", "frame", "confidence", "area_um2", "integrated_intensity"}
RNG = np.random.default_rng(0)


def drawn_labels():
    labels = np.zeros((2, 30, 40), np.int32)
    labels[0, 2:9, 3:5], labels[0, 20:30, 30:40], labels[0, 21:23, 31:33] = 1, 2, 3
    labels[1, 0, 0] = 1
    return labels


def rows(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["objects.csv", "objects.parquet"])
def test_rows_are_those_of_scikit_image(tmp_path, name, channels):
    labels = drawn_labels()
    frames = RNG.integers(0, 60000, (2, channels, 30, 40)).astype(np.uint16)
    confidence = [np.array([0.25, 1, 0], np.float32), np.array([0.5], np.float32)]
    image = LabelledImage("a", labels, frames=frames, confidence=confidence, source="a.tif")
    with object_table(tmp_path / name, channels, confident=True) as table:
        table.add(image)
    found = rows(tmp_path / name)
    assert [(row["image"], int(row["frame"]), int(row["label"])) for row in found] == [
        ("a.tif", 0, 1), ("a.tif", 0, 2), ("a.tif", 0, 3), ("a.tif", 1, 1),
    ]  # fmt: skip
    assert [float(row["confidence"]) for row in found] == [0.25, 1, 0, 0.5]
    assert {row["area_um2"] for row in found} == {None if name.endswith("parquet") else ""}
    for number in range(2):
        grey = frames[number, 0] if channels == 1 else np.moveaxis(frames[number], 0, -1)
        expected = regionprops_table(labels[number], grey, properties=NAMES)
        mine = [row for row in found if int(row["frame"]) == number]
        assert set(expected) == {key for key in found[0] if key.partition("-")[0] not in OWN}
        for key, values in expected.items():
            np.testing.assert_allclose([float(row[key]) for row in mine], values, rtol=1e-5, atol=1e-3)
        keys = ["integrated_intensity"] if channels == 1 else ["integrated_intensity-0", "integrated_intensity-1"]
        for channel, key in enumerate(keys):
            sums = [frames[number, channel][labels[number] == int(row["label"])].sum(dtype=int) for row in mine]
            assert [float(row[key]) for row in mine] == sums


@pytest.mark.parametrize(
    ("size", "area"), [(PixelSize(0.5, 0.25), 1.75), (PixelSize(500, 250, unit="nm"), 1.75), (None, None)]
)
def test_areas_in_square_micrometres(tmp_path, size, area):
    with object_table(tmp_path / "objects.csv", 0, confident=False) as table:
        table.add(LabelledImage("a", drawn_labels(), pixel_size=size))
    first = rows(tmp_path / "objects.csv")[0]
    assert first["area"] == "14"
    assert first["area_um2"] == ("" if area is None else f"{area:g}")
    assert not any("intensity" in key for key in first)


def test_a_single_frame_without_confidence(tmp_path):
    labels = np.eye(3, dtype=np.int32)
    with object_table(tmp_path / "objects.csv", 1, confident=False) as table:
        table.add(LabelledImage("a", labels, frames=labels.astype(bool)[None, None]))
    (row,) = rows(tmp_path / "objects.csv")
    assert (row["area"], row["centroid-0"], row["mean_intensity"], row["frame"]) == ("3", "1.000", "1", "0")
    assert "confidence" not in row


@pytest.mark.parametrize("name", ["objects.csv", "objects.parquet"])
def test_a_table_without_objects_has_the_names_of_its_columns(tmp_path, name):
    with object_table(tmp_path / name, 1, confident=True) as table:
        table.add(
            LabelledImage("a", np.zeros((3, 4), np.int32), frames=np.zeros((1, 1, 3, 4)), confidence=[np.zeros(0)])
        )
    if name.endswith("csv"):
        header = (tmp_path / name).read_text().splitlines()[0].split(",")
    else:
        header = parquet.read_schema(tmp_path / name).names
    assert header == [
        *("image", "frame", "label", "area", "centroid-0", "centroid-1", "bbox-0", "bbox-1", "bbox-2", "bbox-3"),
        *("mean_intensity", "confidence"),
        *("area_um2", "max_intensity", "integrated_intensity", "eccentricity", "solidity"),
    ]


def test_an_image_of_other_channels_is_refused(tmp_path):
    image = LabelledImage("a", np.eye(3, dtype=np.int32), frames=np.zeros((1, 2, 3, 3)), source="a.tif")
    message = "a.tif has 2 channels, and the table 1: give images of the same"
    with (
        object_table(tmp_path / "objects.csv", 1, confident=False) as table,
        pytest.raises(FrameError, match=message),
    ):
        table.add(image)


def test_names_that_spreadsheets_or_terminals_would_run_are_escaped(tmp_path):
    with object_table(tmp_path / "objects.csv", 0, confident=False) as table:
        table.add(LabelledImage("a", np.eye(3, dtype=np.int32), source="a\x1b[2J.tif"))
    assert rows(tmp_path / "objects.csv")[0]["image"] == "a\\x1b[2J.tif"


@pytest.mark.parametrize("name", ["objects.csv", "objects.parquet"])
def test_nothing_is_left_after_an_exception(tmp_path, name):
    with pytest.raises(KeyError), object_table(tmp_path / name, 1, confident=False):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
