"""Measurements of labels, against scikit-image's `regionprops`."""

import time

import numpy as np
import pytest
from skimage.measure import regionprops

from tests.runtime.outputs.label_maps import MAPS, random_maps
from unetrt.benchmarks.saving import discs
from unetrt.runtime.files.outputs import measurements as module
from unetrt.runtime.files.outputs.measurements import measurements

RNG = np.random.default_rng(0)


def test_they_are_those_of_scikit_image():
    for number, labels in enumerate([*MAPS.values(), *random_maps(60), discs(4)]):
        dtype = (np.uint16, np.float32, np.int16)[number % 3]
        frame = (RNG.normal(size=(2, *labels.shape)) * 100 + 1000).astype(dtype)
        found = measurements(labels, frame)
        expected = regionprops(labels, np.moveaxis(frame, 0, -1))
        assert found.labels.tolist() == [one.label for one in expected]
        for row, one in enumerate(expected):
            assert found.area[row] == one.area
            assert tuple(found.bbox[row]) == one.bbox
            assert found.solidity[row] == one.solidity
            assert found.maximum[row].tolist() == one.intensity_max.tolist()
            np.testing.assert_allclose(found.centroid[row], one.centroid)
            np.testing.assert_allclose(found.mean[row], one.intensity_mean, rtol=1e-5)
            np.testing.assert_allclose(found.integrated[row], one.intensity_mean * one.area, rtol=1e-5)
            np.testing.assert_allclose(found.eccentricity[row], one.eccentricity, atol=1e-6)


def test_labels_spread_over_the_frame_are_measured_in_parts(monkeypatch):
    labels = next(random_maps(1)).repeat(9, axis=0)
    whole = measurements(labels).solidity
    for rows in (1, 20, 50):
        monkeypatch.setattr(module, "ROWS", rows)
        np.testing.assert_array_equal(measurements(labels).solidity, whole)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int64])
def test_any_numbers_are_labels(dtype):
    labels = np.zeros((6, 7), dtype)
    labels[1:3, 2:6], labels[4, 4] = 3, np.iinfo(dtype).max
    found = measurements(labels)
    assert found.labels.tolist() == [3, np.iinfo(dtype).max]
    assert found.area.tolist() == [8, 1]
    assert found.mean.shape == found.maximum.shape == found.integrated.shape == (2, 0)


def test_sums_do_not_overflow():
    labels, frame = np.ones((200, 200), np.uint8), np.full((1, 200, 200), 255, np.uint8)
    assert measurements(labels, frame).integrated[0, 0] == 255 * 200 * 200


def test_no_labels_have_no_measurements():
    found = measurements(np.zeros((5, 6), np.int32), np.zeros((3, 5, 6)))
    assert [len(values) for values in found] == [0] * 9
    assert found.mean.shape == (0, 3)


def test_a_shape_whose_hull_is_found_point_by_point():
    """A parabola ends in a spike: each pass over the outline removes one point, from the spike on."""
    rows = np.arange(400)
    left = (rows - 200) ** 2 // 200
    left[-1] = 0
    labels = (np.arange(300) >= left[:, None]).astype(np.uint8)
    (one,) = regionprops(labels)
    assert measurements(labels).solidity[0] == one.solidity


@pytest.mark.alone
def test_they_take_a_fraction_of_the_time_of_scikit_image():
    labels = discs(20)
    frame = RNG.integers(0, 60000, labels.shape).astype(np.uint16)
    begin = time.process_time()
    found = measurements(labels, frame[None])
    ours = time.process_time() - begin
    begin = time.process_time()
    for one in regionprops(labels, frame):
        _ = one.area, one.centroid, one.intensity_mean, one.intensity_max, one.eccentricity, one.solidity
    assert ours < (time.process_time() - begin) / 3
    assert len(found.area) == 400
