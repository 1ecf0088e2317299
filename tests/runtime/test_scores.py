import numpy as np
import pytest

from unetrt.runtime.errors import InferenceError
from unetrt.runtime.pixels.scores import best_class, require_finite_scores, softmax


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_best_class_is_argmax_ties_included(classes):
    scores = np.random.default_rng(classes).integers(0, 4, (classes, 50, 60)).astype(np.float32)
    found = best_class(scores)
    np.testing.assert_array_equal(found, scores.argmax(axis=0))
    assert found.dtype == np.uint8


def test_softmax_of_large_logits_is_finite_and_sums_to_one():
    probabilities = softmax(np.array([[1000.0, -1000], [0, 0], [999, -1000]], np.float32))
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(probabilities[:, 0], [1 / (1 + np.exp(-1)), 0, 1 / (1 + np.exp(1))], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_out_of_range_are_refused(bad):
    scores = np.ones((2, 9, 9), np.float32)
    require_finite_scores(scores)
    scores[1, 4, 5] = bad
    with pytest.raises(InferenceError, match="export it in fp32"):
        require_finite_scores(scores)
