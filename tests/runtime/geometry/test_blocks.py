"""Blocks cover a frame once, and their tiles are those of the frame's plan."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.blocks import BlockPlan
from unetrt.runtime.geometry.plan import Geometry, TilePlan

GEOMETRY = Geometry.unet(depth=1)  # halo 8, grid 2
SIDES = st.integers(10, 20).map(lambda half: 2 * half)
LENGTHS = st.integers(1, 150)
BORDERS = st.sampled_from(["reflect", "symmetric"])


@given(
    LENGTHS, LENGTHS, SIDES, SIDES, st.integers(1, 90), st.integers(1, 90), st.sampled_from(["reflect", "symmetric"])
)
def test_the_tiles_of_all_blocks_are_those_of_the_frame(height, width, down, across, rows, columns, border):
    plan = TilePlan((height, width), (down, across), GEOMETRY, border)
    frame = np.arange(height * width).reshape(1, height, width)
    written = np.zeros((height, width), int)
    tiles = {(tile.rows.core.start, tile.columns.core.start): tile for tile in plan}
    for block in (blocks := BlockPlan(plan, (rows, columns))):
        part = frame[:, block.window[0], block.window[1]]
        place = np.zeros(block.size, int)
        assert block.rows.start % blocks.size[0] == block.columns.start % blocks.size[1] == 0
        assert len(list(block.tiles)) == len(block)
        for tile in block.tiles:
            whole = tiles.pop((tile.rows.core.start + block.rows.start, tile.columns.core.start + block.columns.start))
            cut, wanted = np.empty((1, down, across), int), np.empty((1, down, across), int)
            tile.cut(part, cut)
            whole.cut(frame, wanted)
            np.testing.assert_array_equal(cut, wanted)
            tile.place(place)[...] += 1
        written[block.rows, block.columns] += place
    assert not tiles
    assert (written == 1).all()


@given(LENGTHS, SIDES, st.integers(1, 90), st.integers(0, 60))
def test_blocks_around_a_block_are_those_within_the_margin(length, side, block, margin):
    blocks = BlockPlan(TilePlan((length, length), (side, side), GEOMETRY), (block, block))
    for one in blocks:
        rows, columns = one.around(margin)
        near = [
            other.index
            for other in blocks
            if other.rows.start < rows.stop
            and rows.start < other.rows.stop
            and other.columns.start < columns.stop
            and columns.start < other.columns.stop
        ]
        assert blocks.around(one.index, margin) == near


@pytest.mark.parametrize("tile", [188 + 16 * count for count in (1, 3, 12, 24, 40, 64, 127)])
@pytest.mark.parametrize("wished", [512, 2048, 4096])
def test_chunks_divide_blocks(tile, wished):
    blocks = BlockPlan(TilePlan((20_000, 20_000), (tile, tile), Geometry.unet(depth=4)), (wished, wished))
    for size, chunk in zip(blocks.size, blocks.chunk(1024), strict=True):
        assert size % chunk == 0 == chunk % 16
        assert chunk <= max(1024, blocks.plan.geometry.stride(tile))


@pytest.mark.parametrize("block", [(0, 5), 7, (3.5, 2), (1, 2, 3)])
def test_a_block_has_a_size(block):
    with pytest.raises(OptionError, match="block must be a height and a width"):
        BlockPlan(TilePlan((50, 50), (20, 20), GEOMETRY), block)
