"""Tile plans: the tile sizes that a network accepts, and the positions of tiles in a frame.

This is the only module that uses both frame and tile coordinates. `Geometry` holds the arithmetic of tile sides: for a
U-Net with two unpadded 3x3 convolutions per block they follow from the depth d, the number of poolings (Ronneberger et
al. 2015, section 2 and figure 1). `TilePlan` covers a frame with `Tile`s; a tile is a value that says where to read and
where to write. All tiles start at a multiple of the grid minus the halo, so that each pools on the same lattice as a
single tile over the whole frame. That makes the stitched result equal to the whole-image result, without blending.

A tile may reach past the frame. What lies there is mirrored by index arithmetic (`mirrored`, `spans`), without a padded
copy of the frame: `reflect` does not repeat the edge pixel (... 2 1 0 1 2 ...), as in the paper's overlap-tile strategy
(section 2, figure 2) and numpy.pad; `symmetric` does (... 1 0 0 1 ...). Both repeat as often as the tile needs.

>>> plan = TilePlan((512, 512), (444, 444), Geometry.unet(depth=4))
>>> len(plan), next(iter(plan)).rows.core
(4, slice(0, 256, None))

All sizes are in pixels and hold for both axes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, TileError, shown

Array = NDArray[Any]
Border = Literal["reflect", "symmetric"]
BORDERS: tuple[Border, ...] = ("reflect", "symmetric")
# Far beyond any U-Net: the smallest tile of depth 16 has a side of 786,428 px.
MAX_DEPTH = 16


@dataclass(frozen=True)
class Geometry:
    """Halo and pooling lattice of a network: where its output lies in its input.

    Attributes
    ----------
    halo
        Pixels of context on each side of an output pixel: input side = output side + 2 * halo.
    grid
        Period of the pooling lattice: shifting the input by a multiple of it shifts the output equally.
    remainder
        A legal tile side equals this modulo `grid`.
    """

    halo: int
    grid: int
    remainder: int = 0

    def __post_init__(self) -> None:
        numbers = (self.halo, self.grid, self.remainder)
        whole = all(isinstance(number, Integral) for number in numbers)
        if not whole or self.halo < 0 or self.grid < 1 or not 0 <= self.remainder < self.grid:
            halo, grid, remainder = map(shown, numbers)
            raise TileError(
                f"invalid geometry: halo {halo}, grid {grid}, remainder {remainder}; they must be integers, halo at "
                "least 0, grid at least 1 and remainder from 0 to grid - 1, such as 92, 16 and 12 for the 2015 U-Net"
            )

    @classmethod
    def unet(cls, depth: int) -> "Geometry":
        """Return the geometry of the 2015 U-Net with `depth` poolings (4 in the paper: halo 92, grid 16)."""
        if not isinstance(depth, Integral) or not 1 <= depth <= MAX_DEPTH:
            raise TileError(
                f"invalid depth {shown(depth)}: a U-Net needs at least one pooling, use a depth of 1 or more, up to "
                f"{MAX_DEPTH}"
            )
        period = 2**depth
        return cls(halo=6 * period - 4, grid=period, remainder=-4 % period)

    @property
    def smallest(self) -> int:
        """The smallest legal tile side."""
        return self.side_for(1)

    def side_for(self, core: int) -> int:
        """Return the smallest legal tile side whose core has at least `core` pixels."""
        side = 2 * self.halo + core
        return side + (self.remainder - side) % self.grid

    def is_legal(self, side: int) -> bool:
        """Return whether the network accepts a tile of this side."""
        return side > 2 * self.halo and side % self.grid == self.remainder

    def require(self, side: int) -> int:
        """Return `side`, or raise TileError naming the nearest legal sides."""
        if not isinstance(side, Integral):
            raise TileError(f"a tile side must be an integer of at least {self.smallest} (got {shown(side)})")
        if self.is_legal(side):
            return side
        above = max(self.smallest, side + (self.remainder - side) % self.grid)
        near = f"{above - self.grid} or {above}" if above > self.smallest else f"{above}"
        rule = f"sides are {self.remainder} (mod {self.grid}) and at least {self.smallest}"
        raise TileError(f"tile {side} is not legal for halo {self.halo} and grid {self.grid} ({rule}): use {near}")

    def core(self, side: int) -> int:
        """Return the side of the valid output of a tile."""
        return side - 2 * self.halo

    def stride(self, side: int) -> int:
        """Return the distance between neighbouring tiles: the largest multiple of the grid within the core.

        At any other distance, neighbours pool on different lattices and disagree with a whole-image pass. 0 means that
        the core is smaller than the grid: such a tile can only cover a frame alone.
        """
        return self.core(side) // self.grid * self.grid

    def count(self, side: int, length: int) -> int:
        """Return how many tiles of this side cover an axis of `length` pixels.

        Raises
        ------
        TileError
            More than one tile is needed, and the stride is 0.
        """
        core, stride = self.core(side), self.stride(side)
        if length <= core:
            return 1
        if stride == 0:
            rule = f"its core of {core} px is smaller than the grid of {self.grid} px"
            usable = f"use {self.side_for(self.grid)} or more"
            raise TileError(f"tile {side} cannot be placed more than once ({rule}) on {length} px: {usable}")
        return 1 + -(-(length - core) // stride)

    def side_for_count(self, length: int, count: int) -> int:
        """Return the smallest legal side of which `count` tiles cover an axis of `length` pixels."""
        side = self.side_for(-(-length // count))
        while self.core(side) + (count - 1) * self.stride(side) < length:
            side += self.grid
        return side


@dataclass(frozen=True)
class Span:
    """Part of a window along one axis that reads consecutive pixels of the frame, forwards or backwards.

    Attributes
    ----------
    window
        Slice of the window.
    frame
        Slice of the frame that is read; its step is -1 if it is mirrored.
    """

    window: slice
    frame: slice

    def split(self, most: int) -> Iterator["Span"]:
        """Split into spans of at most `most` pixels, in the window's order."""
        step = self.frame.step or 1
        for begin in range(self.window.start, self.window.stop, most):
            end = min(begin + most, self.window.stop)
            first, last = (self.frame.start + step * (at - self.window.start) for at in (begin, end))
            yield Span(slice(begin, end), slice(first, None if last < 0 else last, step))

    def from_origin(self, origin: int) -> "Span":
        """Return the span for an array that begins with pixel `origin` of the frame."""
        if self.frame.stop is None:
            raise IndexError(f"the span reads pixel 0, which an array from pixel {origin} on does not hold")
        first, last = self.frame.start - origin, self.frame.stop - origin
        return Span(self.window, slice(first, None if last < 0 else last, self.frame.step))


def mirrored(start: int, stop: int, length: int, border: Border) -> NDArray[np.intp]:
    """Return the index in 0 ... length - 1 from which each coordinate in start ... stop - 1 is read."""
    at = np.arange(start, stop)
    if border == "symmetric":
        folded = at % (2 * length)
        return np.minimum(folded, 2 * length - 1 - folded)
    if length == 1:
        return np.zeros_like(at)
    folded = at % (2 * length - 2)
    return np.minimum(folded, 2 * length - 2 - folded)


def spans(start: int, stop: int, length: int, border: Border) -> tuple[Span, ...]:
    """Return the spans that read start ... stop - 1 as `mirrored` does, for an axis of at least 2 pixels.

    The coordinate line is divided into segments of `period` pixels; every second one is read backwards.
    """
    period = length - 1 if border == "reflect" else length
    segments = range(start // period, (stop - 1) // period + 1)
    return tuple(_span(segment, period, start, stop, border) for segment in segments)


def _span(segment: int, period: int, start: int, stop: int, border: Border) -> Span:
    low, high = max(start, segment * period), min(stop, (segment + 1) * period)
    window = slice(low - start, high - start)
    if segment % 2 == 0:
        return Span(window, slice(low - segment * period, high - segment * period))
    first = (segment + 1) * period - low - (border == "symmetric")
    last = first - (high - low)
    return Span(window, slice(first, None if last < 0 else last, -1))


@dataclass(frozen=True)
class Axis:
    """One axis of a tile: reads `start` to `stop` of the frame's `length` pixels, writes the output to `core`.

    `start` and `stop` may lie outside the frame; `core` does not. Pixels are read from an array that begins with pixel
    `origin` of the frame.
    """

    start: int
    stop: int
    core: slice
    length: int
    border: Border
    origin: int = 0

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The spans of this axis; empty where a small frame is reflected more than once: one gather is then faster."""
        reach = max(-self.start, self.stop - self.length)
        if reach >= self.length - 1:
            return ()
        found = spans(self.start, self.stop, self.length, self.border)
        return tuple(span.from_origin(self.origin) for span in found) if self.origin else found

    @cached_property
    def indices(self) -> NDArray[np.intp]:
        """The index, from `origin` on, of the pixel of the frame for each pixel of the tile, intp (stop - start,)."""
        return mirrored(self.start, self.stop, self.length, self.border) - self.origin

    def within(self, origin: int, place: int) -> "Axis":
        """Return the axis for a part of the frame that begins at `origin`, and for labels that begin at `place`."""
        return replace(self, origin=origin, core=slice(self.core.start - place, self.core.stop - place))


@dataclass(frozen=True)
class Tile:
    """The part of a frame that one tile reads, and the part that its core is written to.

    Attributes
    ----------
    index
        Index in the plan, from 0, row by row.
    rows, columns
        The two axes.
    """

    index: int
    rows: Axis
    columns: Axis

    def cut(self, frame: Array, out: Array) -> None:
        """Copy the tile out of `frame` (C, H, W) into `out` (C, h, w), mirrored at the borders, cast to its dtype."""
        for _ in self.strips(frame, out, out.shape[-2]):
            pass

    def strips(self, frame: Array, out: Array, height: int) -> Iterator[Array]:
        """Cut as `cut` does, and yield each strip of `out`, (C, rows, w) with at most `height` rows, once it is filled.

        A strip that is processed immediately is still in the processor's cache. A tile cut by one gather is one strip.
        """
        if not (self.rows.spans and self.columns.spans):
            out[...] = frame[:, self.rows.indices[:, None], self.columns.indices]
            yield out
            return
        for row in (part for span in self.rows.spans for part in span.split(height)):
            strip = out[:, row.window]
            for column in self.columns.spans:
                strip[:, :, column.window] = frame[:, row.frame, column.frame]
            yield strip

    def place(self, out: Array) -> Array:
        """Return a view of the part of `out` (..., H, W) that this tile's core covers."""
        return out[..., self.rows.core, self.columns.core]

    def stitch(self, core: Array, out: Array) -> None:
        """Copy the tile's valid output `core` (..., h', w') to its place in `out` (..., H, W)."""
        place = self.place(out)
        place[...] = core[..., : place.shape[-2], : place.shape[-1]]


class TilePlan:
    """A cover of a frame with tiles of one size.

    Parameters
    ----------
    frame
        Height and width of the frame, in pixels.
    tile
        Height and width of the tile, in pixels; both legal for `geometry`.
    geometry
        The network's geometry.
    border
        How the frame continues beyond its edges.

    Raises
    ------
    TileError
        The tile is not legal, or the frame needs several tiles and the core is smaller than the grid.
    FrameError
        The frame has no pixels.
    """

    def __init__(
        self, frame: tuple[int, int], tile: tuple[int, int], geometry: Geometry, border: Border = "reflect"
    ) -> None:
        if not is_size(frame):
            raise FrameError(f"frame must be a height and a width, two integers of pixels (got {shown(frame)})")
        if not is_size(tile):
            raise TileError(f"tile must be a height and a width, two integers of pixels (got {shown(tile)})")
        if not isinstance(geometry, Geometry):
            raise TileError(f"geometry must be a Geometry, such as spec.geometry of a model (got {shown(geometry)})")
        if min(frame) < 1:
            raise FrameError(
                f"a frame of {frame[0]} x {frame[1]} px has no pixels: height and width must be at least 1"
            )
        self.frame, self.tile, self.geometry, self.border = frame, tile, geometry, border
        self.rows = _axes(frame[0], geometry.require(tile[0]), geometry, border)
        self.columns = _axes(frame[1], geometry.require(tile[1]), geometry, border)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Tile]:
        pairs = ((row, column) for row in self.rows for column in self.columns)
        return (Tile(index, row, column) for index, (row, column) in enumerate(pairs))

    def batches(self, size: int) -> Iterator[tuple[Tile, ...]]:
        """Iterate over batches of `size` tiles; the last one may be smaller."""
        tiles = iter(self)
        while batch := tuple(islice(tiles, size)):
            yield batch


def is_size(given: object) -> bool:
    """Whether an argument is a height and a width: two integers."""
    return isinstance(given, Sequence) and len(given) == 2 and all(isinstance(side, Integral) for side in given)


def _axes(length: int, side: int, geometry: Geometry, border: Border) -> tuple[Axis, ...]:
    count, stride = geometry.count(side, length), geometry.stride(side)
    starts = [index * stride for index in range(count)]
    stops = [*starts[1:], length]
    return tuple(
        Axis(start - geometry.halo, start - geometry.halo + side, slice(start, stop), length, border)
        for start, stop in zip(starts, stops, strict=True)
    )
