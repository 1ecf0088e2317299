import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.geometry import Geometry
from unetrt.runtime.geometry.plan import TilePlan
from unetrt.runtime.pixels.normalisation import Normalisation, mean_and_deviation, percentiles

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


@pytest.mark.parametrize("normalisation", ALL, ids=lambda n: n.mode)
def test_json_and_back(normalisation):
    assert Normalisation.from_dict(json.loads(json.dumps(normalisation.to_dict()))) == normalisation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "mean"}, "unknown: use one of fixed, percentile, zscore"),
        ({"low": 60, "high": 40}, "percentiles 60 and 40"),
        ({"mode": "fixed"}, "needs an offset and a scale"),
    ],
)
def test_what_is_no_normalisation(arguments, message):
    with pytest.raises(OptionError, match=message):
        Normalisation(**arguments)
