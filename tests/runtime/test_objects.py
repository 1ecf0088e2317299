"""Decoding: objects of class maps, against references that look at one pixel after another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.model import objects
from unetrt.runtime.model.objects import instances
from unetrt.runtime.model.spec import Decoding


def picture(*rows):
    return np.array([[int(pixel) if pixel != "." else 0 for pixel in row] for row in rows], np.int32)


def test_components_are_numbered_without_gaps():
    found = instances(picture("11..2", "....2", "1....") > 0)
    np.testing.assert_array_equal(found, picture("11..2", "....2", "3...."))
    assert found.dtype == np.int32


@given(
    planes=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    how=st.sampled_from(
        [Decoding(reach=reach, area=area) for reach in (0, 1, 3) for area in (0, 3)]
        + [
            Decoding("cores", reach=reach, bridge=bridge, smallest=3, area=area)
            for reach in (0, 2, 21)
            for bridge in (0, 1)
            for area in (0, 5)
        ]
    ),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_planes_of_a_stack_are_independent(planes, shape, how, share, seed):
    """Small planes are decoded together."""
    rng = np.random.default_rng(seed)
    classes = (rng.integers(1, 3, (planes, *shape)) * (rng.random((planes, *shape)) < share)).astype(np.uint8)
    found = instances(classes[:, None], how)[:, 0]  # they may be narrow
    for plane, labels in zip(classes, found, strict=True):
        np.testing.assert_array_equal(labels, instances(plane, how))


def test_small_planes_take_one_call_together(monkeypatch):
    calls, connected = [], objects.connected_components
    monkeypatch.setattr(
        objects, "connected_components", lambda *graph, **how: (calls.append(1), connected(*graph, **how))[1]
    )
    instances(np.ones((300, 8, 8), np.uint8))
    assert len(calls) == 2
    instances(np.ones((3, 200, 200), np.uint8))
    assert len(calls) == 5


def test_all_classes_but_the_background_are_foreground():
    np.testing.assert_array_equal(instances(picture("12.3")), picture("11.2"))


def grown_reference(objects, reach):
    """Grow objects over gaps as the first version did: each gap pixel looks at all offsets, nearest first."""
    size = 2 * reach + 1
    highest = ndimage.maximum_filter(objects, size)
    lowest = ndimage.minimum_filter(np.where(objects > 0, objects, np.iinfo(np.int32).max), size)
    gap = np.argwhere((objects == 0) & (highest > lowest)) + reach
    padded = np.pad(objects, reach)
    found = np.zeros(len(gap), np.int32)
    steps = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    for dy, dx in sorted(steps, key=lambda step: step[0] ** 2 + step[1] ** 2):
        found = np.where(found > 0, found, padded[gap[:, 0] + dy, gap[:, 1] + dx])
    grown = objects.copy()
    grown[tuple((gap - reach).T)] = found
    return grown


def cores_reference(classes, reach):
    """Assign each rim pixel to the nearest core, pixel by pixel."""
    objects, _ = ndimage.label(classes == 2)
    rows, columns = np.nonzero(objects)
    grown = objects.astype(np.int32)
    for y, x in np.argwhere((classes > 0) & (objects == 0)):
        squared = (rows - y) ** 2 + (columns - x) ** 2
        nearest = np.lexsort((columns, rows, squared))[:1]
        if len(nearest) and squared[nearest[0]] <= reach**2:
            grown[y, x] = objects[rows[nearest[0]], columns[nearest[0]]]
    return grown


def blobs(seed, shape, cores=0.4):
    """Return a class map of smooth foreground in which a share of the pixels is core."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.uniform_filter(rng.random(shape), 3)
    foreground = smooth > rng.uniform(0.4, 0.6)
    return (foreground * np.where(rng.random(shape) < cores, 2, 1)).astype(np.uint8)


sizes = st.tuples(st.integers(1, 90), st.integers(1, 40))


@given(st.integers(0, 2**32 - 1), sizes, st.integers(1, 12))
def test_a_border_goes_to_the_object_that_the_first_version_gave_it(seed, shape, reach):
    classes = np.minimum(blobs(seed, shape), 1)
    expected = grown_reference(ndimage.label(classes)[0].astype(np.int32), reach)
    np.testing.assert_array_equal(instances(classes, Decoding("components", reach)), expected)


@given(st.integers(0, 2**32 - 1), sizes, st.integers(0, 30))
def test_a_rim_goes_to_the_nearest_core(seed, shape, reach):
    classes = blobs(seed, shape, cores=0.1)
    np.testing.assert_array_equal(instances(classes, Decoding("cores", reach)), cores_reference(classes, reach))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 2))
def test_pixels_beyond_reach_do_not_matter_but_through_connected_cores(seed, reach, bridge):
    how = Decoding("cores", reach, bridge)
    classes = blobs(seed, (60, 70), cores=0.6)
    whole, part = instances(classes, how), instances(classes[20 - reach : 40 + reach], how)[reach : reach + 20]
    inside = whole[20:40]
    np.testing.assert_array_equal(inside > 0, part > 0)
    # Cores that are connected outside of the part have one number in the whole, and may have several in the part.
    pairs = np.unique(np.stack([part[part > 0], inside[part > 0]], axis=1), axis=0)
    assert len(np.unique(pairs[:, 0])) == len(pairs)


def test_a_broken_core_is_bridged_within_the_foreground_only():
    broken = picture("1111111", "1221221", "1111111")
    assert instances(broken, Decoding("cores", 2)).max() == 2
    np.testing.assert_array_equal(instances(broken, Decoding("cores", 2, bridge=1)), np.ones((3, 7)))
    apart = picture("111.111", "122.221", "111.111")
    np.testing.assert_array_equal(instances(apart, Decoding("cores", 2, bridge=1)), picture(*["111.222"] * 3))


def test_an_object_of_a_small_core_joins_its_neighbour():
    touching = picture("222112", "222112", "222111")
    assert instances(touching, Decoding("cores", 3)).max() == 2
    np.testing.assert_array_equal(instances(touching, Decoding("cores", 3, smallest=4)), np.ones((3, 6)))


def test_an_object_of_a_small_core_without_a_larger_neighbour_remains():
    apart = picture("222.21", "222.11", "222.11")
    np.testing.assert_array_equal(instances(apart, Decoding("cores", 3, smallest=4)), picture(*["111.22"] * 3))
    np.testing.assert_array_equal(instances(apart, Decoding("cores", 3, smallest=4), 7), picture(*["111..."] * 3))


def test_of_two_neighbours_a_small_core_joins_the_one_with_the_longer_border():
    between = picture("222.222", "222.222", "1111222", "1121222")
    found = instances(between, Decoding("cores", 3, smallest=4))
    assert found.max() == 2
    assert found[3, 2] == found[0, 0]


def test_rims_without_a_core_in_reach_are_background():
    np.testing.assert_array_equal(instances(picture("1..21111"), Decoding("cores", 2)), picture("...111.."))


def test_outer_outlines_and_wide_gaps_stay():
    far = picture("11.....11", "11.....11", ".........")
    np.testing.assert_array_equal(instances(far, Decoding("components", 2)), ndimage.label(far)[0])


@pytest.mark.parametrize("width", [1, 2, 3])
def test_growing_undoes_the_cut_of_training(width):
    from unetrt.trainer.targets import cut_between

    touching = np.zeros((20, 30), np.int32)
    touching[3:17, 3:15], touching[3:17, 15:27] = 1, 2
    cut = cut_between(touching, width)
    assert np.count_nonzero(touching) - np.count_nonzero(cut) == 14 * width
    back = instances(cut > 0, Decoding("components", width))
    np.testing.assert_array_equal(back[touching > 0], touching[touching > 0])
    beyond = np.argwhere(back != touching)
    assert all(y in (*range(3 - width, 3), *range(17, 17 + width)) and 15 - width <= x < 15 + width for y, x in beyond)


def test_small_objects_are_dropped_and_the_rest_renumbered():
    found = instances(picture("1.22", "..22", "3...") > 0, min_area=2)
    np.testing.assert_array_equal(found, picture("..11", "..11", "...."))


@pytest.mark.parametrize("convert", [np.ndarray.tolist, torch.from_numpy, memoryview], ids=["list", "tensor", "buffer"])
def test_what_numpy_converts_is_a_class_map(convert):
    classes = picture("122.", "..21")
    expected = instances(classes, Decoding("cores", 2))
    np.testing.assert_array_equal(instances(convert(classes), Decoding("cores", 2)), expected)


def test_a_stack_is_numbered_plane_by_plane():
    stack = np.stack([picture("1.1", "1.1"), picture("...", ".1.")])
    np.testing.assert_array_equal(instances(stack), [picture("1.2", "1.2"), picture("...", ".1.")])


@pytest.mark.parametrize(
    ("classes", "options", "error"),
    [
        (np.zeros(3, np.uint8), {}, FrameError),
        (np.zeros((3, 3)), {}, FrameError),
        (np.zeros((3, 3), np.uint8), {"min_area": -1}, OptionError),
    ],
)
def test_what_holds_no_instances(classes, options, error):
    with pytest.raises(error):
        instances(classes, **options)


decodings = st.one_of(
    st.builds(Decoding, st.just("components"), st.integers(0, 6)),
    st.builds(Decoding, st.just("cores"), st.integers(0, 12), st.integers(0, 2), st.integers(0, 6)),
)


@given(st.integers(0, 2**32 - 1), sizes, decodings, st.integers(0, 30), st.booleans())
def test_the_minimum_area_is_that_of_the_objects_that_are_returned(seed, shape, how, area, in_the_spec):
    classes = blobs(seed, shape)
    every = instances(classes, how)
    kept = np.flatnonzero(np.bincount(every.ravel()) >= area)
    kept = kept[kept > 0]
    expected = np.zeros(every.max() + 1, np.int32)
    expected[kept] = np.arange(1, len(kept) + 1)
    found = instances(classes, replace(how, area=area)) if in_the_spec else instances(classes, how, area)
    np.testing.assert_array_equal(found, expected[every])


def test_a_component_that_reaches_the_minimum_area_by_growing_is_kept():
    """6 pixels before it grows, 12 with its share of the border."""
    apart = picture("11...11111", "11...11111", "11...11111")
    how = Decoding("components", 3)
    np.testing.assert_array_equal(instances(apart, how, 12), instances(apart, how))
    assert instances(apart, how, 13).max() == 1


@pytest.mark.parametrize("last", [1, 5, 16])
def test_a_map_whose_last_axis_may_be_channels_is_refused(last):
    message = f"the class map has shape .*: 64 frames of 64 x {last} px, or 64 x 64 px with the channels last, {last}"
    with pytest.raises(FrameError, match=message):
        instances(np.zeros((64, 64, last), np.uint8))
    assert instances(np.ones((64, 1, 64, last), np.uint8)).max() == 1


def test_an_empty_map_has_no_instances():
    assert not instances(np.zeros((4, 5), np.uint8), Decoding("components", 2), min_area=3).any()
    assert not instances(np.zeros((4, 5), np.uint8), Decoding("cores", 2, 1, 5), min_area=3).any()
    assert instances(np.zeros((0, 5), np.uint8), Decoding("cores", 2, 1, 5), min_area=3).shape == (0, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "watershed"}, "decoding 'watershed' is unknown: use components or cores"),
        ({"reach": -1}, "reach of a decoding must be 0 to 1024"),
        ({"method": "cores", "smallest": 1 << 21}, "smallest of a decoding"),
        ({"smallest": 3}, "bridge and smallest are for decoding by cores"),
    ],
)
def test_what_is_no_decoding(fields, message):
    with pytest.raises(OptionError, match=message):
        Decoding(**fields)
