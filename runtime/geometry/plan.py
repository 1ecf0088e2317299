"""Tile plans: the only place that knows both frame and tile coordinates.

A plan turns a frame's size into tiles; a tile is a value that says where to read and where to write. All tiles start
at a multiple of the grid minus the halo, so that every one pools on the same lattice as a single tile over the whole
frame would. That, and not any blending, makes the stitched result the whole-image result.

Mirrored borders as index arithmetic: a window may reach past the frame without a padded copy of it.

`reflect` does not repeat the edge pixel (... 2 1 0 1 2 ...), as in the paper's overlap-tile strategy (section 2,
figure 2) and numpy.pad; `symmetric` does (... 1 0 0 1 ...). Both repeat for as far as the window reaches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.geometry.geometry import Geometry

Border = Literal["reflect", "symmetric"]
BORDERS: tuple[Border, ...] = ("reflect", "symmetric")


@dataclass(frozen=True)
class Span:
    """A run of a window along one axis that reads the frame in one direction.

    Attributes
    ----------
    window
        Where the run lies in the window.
    frame
        The frame's pixels that it reads; step -1 where they are mirrored.
    """

    window: slice
    frame: slice

    def split(self, most: int) -> Iterator["Span"]:
        """Iterate over the parts of this run, in the window's order, each of at most `most` pixels."""
        step = self.frame.step or 1
        for begin in range(self.window.start, self.window.stop, most):
            end = min(begin + most, self.window.stop)
            first, last = (self.frame.start + step * (at - self.window.start) for at in (begin, end))
            yield Span(slice(begin, end), slice(first, None if last < 0 else last, step))


def mirrored(start: int, stop: int, length: int, border: Border) -> NDArray[np.intp]:
    """Return, for each coordinate in start ... stop - 1, the index in 0 ... length - 1 that it is read from."""
    at = np.arange(start, stop)
    if border == "symmetric":
        folded = at % (2 * length)
        return np.minimum(folded, 2 * length - 1 - folded)
    if length == 1:
        return np.zeros_like(at)
    folded = at % (2 * length - 2)
    return np.minimum(folded, 2 * length - 2 - folded)


def spans(start: int, stop: int, length: int, border: Border) -> tuple[Span, ...]:
    """Return the runs that read start ... stop - 1, as `mirrored` does, for a frame of at least 2 pixels.

    Coordinates fall into segments, each of `period` pixels; every other one is read backwards.
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


Array = NDArray[Any]


@dataclass(frozen=True)
class Axis:
    """One axis of a tile: `length` pixels of the frame, read from `start` to `stop`, written at `core`.

    `start` and `stop` may lie outside the frame; `core` never does.
    """

    start: int
    stop: int
    core: slice
    length: int
    border: Border

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The runs of this axis; none where a small frame is reflected more than once: one gather is cheaper."""
        reach = max(-self.start, self.stop - self.length)
        if reach >= self.length - 1:
            return ()
        return spans(self.start, self.stop, self.length, self.border)

    @cached_property
    def indices(self) -> NDArray[np.intp]:
        """The frame's index for each pixel of the tile."""
        return mirrored(self.start, self.stop, self.length, self.border)


@dataclass(frozen=True)
class Tile:
    """Where one tile reads the frame and where its core goes.

    Attributes
    ----------
    index
        Its number in the plan, row by row.
    rows, columns
        Its two axes.
    """

    index: int
    rows: Axis
    columns: Axis

    def cut(self, frame: Array, out: Array) -> None:
        """Copy the tile out of `frame` (C, H, W) into `out` (C, h, w), mirrored at the borders, cast to its dtype."""
        for _ in self.strips(frame, out, out.shape[-2]):
            pass

    def strips(self, frame: Array, out: Array, height: int) -> Iterator[Array]:
        """Cut as `cut` does, and yield each strip of `out` (C, rows, w) of at most `height` rows when it is filled.

        What is done to a strip at once finds it in the cache. A gathered tile is a single strip.
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
        """Return the part of `out` (..., H, W) that this tile's core covers, a view."""
        return out[..., self.rows.core, self.columns.core]

    def stitch(self, core: Array, out: Array) -> None:
        """Copy the tile's valid output `core` (..., h', w') to its place in `out` (..., H, W)."""
        place = self.place(out)
        place[...] = core[..., : place.shape[-2], : place.shape[-1]]


class TilePlan:
    """How a frame is covered with tiles of one size.

    Parameters
    ----------
    frame
        Height and width of the frame, in pixels.
    tile
        Height and width of the tile, in pixels; both legal for `geometry`.
    geometry
        The network's geometry.
    border
        What lies beyond the frame.

    Raises
    ------
    TileError
        The tile is not legal, or cannot be placed more than once where the frame needs it.
    FrameError
        The frame has no pixels.
    """

    def __init__(
        self, frame: tuple[int, int], tile: tuple[int, int], geometry: Geometry, border: Border = "reflect"
    ) -> None:
        if min(frame) < 1:
            raise FrameError(f"a frame of {frame[0]} x {frame[1]} px has no pixels")
        self.frame, self.tile, self.geometry, self.border = frame, tile, geometry, border
        self.rows = _axes(frame[0], geometry.require(tile[0]), geometry, border)
        self.columns = _axes(frame[1], geometry.require(tile[1]), geometry, border)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Tile]:
        pairs = ((row, column) for row in self.rows for column in self.columns)
        return (Tile(index, row, column) for index, (row, column) in enumerate(pairs))

    def batches(self, size: int) -> Iterator[tuple[Tile, ...]]:
        """Iterate over the tiles, `size` at a time; the last batch may be smaller."""
        tiles = iter(self)
        while batch := tuple(islice(tiles, size)):
            yield batch


def _axes(length: int, side: int, geometry: Geometry, border: Border) -> tuple[Axis, ...]:
    count, stride = geometry.count(side, length), geometry.stride(side)
    starts = [index * stride for index in range(count)]
    stops = [*starts[1:], length]
    return tuple(
        Axis(start - geometry.halo, start - geometry.halo + side, slice(start, stop), length, border)
        for start, stop in zip(starts, stops, strict=True)
    )
