"""The confidence of objects, against means over the pixels of one object after another."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from unetrt.runtime.errors import FrameError
from unetrt.runtime.model.confidence import (
    CALIBRATION,
    Calibration,
    ObjectFeatures,
    confidence,
    confidence_of,
    evidence,
    object_features,
)
from unetrt.runtime.model.objects import instances
from unetrt.runtime.model.spec import Decoding
from unetrt.runtime.pixels.drawing import outlines


def probable(seed, shape, classes):
    """Return probabilities, (classes, H, W), that vary smoothly."""
    scores = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(classes, *shape)), (0, 2, 2)) * 20
    exponents = np.exp(scores - scores.max(axis=0))
    return (exponents / exponents.sum(axis=0)).astype(np.float32)


@pytest.mark.parametrize("how", [Decoding("cores", 5, 1, 4), Decoding("components", 2)])
def test_the_confidence_is_that_of_each_object_alone(how):
    p = probable(3, (60, 70), 3 if how.method == "cores" else 2)
    best = p.argmax(axis=0)
    objects = instances(best, how)
    inside, inner = (best == 2, p[2]) if how.method == "cores" else (best > 0, p[1])
    edge, expected = outlines(objects), []
    for number in range(1, objects.max() + 1):
        mine = objects == number
        expected.append(
            (inner[mine & inside].mean(), (1 - p[0])[mine].mean(), np.abs(1 - 2 * p[0])[mine & edge].mean())
        )
    features = object_features(objects, p, how)
    np.testing.assert_allclose(np.stack(features, axis=1), expected, rtol=1e-5)
    found = confidence(objects, p, how, Calibration())
    np.testing.assert_allclose(found, np.prod(np.array(expected)[:, :2], axis=1), rtol=1e-5)
    assert found.dtype == np.float32
    assert len(found) > 3
    np.testing.assert_array_equal(found, confidence(objects.copy(), p.copy(), how, Calibration()))
    np.testing.assert_array_equal(confidence(objects, p, how).argsort(), CALIBRATION(features).argsort())


@given(
    st.tuples(*[st.floats(0, 1)] * 3),
    st.integers(0, 2),
    st.floats(0, 1),
    st.tuples(*[st.floats(0, 4)] * 3),
    st.floats(0.1, 5),
    st.floats(-5, 5),
)
def test_the_confidence_lies_within_0_and_1_and_rises_with_each_feature(
    features, which, higher, exponents, slope, offset
):
    calibration = Calibration(*exponents, slope, offset)
    raised = list(features)
    raised[which] = max(higher, raised[which])
    low, high = (calibration(ObjectFeatures(*np.array(each, float)[:, None])) for each in (features, raised))
    assert 0 <= low[0] <= high[0] * (1 + 1e-6) <= 1 + 1e-6


def test_the_confidence_is_exact_at_0_and_1():
    nothing, everything = (ObjectFeatures(*np.full((3, 1), value)) for value in (0.0, 1.0))
    calibration = Calibration(1, 1, 1, slope=2, offset=1)
    assert (calibration(nothing)[0], calibration(everything)[0]) == (0, 1)


def test_an_object_that_fills_the_frame_has_a_confidence():
    p = np.stack([np.full((4, 5), 0.25), np.full((4, 5), 0.75)]).astype(np.float32)
    objects = np.ones((4, 5), np.int32)
    assert object_features(objects, p).outline == 1
    np.testing.assert_allclose(confidence(objects, p, calibration=Calibration()), 0.75**2)
    assert confidence(np.zeros((4, 5), np.int32), p).shape == (0,)


def test_probabilities_of_another_frame_are_refused():
    with pytest.raises(FrameError, match=r"objects \(4, 5\) and probabilities \(2, 5, 4\) do not belong together"):
        confidence(np.zeros((4, 5), np.int32), np.zeros((2, 5, 4), np.float32))


@pytest.mark.parametrize("convert", [np.ndarray.tolist, torch.from_numpy, memoryview], ids=["list", "tensor", "buffer"])
def test_what_numpy_converts_has_a_confidence(convert):
    objects = np.array([[1, 1, 1, 0], [0, 0, 2, 2]], np.int32)
    probabilities = probable(1, objects.shape, 3)
    np.testing.assert_array_equal(
        confidence(convert(objects), convert(probabilities)), confidence(objects, probabilities)
    )


@pytest.mark.parametrize("how", [Decoding("cores", 5, 1, 4), Decoding("components", 2)])
def test_evidence_adds_up_over_blocks(how):
    p = probable(5, (70, 80), 3 if how.method == "cores" else 2)
    objects = instances(p.argmax(axis=0), how)
    total = np.zeros((objects.max() + 1, 4))
    parts = [(slice(a, a + 30), slice(b, b + 25)) for a in range(0, 70, 30) for b in range(0, 80, 25)]
    for part in parts:
        numbers, labels = np.unique(np.append(0, objects[part]), return_inverse=True)
        labels = labels[1:].reshape(objects[part].shape)
        np.add.at(total, numbers, evidence(labels, p[:, *part], how, len(numbers) - 1))
    np.testing.assert_allclose(confidence_of(total), confidence(objects, p, how), rtol=1e-6)
    features = object_features(objects, p, how)._replace(outline=np.ones(objects.max()))
    calibration = Calibration(1, 1, 1)
    np.testing.assert_allclose(confidence_of(total, calibration), calibration(features), rtol=1e-6)
    assert len(features.core) > 3


def test_evidence_of_more_objects_than_were_named_is_refused():
    with pytest.raises(FrameError, match=r"objects have numbers up to 7: count must be at least that \(got 6\)"):
        evidence(np.full((4, 5), 7, np.int32), np.ones((2, 4, 5), np.float32), count=6)


def test_objects_without_pixels_in_a_block_have_no_evidence():
    found = evidence(np.ones((4, 5), np.int32), np.full((2, 4, 5), 0.5, np.float32), count=3)
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [0, 0, 10, 20], [0, 0, 0, 0], [0, 0, 0, 0]])
