"""Polygons of labels: exact, valid, and made in one pass over the frame."""

import time

import numpy as np
import pytest
import shapely

from tests.runtime.outputs.label_maps import MAPS, random_maps
from unetrt.benchmarks.saving import discs
from unetrt.runtime.files.outputs import polygons as module
from unetrt.runtime.files.outputs.polygons import polygons

ALL = [*MAPS.values(), *random_maps(100)]


def geometry(polygon):
    parts = [shapely.Polygon(outer, holes) for outer, *holes in polygon.parts]
    return shapely.MultiPolygon(parts)


def filled(geometry, shape):
    """Return the pixels whose centres lie in a geometry, (H, W)."""
    y, x = np.indices(shape) + 0.5
    return shapely.contains_xy(geometry, x, y)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64])
def test_filling_gives_the_labels_back(dtype):
    for labels in ALL:
        found = list(polygons(labels.astype(dtype)))
        assert [one.label for one in found] == [label for label in np.unique(labels) if label]
        for one in found:
            np.testing.assert_array_equal(filled(geometry(one), labels.shape), labels == one.label)


def test_polygons_are_valid_and_follow_the_edges_of_pixels():
    for labels in ALL:
        for one in polygons(labels):
            shape = geometry(one)
            assert shape.is_valid, shapely.is_valid_reason(shape)
            assert shape.area == (labels == one.label).sum()
            for ring in (ring for part in one.parts for ring in part):
                steps = np.diff(ring, axis=0, append=ring[:1])
                assert ring.dtype == np.int32
                assert (np.count_nonzero(steps, axis=1) == 1).all()  # along one axis
                turns = np.count_nonzero(steps, axis=1, keepdims=True) & (steps != 0)
                assert (turns != np.roll(turns, 1, axis=0)).all()  # corners only
                assert len(np.unique(ring, axis=0)) == len(ring)


def test_outer_rings_run_clockwise_on_a_screen_and_holes_the_other_way():
    for labels in ALL:
        for one in polygons(labels):
            for outer, *holes in one.parts:
                assert shapely.LinearRing(outer).is_ccw  # y points down: shapely sees the mirror image
                assert not any(shapely.LinearRing(hole).is_ccw for hole in holes)


def test_islands_are_parts_and_holes_belong_to_the_part_around_them():
    (one,) = polygons(MAPS["a hole and an island in it"])
    assert [[len(ring) for ring in part] for part in one.parts] == [[4, 4], [4, 4]]
    assert [part[0].min() for part in one.parts] == [0, 2]
    (checks,) = polygons(MAPS["a chequered board"])
    assert [len(part) for part in checks.parts] == [1] * 10


def test_large_label_numbers_and_no_labels():
    labels = np.full((3, 4), 2**32 - 1, np.uint32)
    (one,) = polygons(labels)
    assert one.label == 2**32 - 1
    assert list(polygons(np.zeros((5, 6), np.uint8))) == []


def test_blocks_of_rows_give_what_the_whole_frame_gives(monkeypatch):
    labels = discs(4)
    whole = [[ring.tolist() for part in one.parts for ring in part] for one in polygons(labels)]
    for rows in (1, 7, 24):
        monkeypatch.setattr(module, "BLOCK", rows)
        assert [[ring.tolist() for part in one.parts for ring in part] for one in polygons(labels)] == whole


@pytest.mark.alone
def test_time_grows_with_the_number_of_objects():
    """16 times as many objects take about 16 times as long, not 256 times."""
    seconds = []
    for side in (15, 60):
        labels = discs(side)
        begin = time.process_time()
        assert sum(1 for _ in polygons(labels)) == side**2
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 40 * seconds[0]
