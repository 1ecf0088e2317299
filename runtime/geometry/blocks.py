"""Block plans: groups of the tiles of a frame, which are read, computed and stored together.

A frame that is larger than the memory is processed in blocks. The blocks of a plan consist of whole tiles of the
frame's `TilePlan`, so that each block computes exactly the tiles that one pass over the frame computes: results are
bitwise equal, whatever the size of the blocks. All blocks begin at a multiple of the plan's `size`. A store whose
chunks divide that size has no chunk that two blocks write.

>>> from unetrt.runtime.geometry.plan import Geometry
>>> plan = TilePlan((1000, 1000), (444, 444), Geometry.unet(depth=4))
>>> blocks = BlockPlan(plan, (500, 600))
>>> blocks.size, blocks.shape, blocks[1].rows, blocks[1].columns
((512, 512), (2, 2), slice(0, 512, None), slice(512, 1000, None))

All sizes are in pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np

from unetrt.runtime.errors import OptionError, shown
from unetrt.runtime.geometry.plan import Axis, Tile, TilePlan, is_size

Size = tuple[int, int]
# Rows and columns of a frame.
Part = tuple[slice, slice]


@dataclass(frozen=True)
class Block:
    """A part of a frame whose pixels are computed together.

    Attributes
    ----------
    index
        Index in the plan, from 0, row by row.
    rows, columns
        The pixels of the block, slices of the frame.
    frame
        Height and width of the frame.
    """

    index: int
    rows: slice
    columns: slice
    frame: Size
    axes: tuple[tuple[Axis, ...], tuple[Axis, ...]]

    @property
    def size(self) -> Size:
        """Height and width of the block."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def part(self) -> Part:
        """The rows and columns of the block."""
        return self.rows, self.columns

    def around(self, margin: int) -> Part:
        """Return the rows and columns of the block with up to `margin` pixels on each side, within the frame."""
        return tuple(  # type: ignore[return-value]
            slice(max(0, part.start - margin), min(length, part.stop + margin))
            for part, length in zip((self.rows, self.columns), self.frame, strict=True)
        )

    @cached_property
    def window(self) -> Part:
        """The rows and columns of the frame that the tiles of the block read, those mirrored included."""
        return _read(self.axes[0]), _read(self.axes[1])

    @property
    def tiles(self) -> Iterator[Tile]:
        """The tiles of the block: they read from the pixels of `window`, and write to an array of the block's size."""
        rows, columns = (
            [axis.within(window.start, part.start) for axis in axes]
            for axes, window, part in zip(self.axes, self.window, (self.rows, self.columns), strict=True)
        )
        pairs = ((row, column) for row in rows for column in columns)
        return (Tile(index, row, column) for index, (row, column) in enumerate(pairs))

    def __len__(self) -> int:
        return len(self.axes[0]) * len(self.axes[1])


class BlockPlan(Sequence[Block]):
    """A cover of a frame with blocks.

    Parameters
    ----------
    plan
        The frame's tiles.
    block
        Height and width of a block that are wished for; the nearest multiples of the stride of the tiles, at least one,
        are used.

    Attributes
    ----------
    size
        Height and width at whose multiples blocks begin. The last row and column of blocks may be smaller, or larger by
        less than the grid of the network.
    shape
        Number of rows and columns of blocks.

    Raises
    ------
    OptionError
        `block` is not two integers of at least 1.
    """

    def __init__(self, plan: TilePlan, block: Size) -> None:
        if not is_size(block) or min(block) < 1:
            raise OptionError(f"block must be a height and a width in pixels, from 1 (got {shown(block)})")
        self.plan = plan
        groups, sizes = [], []
        for axes, side, wished in zip((plan.rows, plan.columns), plan.tile, block, strict=True):
            stride = plan.geometry.stride(side)
            number = max(1, round(wished / stride)) if len(axes) > 1 else 1
            groups.append([axes[begin : begin + number] for begin in range(0, len(axes), number)])
            sizes.append(number * stride if len(axes) > number else axes[0].length)
        self._groups, self.size = groups, (sizes[0], sizes[1])
        self.shape = (len(groups[0]), len(groups[1]))

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def __getitem__(self, index: int) -> Block:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, self.shape[1])
        axes = self._groups[0][row], self._groups[1][column]
        rows, columns = (slice(axis[0].core.start, axis[-1].core.stop) for axis in axes)
        return Block(index, rows, columns, self.plan.frame, axes)

    def around(self, index: int, margin: int) -> list[int]:
        """Return the indices of all blocks with pixels up to `margin` pixels from a block, this one included."""
        places = (
            [number for number, axes in enumerate(group) if _meets(axes, part)]
            for group, part in zip(self._groups, self[index].around(margin), strict=True)
        )
        rows, columns = places
        return [row * self.shape[1] + column for row in rows for column in columns]

    def chunk(self, largest: int) -> Size:
        """Return height and width of chunks that divide `size`, at most `largest` where the strides of tiles allow."""
        sides = (
            _chunk(size, self.plan.geometry.grid, largest) if count > 1 else min(size, largest)
            for size, count in zip(self.size, self.shape, strict=True)
        )
        return tuple(sides)  # type: ignore[return-value]


def covering(plan: TilePlan, part: Part) -> Block:
    """Return the smallest block of whole tiles of a plan that holds a part of its frame, its rows and columns."""
    axes = [
        tuple(axis for axis in axes if _meets((axis,), side))
        for axes, side in zip((plan.rows, plan.columns), part, strict=True)
    ]
    rows, columns = (slice(side[0].core.start, side[-1].core.stop) for side in axes)
    return Block(0, rows, columns, plan.frame, (axes[0], axes[1]))


def relative(part: Part, to: Part) -> Part:
    """Return the rows and columns of a part of a frame in an array that holds another part of it."""
    rows, columns = (
        slice(one.start - other.start, one.stop - other.start) for one, other in zip(part, to, strict=True)
    )
    return rows, columns


def common(part: Part, other: Part) -> Part:
    """Return the rows and columns that two parts of a frame have in common; they meet."""
    rows, columns = (
        slice(max(one.start, two.start), min(one.stop, two.stop)) for one, two in zip(part, other, strict=True)
    )
    return rows, columns


def spanning(parts: Iterable[Part]) -> Part:
    """Return the smallest part of a frame that holds others."""
    rows, columns = (
        slice(min(one.start for one in sides), max(one.stop for one in sides)) for sides in zip(*parts, strict=True)
    )
    return rows, columns


def _meets(axes: tuple[Axis, ...], part: slice) -> bool:
    meets: bool = axes[0].core.start < part.stop and part.start < axes[-1].core.stop
    return meets


def _chunk(size: int, grid: int, largest: int) -> int:
    """Return the largest divisor of a block's side, a multiple of 16 if the grid allows, that is at most `largest`."""
    unit = grid * 16 // gcd(grid, 16)
    step = unit if size % unit == 0 else grid
    units = size // step
    fitting = [count for count in range(1, units + 1) if units % count == 0 and count * step <= largest]
    return max(fitting, default=1) * step


def _read(axes: tuple[Axis, ...]) -> slice:
    """Return the pixels of a frame that consecutive tiles of an axis read."""
    ends = [np.array([axis.indices.min(), axis.indices.max() + 1]) for axis in (axes[0], axes[-1])]
    return slice(int(min(end[0] for end in ends)), int(max(end[1] for end in ends)))
