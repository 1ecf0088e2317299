import pytest

from unetrt.benchmarks.tile_choice import FITTED, HELD_OUT, choose
from unetrt.runtime.errors import TileError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.planner import GIB, Budget, best_tile

CASES = {
    "camera": ([(2048, 2048)], UNetShape(base=16), Budget()),
    "little memory": ([(2048, 2048)], UNetShape(base=16), Budget(memory=GIB // 4)),
    "smaller than a tile": ([(16, 16)], UNetShape(base=16), Budget()),
    "oblong": ([(300, 2000)], UNetShape(), Budget(batch=2)),
    "shallow": ([(100, 100)], UNetShape(2, 4), Budget()),
}


@pytest.mark.parametrize(("frames", "shape", "budget"), CASES.values(), ids=CASES)
def test_tiles_are_legal_different_and_fit(frames, shape, budget):
    fitted, held_out = choose(frames, shape, budget)
    assert (len(fitted), len(held_out)) == (FITTED, HELD_OUT)
    tiles = {*fitted, *held_out}
    assert len(tiles) == FITTED + HELD_OUT
    assert all(shape.geometry.is_legal(side) for tile in tiles for side in tile)
    assert all(shape.activation_bytes(*tile) * budget.batch <= budget.memory for tile in tiles)
    assert any(height > width for height, width in tiles)
    assert any(height < width for height, width in tiles)


@pytest.mark.parametrize(("frames", "shape", "budget"), CASES.values(), ids=CASES)
def test_what_a_model_is_held_against_lies_within_what_it_is_fitted_to(frames, shape, budget):
    fitted, held_out = ([shape.macs(*tile) for tile in tiles] for tiles in choose(frames, shape, budget))
    assert min(fitted) <= min(held_out)
    assert max(held_out) <= max(fitted)


def test_the_tile_that_arithmetic_would_choose_is_measured():
    frames, shape = [(2048, 2048)], UNetShape(base=16)
    assert best_tile(frames, shape).tile in choose(frames, shape, Budget())[0]


def test_no_tile_is_larger_than_asked():
    shape = UNetShape(base=16)
    most = shape.macs(700, 700)
    fitted, held_out = choose([(2048, 2048)], shape, Budget(), most)
    assert most / 2 < max(shape.macs(*tile) for tile in [*fitted, *held_out]) <= most


def test_lanes_are_not_measured_side_by_side():
    one, four = (choose([(512, 512)], UNetShape(), Budget(lanes=lanes)) for lanes in (1, 4))
    assert one == four


def test_too_little_memory_says_what_helps():
    with pytest.raises(TileError, match=r"\d different tiles fit into 8 MiB .* 18 are needed: give more --memory"):
        choose([(2048, 2048)], UNetShape(base=16), Budget(memory=2**23))
