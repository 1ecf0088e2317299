"""The warping error against cases made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import euler_number, label

from unetrt.trainer.evaluation import evaluate_instances
from unetrt.trainer.warping import outlined, warped, warping_error

DISC = np.hypot(*np.mgrid[-12:13, -12:13]) < 8
TWO = np.zeros((20, 40), int)
TWO[5:15, 5:19], TWO[5:15, 20:35] = 1, 2


def test_a_shifted_or_swollen_outline_costs_nothing():
    assert warping_error(np.roll(DISC, 3, 0), DISC) == 0
    assert warping_error(np.hypot(*np.mgrid[-12:13, -12:13]) < 11, DISC) == 0


def test_a_hole_costs_its_pixels():
    holed = DISC.copy()
    holed[11:14, 11:14] = False
    # The truth cannot grow a hole; the prediction's own shape is kept around it.
    assert warping_error(holed, DISC) == 9


def test_a_missing_object_costs_one_pixel_as_it_shrinks_to_a_point():
    assert warping_error(np.zeros_like(DISC), DISC) == 1


def test_an_object_too_many_costs_all_its_pixels():
    made_up = DISC.copy()
    made_up[:3, :4] = True
    assert warping_error(made_up, DISC) == 12


def test_merged_objects_cost_the_bridge_between_them():
    """A bridge of one pixel stays background; a wide one costs a line across, however far the line may move."""
    thin = TWO.copy()
    thin[9, 19] = 1
    assert warping_error(thin, TWO) == 1
    assert warping_error(np.where(TWO > 0, 1, 0) | (np.roll(TWO, 1, 1) > 0), TWO) == 10


def test_touching_instances_are_outlined_before_they_are_compared():
    touching = np.repeat([[1] * 10 + [2] * 10], 12, axis=0)
    assert label(outlined(touching), connectivity=1).max() == 2
    assert evaluate_instances(touching, touching).warping == 0
    assert evaluate_instances(np.ones_like(touching), touching).warping == 12


@given(st.integers(0, 2**32 - 1))
def test_warping_keeps_the_topology(seed):
    """Euler number and number of pieces, as scikit-image counts them, stay those of the mask."""
    rng = np.random.default_rng(seed)
    mask, target = (np.kron(rng.random((4, 5)) < 0.5, np.ones((3, 3))).astype(bool) for _ in range(2))
    mask, target = np.pad(mask, 1), np.pad(target, 1)
    result = warped(mask, target)
    assert euler_number(result, connectivity=1) == euler_number(mask, connectivity=1)
    assert label(result, connectivity=1).max() == label(mask, connectivity=1).max()
    assert (result != target).sum() <= (mask != target).sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_the_smallest_images(shape):
    assert warping_error(np.ones(shape), np.ones(shape)) == 0
    assert warping_error(np.zeros(shape), np.ones(shape)) == 1
