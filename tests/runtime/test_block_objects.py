"""Objects decoded in blocks equal those of the whole frame, numbers included."""

import io
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.geometry.blocks import BlockPlan
from unetrt.runtime.geometry.plan import Geometry, TilePlan
from unetrt.runtime.model.block_objects import decode_block, grow_block, margins, merge, merge_grown
from unetrt.runtime.model.confidence import confidence, confidence_of, evidence
from unetrt.runtime.model.objects import instances
from unetrt.runtime.model.spec import Decoding

PIXELWISE = Geometry(halo=0, grid=1)


def blocks_of(shape, size, geometry=PIXELWISE):
    """Return blocks of any size: the tiles are blocks."""
    sides = tuple(geometry.side_for(max(side, geometry.grid)) for side in size)
    return BlockPlan(TilePlan(shape, sides, geometry), size)


def stored(summary):
    """Return a summary as it is read from a file that holds no Python objects."""
    file = io.BytesIO()
    np.savez(file, **summary._asdict())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return type(summary)(**arrays)


def numbered(labels, numbering, blocks, shape):
    """Return the frame of the blocks' labels with their numbers in the frame."""
    frame = np.full(shape, -1, np.int64)
    for block in blocks:
        frame[block.rows, block.columns] = numbering.numbers[block.index][labels[block.index]]
    return frame


def in_blocks(classes, blocks, how, min_area=0, order=None):
    """Drive a frame through its blocks, which are decoded in a random order."""
    width = margins(how)
    order = random.Random(order).sample(range(len(blocks)), len(blocks))
    found = {
        index: decode_block(classes[blocks[index].around(width.decode)].copy(), blocks, index, how) for index in order
    }
    labels = {index: part for index, (part, _) in found.items()}
    numbering = merge([stored(found[index][1]) for index in range(len(blocks))], how, min_area)
    summaries = [found[index][1] for index in range(len(blocks))]
    if width.grow:
        frame = numbered(labels, numbering, blocks, classes.shape)
        found = {index: grow_block(frame[blocks[index].around(width.grow)], blocks, index, how) for index in order}
        labels = {index: part for index, (part, _) in found.items()}
        summaries = [stored(found[index][1]) for index in range(len(blocks))]
        numbering = merge_grown(summaries, how, min_area)
    for index, part in labels.items():
        counted = np.bincount(part.ravel(), minlength=len(summaries[index].areas))
        np.testing.assert_array_equal(summaries[index].areas[1:], counted[1:])
    return numbered(labels, numbering, blocks, classes.shape), numbering.count


def class_map(seed, shape, kind):
    """Return a random class map: smooth or rough, with few or many cores, with objects of many sizes."""
    rng = np.random.default_rng(seed)
    foreground = ndimage.uniform_filter(rng.random(shape), rng.integers(1, 6)) > rng.uniform(0.35, 0.6)
    if kind == "noise":  # cores of single pixels, and long cores that wind through the frame
        cores = rng.random(shape) < rng.choice([0.05, 0.4, 0.62, 0.9])
    else:
        cores = ndimage.uniform_filter(rng.random(shape), 3) > rng.uniform(0.35, 0.6)
    return (foreground * np.where(cores, 2, 1)).astype(np.uint8)


SIDES = st.integers(1, 45)
DECODINGS = st.one_of(
    st.builds(Decoding, st.just("components"), st.integers(0, 7), area=st.integers(0, 30)),
    st.builds(
        Decoding, st.just("cores"), st.integers(0, 12), st.integers(0, 4), st.integers(0, 12), st.integers(0, 30)
    ),
)


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["noise", "smooth"]),
    shape=st.tuples(SIDES, SIDES),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    geometry=st.sampled_from([PIXELWISE, Geometry.unet(depth=1), Geometry.unet(depth=2)]),
    how=DECODINGS,
    min_area=st.integers(0, 40),
)
def test_objects_and_numbers_are_those_of_the_whole_frame(seed, kind, shape, size, geometry, how, min_area):
    classes = class_map(seed, shape, kind)
    found, count = in_blocks(classes, blocks_of(shape, size, geometry), how, min_area, seed)
    whole = instances(classes, how, min_area)
    np.testing.assert_array_equal(found, whole)
    assert count == whole.max()


def spiral(side):
    """Return a class map whose only object winds from the corner to the centre."""
    classes, (y, x), (dy, dx) = np.zeros((side + 4, side + 4), np.uint8), (2, 2), (0, 1)
    classes[y, x] = 2
    for _ in range(side**2):
        ahead = y + 2 * dy, x + 2 * dx
        inside = all(2 <= at < side + 2 for at in (y + dy, x + dx))
        if not inside or classes[ahead] or classes[y + dy, x + dx]:
            dy, dx = dx, -dy
            if classes[y + 2 * dy, x + 2 * dx]:
                break
        y, x = y + dy, x + dx
        classes[y, x] = 2
    return classes[2:-2, 2:-2]


@pytest.mark.parametrize("how", [Decoding(), Decoding(reach=2), Decoding("cores"), Decoding("cores", 3, 0, 9)])
@pytest.mark.parametrize("size", [(2, 2), (1, 40), (40, 1), (7, 5), (16, 16), (99, 99)])
def test_an_object_that_winds_through_all_blocks_is_one(how, size):
    classes = spiral(23)
    assert 200 < np.count_nonzero(classes) < 330
    found, count = in_blocks(classes, blocks_of(classes.shape, size), how)
    assert count == 1
    np.testing.assert_array_equal(found, instances(classes, how))


@pytest.mark.parametrize("bridge", [1, 4, 8])
@pytest.mark.parametrize("reach", [0, 2])
def test_cores_are_bridged_across_blocks(bridge, reach):
    """Single pixels of cores in a foreground with holes, on both sides of borders, connected by way of other blocks."""
    how = Decoding("cores", reach, bridge)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        foreground = rng.random((30, 26)) < 0.75
        classes = (foreground * np.where(rng.random(foreground.shape) < 0.3 / bridge**2, 2, 1)).astype(np.uint8)
        found, _ = in_blocks(classes, blocks_of(classes.shape, tuple(rng.integers(2, 9, 2).tolist())), how)
        np.testing.assert_array_equal(found, instances(classes, how))


@pytest.mark.parametrize(("turn", "size"), [(0, (1, 5)), (1, (7, 1)), (2, (1, 7)), (3, (5, 1))])
def test_a_small_core_joins_a_neighbour_whose_core_is_as_far_as_it_reaches(turn, size):
    """The two objects meet where two blocks meet; the cores are 4 pixels from there."""
    classes = np.rot90(np.array([[2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]], np.uint8), turn)
    found, count = in_blocks(classes, blocks_of(classes.shape, size), Decoding("cores", 4, smallest=3))
    assert count == 1
    np.testing.assert_array_equal(found, np.ones(classes.shape))


@pytest.mark.parametrize("how", [Decoding("cores", 1024, 3, 9), Decoding(reach=1024, area=5)])
def test_a_reach_beyond_the_frame(how):
    classes = class_map(3, (30, 40), "smooth")
    found, _ = in_blocks(classes, blocks_of(classes.shape, (9, 11)), how)
    np.testing.assert_array_equal(found, instances(classes, how))


@pytest.mark.parametrize("how", [Decoding("cores", 5, 1, 4), Decoding("components", 2)])
def test_the_confidence_is_that_of_objects_of_the_whole_frame(how):
    rng = np.random.default_rng(2)
    classes = class_map(2, (60, 70), "smooth") if how.method == "cores" else class_map(2, (60, 70), "smooth") > 0
    p = rng.dirichlet([1] * (3 if how.method == "cores" else 2), classes.shape).transpose(2, 0, 1)
    p = np.take_along_axis(np.sort(p, axis=0)[::-1], np.argsort(np.arange(len(p))[:, None, None] != classes, 0), 0)
    blocks, whole = blocks_of(classes.shape, (17, 23)), instances(classes, how)
    frame, count = in_blocks(classes, blocks, how)
    total = np.zeros((count + 1, 4))
    for block in blocks:
        numbers, labels = np.unique(np.append(0, frame[block.rows, block.columns]), return_inverse=True)
        part = p[:, block.rows, block.columns].astype(np.float32)
        np.add.at(total, numbers, evidence(labels[1:].reshape(block.size), part, how, len(numbers) - 1))
    np.testing.assert_allclose(confidence_of(total), confidence(whole, p.astype(np.float32), how), rtol=1e-6)


def test_pixels_beyond_the_range_of_32_bits_are_named():
    blocks = BlockPlan(TilePlan((60_000, 60_000), (30_000, 30_000), PIXELWISE), (30_000, 30_000))
    small = blocks_of((60_000, 60_000), (59_990, 59_990))
    assert len(blocks) == len(small) == 4
    classes = np.zeros((11, 11), np.uint8)
    classes[0, 0], classes[3, 4:] = 1, 1
    _, found = decode_block(classes, small, 3)
    # The window begins one pixel before the block, at 59,989; the first object lies outside of the block.
    assert found.first.tolist() == [np.iinfo(np.int64).max, np.iinfo(np.int64).max, 59_992 * 60_000 + 59_993]
    assert found.corners.tolist() == [59_989 * 60_000 + 59_989]


def test_numbers_beyond_the_range_of_32_bits_grow():
    classes = class_map(5, (40, 50), "smooth")
    how, far = Decoding(reach=3), 2**40
    numbers = instances(classes, Decoding()).astype(np.int64)
    blocks = blocks_of(classes.shape, classes.shape)
    labels, found = grow_block(numbers + far * (numbers > 0), blocks, 0, how)
    np.testing.assert_array_equal(found.numbers[labels] - far * (labels > 0), instances(classes, how))


@pytest.mark.parametrize("classes", [0, 1, 2])
@pytest.mark.parametrize("how", [Decoding(), Decoding(reach=2, area=4), Decoding("cores", 2, 1, 4, 4)])
def test_a_frame_of_one_class(classes, how):
    frame = np.full((9, 10), classes, np.uint8)
    found, count = in_blocks(frame, blocks_of(frame.shape, (4, 3)), how)
    np.testing.assert_array_equal(found, instances(frame, how))
    assert count == found.max()


def peak_memory(call):
    """Return the peak of the memory allocated by a call, in bytes, and its result."""
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", [Decoding(), Decoding(reach=2), Decoding("cores", 20, 1, 20)])
@pytest.mark.parametrize("kind", ["full", "cells", "noise"])
def test_a_block_takes_memory_by_its_pixels_and_a_summary_by_its_objects(how, kind):
    margin = margins(how).decode
    side = 1000 + 2 * margin
    blocks = blocks_of((3000, 3000), (1000, 1000))
    if kind == "noise":
        classes = class_map(0, (side, side), kind)
    else:
        height = ndimage.gaussian_filter(np.random.default_rng(0).random((side, side)), 6)
        limits = np.quantile(height, [0.6, 0.75]) if kind == "cells" else [0, 0]
        classes = (height > limits[0]).astype(np.uint8) + (height > limits[1])
    peak, (labels, summary) = peak_memory(lambda: decode_block(classes, blocks, 4, how))
    assert labels.shape == (1000, 1000)
    assert peak < 30 * classes.size or kind == "noise"
    assert peak < 1.2 * peak_memory(lambda: instances(classes, how))[0]
    # Objects have a few corners, of which those near the border of the block count.
    assert sum(array.nbytes for array in summary) < 70 * len(summary.first) + 1000


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            np.zeros((20, 20), np.uint8),
            r"the class map of block 4 must be integers \(12, 12\), .*around\(1\) \(got uint8",
        ),
        (np.zeros((12, 12), np.float32), r"class map of block 4 must be integers .* \(got float32 \(12, 12\)\)"),
        (np.zeros((1, 12, 12), np.uint8), r"\(got uint8 \(1, 12, 12\)\)"),
    ],
)
def test_a_window_that_is_not_that_of_the_block_is_refused(classes, message):
    with pytest.raises(FrameError, match=message):
        decode_block(classes, blocks_of((30, 30), (10, 10)), 4)


def test_numbers_that_are_not_those_of_the_block_are_refused():
    with pytest.raises(FrameError, match=r"the numbers of block 4 must be integers \(14, 14\)"):
        grow_block(np.zeros((12, 12), np.int64), blocks_of((30, 30), (10, 10)), 4, Decoding(reach=2))


def test_objects_that_are_complete_before_they_are_merged_do_not_grow():
    with pytest.raises(OptionError, match=r"do not grow after they are merged: use the labels of decode_block"):
        grow_block(np.zeros((12, 12), np.int64), blocks_of((30, 30), (10, 10)), 4, Decoding("cores", 2))


def test_missing_blocks_are_noticed():
    how, blocks = Decoding("cores", 3), blocks_of((4, 20), (4, 10))
    classes = np.zeros((4, 20), np.uint8)
    classes[1:3, 9:], classes[1:3, 11:] = 1, 2
    _, left = decode_block(classes[blocks[0].around(margins(how).decode)], blocks, 0, how)
    for found in ([], [left]):
        with pytest.raises(FrameError, match="blocks are missing: give the summaries of all blocks of the frame"):
            merge(found, how)


@pytest.mark.parametrize("min_area", [-1, float("nan"), "many"])
def test_a_minimum_area_is_a_number(min_area):
    blocks = blocks_of((4, 4), (4, 4))
    _, found = decode_block(np.ones((4, 4), np.uint8), blocks, 0)
    with pytest.raises(OptionError, match="min_area must be at least 0"):
        merge([found], None, min_area)


@pytest.mark.parametrize("min_area", [16, 17, 10**30, float("inf")])
@pytest.mark.parametrize("how", [Decoding(), Decoding(reach=1)])
def test_a_minimum_area_may_exceed_the_frame(min_area, how):
    classes = np.ones((4, 4), np.uint8)
    found, count = in_blocks(classes, blocks_of((4, 4), (2, 3)), how, min_area)
    np.testing.assert_array_equal(found, instances(classes, how, min_area))
    assert count == (min_area == 16)
