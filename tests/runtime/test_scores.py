"""Scores, and their average over the symmetries of the square."""

import numpy as np
import pytest

from tests.conftest import coordinate_frame, small_spec
from unetrt.runtime.errors import InferenceError, OptionError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.scores import ONCE, SQUARE, best_class, require_finite_scores, softmax
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import CropSession, WorkerSession


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


AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))


class LopsidedSession(WorkerSession):
    """A network that answers with its input, but brighter from left to right and from top to bottom of a tile."""

    def compute(self, frames, scores):
        core = self.spec.geometry.halo
        height, width = scores.shape[-2:]
        cut = frames[:, 0, core : core + height, core : core + width]
        scores[:, 0] = 0
        scores[:, 1] = cut + np.linspace(-1, 1, width) + np.linspace(-3, 3, height)[:, None]


def lopsided(**fields):
    return Segmenter(LopsidedSession(small_spec(normalisation=AS_IT_IS, **fields), "lopsided"))


def test_there_are_eight_and_each_undoes_itself():
    frame = coordinate_frame(5, 7)
    assert len({symmetry.apply(frame).tobytes() + bytes(symmetry.apply(frame).shape) for symmetry in SQUARE}) == 8
    for symmetry in SQUARE:
        np.testing.assert_array_equal(symmetry.undo(symmetry.apply(frame)), frame)
    np.testing.assert_array_equal(ONCE[0].apply(frame), frame)


def test_the_average_is_the_mean_over_the_turned_frames():
    frame = np.random.default_rng(0).normal(size=(60, 41)).astype(np.float32)
    segmenter = lopsided()
    each = [segmenter.segment(symmetry.apply(frame), probabilities=True).probabilities for symmetry in SQUARE]
    expected = np.mean([symmetry.undo(p) for symmetry, p in zip(SQUARE, each, strict=True)], axis=0)
    result = segmenter.segment(frame, tta=True, probabilities=True)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(result.labels, expected.argmax(axis=0))
    np.testing.assert_array_equal(segmenter.segment(frame, tta=True).labels, result.labels)


@pytest.mark.parametrize("symmetry", SQUARE)
def test_a_turned_frame_gives_the_turned_answer(symmetry):
    """Which a lopsided network alone does not."""
    frame = np.random.default_rng(1).normal(size=(33, 50)).astype(np.float32)
    upright, turned = (lopsided().segment(image, tta=True, probabilities=True).probabilities
                       for image in (frame, symmetry.apply(frame)))  # fmt: skip
    np.testing.assert_allclose(symmetry.undo(turned), upright, atol=1e-6)
    alone = lopsided().segment(symmetry.apply(frame), probabilities=True).probabilities
    if symmetry is not ONCE[0]:
        assert np.abs(symmetry.undo(alone) - lopsided().segment(frame, probabilities=True).probabilities).max() > 0.1


def test_stacks_progress_and_probabilities_as_head():
    stack = np.random.default_rng(2).normal(size=(2, 40, 30)).astype(np.float32)
    seen = []
    labels = lopsided(head="logits").segment(stack, tta=True, progress=lambda *done: seen.append(done)).labels
    assert labels.shape == stack.shape
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    probabilities = CropSession(small_spec(normalisation=AS_IT_IS, head="probabilities"))
    assert Segmenter(probabilities).segment(stack, tta=True).labels.shape == stack.shape


def test_a_head_of_labels_has_nothing_to_average():
    session = CropSession(small_spec(normalisation=AS_IT_IS, head="labels"))
    with pytest.raises(OptionError, match="outputs labels only: export it with --head logits"):
        Segmenter(session).segment(np.zeros((9, 9)), tta=True)
