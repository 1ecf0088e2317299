"""Which tiles are measured: those that a cost model is fitted to, and others that it is held against."""

from collections.abc import Iterable
from itertools import pairwise
from math import inf
from random import Random

import numpy as np

from unetrt.runtime.errors import TileError
from unetrt.runtime.geometry.plan import Geometry
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.machine import format_bytes
from unetrt.runtime.planner import Budget, FrameSize, candidates

# Tiles that a model is fitted to, and tiles that it is held against.
FITTED, HELD_OUT = 8, 10
# Sides along each axis, small to large; and steps of the grid that they span at least, for enough different tiles.
SIDES, LEAST_STEPS = 14, 5


def choose(
    frames: Iterable[FrameSize], shape: UNetShape, budget: Budget, most: float = inf
) -> tuple[list[FrameSize], list[FrameSize]]:
    """Return the tiles to fit a model to and the tiles to hold it against, none in both, square and oblong.

    They span what a plan for these frames may choose, the smallest and the largest among those to fit to.

    Parameters
    ----------
    frames
        Height and width of the frames that are planned for.
    shape
        The network.
    budget
        Its memory is that of one pass, whatever the number of lanes.
    most
        Multiply-accumulates of the largest tile at most.

    Raises
    ------
    TileError
        Too few different tiles fit.
    """
    pool = _pool(frames, shape, budget, most)
    wanted = FITTED + HELD_OUT
    if len(pool) < wanted:
        raise TileError(
            f"{len(pool)} different tiles fit into {format_bytes(budget.memory)} and take no longer than is "
            f"measured, but "
            f"{wanted} are needed: give more --memory, or a smaller --batch"
        )
    ends = np.linspace(0, len(pool), wanted + 1).astype(int)
    parts = [pool[begin:end] for begin, end in pairwise(ends)]
    chance = Random(0)  # the same tiles each time
    chosen = [parts[0][0], *(chance.choice(part) for part in parts[1:-1]), parts[-1][-1]]
    fitted = set(np.linspace(0, wanted - 1, FITTED).round().astype(int).tolist())
    return [chosen[k] for k in sorted(fitted)], [tile for k, tile in enumerate(chosen) if k not in fitted]


def smallest(shape: UNetShape) -> FrameSize:
    """Return the smallest tile that can be placed more than once."""
    side = shape.geometry.side_for(shape.geometry.grid)
    return side, side


def _pool(frames: Iterable[FrameSize], shape: UNetShape, budget: Budget, most: float) -> list[FrameSize]:
    """Return tiles that fit, by their arithmetic."""
    planned = [one.tile for one in candidates(frames, shape, budget)]
    heights, widths = (_sides([tile[axis] for tile in planned], shape.geometry) for axis in (0, 1))
    tiles = [(height, width) for height in heights for width in widths]
    fitting = [
        tile
        for tile in tiles
        if shape.macs(*tile) <= most
        and shape.activation_bytes(*tile, itemsize=budget.itemsize) * budget.batch <= budget.memory
    ]
    return sorted(fitting, key=lambda tile: shape.macs(*tile))


def _sides(considered: list[int], geometry: Geometry) -> list[int]:
    """Return legal sides over the range of those considered, each about as many times the one before."""
    least = min(considered)
    largest = max(*considered, least + LEAST_STEPS * geometry.grid)
    even = np.geomspace(least, largest, SIDES)
    return sorted({min(largest, geometry.side_for(int(side) - 2 * geometry.halo)) for side in even})
