"""Cutting and stitching strip by strip against doing it with whole tiles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.test_plan import plans
from unetrt.runtime.pixels.normalisation import Affine
from unetrt.runtime.pixels.scores import best_class
from unetrt.runtime.segment import _host
from unetrt.runtime.segment._host import cut, stitch_labels

DTYPES = ["uint8", "uint16", "int32", "float32", "float64"]
strips = st.sampled_from([1, 1000, 1 << 19])


def drawn(seed, shape, dtype):
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


@given(plans(), st.integers(1, 3), st.sampled_from(DTYPES), strips)
def test_a_tile_in_strips_is_the_tile_cut_and_then_normalised(plan, channels, dtype, strip):
    frame = drawn(channels, (channels, *plan.frame), dtype)
    affine = Affine(np.linspace(3, 90, channels, dtype=np.float32), np.linspace(0.013, 0.7, channels, dtype=np.float32))
    slot, expected = np.full((2, channels, *plan.tile), np.nan, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_host, "STRIP", strip)
        for tile in plan:
            cut(frame, affine, tile, slot)
            tile.cut(frame, expected)
            np.testing.assert_array_equal(slot, affine.apply(expected))


@given(plans(), st.sampled_from(["uint8", "uint16"]))
def test_raw_grey_values_stay_what_they_are(plan, dtype):
    frame = drawn(0, (1, *plan.frame), dtype)
    slot, expected = np.zeros((2, 1, *plan.tile), dtype)
    for tile in plan:
        cut(frame, None, tile, slot)
        tile.cut(frame, expected)
        np.testing.assert_array_equal(slot, expected)


def test_strips_are_as_high_as_they_fit(monkeypatch):
    """A tile of many strips is normalised in many calls, each of a few rows."""
    from unetrt.runtime.geometry.plan import Geometry, TilePlan

    heights = []
    apply = Affine.apply
    monkeypatch.setattr(Affine, "apply", lambda self, pixels: heights.append(pixels.shape[1]) or apply(self, pixels))
    monkeypatch.setattr(_host, "STRIP", 572 * 100)
    (tile,) = TilePlan((388, 388), (572, 572), Geometry.unet(4))
    cut(drawn(0, (1, 388, 388), "uint16"), Affine(*np.ones((2, 1), np.float32)), tile, np.empty((1, 572, 572), "f4"))
    assert max(heights) == 100
    assert sum(heights) == 572


@given(plans(), st.integers(2, 4), strips)
def test_labels_in_strips_are_the_best_classes_stitched(plan, classes, strip):
    labels, expected = np.full((2, *plan.frame), 99, np.uint8)
    core = tuple(plan.geometry.core(side) for side in plan.tile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_host, "STRIP", strip)
        for tile in plan:
            scores = np.random.default_rng(tile.index).integers(0, 3, (classes, *core)).astype(np.float32)
            stitch_labels(tile, scores, labels)
            tile.stitch(best_class(scores), expected)
    np.testing.assert_array_equal(labels, expected)
