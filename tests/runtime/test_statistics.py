"""Statistics from parts of a frame are those of the whole frame, bit by bit."""

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.pixels.frames import require_finite
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.statistics import FrameStatistics

DTYPES = ["bool", "|u1", "|i1", "<u2", ">u2", "<i2", "<i4", ">u4", "<i8", ">u8", "<f2", "<f4", ">f4", "<f8"]
PASSES = {1: 1, 2: 1, 4: 2, 8: 4}


@st.composite
def frames(draw, dtypes=DTYPES):
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    limits = {"min_value": -(2.0**127), "max_value": 2.0**127} if dtype == np.float64 else {}
    few = hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite, **limits))
    many = st.integers(0, 99).map(lambda seed: spread(dtype, shape, seed))
    return draw(st.one_of(few, many))


def spread(dtype, shape, seed):
    """Return values of all sizes and both signs."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "ui":
        return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    return (rng.normal(size=shape) * 10.0 ** rng.integers(-4, 4, shape)).astype(dtype)


@st.composite
def parts_of(draw, shape):
    """Return a cover of a frame with parts, as (row, column, height, width), in any order."""
    rows, columns = (sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=3))}) for length in shape[-2:])
    parts = [
        (top, left, bottom - top, right - left) for top, bottom in pairwise(rows) for left, right in pairwise(columns)
    ]
    return draw(st.permutations(parts))


def measured(normalisation, frame, parts, workers=1, through=lambda statistics: statistics):
    """Return the normalisation of a frame whose parts are counted by some workers; `through` carries their counts."""
    statistics = FrameStatistics(normalisation, frame.dtype, frame.shape)
    for _ in range(statistics.passes):
        counted = [through(statistics.empty()) for _ in range(workers)]
        for number, (row, column, height, width) in enumerate(parts):
            part = frame[:, row : row + height, column : column + width]
            counted[number % workers].add(part, (row, column))
        for one in reversed(counted):
            statistics.merge(through(one))
        statistics.next_pass()
    return through(statistics).affine()


def through_json(statistics):
    return FrameStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))


def through_pickle(statistics):
    return pickle.loads(pickle.dumps(statistics))


def assert_bitwise_equal(affine, expected):
    np.testing.assert_array_equal(affine.offset.view(np.uint32), expected.offset.view(np.uint32))
    np.testing.assert_array_equal(affine.scale.view(np.uint32), expected.scale.view(np.uint32))


@given(
    frames().flatmap(lambda frame: st.tuples(st.just(frame), parts_of(frame.shape))),
    st.sampled_from(["percentile", "running"]),
    st.sampled_from([(1.0, 99.8), (0.0, 100.0), (37.3, 61.2), (0.0, 0.5)]),
    st.integers(1, 3),
    st.sampled_from([lambda statistics: statistics, through_json, through_pickle]),
)
def test_percentiles_are_those_of_the_frame(case, mode, ranks, workers, through):
    frame, parts = case
    normalisation = Normalisation(mode, *ranks)
    expected = normalisation.measure(frame.view(np.uint8) if frame.dtype == bool else frame)
    assert_bitwise_equal(measured(normalisation, frame, parts, workers, through), expected)


@given(
    frames([dtype for dtype in DTYPES if "f" not in dtype]).flatmap(
        lambda frame: st.tuples(st.just(frame), parts_of(frame.shape))
    ),
    st.integers(1, 3),
    st.sampled_from([lambda statistics: statistics, through_json]),
)
def test_mean_and_deviation_of_integers_are_those_of_the_frame(case, workers, through):
    frame, parts = case
    expected = Normalisation("zscore").measure(frame.view(np.uint8) if frame.dtype == bool else frame)
    assert_bitwise_equal(measured(Normalisation("zscore"), frame, parts, workers, through), expected)


@pytest.mark.parametrize("shift", [0, 1e6, -3e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mean_and_deviation_of_floats_are_those_of_the_frame_up_to_rounding(dtype, shift):
    """Large means do not cancel, and the order of parts and workers does not matter."""
    frame = (np.random.default_rng(0).normal(size=(2, 90, 70)) + shift).astype(dtype)
    parts = [(row, column, 30, 35) for row in (0, 30, 60) for column in (0, 35)]
    affine = measured(Normalisation("zscore"), frame, parts, 2, through_json)
    expected = Normalisation("zscore").measure(frame)
    np.testing.assert_allclose(affine.offset, expected.offset, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(affine.scale, expected.scale, rtol=1e-6)
    assert_bitwise_equal(measured(Normalisation("zscore"), frame, parts[::-1], 3), affine)


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, -12345.678, 1e-7])
def test_a_frame_of_one_float_has_no_contrast(value):
    for side in (77, 333):
        frame = np.full((1, side, side), value)
        parts = [(row, 0, min(30, side - row), side) for row in range(0, side, 30)]
        assert measured(Normalisation("zscore"), frame, parts).scale == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_passes_follows_from_the_dtype(dtype):
    is_float, size = np.dtype(dtype).kind == "f", np.dtype(dtype).itemsize
    fixed = Normalisation("fixed", offset=(1.0,), scale=(2.0,))
    assert FrameStatistics(Normalisation("percentile"), dtype, (1, 4, 4)).passes == PASSES[size]
    assert FrameStatistics(Normalisation("zscore"), dtype, (1, 4, 4)).passes == 1
    assert FrameStatistics(fixed, dtype, (1, 4, 4)).passes == is_float  # floats are checked
    frame = np.ones((1, 4, 4), dtype)
    assert_bitwise_equal(measured(fixed, frame, [(0, 0, 4, 4)]), fixed.measure(frame))


def test_parts_of_large_frames_are_counted_in_blocks():
    frame = np.random.default_rng(1).integers(-(2**30), 2**30, (1, 700, 500), np.int32)
    parts = [(0, 0, 700, 123), (0, 123, 700, 377)]
    for mode in ("percentile", "zscore"):
        normalisation = Normalisation(mode)
        assert_bitwise_equal(measured(normalisation, frame, parts, 2), normalisation.measure(frame))


@pytest.mark.parametrize("mode", ["percentile", "zscore", "fixed"])
@pytest.mark.parametrize("workers", [1, 3])
def test_pixels_that_are_not_finite_are_named_as_in_the_whole_frame(mode, workers):
    frame = np.zeros((2, 40, 30))
    frame[1, 3, 4] = np.nan
    frame[0, 31, 22] = np.inf
    frame[0, 31, 7] = 1e300
    normalisation = Normalisation(mode, offset=(0.0, 0.0), scale=(1.0, 1.0))
    parts = [(row, column, 20, 15) for row in (20, 0) for column in (15, 0)]
    with pytest.raises(FrameError) as expected:
        require_finite(frame)
    with pytest.raises(FrameError) as given_:
        measured(normalisation, frame, parts, workers, through_json)
    assert str(given_.value) == str(expected.value)
    assert "3 pixels" in str(expected.value)
    assert "row 31, column 7" in str(expected.value)


def statistics(mode="percentile", dtype="float32"):
    return FrameStatistics(Normalisation(mode), dtype, (1, 8, 9))


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (FrameError, "a part of the image is uint8, the image float32",
         lambda one: one.add(zeros(1, 8, 9, dtype="uint8"))),
        (FrameError, r"a part of shape \(1, 8, 9\) at row 1, column 0 is not inside a frame of shape \(1, 8, 9\)",
         lambda one: one.add(zeros(1, 8, 9), (1, 0))),
        (FrameError, r"a part of shape \(2, 8, 9\)", lambda one: one.add(zeros(2, 8, 9))),
        (FrameError, r"a part of shape \(8, 9\)", lambda one: one.add(zeros(8, 9))),
        (FrameError, "at row -1", lambda one: one.add(zeros(1, 2, 2), (-1, 0))),
        (OptionError, "the parts of the frame have 63 pixels, and the frame 72: add each pixel once",
         lambda one: (one.add(zeros(1, 7, 9)), one.next_pass())),
        (OptionError, "the parts of the frame have 144 pixels",
         lambda one: (one.add(zeros(1, 8, 9)), one.add(zeros(1, 8, 9)), one.next_pass())),
        (OptionError, "counted other pixels than the passes before",
         lambda one: (one.add(zeros(1, 8, 9)), one.next_pass(), one.add(zeros(1, 8, 9) + 1), one.next_pass())),
        (OptionError, "pass 1 of 2 is not over", lambda one: one.affine()),
        (OptionError, "cannot be merged", lambda one: one.merge(statistics(dtype="float64"))),
        (OptionError, "cannot be merged", lambda one: one.merge(statistics("zscore"))),
        (OptionError, "cannot be merged", lambda one: one.merge(after_one_pass())),
        (OptionError, "all 2 passes over the frame are over: call affine", lambda one: complete().add(zeros(1, 8, 9))),
        (FrameError, "the image is complex128", lambda one: statistics(dtype=complex)),
    ],
)  # fmt: skip
def test_wrong_parts_are_refused(error, message, call):
    with pytest.raises(error, match=message):
        call(statistics())


def after_one_pass():
    one = statistics()
    one.add(zeros(1, 8, 9))
    one.next_pass()
    return one


def complete():
    one = after_one_pass()
    one.add(zeros(1, 8, 9))
    one.next_pass()
    return one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float31"}, "float31"),
        ({"dtype": "U5"}, "the image is <U5"),
        ({"shape": [1, 8]}, "shape"),
        ({"shape": [1, 8, 0]}, r"shape\[2\]"),
        ({"channels": []}, "channels: 0, and 1 are measured"),
        ({"pixels": -1}, "pixels"),
        ({"passed": "1"}, "passed"),
        ({"passed": 3}, "passes"),
        ({"channels": [{"total": "1/0"}]}, "total"),
        ({"channels": [{"bins": [{"prefix": 0, "bits": [70000], "counts": [1]}]}]}, "bits"),
        ({"channels": [{"bins": [{"prefix": 0, "bits": [1, 2], "counts": [1]}]}]}, "2 bits and 1 counts"),
        ({"channels": [{}]}, "bins"),
        ({"normalisation": {"mode": "mean"}}, "mode"),
        ({"surplus": 1}, "unknown key"),
    ],
)
def test_damaged_statistics_are_refused_in_one_line(change, message):
    stored = json.loads(json.dumps(statistics().to_dict()))
    with pytest.raises(OptionError, match=message) as caught:
        FrameStatistics.from_dict(stored | change)
    assert "the statistics of the frame" in str(caught.value)
