import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetrt.trainer.metrics import class_iou, foreground_iou, seg, seg_scores


def by_hand(predicted, truth):
    """The Cell Tracking Challenge's definition, object by object."""
    scores = []
    for number in np.unique(truth[truth > 0]):
        inside = truth == number
        scores.append(0.0)
        for guess in np.unique(predicted[predicted > 0]):
            common = (inside & (predicted == guess)).sum()
            if common > 0.5 * inside.sum():
                scores[-1] = common / (inside | (predicted == guess)).sum()
    return scores


@given(st.integers(0, 2**32 - 1))
def test_seg_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 0, 1, 2, 900], (2, 3, 4))
    predicted, truth = np.repeat(np.repeat(coarse, 3, 1), 3, 2)
    predicted = np.where(rng.random(predicted.shape) < 0.2, 0, predicted)
    assert seg_scores(predicted, truth).tolist() == pytest.approx(by_hand(predicted, truth))


def test_two_merged_objects():
    truth = np.array([[1, 1, 1, 2, 2]])
    assert seg_scores(np.array([[1, 1, 1, 1, 1]]), truth).tolist() == pytest.approx([3 / 5, 2 / 5])
    assert seg_scores(np.array([[1, 1, 1, 0, 2]]), truth).tolist() == pytest.approx([1, 0])
    assert seg_scores(np.array([[0, 0, 0, 0, 0]]), truth).tolist() == [0, 0]


@pytest.mark.parametrize(("predicted", "iou"), [([[5, 5, 0, 0]], 1 / 3), ([[0, 0, 0, 9]], 0), ([[0, 1, 2, 0]], 1)])
def test_foreground_iou(predicted, iou):
    assert foreground_iou(np.array(predicted), np.array([[0, 3, 3, 0]])) == pytest.approx(iou)


def test_two_empty_images_agree_and_have_no_seg():
    empty = np.zeros((2, 2), int)
    assert foreground_iou(empty, empty) == class_iou(empty, empty) == 1
    assert seg(empty, empty) is None


def test_swapped_classes_are_all_wrong():
    truth = np.array([[0, 1, 1, 2]])
    assert class_iou(truth, truth) == 1
    assert class_iou(np.array([[0, 2, 2, 1]]), truth) == 0
    assert class_iou(np.array([[0, 1, 1, 1]]), truth) == pytest.approx((2 / 3 + 0) / 2)


def test_large_label_values_are_no_matter():
    truth = np.array([[0, 5, 5, 4_000_000_000]])
    assert seg(truth, truth) == 1
