import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import coordinate_frame
from unetrt.runtime.errors import FrameError, TileError
from unetrt.runtime.geometry.geometry import Geometry
from unetrt.runtime.geometry.plan import BORDERS, TilePlan


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
