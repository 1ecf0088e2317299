import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unetrt.runtime.errors import OptionError, TileError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.planner import GIB, Budget, best_tile, candidates, cost_of
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
