"""Measurements of labels, against scikit-image's `regionprops`."""

import pickle
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import regionprops

from tests.runtime.outputs.label_maps import MAPS, random_maps
from unetrt.benchmarks.saving import discs
from unetrt.runtime.errors import FrameError
from unetrt.runtime.model import measurements as module
from unetrt.runtime.model.measurements import (
    MeasuredPart,
    columns,
    finished,
    measure_part,
    measurements,
    merged,
    object_columns,
)

RNG = np.random.default_rng(0)
INTEGERS = [np.uint8, np.int32, np.uint32, np.int64]


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


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int16, np.uint32, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_the_columns_without_hulls_are_those_of_all_measurements(dtype, channels):
    for labels in [*MAPS.values(), *random_maps(5), discs(4), np.zeros((5, 6), np.int32)]:
        frame = (RNG.normal(size=(channels, *labels.shape)) * 100 + 100).clip(0).astype(dtype)
        confidence = RNG.random(int(labels.max(initial=0))).astype(np.float32)
        for grey, certain in ((frame, confidence), (frame if channels else None, None)):
            found = object_columns(labels, grey, certain)
            whole = columns(measurements(labels, grey), None, certain)
            assert list(found) == list(whole)[: len(found)]
            assert list(whole)[len(found)] == "area_um2"
            for name, values in found.items():
                assert values.dtype == whole[name].dtype
                np.testing.assert_array_equal(values, whole[name], name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("width", [9, 2**16, 2**16 + 1])
def test_sums_of_small_integers_are_exact_for_any_length_of_a_run(dtype, width):
    labels, highest = np.ones((2, width), np.uint8), np.iinfo(dtype).max
    found = measurements(labels, np.full((1, 2, width), highest, dtype))
    assert found.integrated.dtype == np.float64
    assert found.integrated[0, 0] == 2 * width * int(highest)


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


@st.composite
def parts_of_frames(draw):
    """Draw labels (h, w), grey values (2, h, w), and the parts of a partition of the frame, in any order."""
    seed, height, width = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, draw(st.integers(1, 9)), (height, width))
    side = draw(st.integers(1, 9))
    labels = np.kron(coarse, np.ones((side, side), int))[:height, :width].astype(draw(st.sampled_from(INTEGERS)))
    frame = rng.integers(0, 100, (2, height, width)).astype(draw(st.sampled_from([np.uint8, np.uint64, np.float32])))
    sides = (sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=4))}) for length in (height, width))
    rows, columns = (list(pairwise(ends)) for ends in sides)
    windows = [(slice(*row), slice(*column)) for row in rows for column in columns]
    return labels, frame, draw(st.permutations(windows))


@given(parts_of_frames(), st.integers(1, 5), st.integers(0, 2**20))
def test_parts_of_a_frame_add_up_to_the_frame(drawn, group, shift):
    labels, frame, windows = drawn
    parts = [measure_part(labels[at], frame[:, *at], tuple(along.start for along in at)) for at in windows]
    while len(parts) > 1:
        parts = [merged(parts[:group]), *parts[group:]] if group > 1 else [*parts[2:], merged(parts[1::-1])]
    found, whole = finished(merged(parts)), measurements(labels, frame)
    for name, values in whole._asdict().items():
        assert getattr(found, name).dtype == values.dtype
        np.testing.assert_array_equal(getattr(found, name), values, name)
    # Far from the origin, all but the place is the same.
    moved = finished(measure_part(labels, frame, (shift, 2 * shift)))
    np.testing.assert_array_equal(moved.bbox, whole.bbox + [shift, 2 * shift] * 2)
    for name in ("area", "mean", "eccentricity", "solidity"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(whole, name), name)


def test_sums_of_real_grey_values_depend_on_the_parts_by_rounding():
    labels = discs(3)
    frame = RNG.normal(1000, 300, (1, *labels.shape))
    parts = [measure_part(labels[at : at + 17], frame[:, at : at + 17], (at, 0)) for at in range(0, len(labels), 17)]
    found, whole = finished(merged(parts)), measurements(labels, frame)
    np.testing.assert_allclose(found.integrated, whole.integrated, rtol=1e-12)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
    np.testing.assert_array_equal(found.maximum, whole.maximum)


def test_moments_are_exact_where_sums_of_squares_do_not_fit_in_64_bits():
    height, width, far = 2048, 4096, 2**21
    upper, lower = np.ones((1500, width), bool), np.ones((height - 1500, width), bool)
    found = finished(merged([measure_part(lower, origin=(far + 1500, far)), measure_part(upper, origin=(far, far))]))
    assert int(found.area[0]) * far**2 > 2**64
    assert found.eccentricity[0] == pytest.approx(np.sqrt(1 - (height**2 - 1) / (width**2 - 1)), rel=1e-14)
    assert found.solidity[0] == 1


def test_moments_beyond_64_bits_are_not_known():
    corners = merged([measure_part(np.ones((1, 1), np.uint8), origin=(at, at)) for at in (0, 2**16 - 1)])
    for area, is_known in ((2**31 - 1, True), (2**31, False)):
        found = finished(corners._replace(area=np.array([area])))
        assert np.isfinite(found.eccentricity[0]) == is_known


def test_a_part_is_stored_as_arrays(tmp_path):
    labels = discs(2)
    part = measure_part(labels, labels[None].astype(np.uint16), (3, 4))
    with (tmp_path / "part.npz").open("wb") as file:
        part.save(file)
    with (tmp_path / "part.npz").open("rb") as file:
        for stored, values in zip(MeasuredPart.load(file), part, strict=True):
            assert stored.dtype == values.dtype
            np.testing.assert_array_equal(stored, values)


@pytest.mark.parametrize("content", ["empty", "cut", "a pickle", "another file", "other arrays", "a single array"])
def test_a_damaged_part_is_refused(tmp_path, content):
    path = tmp_path / "part.npz"
    with path.open("wb") as file:
        measure_part(discs(1)).save(file)
    whole = path.read_bytes()
    if content == "other arrays":
        np.savez(path, labels=np.arange(3))
    elif content == "a single array":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    else:
        pickled = pickle.dumps({"labels": 1})
        path.write_bytes({"empty": b"", "cut": whole[:-40], "a pickle": pickled, "another file": b"text"}[content])
    with path.open("rb") as file, pytest.raises(FrameError, match=r"part\.npz holds no measurements of a part"):
        MeasuredPart.load(file)


def test_chosen_labels_of_a_part():
    labels = discs(4)
    part = measure_part(labels, labels[None])
    some = part.labels % 3 == 1
    kept = finished(part.only(some))
    for found, values in zip(kept, measurements(labels, labels[None]), strict=True):
        np.testing.assert_array_equal(found, values[some])


def test_parts_that_do_not_fit_are_refused():
    labels = np.ones((3, 4), np.uint8)
    with pytest.raises(FrameError, match=r"grey values must be \(C, 3, 4\), as labels \(got \(1, 4, 3\)\)"):
        measure_part(labels, np.zeros((1, 4, 3)))
    with pytest.raises(FrameError, match=r"grey values must be \(C, 3, 4\), as labels \(got \(1, 4, 3\)\)"):
        object_columns(labels, np.zeros((1, 4, 3)))
    with pytest.raises(FrameError, match=r"the same channels \(got 0, 1\)"):
        merged([measure_part(labels), measure_part(labels, np.zeros((1, 3, 4)))])
