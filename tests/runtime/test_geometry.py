import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetrt.runtime.errors import TileError
from unetrt.runtime.geometry.geometry import Geometry

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
