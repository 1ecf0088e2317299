"""GeoJSON for QuPath: shapely reads back what was written, and filling it gives the labels."""

import json
from uuid import UUID

import numpy as np
import pytest
import shapely
from shapely.geometry import shape as shape_of

from tests.runtime.outputs.label_maps import MAPS, drawn, random_maps
from unetrt.benchmarks.saving import discs
from unetrt.runtime.files.outputs.geojson import write_geojson
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.pixel_size import PixelSize


def written(path, image):
    write_geojson(path, image)
    collection = json.loads(path.read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    return collection["features"]


def test_filling_gives_the_labels_back(tmp_path):
    for labels in [*MAPS.values(), *random_maps(40), discs(5)]:
        found = np.zeros_like(labels)
        y, x = np.indices(labels.shape) + 0.5
        for feature in written(tmp_path / "a.geojson", LabelledImage("a", labels)):
            geometry = shape_of(feature["geometry"])
            assert geometry.is_valid
            inside = shapely.contains_xy(geometry, x, y)
            assert not found[inside].any()
            found[inside] = int(feature["properties"]["name"])
        np.testing.assert_array_equal(found, labels)


def test_objects_are_detections_with_their_measurements(tmp_path):
    labels = drawn("11.2 11.2 ....")
    frames = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)
    image = LabelledImage("a", labels, frames=frames, pixel_size=PixelSize(0.5, 0.5), confidence=[np.array([0.5, 1.0])])
    first, second = written(tmp_path / "a.geojson", image)
    assert first["type"] == "Feature"
    assert first["geometry"] == {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]}
    assert (first["properties"]["objectType"], first["properties"]["name"]) == ("detection", "1")
    assert "classification" not in first["properties"]
    measurements = first["properties"]["measurements"]
    assert (measurements["label"], measurements["area"], measurements["area_um2"]) == (1, 4, 1)
    assert (measurements["mean_intensity"], measurements["confidence"]) == (2.5, 0.5)
    assert all(isinstance(value, int | float) for value in measurements.values())
    assert second["properties"]["measurements"]["max_intensity"] == 7


def test_what_is_not_known_is_left_out(tmp_path):
    (feature,) = written(tmp_path / "a.geojson", LabelledImage("a", np.ones((2, 2), np.int32)))
    assert not {"area_um2", "mean_intensity", "confidence"} & set(feature["properties"]["measurements"])
    assert "NaN" not in (tmp_path / "a.geojson").read_text()


def test_classes_are_annotations_with_a_classification(tmp_path):
    features = written(tmp_path / "a.geojson", LabelledImage("a", drawn("11.2 .1.. 2..2"), "classes"))
    assert [feature["properties"]["objectType"] for feature in features] == ["annotation"] * 2
    found = [feature["properties"]["classification"] for feature in features]
    assert [one["name"] for one in found] == ["class 1", "class 2"]
    assert all(len(one["color"]) == 3 and all(0 <= part <= 255 for part in one["color"]) for one in found)
    assert found[0]["color"] != found[1]["color"]
    assert features[1]["geometry"]["type"] == "MultiPolygon"


@pytest.mark.parametrize(
    ("shape", "axes", "planes"),
    [
        ((3, 4), None, [None]),
        ((2, 3, 4), "TYX", [{"c": -1, "z": 0, "t": 0}, {"c": -1, "z": 0, "t": 1}]),
        ((2, 3, 4), "ZYX", [{"c": -1, "z": 0, "t": 0}, {"c": -1, "z": 1, "t": 0}]),
        ((1, 2, 3, 4), "TZYX", [{"c": -1, "z": 0, "t": 0}, {"c": -1, "z": 1, "t": 0}]),
    ],
)  # fmt: skip
def test_frames_of_stacks_have_a_plane(tmp_path, shape, axes, planes):
    features = written(tmp_path / "a.geojson", LabelledImage("a", np.ones(shape, np.int32), axes=axes))
    assert [feature["geometry"].get("plane") for feature in features] == planes


def test_identifiers_are_unique_and_follow_from_the_labels(tmp_path):
    image = LabelledImage("a", np.stack([drawn("12"), drawn("21")]))
    first = [feature["id"] for feature in written(tmp_path / "a.geojson", image)]
    assert len({UUID(one) for one in first}) == 4
    assert [feature["id"] for feature in written(tmp_path / "b.geojson", image)] == first


def test_no_labels_are_an_empty_collection(tmp_path):
    assert written(tmp_path / "a.geojson", LabelledImage("a", np.zeros((3, 4), np.int32))) == []
