"""Objects of a class map, and their outlines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.pixels.instances import grow_between, instances, outlines, overlay


def picture(*rows):
    return np.array([[int(pixel) if pixel != "." else 0 for pixel in row] for row in rows], np.int32)


def test_components_are_numbered_without_gaps():
    found = instances(picture("11..2", "....2", "1....") > 0)
    np.testing.assert_array_equal(found, picture("11..2", "....2", "3...."))
    assert found.dtype == np.int32


def test_all_classes_but_the_background_are_foreground():
    np.testing.assert_array_equal(instances(picture("12.3")), picture("11.2"))


def test_the_cut_between_two_objects_is_given_back_to_the_nearer():
    cut = picture("11..22", "11..22", "......", "......")
    np.testing.assert_array_equal(grow_between(cut, 2)[0], [1, 1, 1, 2, 2, 2])


def test_outer_outlines_and_wide_gaps_stay():
    far = picture("11.....22", "11.....22", ".........")
    np.testing.assert_array_equal(grow_between(far, 2), far)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_growing_undoes_the_cut_of_training(width):
    from unetrt.trainer.targets import cut_between

    touching = np.zeros((20, 30), np.int32)
    touching[3:17, 3:15], touching[3:17, 15:27] = 1, 2
    cut = cut_between(touching, width)
    assert np.count_nonzero(touching) - np.count_nonzero(cut) == 14 * width
    back = instances(cut > 0, width)
    np.testing.assert_array_equal(back[touching > 0], touching[touching > 0])
    beyond = np.argwhere(back != touching)
    assert all(y in (*range(3 - width, 3), *range(17, 17 + width)) and 15 - width <= x < 15 + width for y, x in beyond)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_growing_fills_background_only_and_adds_no_object(seed, reach):
    objects = np.random.default_rng(seed).choice([0, 0, 0, 1, 2, 3], (12, 15)).astype(np.int32)
    grown = grow_between(objects, reach)
    np.testing.assert_array_equal(grown[objects > 0], objects[objects > 0])
    assert set(np.unique(grown)) <= set(np.unique(objects)) | {0}


def test_small_objects_are_dropped_and_the_rest_renumbered():
    found = instances(picture("1.22", "..22", "3...") > 0, min_area=2)
    np.testing.assert_array_equal(found, picture("..11", "..11", "...."))


def test_a_stack_is_numbered_plane_by_plane():
    stack = np.stack([picture("1.1", "1.1"), picture("...", ".1.")])
    np.testing.assert_array_equal(instances(stack), [picture("1.2", "1.2"), picture("...", ".1.")])


@pytest.mark.parametrize(
    ("classes", "options", "error"),
    [
        (np.zeros(3, np.uint8), {}, FrameError),
        (np.zeros((3, 3)), {}, FrameError),
        (np.zeros((3, 3), np.uint8), {"separation_border": -1}, OptionError),
        (np.zeros((3, 3), np.uint8), {"min_area": -1}, OptionError),
    ],
)
def test_what_holds_no_instances(classes, options, error):
    with pytest.raises(error):
        instances(classes, **options)


def test_an_empty_map_has_no_instances():
    assert not instances(np.zeros((4, 5), np.uint8), separation_border=2, min_area=3).any()


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
