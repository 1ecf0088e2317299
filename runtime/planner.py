"""The planner: which legal tile segments given frames with the least arithmetic."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from unetrt.runtime.cost import UNetShape
from unetrt.runtime.errors import TileError
from unetrt.runtime.plan import TilePlan

FrameSize = tuple[int, int]

# Up to so many tiles an axis each number is tried, beyond it every fourth or so: those only serve small memories.
EVERY_COUNT = 8

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
    """

    tile: FrameSize
    passes: int
    macs: int
    useful: float
    memory: int


def candidates(frames: Iterable[FrameSize], shape: UNetShape, budget: Budget | None = None) -> list[PlannedTile]:
    """Return every tile worth considering for these frames, cheapest first, whatever its memory.

    Parameters
    ----------
    frames
        Height and width of each frame; a size that comes often counts often.
    shape
        The network.
    budget
        Batch, lanes and item size enter the figures; the memory limit does not.
    """
    sizes, budget = Counter(frames), budget or Budget()
    heights = _sides((size[0] for size in sizes), shape)
    widths = _sides((size[1] for size in sizes), shape)
    planned = (_cost((height, width), sizes, shape, budget) for height in heights for width in widths)
    return sorted(planned, key=lambda one: (one.macs, one.passes))


def best_tile(frames: Iterable[FrameSize], shape: UNetShape, budget: Budget | None = None) -> PlannedTile:
    """Return the cheapest tile that fits the budget.

    Raises
    ------
    TileError
        None fits; the message names the smallest need.
    """
    budget = budget or Budget()
    ranked = candidates(frames, shape, budget)
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
    tile: FrameSize, frames: Iterable[FrameSize], shape: UNetShape, budget: Budget | None = None
) -> PlannedTile:
    """Return what these frames cost with a tile of the caller's choice; raises TileError where it is not legal."""
    return _cost(tile, Counter(frames), shape, budget or Budget())


def _sides(lengths: Iterable[int], shape: UNetShape) -> list[int]:
    geometry = shape.geometry
    usable = geometry.side_for(geometry.grid)
    sides = {usable}
    for length in lengths:
        count = 1
        while (side := geometry.side_for_count(length, count)) > usable:
            sides.add(side)
            count += 1 if count < EVERY_COUNT else count // 4
    return sorted(sides)


def _cost(tile: FrameSize, sizes: Counter[FrameSize], shape: UNetShape, budget: Budget) -> PlannedTile:
    passes = sum(
        -(-len(TilePlan(size, tile, shape.geometry)) // budget.batch) * budget.batch * often
        for size, often in sizes.items()
    )
    macs = passes * shape.macs(*tile)
    pixels = sum(height * width * often for (height, width), often in sizes.items())
    memory = shape.activation_bytes(*tile, itemsize=budget.itemsize) * budget.batch * budget.lanes
    return PlannedTile(tile, passes, macs, pixels * shape.macs_per_pixel() / macs, memory)


def _amount(memory: int) -> str:
    return f"{memory / GIB:.1f} GiB" if memory >= GIB else f"{memory / MIB:.0f} MiB"
