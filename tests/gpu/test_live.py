"""A live segmenter on a GPU: the camera's thread goes on while the device computes, and labels are the segmenter's."""

import numpy as np
import pytest

from tests.gpu.engines import COPIES, opened
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.segment.segmenter import Segmenter

pytestmark = pytest.mark.gpu

SIZE = (101, 163)


def test_labels_are_the_segmenters(backend, plain, frames):
    stack = frames(12, SIZE, "float32" if backend == COPIES else "uint16")
    with opened(backend, plain) as session, Segmenter(session) as segmenter:
        expected = segmenter.segment(stack).labels
        with LiveSegmenter(segmenter, policy="block", kind="classes") as live:
            futures = [live.submit(frame, index=number) for number, frame in enumerate(stack)]
        results = [future.result(0) for future in futures]
    assert [result.error for result in results] == [None] * len(stack)
    np.testing.assert_array_equal(np.stack([result.labels for result in results]), expected)


def test_two_cameras_share_a_model_and_one_is_given_up(backend, plain, frames):
    stack = frames(8, SIZE, "float32" if backend == COPIES else "uint16")
    with opened(backend, plain) as session, Segmenter(session) as segmenter:
        expected = segmenter.segment(stack).labels
        one = LiveSegmenter(segmenter, policy="drop_oldest", kind="classes")
        with LiveSegmenter(segmenter, policy="block", kind="classes") as other:
            given_up = [one.submit(frame) for frame in stack]
            kept = [other.submit(frame) for frame in stack]
            one.close(drain=False)
        assert {future.result(0).outcome for future in given_up} <= {"done", "dropped"}
        np.testing.assert_array_equal(np.stack([future.result(0).labels for future in kept]), expected)
        np.testing.assert_array_equal(segmenter.segment(stack).labels, expected)
