import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unetrt.runtime.errors import FrameError, OptionError, TileError
from unetrt.runtime.geometry.planner import (
    GIB,
    MAX_SIDE,
    MAX_TILE,
    TIMED_TILES,
    Budget,
    TileTime,
    best_tile,
    candidates,
    cost_of,
    pareto_front,
    worth_timing,
)
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.trainer.unet import UNet

PAPER = UNetShape()


@pytest.mark.parametrize("shape", [UNetShape(2, 4), UNetShape(3, 8, channels=3, classes=5), UNetShape(1, 5)])
def test_multiply_accumulates_are_those_that_torch_counts(shape):
    tile = (shape.geometry.side_for(20), shape.geometry.side_for(50))
    with FlopCounterMode(display=False) as counter:
        UNet(shape)(torch.zeros(1, shape.channels, *tile))
    assert 2 * shape.macs(*tile) == counter.get_total_flops()


@pytest.mark.parametrize(("side", "useful"), [(572, 0.57), (1212, 0.88), (2236, 0.94)])
def test_useful_share_on_a_2048_frame(side, useful):
    assert cost_of((side, side), [(2048, 2048)], PAPER).useful == pytest.approx(useful, abs=0.005)


def test_the_best_tile_for_a_camera_frame_is_one_tile():
    best = best_tile([(2048, 2048)], UNetShape(base=16))
    assert (best.tile, best.passes) == ((2236, 2236), 1)


def test_a_smaller_budget_gives_a_smaller_tile_that_fits_and_costs_more():
    large, small = (best_tile([(2048, 2048)], PAPER, Budget(memory=gib * GIB)) for gib in (8, 1))
    assert small.memory <= GIB < large.memory
    assert small.macs > large.macs


def test_height_and_width_are_chosen_apart():
    height, width = best_tile([(300, 1500)], UNetShape(base=16)).tile
    assert height < width


@pytest.mark.parametrize("frames", [[(100, 333)], [(256, 256), (520, 696), (520, 696)]])
def test_no_legal_tile_is_cheaper(frames):
    shape = UNetShape(3, 4)
    best = best_tile(frames, shape)
    sides = range(shape.geometry.side_for(shape.geometry.grid), 900, shape.geometry.grid)
    assert best.macs == min(cost_of((h, w), frames, shape).macs for h in sides for w in sides)


@pytest.mark.parametrize("frame", [(0, 5), (10**13, 5), (5, MAX_SIDE + 1), (-4, 4)])
def test_frames_that_no_plan_is_for(frame):
    for plan in (lambda frames: best_tile(frames, PAPER), lambda frames: cost_of((572, 572), frames, PAPER)):
        with pytest.raises(FrameError, match=f"no plan for a frame of .*: use sides from 1 to {MAX_SIDE} px"):
            plan([(64, 64), frame])


def test_the_largest_frame_is_counted_without_overflow():
    best = best_tile([(MAX_SIDE, MAX_SIDE)], PAPER)
    assert best.passes > 0
    assert 0 < best.useful < 1


def test_no_tile_is_larger_than_a_model_may_have():
    plans = candidates([(20, MAX_SIDE)], UNetShape(2, 4))
    assert max(one.tile[1] for one in plans) <= MAX_TILE


def test_batch_and_lanes_enter_memory_and_batch_enters_the_arithmetic():
    one = cost_of((572, 572), [(500, 500)], PAPER)
    four = cost_of((572, 572), [(500, 500)], PAPER, Budget(batch=3, lanes=2))
    assert four.memory == 6 * one.memory
    assert (one.passes, four.passes) == (4, 6)


def test_nothing_fits_says_what_the_least_need_is():
    with pytest.raises(TileError, match=r"no tile fits 1 MiB: the smallest, 204x204, needs about \d\d MiB"):
        best_tile([(2048, 2048)], PAPER, Budget(memory=2**20))


def test_a_set_of_many_sizes_is_planned_without_trying_everything():
    frames = [(200 + 3 * number, 2000 - 3 * number) for number in range(500)]
    tried = candidates(frames, UNetShape(base=16))
    assert len(tried) <= 65**2
    assert tried[0].macs < cost_of((572, 572), frames, UNetShape(base=16)).macs


def test_candidates_are_ordered_by_cost():
    macs = [one.macs for one in candidates([(1024, 1024)], PAPER)]
    assert macs == sorted(macs)


@pytest.mark.parametrize("numbers", [{"depth": 0}, {"base": 0}, {"channels": 0}, {"classes": 1}])
def test_numbers_that_make_no_network(numbers):
    with pytest.raises(OptionError, match="invalid network"):
        UNetShape(**numbers)


FRAMES, SMALL = [(2048, 2048)], UNetShape(base=16)
WHOLE, HALF, QUARTER = (2236, 2236), (1212, 2236), (1212, 1212)  # 1, 2 and 4 passes


def timed(tile, seconds, noise=0.0):
    return TileTime(tile, seconds, noise, "2026-01-31")


def test_the_fastest_of_the_measured_tiles_is_best():
    times = [timed(WHOLE, 2.0), timed(HALF, 0.7), timed(QUARTER, 0.45)]
    best = best_tile(FRAMES, SMALL, times=times)
    assert (best.tile, best.seconds) == (HALF, pytest.approx(1.4))


def test_of_measured_tiles_within_the_noise_the_one_of_least_arithmetic_is_best():
    times = [timed(WHOLE, 1.5, 0.05), timed(HALF, 0.7, 0.03), timed(QUARTER, 0.45)]
    assert best_tile(FRAMES, SMALL, times=times).tile == WHOLE
    assert best_tile(FRAMES, SMALL, times=[timed(WHOLE, 1.5, 0.03), *times[1:]]).tile == HALF


def test_seconds_are_not_compared_with_arithmetic():
    best = best_tile(FRAMES, SMALL, times=[timed(HALF, 1e-9)])
    assert (best.tile, best.seconds) == (WHOLE, None)


def test_a_measured_tile_beyond_the_budget_is_not_best():
    times = [timed(WHOLE, 0.1), timed(HALF, 2.0), timed(QUARTER, 0.9)]
    assert best_tile(FRAMES, SMALL, Budget(memory=2 * GIB), times).tile == QUARTER


def test_tiles_that_fill_a_batch_take_time_too():
    planned = cost_of((572, 572), [(500, 500), (500, 500)], SMALL, Budget(batch=3), [timed((572, 572), 0.1, 0.01)])
    assert (planned.passes, planned.seconds, planned.noise) == (12, pytest.approx(1.2), pytest.approx(0.12))


@pytest.mark.parametrize("gib", [8, 1, 0.1])
def test_tiles_worth_timing_fit_and_include_the_best(gib):
    memory = int(gib * GIB)
    ranked = candidates(FRAMES, SMALL)
    tiles = worth_timing(ranked, memory)
    assert tiles[0] == best_tile(FRAMES, SMALL, Budget(memory)).tile
    assert len(set(tiles)) == len(tiles) <= TIMED_TILES + 1
    assert all(one.memory <= memory for one in ranked if one.tile in tiles)


def test_the_one_tile_plan_is_worth_timing_where_it_fits():
    frames, shape = [(100, 100), (90, 300)], UNetShape(2, 4)
    ranked = candidates(frames, shape)
    whole = next(one for one in ranked if one.passes == 2)
    assert whole not in pareto_front(ranked)[:TIMED_TILES]
    assert worth_timing(ranked, GIB)[-1] == whole.tile
    assert whole.tile not in worth_timing(ranked, whole.memory - 1)


def test_no_tile_of_the_front_is_beaten_in_both_arithmetic_and_memory():
    ranked = candidates(FRAMES, SMALL)
    for one in pareto_front(ranked):
        assert not any(other.macs <= one.macs and other.memory < one.memory for other in ranked)
