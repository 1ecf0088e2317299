"""Geometry, mirroring and tile plans."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import coordinate_frame
from unetrt.runtime.errors import FrameError, TileError
from unetrt.runtime.geometry.plan import BORDERS, Geometry, TilePlan, mirrored, spans

PAPER = Geometry.unet(4)
depths = st.integers(1, 6)


def test_the_papers_sizes():
    assert (PAPER.halo, PAPER.grid, PAPER.smallest) == (92, 16, 188)
    assert PAPER.core(572) == 388
    assert PAPER.stride(572) == 384
    assert [side for side in range(560, 605) if PAPER.is_legal(side)] == [572, 588, 604]


@given(depths, st.integers(1, 3000))
def test_legal_sides_are_those_that_stay_even_before_each_pooling(depth, side):
    geometry = Geometry.unet(depth)
    assert geometry.is_legal(side) == (_core_by_walking(depth, side) is not None)
    if geometry.is_legal(side):
        assert geometry.core(side) == _core_by_walking(depth, side)


def _core_by_walking(depth, side):
    """Walk figure 1 of the paper; None where a size is odd before a pooling or nothing is left."""
    for _ in range(depth):
        side -= 4
        if side < 2 or side % 2:
            return None
        side //= 2
    side -= 4
    for _ in range(depth):
        side = 2 * side - 4
        if side < 1:
            return None
    return side


@pytest.mark.parametrize(
    ("side", "advice"), [(512, "use 508 or 524"), (100, "use 188"), (187, "use 188"), (573, "use 572 or 588")]
)
def test_an_illegal_side_names_the_nearest_legal_ones(side, advice):
    with pytest.raises(TileError, match=f"tile {side} is not legal.*{advice}$"):
        PAPER.require(side)


@given(depths, st.integers(1, 2000), st.integers(1, 9))
def test_side_for_count_is_the_smallest(depth, length, count):
    geometry = Geometry.unet(depth)
    side = geometry.side_for_count(length, count)
    assert geometry.is_legal(side)
    assert geometry.core(side) + (count - 1) * geometry.stride(side) >= length
    below = side - geometry.grid
    if geometry.is_legal(below):
        assert geometry.core(below) + (count - 1) * geometry.stride(below) < length


@given(depths, st.integers(1, 2000), st.integers(0, 40))
def test_count_covers_and_is_not_too_many(depth, length, steps):
    geometry = Geometry.unet(depth)
    side = geometry.side_for(geometry.grid) + steps * geometry.grid
    count = geometry.count(side, length)
    core, stride = geometry.core(side), geometry.stride(side)
    assert core + (count - 1) * stride >= length
    assert count == 1 or core + (count - 2) * stride < length


def test_a_core_below_the_grid_serves_one_tile_only():
    assert PAPER.count(188, 4) == 1
    with pytest.raises(TileError, match="cannot be placed more than once.*use 204 or more"):
        PAPER.count(188, 5)


@pytest.mark.parametrize("depth", [0, -1])
def test_depth_is_at_least_one(depth):
    with pytest.raises(TileError, match="depth of 1 or more"):
        Geometry.unet(depth)


windows = st.tuples(st.integers(-60, 60), st.integers(1, 120)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(windows, st.integers(1, 40), st.sampled_from(BORDERS))
def test_indices_are_those_of_numpy_pad(window, length, border):
    start, stop = window
    before, after = max(0, -start), max(0, stop - length)
    padded = np.pad(np.arange(length), (before, after), mode=border)
    np.testing.assert_array_equal(mirrored(start, stop, length, border), padded[start + before : stop + before])


@given(windows, st.integers(2, 40), st.sampled_from(BORDERS))
def test_spans_read_what_the_indices_say(window, length, border):
    start, stop = window
    source = np.arange(length)
    read = np.full(stop - start, -1)
    for span in spans(start, stop, length, border):
        read[span.window] = source[span.frame]
    np.testing.assert_array_equal(read, mirrored(start, stop, length, border))


@pytest.mark.parametrize(("border", "expected"), [("reflect", [2, 1, 0, 1, 2]), ("symmetric", [1, 0, 0, 1, 2])])
def test_the_edge_pixel_is_repeated_by_symmetric_alone(border, expected):
    assert mirrored(-2, 3, 5, border).tolist() == expected


@given(windows, st.integers(2, 40), st.sampled_from(BORDERS), st.integers(1, 50))
def test_parts_of_spans_read_what_the_spans_read(window, length, border, most):
    start, stop = window
    source, read = np.arange(length), np.full(stop - start, -1)
    for span in spans(start, stop, length, border):
        for part in span.split(most):
            assert part.window.stop - part.window.start <= most
            read[part.window] = source[part.frame]
    np.testing.assert_array_equal(read, mirrored(start, stop, length, border))


@st.composite
def plans(draw):
    geometry = Geometry.unet(draw(st.integers(1, 3)))
    tile = tuple(geometry.side_for(geometry.grid) + geometry.grid * draw(st.integers(0, 4)) for _ in range(2))
    frame = (draw(st.integers(1, 130)), draw(st.integers(1, 130)))
    return TilePlan(frame, tile, geometry, draw(st.sampled_from(BORDERS)))


@given(plans())
def test_a_tile_is_a_window_of_the_padded_frame(plan):
    frame = coordinate_frame(*plan.frame)
    reach = max(plan.tile) + plan.geometry.halo
    padded = np.pad(frame, reach, mode=plan.border)
    for tile in plan:
        out = np.full((1, *plan.tile), -1, np.float32)
        tile.cut(frame[None], out)
        top, left = tile.rows.start + reach, tile.columns.start + reach
        expected = padded[top : top + plan.tile[0], left : left + plan.tile[1]]
        np.testing.assert_array_equal(out[0], expected)


@given(plans())
def test_every_pixel_is_written_exactly_once(plan):
    written = np.zeros(plan.frame, int)
    for tile in plan:
        written[tile.rows.core, tile.columns.core] += 1
    assert (written == 1).all()


@given(plans())
def test_cropping_the_halo_and_stitching_gives_the_frame_back(plan):
    frame, out = coordinate_frame(*plan.frame), np.full(plan.frame, -1, np.float32)
    halo = plan.geometry.halo
    for tile in plan:
        cut = np.empty((1, *plan.tile), np.float32)
        tile.cut(frame[None], cut)
        tile.stitch(cut[0, halo:-halo, halo:-halo], out)
    np.testing.assert_array_equal(out, frame)


@given(plans())
def test_all_tiles_start_on_the_lattice_of_the_first(plan):
    for tile in plan:
        assert (tile.rows.start + plan.geometry.halo) % plan.geometry.grid == 0
        assert (tile.columns.start + plan.geometry.halo) % plan.geometry.grid == 0


def test_a_large_frame_is_cut_by_slices_and_a_small_one_by_a_gather():
    geometry = Geometry.unet(4)
    large = TilePlan((600, 700), (572, 572), geometry)
    assert all(1 <= len(tile.rows.spans) <= 4 for tile in large)
    assert all(tile.rows.spans == () for tile in TilePlan((30, 40), (572, 572), geometry))


def test_batches_hold_all_tiles_in_order():
    plan = TilePlan((600, 700), (572, 572), Geometry.unet(4))
    batches = list(plan.batches(3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert [tile.index for batch in batches for tile in batch] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("frame", "tile", "error", "message"),
    [
        ((0, 5), (572, 572), FrameError, "0 x 5 px has no pixels"),
        ((5, 5), (572, 512), TileError, "tile 512 is not legal.*508 or 524"),
        ((5, 5), (188, 188), TileError, "cannot be placed more than once"),
    ],
)
def test_what_cannot_be_planned(frame, tile, error, message):
    with pytest.raises(error, match=message):
        TilePlan(frame, tile, Geometry.unet(4))
