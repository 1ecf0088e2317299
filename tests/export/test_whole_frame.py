import numpy as np
import pytest

from unetrt.export.whole_frame import TIE, wrong_pixels


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_ties_are_left_out_as_the_scores_spread(scale):
    """Of four pixels one is a tie, one is wrong by more than that; scores of a trained network are larger."""
    margin = np.array([[2.0, -2.0, 0.5 * TIE, 4 * TIE]], np.float32) * scale
    scores = np.stack([np.zeros_like(margin), margin])
    labels = np.array([[1, 0, 0, 0]], np.uint8)
    assert wrong_pixels(labels, scores) == pytest.approx(1 / 3)
    assert wrong_pixels(np.array([[1, 0, 0, 1]], np.uint8), scores) == 0
