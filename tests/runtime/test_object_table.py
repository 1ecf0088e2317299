"""Tables of objects, against scikit-image's `regionprops_table`."""

import csv

import numpy as np
import pytest
from skimage.measure import regionprops_table

from unetrt.runtime import Objects
from unetrt.runtime.files.object_table import object_table
from unetrt.runtime.timings import Timings

NAMES = ("label", "area", "centroid", "bbox", "mean_intensity")
RNG = np.random.default_rng(0)


def objects(labels, confidence=None):
    return Objects(labels, labels.max(axis=(-2, -1)), confidence, Timings())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("channels", [1, 2])
def test_rows_are_those_of_scikit_image(tmp_path, channels):
    labels = np.zeros((2, 30, 40), np.int32)
    labels[0, 2:9, 3:5], labels[0, 20:30, 30:40], labels[0, 21:23, 31:33] = 1, 2, 3
    labels[1, 0, 0] = 1
    frames = RNG.integers(0, 60000, (2, 30, 40) if channels == 1 else (2, channels, 30, 40)).astype(np.uint16)
    confidence = np.array([0.25, 1, 0, 0.5], np.float32)
    with object_table(tmp_path / "objects.csv", channels, confident=True) as table:
        table.add("a.tif", frames, objects(labels, confidence))
    found = rows(tmp_path / "objects.csv")
    assert [(row["image"], row["frame"], row["label"]) for row in found] == [
        ("a.tif", "0", "1"), ("a.tif", "0", "2"), ("a.tif", "0", "3"), ("a.tif", "1", "1"),
    ]  # fmt: skip
    assert [row["confidence"] for row in found] == ["0.2500", "1.0000", "0.0000", "0.5000"]
    for number in range(2):
        grey = frames[number] if channels == 1 else np.moveaxis(frames[number], 0, -1)
        expected = regionprops_table(labels[number], grey, properties=NAMES)
        mine = [row for row in found if row["frame"] == str(number)]
        assert set(expected) == set(found[0]) - {"image", "frame", "confidence"}
        for name, values in expected.items():
            np.testing.assert_allclose([float(row[name]) for row in mine], values, rtol=1e-5, atol=1e-3)


def test_a_single_frame_without_confidence(tmp_path):
    labels = np.eye(3, dtype=np.int32)
    with object_table(tmp_path / "objects.csv", 1, confident=False) as table:
        table.add("a.tif", labels.astype(bool), objects(labels))
    (row,) = rows(tmp_path / "objects.csv")
    assert (row["area"], row["centroid-0"], row["mean_intensity"], row["frame"]) == ("3", "1.000", "1", "0")
    assert "confidence" not in row


def test_nothing_is_left_after_an_exception(tmp_path):
    with pytest.raises(KeyError), object_table(tmp_path / "objects.csv", 1, confident=False):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
