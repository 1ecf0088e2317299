"""The planner: which legal tile segments given frames with the least arithmetic, or in the least measured time."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cost_model import CostModel
from unetrt.runtime.errors import OptionError, TileError
from unetrt.runtime.geometry.plan import Geometry
from unetrt.runtime.geometry.unet_shape import UNetShape

FrameSize = tuple[int, int]

# Up to so many tiles an axis each number is tried, beyond it every fourth or so: those only serve small memories.
EVERY_COUNT = 8

# Sides considered along each axis.
MOST_SIDES = 64

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Budget:
    """What a tile must fit into.

    Attributes
    ----------
    memory
        Bytes for activations, of all lanes together (default 8 GiB).
    batch
        Tiles in one pass.
    lanes
        Passes in flight at once. On a CPU the passes run one after another, so 1.
    itemsize
        Bytes of one activation: 4 for FP32, 2 for FP16.
    """

    memory: int = 8 * GIB
    batch: int = 1
    lanes: int = 1
    itemsize: int = 4

    def __post_init__(self) -> None:
        if min(self.memory, self.batch, self.lanes) < 1:
            raise OptionError(f"memory {self.memory}, batch {self.batch} and lanes {self.lanes} must be at least 1")


@dataclass(frozen=True)
class PlannedTile:
    """A tile and what it costs.

    Attributes
    ----------
    tile
        Height and width, in pixels.
    passes
        Tiles computed for all frames, those that only fill a batch included.
    macs
        Multiply-accumulates for all frames.
    useful
        Share of `macs` that a network without borders would need for the same pixels, 0 to 1.
    memory
        Bytes of activations, all lanes and the whole batch.
    seconds
        Predicted for all frames, one pass after another; None without a cost model.
    """

    tile: FrameSize
    passes: int
    macs: int
    useful: float
    memory: int
    seconds: float | None = None


def candidates(
    frames: Iterable[FrameSize], shape: UNetShape, budget: Budget | None = None, model: CostModel | None = None
) -> list[PlannedTile]:
    """Return every tile worth considering for these frames, cheapest first, whatever its memory.

    Parameters
    ----------
    frames
        Height and width of each frame; a size that comes often counts often.
    shape
        The network.
    budget
        Batch, lanes and item size enter the figures; the memory limit does not.
    model
        What tiles take on this machine, measured at this batch. With it the cheapest is the fastest, without it the
        one of least arithmetic.
    """
    sizes, budget = Counter(frames), budget or Budget()
    heights = _sides({height for height, _ in sizes}, shape.geometry)
    widths = _sides({width for _, width in sizes}, shape.geometry)
    passes = _passes(heights, widths, sizes, shape.geometry, budget.batch)
    planned = (
        _cost((height, width), int(passes[row, column]), sizes, shape, budget, model)
        for row, height in enumerate(heights)
        for column, width in enumerate(widths)
    )
    return sorted(planned, key=lambda one: (one.seconds or 0, one.macs, one.passes))


def best_tile(
    frames: Iterable[FrameSize], shape: UNetShape, budget: Budget | None = None, model: CostModel | None = None
) -> PlannedTile:
    """Return the cheapest tile that fits the budget, as `candidates` ranks them.

    Raises
    ------
    TileError
        None fits; the message names the smallest need.
    """
    budget = budget or Budget()
    ranked = candidates(frames, shape, budget, model)
    fitting = [one for one in ranked if one.memory <= budget.memory]
    if fitting:
        return fitting[0]
    least = min(ranked, key=lambda one: one.memory)
    height, width = least.tile
    raise TileError(
        f"no tile fits {_amount(budget.memory)}: the smallest, {height}x{width}, needs about "
        f"{_amount(least.memory)}; give more memory, fewer lanes or a smaller batch"
    )


def cost_of(
    tile: FrameSize,
    frames: Iterable[FrameSize],
    shape: UNetShape,
    budget: Budget | None = None,
    model: CostModel | None = None,
) -> PlannedTile:
    """Return what these frames cost with a tile of the caller's choice; raises TileError where it is not legal."""
    sizes, budget = Counter(frames), budget or Budget()
    height, width = (shape.geometry.require(side) for side in tile)
    passes = _passes([height], [width], sizes, shape.geometry, budget.batch)
    return _cost(tile, int(passes[0, 0]), sizes, shape, budget, model)


def _sides(lengths: set[int], geometry: Geometry) -> list[int]:
    """Return the sides worth considering along one axis: for each length the smallest that covers it n times."""
    usable = geometry.side_for(geometry.grid)
    sides = {usable}
    for length in lengths:
        count = 1
        while (side := geometry.side_for_count(length, count)) > usable:
            sides.add(side)
            count += 1 if count < EVERY_COUNT else count // 4
    ordered = sorted(sides)
    # A set of very different frames makes hundreds of sides, neighbours of each other: an even choice of them will do.
    return ordered[:: -(-len(ordered) // MOST_SIDES)] + ordered[-1:] if len(ordered) > MOST_SIDES else ordered


def _passes(
    heights: list[int], widths: list[int], sizes: Counter[FrameSize], geometry: Geometry, batch: int
) -> NDArray[np.int64]:
    """Return the tiles computed for all frames, those that only fill a batch included: (heights, widths)."""
    down = np.array([[geometry.count(side, height) for height, _ in sizes] for side in heights])
    across = np.array([[geometry.count(side, width) for _, width in sizes] for side in widths])
    tiles = down[:, None] * across[None]  # (heights, widths, sizes)
    computed: NDArray[np.int64] = (-(-tiles // batch) * batch) @ np.array(list(sizes.values()))
    return computed


def _cost(
    tile: FrameSize, passes: int, sizes: Counter[FrameSize], shape: UNetShape, budget: Budget, model: CostModel | None
) -> PlannedTile:
    macs = passes * shape.macs(*tile)
    pixels = sum(height * width * often for (height, width), often in sizes.items())
    memory = shape.activation_bytes(*tile, itemsize=budget.itemsize) * budget.batch * budget.lanes
    seconds = None if model is None else passes * model.seconds(tile, shape)
    return PlannedTile(tile, passes, macs, pixels * shape.macs_per_pixel() / macs, memory, seconds)


def _amount(memory: int) -> str:
    return f"{memory / GIB:.1f} GiB" if memory >= GIB else f"{memory / MIB:.0f} MiB"
