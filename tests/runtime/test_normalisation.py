"""Normalisation, and the exact statistics behind it against the plain formulas, bit by bit."""

import json
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.plan import Geometry, TilePlan
from unetrt.runtime.pixels import normalisation as measuring
from unetrt.runtime.pixels.normalisation import (
    Normalisation,
    bracketed,
    histogram,
    mean_and_deviation,
    order_statistics,
    percentiles,
)

ALL = [Normalisation("percentile"), Normalisation("zscore"), Normalisation("fixed", offset=(90.0,), scale=(0.013,))]
DTYPES = ["uint8", "uint16", "int32", "float32", "float64"]


def channels(dtype):
    finite = {"allow_nan": False, "allow_infinity": False} if dtype == np.float32 else {}
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
    return hnp.arrays(dtype, shapes, elements=hnp.from_dtype(np.dtype(dtype), **finite))


@given(st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]).flatmap(channels), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(channel, rank):
    expected = np.percentile(channel.astype(np.float64), rank)
    assert percentiles(channel, (rank,))[0] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_and_deviation_are_those_of_numpy(dtype):
    channel = np.random.default_rng(0).integers(0, 250, (31, 17)).astype(dtype)
    assert mean_and_deviation(channel) == pytest.approx((channel.mean(), channel.std()))


@pytest.mark.parametrize("normalisation", ALL, ids=lambda n: n.mode)
@pytest.mark.parametrize("dtype", DTYPES)
def test_before_or_after_the_cut_is_bitwise_equal(normalisation, dtype):
    frame = np.random.default_rng(1).integers(0, 250, (1, 90, 70)).astype(dtype)
    whole, affine = normalisation(frame), normalisation.measure(frame)
    for tile in TilePlan((90, 70), (60, 64), Geometry.unet(2)):
        from_whole, from_raw = np.empty((2, 1, 60, 64), np.float32)
        tile.cut(whole, from_whole)
        tile.cut(frame, from_raw)
        np.testing.assert_array_equal(from_whole, affine.apply(from_raw))


def test_percentile_maps_its_ranks_to_0_and_1_in_each_channel():
    frame = np.random.default_rng(2).integers(0, 60000, (3, 64, 64)).astype(np.uint16) // np.array(
        [[[1]], [[3]], [[9]]]
    )
    out = Normalisation("percentile", 5, 95)(frame)
    np.testing.assert_allclose(np.percentile(out, (5, 95), axis=(1, 2)), [[0] * 3, [1] * 3], atol=1e-6)


@pytest.mark.parametrize("normalisation", ALL[:2], ids=lambda n: n.mode)
def test_a_frame_without_contrast_becomes_zero(normalisation):
    assert not normalisation(np.full((1, 5, 5), 700, np.uint16)).any()


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, -12345.678, 1e-7])
@pytest.mark.parametrize("side", [77, 333])
@pytest.mark.parametrize("normalisation", ALL[:2], ids=lambda n: n.mode)
def test_a_frame_of_one_float_has_no_contrast(normalisation, value, side):
    """Although the mean of equal numbers is rounded."""
    assert normalisation.measure(np.full((1, side, side), value)).scale == 0


@pytest.mark.parametrize("normalisation", ALL, ids=lambda n: n.mode)
def test_json_and_back(normalisation):
    assert Normalisation.from_dict(json.loads(json.dumps(normalisation.to_dict()))) == normalisation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "mean"}, "unknown: use one of fixed, percentile, zscore"),
        ({"low": 60, "high": 40}, "percentiles 60 and 40 are invalid"),
        ({"mode": "fixed"}, "needs an offset and a scale"),
    ],
)
def test_what_is_no_normalisation(arguments, message):
    with pytest.raises(OptionError, match=message):
        Normalisation(**arguments)


SIDE = 768  # more pixels than LARGE
RANDOM = np.random.default_rng(0)
FRAMES = {
    "noise": RANDOM.integers(0, 65536, (SIDE, SIDE)),
    "camera": RANDOM.normal(900, 40, (SIDE, SIDE)) + 3000 * (RANDOM.random((SIDE, SIDE)) < 0.02),
    "few photons": RANDOM.poisson(0.02, (SIDE, SIDE)),
    "12 bits, shifted": RANDOM.normal(900, 90, (SIDE, SIDE)).astype(int) << 4,
    "half black": np.where(RANDOM.random((SIDE, SIDE)) < 0.5, 0, RANDOM.normal(9000, 900, (SIDE, SIDE))),
    "saturated": np.where(RANDOM.random((SIDE, SIDE)) < 0.01, 65535, RANDOM.normal(9000, 900, (SIDE, SIDE))),
    "ramp": np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 16,
    "constant": np.full((SIDE, SIDE), 700),
    "all 0": np.zeros((SIDE, SIDE)),
    "all 65535": np.full((SIDE, SIDE), 65535),
}
CASES = [pytest.param(frame.clip(0, 65535).astype(np.uint16), id=name) for name, frame in FRAMES.items()]
CASES += [pytest.param(frame.clip(0, 255).astype(np.uint8), id=f"{name}, 8 bits") for name, frame in FRAMES.items()]


def plain_percentile(channel, rank):
    """The formula, over all pixels in order."""
    ordered, at = np.sort(channel, axis=None).astype(float), rank / 100 * (channel.size - 1)
    lower, upper = ordered[int(at)], ordered[min(int(at) + 1, channel.size - 1)]
    return lower + (upper - lower) * (at - int(at))


@pytest.mark.parametrize("frame", CASES)
def test_percentiles_of_large_frames_are_exact(frame):
    ranks = (0.0, 0.1, 1.0, 50.0, 99.8, 100.0)
    assert percentiles(frame, ranks) == tuple(plain_percentile(frame, rank) for rank in ranks)
    assert percentiles(frame, ranks) == pytest.approx(np.percentile(frame, ranks))


@pytest.mark.parametrize("name", ["noise", "camera", "few photons", "12 bits, shifted", "saturated", "constant"])
def test_large_frames_need_no_histogram(name, monkeypatch):
    monkeypatch.setattr(measuring, "histogram", None)
    frame = FRAMES[name].clip(0, 65535).astype(np.uint16)
    assert percentiles(frame, (1.0, 99.8))[1] == plain_percentile(frame, 99.8)
    assert mean_and_deviation(frame) == pytest.approx((frame.mean(), frame.std()))


def test_a_narrow_bracket_is_halved_and_a_wide_one_ordered(monkeypatch):
    flat = FRAMES["noise"].astype(np.uint16).ravel()
    ranks = [flat.size // 2]
    monkeypatch.setattr(measuring, "_between", None)
    assert bracketed(flat >> 9, ranks) == {ranks[0]: np.sort(flat >> 9)[ranks[0]]}
    with pytest.raises(TypeError):
        bracketed(flat, ranks)


@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(lambda dtype: hnp.arrays(dtype, st.integers(1, 400))),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=4),
)
def test_brackets_are_right_or_give_no_answer(flat, picks):
    ranks = sorted({pick % flat.size for pick in picks})
    ordered = np.sort(flat)
    assert bracketed(flat, ranks) in (None, {rank: float(ordered[rank]) for rank in ranks})


def test_a_sample_that_misleads_is_found_out():
    """The pixels that are sampled are bright, all others dark."""
    flat = np.arange(SIDE * SIDE, dtype=np.int64) % 100
    flat[:: measuring.STEP] += 30000
    flat = flat.astype(np.uint16)
    rank = flat.size // 2
    assert bracketed(flat, [rank]) is None
    assert order_statistics(flat, [rank]) == {rank: np.sort(flat)[rank]}


def test_a_crowded_bracket_is_left_to_the_histogram():
    flat = (np.arange(SIDE * SIDE) % 2 * 1000).astype(np.uint16)
    rank = flat.size // 2
    assert bracketed(flat, [rank]) is None
    assert order_statistics(flat, [rank - 1, rank]) == {rank - 1: 0, rank: 1000}


INTEGERS = [f"{order}{kind}{size}" for order in "<>" for kind in "ui" for size in (1, 2, 4, 8)]


@given(st.sampled_from(INTEGERS).flatmap(lambda dtype: hnp.arrays(dtype, st.integers(1, 300))))
def test_mean_and_deviation_of_integers_are_exact(flat):
    mean, deviation = mean_and_deviation(flat)
    values = flat.tolist()
    assert mean == sum(values) / len(values)  # Python's integers: rounded once
    assert deviation == pytest.approx(statistics.pstdev(values), rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint64"])
def test_sums_of_the_largest_integers_do_not_overflow(dtype):
    limits = np.iinfo(dtype)
    for value in (limits.min, limits.max):
        assert mean_and_deviation(np.full(3 * measuring.BLOCK, value, dtype)) == (float(value), 0)


@given(hnp.arrays(np.uint16, st.integers(1, 300)))
def test_a_histogram_in_blocks_is_the_histogram(flat):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "BLOCK", 64)
        np.testing.assert_array_equal(histogram(flat), np.bincount(flat))


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[:, ::-1], np.s_[3:-5, 7:-1]])
def test_views_and_files_are_measured_as_copies_are(view, tmp_path):
    stored = np.memmap(tmp_path / "frame", np.uint16, "w+", shape=(2 * SIDE, SIDE))
    stored[:] = np.random.default_rng(1).integers(0, 5000, stored.shape)
    part = stored[view]
    assert percentiles(part, (1.0, 99.8)) == percentiles(np.array(part), (1.0, 99.8))
    assert mean_and_deviation(part) == mean_and_deviation(np.array(part))


@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 8), st.integers(1, 8))))
def test_tiny_frames(frame):
    assert percentiles(frame, (1.0, 99.8)) == tuple(plain_percentile(frame, rank) for rank in (1.0, 99.8))
