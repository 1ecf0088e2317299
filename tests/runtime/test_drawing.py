"""Pictures of labels, against their formula."""

import tracemalloc

import numpy as np
import pytest

from unetrt.runtime.pixels.drawing import COLOURS, INSIDE, limits, outlines, overlay, scaled


def test_background_stays_grey_and_outlines_are_coloured():
    frame = np.random.default_rng(0).integers(0, 4000, (30, 40)).astype(np.uint16)
    labels = np.zeros((30, 40), np.int32)
    labels[5:20, 5:15], labels[5:20, 15:30] = 1, 2
    picture = overlay(frame, labels)
    assert (picture.shape, picture.dtype) == ((30, 40, 3), np.uint8)
    assert (picture[labels == 0].max(axis=1) == picture[labels == 0].min(axis=1)).all()
    edge = outlines(labels)
    assert edge[5, 5]
    assert edge[10, 14]
    assert edge[10, 15]
    assert not edge[10, 10]
    colours = [np.unique(picture[edge & (labels == number)], axis=0) for number in (1, 2)]
    assert [len(colour) for colour in colours] == [1, 1]
    assert (colours[0] != colours[1]).any()


def test_a_frame_without_contrast_or_with_channels_is_drawn():
    assert overlay(np.full((3, 4), 7, np.uint8), np.zeros((3, 4), np.int32)).shape == (3, 4, 3)
    assert overlay(np.ones((2, 3, 4), np.float32), np.zeros((3, 4), np.int32)).shape == (3, 4, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
def test_an_overlay_of_a_large_frame_is_that_of_its_formula_and_takes_little_memory(dtype):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.repeat(rng.integers(0, 4, (450, 500), np.uint16), 10, 0), 10, 1)
    frame = rng.integers(0, 200, (1, *labels.shape), np.uint8).astype(dtype)
    tracemalloc.start()
    try:
        picture = overlay(frame, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * labels.size
    share = np.where(labels > 0, np.float32(INSIDE), np.float32(1))
    share[outlines(labels)] = 0
    for rows in (slice(0, 30), slice(820, 860), slice(4470, 4500)):  # at the ends, and where two bands meet
        mean = frame.mean(axis=0)
        grey = scaled(mean, *limits(mean))[rows, :, None]
        part = share[rows, :, None]
        expected = ((grey * part + COLOURS[labels[rows] % len(COLOURS)] * (1 - part)) * 255).astype(np.uint8)
        np.testing.assert_array_equal(picture[rows], expected)
