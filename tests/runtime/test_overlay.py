import numpy as np

from unetrt.runtime.pixels.overlay import outlines, overlay


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
