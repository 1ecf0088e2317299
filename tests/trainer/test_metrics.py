"""Each score against an independent implementation, or against cases made by hand."""

import numpy as np
import pytest
import tifffile
from ctc_metrics.metrics.technical.seg import seg as ctc_seg
from ctc_metrics.utils.representations import match as ctc_match
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from skimage.measure import euler_number, label
from skimage.metrics import adapted_rand_error
from sklearn.metrics import accuracy_score, jaccard_score

from unetrt.trainer.evaluation import evaluate_classes, evaluate_instances, pooled
from unetrt.trainer.metrics import (
    THRESHOLDS,
    calibration_error,
    correct_objects,
    count_objects,
    count_pixels,
    outlined,
    warped,
    warping_error,
)

SEEDS = st.integers(0, 2**32 - 1)


def disagreeing(seed, shape=(30, 40)):
    """Two instance maps that share most objects, some merged, some split, some missing."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.repeat(rng.choice([0, 1, 2, 3, 900], (shape[0] // 5, shape[1] // 5)), 5, 0), 5, 1)
    predicted = np.roll(truth, rng.integers(-2, 3, 2), (0, 1))
    predicted = np.where(predicted == rng.integers(1, 4), rng.choice([0, 2, 77]), predicted)
    half = predicted == rng.integers(1, 4)
    half[: shape[0] // 2] = False
    return np.where(half, 50, predicted), truth


@given(SEEDS)
def test_foreground_iou_and_pixel_error_are_scikit_learns(seed):
    predicted, truth = disagreeing(seed)
    tally = count_pixels((predicted > 0).astype(int), truth > 0, 2)
    masks = (truth > 0).ravel(), (predicted > 0).ravel()
    assert tally.iou == pytest.approx(jaccard_score(*masks, zero_division=1))
    assert tally.error == pytest.approx(1 - accuracy_score(*masks))


@given(SEEDS, st.integers(2, 5))
def test_class_ious_are_scikit_learns(seed, classes):
    truth, predicted = np.random.default_rng(seed).integers(0, classes, (2, 8, 9))
    expected = jaccard_score(truth.ravel(), predicted.ravel(), labels=range(1, classes), average=None, zero_division=0)
    known = [iou or 0.0 for iou in count_pixels(predicted, truth, classes).class_ious]
    assert known == pytest.approx(list(expected))


@pytest.mark.parametrize("seed", range(12))
def test_seg_is_py_ctcmetrics(seed, tmp_path):
    predicted, truth = disagreeing(seed)
    for name, labels in (("truth", truth), ("predicted", predicted)):
        tifffile.imwrite(tmp_path / f"{name}.tif", labels.astype(np.uint16), photometric="minisblack")
    objects, _, _, _, ious = ctc_match(str(tmp_path / "truth.tif"), str(tmp_path / "predicted.tif"))
    assert count_objects(predicted, truth).seg == pytest.approx(ctc_seg([objects], [ious]))


@given(SEEDS)
def test_rand_f_score_is_scikit_images(seed):
    predicted, truth = disagreeing(seed)
    truth[0, :2] = 1  # at least one pair of pixels
    error, _, _ = adapted_rand_error(truth, predicted, ignore_labels=(0,))
    assert count_objects(predicted, truth).rand_f_score == pytest.approx(1 - error)


def assigned(predicted, truth, threshold):
    """TP / (TP + FP + FN) by the Hungarian method over a matrix of masks, as StarDist does it."""
    objects, found = ([labels == number for number in np.unique(labels[labels > 0])] for labels in (truth, predicted))
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in found] for a in objects]).reshape(len(objects), len(found))
    costs = -(iou >= threshold).astype(float) - iou / (2 * max(1, min(iou.shape)))
    pairs = linear_sum_assignment(costs)
    true_positives = (iou[pairs] >= threshold).sum()
    return true_positives / (len(objects) + len(found) - true_positives)


@given(SEEDS, st.sampled_from(THRESHOLDS))
def test_average_precision_is_an_assignment_of_masks(seed, threshold):
    predicted, truth = disagreeing(seed)
    truth[0, 0] = 1
    assert count_objects(predicted, truth).average_precision(threshold) == pytest.approx(
        assigned(predicted, truth, threshold)
    )


def test_two_objects_that_one_could_match_both_are_matched_once():
    """At exactly 0.5 one true object has two partners: only one counts."""
    truth, predicted = np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 2]])
    tally = count_objects(predicted, truth)
    assert (tally.matched[0], tally.split, tally.merged) == (1, 1, 0)
    assert tally.average_precision() == pytest.approx(1 / 2)


def test_merged_and_split_objects_are_counted():
    truth = np.array([[1, 1, 1, 2, 2, 0, 3, 3]])
    tally = count_objects(np.array([[1, 1, 1, 1, 1, 0, 4, 5]]), truth)
    assert (tally.objects, tally.found, tally.merged, tally.split) == (3, 3, 2, 1)
    assert tally.seg == pytest.approx((3 / 5 + 2 / 5 + 0) / 3)


def test_what_is_ignored_counts_nowhere():
    truth, predicted = np.array([[1, 1, 0, 2, 2]]), np.array([[1, 1, 3, 0, 0]])
    ignored = np.array([[False, False, True, True, True]])
    scores = evaluate_instances(predicted, truth, ignored).to_dict()
    assert (scores["iou"], scores["seg"], scores["pixel_error"], scores["objects"], scores["found"]) == (1, 1, 0, 1, 1)
    assert evaluate_classes(predicted.clip(0, 2), truth, 3, ignored).pixels.error == 0


def test_pooling_is_one_large_image():
    pairs = [disagreeing(seed) for seed in range(3)]
    tallies = [evaluate_instances(predicted, truth) for predicted, truth in pairs]
    # Side by side, with numbers of its own for each.
    shifted = [[np.where(labels > 0, labels + 1000 * index, 0) for labels in pair] for index, pair in enumerate(pairs)]
    joined = evaluate_instances(*(np.hstack(labels) for labels in zip(*shifted, strict=True))).to_dict()
    together = pooled(tallies).to_dict()
    # The Rand F-score is left out: what was predicted as background is one object in each image.
    for name in ("iou", "pixel_error", "seg", "ap", "mean_ap", "objects", "found", "merged", "split"):
        assert together[name] == pytest.approx(joined[name]), name


def renumbered(labels, rng):
    """The same objects under other numbers, in another order."""
    values, at = np.unique(labels, return_inverse=True)
    numbers = rng.choice([*range(1, 40), *(2**32 - 1 - np.arange(20))], len(values), replace=False)
    return np.where(values > 0, numbers, 0)[at].reshape(labels.shape)


@given(SEEDS)
def test_no_score_depends_on_the_numbers_of_the_objects(seed):
    rng = np.random.default_rng(seed)
    predicted, truth = disagreeing(seed)
    truth[3, 4] = 77  # an object in two places, or of a single pixel
    other, same = renumbered(predicted, rng), renumbered(truth, rng)
    first, second = evaluate_instances(predicted, truth), evaluate_instances(other, same)
    assert second.objects == first.objects
    assert second.to_dict() == first.to_dict()
    correct = dict(zip(np.unique(other[other > 0]), correct_objects(other, same), strict=True))
    expected = [correct[other[predicted == number][0]] for number in np.unique(predicted[predicted > 0])]
    assert list(correct_objects(predicted, truth)) == expected


@given(SEEDS)
def test_equal_objects_have_perfect_scores_under_any_numbers(seed):
    truth, _ = disagreeing(seed)
    truth[0, :2] = 1
    scores = evaluate_instances(renumbered(truth, np.random.default_rng(seed)), truth).to_dict()
    errors = [scores.pop(name) for name in ("pixel_error", "warping_error", "merged", "split")]
    assert errors == [0, 0, 0, 0]
    assert scores.pop("objects") == scores.pop("found")
    assert set(scores.pop("ap").values()) | set(scores.values()) == {1}


@given(SEEDS)
def test_outlines_separate_all_objects(seed):
    labels, _ = disagreeing(seed)
    separate = outlined(labels)
    pieces = label(separate, connectivity=1)
    owners = np.unique(np.stack([pieces[separate], labels[separate]]), axis=1)
    assert len(np.unique(owners[0])) == owners.shape[1]
    assert not separate[labels == 0].any()


def test_without_objects_there_is_no_seg():
    empty = np.zeros((4, 4), int)
    tally = evaluate_instances(empty, empty)
    assert (tally.pixels.iou, tally.objects.seg, tally.objects.average_precision()) == (1, None, None)
    assert evaluate_instances(empty + 1, empty).objects.average_precision() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int16])
def test_any_integers_are_classes(dtype):
    labels = np.array([[0, 1, 2]], dtype)
    assert evaluate_classes(labels, labels, 3).pixels.iou == 1


@pytest.mark.parametrize("seed", range(20))
def test_numbers_far_apart_are_counted_as_near_ones(seed):
    predicted, truth = disagreeing(seed)
    far = [labels.astype(np.int64) * 10**9 for labels in (predicted, truth)]
    assert count_objects(predicted, truth) == count_objects(*far)


def test_large_label_values_are_no_matter():
    truth = np.array([[0, 5, 5, 4_000_000_000]])
    assert count_objects(truth, truth).seg == 1


def test_class_iou_is_the_mean_over_the_classes_that_there_are():
    truth = np.array([[0, 1, 1, 2]])
    assert evaluate_classes(truth, truth, 4).to_dict()["class_ious"] == [1, 1, None]
    assert evaluate_classes(np.array([[0, 1, 1, 1]]), truth, 3).pixels.iou == pytest.approx((2 / 3 + 0) / 2)


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


@given(SEEDS)
def test_as_many_objects_are_correct_as_are_matched(seed):
    predicted, truth = disagreeing(seed)
    correct = correct_objects(predicted, truth, 0.55)
    assert len(correct) == len(np.unique(predicted[predicted > 0]))
    assert correct.sum() == count_objects(predicted, truth).matched[1]


def test_which_objects_are_correct():
    predicted, truth = np.zeros((2, 4, 12), int)
    truth[:, :4], truth[:, 6:8] = 7, 8
    predicted[:, :3], predicted[:, 3:6], predicted[:, 6:8], predicted[0, 10] = 2, 9, 1, 5
    assert correct_objects(predicted, truth).tolist() == [True, True, False, False]


def test_the_calibration_error_weighs_each_bin_by_its_objects():
    confidence = np.array([0.05, 0.92, 0.96, 1.0])
    correct = np.array([False, True, False, True])
    assert calibration_error(confidence, correct) == pytest.approx((0.05 + abs(2.88 - 2)) / 4)
    assert calibration_error(confidence[:0], correct[:0]) == 0


@given(SEEDS)
def test_true_probabilities_are_calibrated(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.random(20_000)
    assert calibration_error(confidence, rng.random(20_000) < confidence) < 0.03
    assert calibration_error(confidence, rng.random(20_000) < confidence**2) > 0.1


def test_objects_that_share_a_partner_are_matched_once():
    """Two predicted objects with an IoU of exactly 0.5 with one true object; beside it, an object of one pair."""
    truth = np.array([[1, 1, 0, 2, 2]])
    predicted = np.array([[1, 2, 0, 3, 3]])
    assert count_objects(predicted, truth).matched == (2, *9 * [1])
    assert count_objects(truth, predicted).matched == (2, *9 * [1])
