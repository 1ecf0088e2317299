"""The planner: ranks the legal tiles for given frames.

A tile costs arithmetic: passes times multiply-accumulates, which falls as the tile grows and less of it is halo. It
also needs memory, which the budget limits. Where tiles were timed on this machine (`unetrt plan --measure`), the times
decide between them; tiles that were not timed are ranked by arithmetic.

>>> best_tile([(2048, 2048)], UNetShape(base=16)).tile
(2236, 2236)
>>> best_tile([(2048, 2048)], UNetShape(base=16), Budget(memory=1 * GIB)).tile
(1212, 1212)
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, OptionError, TileError
from unetrt.runtime.geometry.plan import Geometry
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.machine import format_bytes, free_memory

FrameSize = tuple[int, int]  # height and width, in pixels

# Up to this many tiles along an axis every count is tried, then steps of a quarter: those only serve small memories.
EVERY_COUNT = 8
# Sides considered along each axis.
MOST_SIDES = 64
# Tiles that are worth timing, the one-tile plan not counted.
TIMED_TILES = 5

# Largest side of a frame, in pixels: the tiles of one frame are counted in int64. Largest side of a model's tile.
MAX_SIDE, MAX_TILE = 1 << 24, 1 << 20

GIB = 2**30
# Share of the host's free memory that a pass may need: the need is an estimate.
SHARE = 0.8


@dataclass(frozen=True)
class Budget:
    """Memory that a tile must fit into, and how passes run.

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

    def within_free_memory(self) -> "Budget":
        """Return a budget for a backend on the CPU: its memory at most what the host has free."""
        free = free_memory()
        return self if free is None else replace(self, memory=max(1, min(self.memory, int(SHARE * free))))


@dataclass(frozen=True)
class TileTime:
    """A measured tile.

    Attributes
    ----------
    tile
        Height and width, in pixels.
    seconds
        Seconds per tile (the time of a pass divided by the batch), the median over rounds of passes.
    noise
        Uncertainty of `seconds`, in seconds: the median absolute deviation of the rounds.
    measured_on
        Date, ISO 8601.
    """

    tile: FrameSize
    seconds: Annotated[float, Meta(gt=0)]
    noise: Annotated[float, Meta(ge=0)]
    measured_on: str


@dataclass(frozen=True)
class PlannedTile:
    """A tile and its cost for the frames of a plan.

    Attributes
    ----------
    tile
        Height and width, in pixels.
    passes
        Tiles computed for all frames, including those that only fill up a batch.
    macs
        Multiply-accumulates for all frames.
    useful
        Share of `macs` that a network without borders would need for the same pixels, 0 to 1.
    memory
        Bytes of activations, all lanes and the whole batch.
    seconds, noise
        Measured for all frames; None and 0 where the tile was not measured.
    """

    tile: FrameSize
    passes: int
    macs: int
    useful: float
    memory: int
    seconds: float | None = None
    noise: float = 0.0


def candidates(
    frames: Iterable[FrameSize], shape: UNetShape, budget: Budget | None = None, times: Iterable[TileTime] = ()
) -> list[PlannedTile]:
    """Return every tile worth considering for these frames, least arithmetic first, regardless of memory.

    Parameters
    ----------
    frames
        Height and width of each frame; a repeated size counts once per occurrence.
    shape
        The network.
    budget
        Batch, lanes and item size enter the figures; the memory limit does not.
    times
        Tiles measured at this batch and number of lanes.

    Raises
    ------
    FrameError
        A frame has no pixels, or more than `MAX_SIDE` on a side.
    """
    sizes, budget = _counted(frames), budget or Budget()
    heights = _sides({height for height, _ in sizes}, shape.geometry)
    widths = _sides({width for _, width in sizes}, shape.geometry)
    passes = _passes(heights, widths, sizes, shape.geometry, budget.batch)
    known, pixels = {one.tile: one for one in times}, _pixels(sizes)
    planned = (
        _cost((height, width), int(passes[row, column]), pixels, shape, budget, known)
        for row, height in enumerate(heights)
        for column, width in enumerate(widths)
    )
    return sorted(planned, key=lambda one: (one.macs, one.passes))


def best_tile(
    frames: Iterable[FrameSize], shape: UNetShape, budget: Budget | None = None, times: Iterable[TileTime] = ()
) -> PlannedTile:
    """Return the tile of least arithmetic that fits the budget, or, where that one was measured, the fastest measured.

    Measured tiles whose intervals, seconds plus or minus noise, overlap with the interval of the fastest one tie with
    it; of those, the one of least arithmetic is returned. Seconds are never compared with arithmetic.

    Raises
    ------
    TileError
        No tile fits; the message names the smallest need.
    """
    budget = budget or Budget()
    return _choice(fitting(candidates(frames, shape, budget, times), budget.memory))


def fitting(ranked: list[PlannedTile], memory: int) -> list[PlannedTile]:
    """Return the candidates that fit into `memory` bytes, in their order; raises TileError where none does."""
    found = [one for one in ranked if one.memory <= memory]
    if found:
        return found
    least = min(ranked, key=lambda one: one.memory)
    height, width = least.tile
    raise TileError(
        f"no tile fits {format_bytes(memory)}: the smallest, {height}x{width}, needs about "
        f"{format_bytes(least.memory)}; give more memory, fewer lanes or a smaller batch"
    )


def pareto_front(ranked: list[PlannedTile]) -> list[PlannedTile]:
    """Return the candidates for which no other needs less arithmetic and less memory, in their order."""
    front: list[PlannedTile] = []
    for one in ranked:
        if not front or one.memory < front[-1].memory:
            front.append(one)
    return front


def worth_timing(ranked: list[PlannedTile], memory: int) -> list[FrameSize]:
    """Return the tiles to measure for a plan: the first of the Pareto front that fit, and the one-tile plan if it does.

    Raises TileError where none fits.
    """
    found = fitting(ranked, memory)
    whole = max(ranked, key=lambda one: one.tile)  # the largest sides, with which each frame is one tile
    tiles = [one.tile for one in pareto_front(found)[:TIMED_TILES]]
    return [*tiles, whole.tile] if whole in found and whole.tile not in tiles else tiles


def cost_of(
    tile: FrameSize,
    frames: Iterable[FrameSize],
    shape: UNetShape,
    budget: Budget | None = None,
    times: Iterable[TileTime] = (),
) -> PlannedTile:
    """Return the cost of these frames with a given tile; raises TileError where it is not legal."""
    sizes, budget = _counted(frames), budget or Budget()
    height, width = (shape.geometry.require(side) for side in tile)
    passes = _passes([height], [width], sizes, shape.geometry, budget.batch)
    return _cost(tile, int(passes[0, 0]), _pixels(sizes), shape, budget, {one.tile: one for one in times})


def _choice(ranked: list[PlannedTile]) -> PlannedTile:
    measured = [(one.seconds, one) for one in ranked if one.seconds is not None]
    if ranked[0].seconds is None:
        return ranked[0]
    seconds, fastest = min(measured, key=lambda pair: pair[0])
    return next(one for middle, one in measured if middle - one.noise <= seconds + fastest.noise)


def _counted(frames: Iterable[FrameSize]) -> Counter[FrameSize]:
    """Return how often each size occurs; raises FrameError where a plan of it is impossible."""
    sizes = Counter(frames)
    for height, width in sizes:
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise FrameError(f"no plan for a frame of {height} x {width} px: use sides from 1 to {MAX_SIDE} px")
    return sizes


def _pixels(sizes: Counter[FrameSize]) -> int:
    return sum(height * width * often for (height, width), often in sizes.items())


def _sides(lengths: set[int], geometry: Geometry) -> list[int]:
    """Return the sides worth considering along one axis: for each length the smallest that covers it n times."""
    usable = geometry.side_for(geometry.grid)
    sides = {usable}
    for length in lengths:
        count = 1
        while (side := geometry.side_for_count(length, count)) > usable:
            if side <= MAX_TILE:
                sides.add(side)
            count += 1 if count < EVERY_COUNT else count // 4
    ordered = sorted(sides)
    # Frames of very different sizes give hundreds of similar sides: an even choice of them is enough.
    return ordered[:: -(-len(ordered) // MOST_SIDES)] + ordered[-1:] if len(ordered) > MOST_SIDES else ordered


def _passes(
    heights: list[int], widths: list[int], sizes: Counter[FrameSize], geometry: Geometry, batch: int
) -> NDArray[np.int64]:
    """Return the tiles computed for all frames, including those that only fill up a batch: (heights, widths)."""
    down = np.array([[geometry.count(side, height) for height, _ in sizes] for side in heights])
    across = np.array([[geometry.count(side, width) for _, width in sizes] for side in widths])
    tiles = down[:, None] * across[None]  # (heights, widths, sizes)
    computed: NDArray[np.int64] = (-(-tiles // batch) * batch) @ np.array(list(sizes.values()))
    return computed


def _cost(
    tile: FrameSize,
    passes: int,
    pixels: int,
    shape: UNetShape,
    budget: Budget,
    times: Mapping[FrameSize, TileTime],
) -> PlannedTile:
    macs = passes * shape.macs(*tile)
    memory = shape.activation_bytes(*tile, itemsize=budget.itemsize) * budget.batch * budget.lanes
    planned = PlannedTile(tile, passes, macs, pixels * shape.macs_per_pixel() / macs, memory)
    if tile not in times:
        return planned
    return replace(planned, seconds=passes * times[tile].seconds, noise=passes * times[tile].noise)
