"""Objects of a frame that is decoded in blocks: those of `instances` for the whole frame, numbers included.

A frame that is larger than the memory has its class map decoded block by block, in any order and by any number of
threads or processes. Only summaries of the blocks, arrays with some 30 bytes per object, are in memory together:

1. `decode_block` numbers the objects of each block 1 ... n, from the class map of ``block.around(margins.decode)``.
   Its labels, and the summary `BlockObjects`, are kept.
2. `merge` returns the number in the frame of the objects of each block, from all summaries.
3. If ``margins.grow`` is not 0, objects grow after they are merged, as components grow only towards other objects.
   `grow_block` numbers the grown objects of each block anew, from the merged numbers of ``block.around(margins.grow)``.
   Its labels, and the summary `GrownObjects`, replace the earlier ones; `merge_grown` returns their numbers in the
   frame.
4. The objects of a block are ``numbering.numbers[index][labels]``.

Two blocks name the same object by the same pixel. From any pixel of a core (or component), go left along the row while
the pixels belong to the core, then up, then left again, without a step over a line where the window of a block begins.
The pixel where this ends, a *corner* of the core, is in all windows that show the first pixel. A block names the
corners in its window, but for those that no other window shows. A core that two neighbouring pixels in different blocks
belong to, or are connected by, is in the windows of both blocks, so that the objects of the frame are what is connected
by equal corners (union-find).

>>> from unetrt.runtime.geometry.plan import Geometry, TilePlan
>>> blocks = BlockPlan(TilePlan((1, 6), (1, 3), Geometry(halo=0, grid=1)), (1, 3))
>>> classes, how = np.array([[2, 1, 1, 2, 2, 0]], np.uint8), Decoding("cores", reach=3)
>>> found = [decode_block(classes[block.around(margins(how).decode)], blocks, block.index, how) for block in blocks]
>>> numbering = merge([summary for _, summary in found], how)
>>> [numbers[labels].tolist() for numbers, (labels, _) in zip(numbering.numbers, found)]
[[[1, 1, 2]], [[2, 2, 0]]]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.geometry.blocks import Block, BlockPlan, Part, relative
from unetrt.runtime.model.objects import (
    Runs,
    Seeds,
    as_decoding,
    between,
    borders,
    compact,
    framed,
    grow,
    joined,
    large,
    least_area,
    paint,
    smaller,
)
from unetrt.runtime.model.spec import Decoding

Array = NDArray[Any]
Labels = NDArray[np.int32]
Numbers = NDArray[np.int64]

# Position of an object's first pixel in a block where it has none.
NOWHERE = np.iinfo(np.int64).max


class Margins(NamedTuple):
    """Pixels around a block from which its objects follow.

    Attributes
    ----------
    decode
        Of the class map, for `decode_block`.
    grow
        Of merged numbers, for `grow_block`; 0 if objects do not grow after they are merged.
    """

    decode: int
    grow: int


def margins(decoding: Decoding | None) -> Margins:
    """Return the pixels around a block from which its objects follow."""
    how = as_decoding(decoding)
    if how.method == "cores":
        return Margins(max(how.reach, how.bridge) + 1, 0)
    return Margins(1, how.reach)


class BlockObjects(NamedTuple):
    """What the objects of a block have in common with those of other blocks.

    Arrays without Python objects, which ``numpy.savez(file, **summary._asdict())`` stores, and
    ``BlockObjects(**numpy.load(file))`` reads. Objects have the numbers 1 ... n; element 0 is the background. Pixels
    are indices in the flat frame, ``row * frame width + column``.

    Attributes
    ----------
    first
        int64, (n + 1,): first pixel in the block of the connected pixels that an object grew from, which order the
        objects of the frame; the largest int64 if the block has none of them.
    core_areas, areas
        int64, (n + 1,): pixels in the block of the core of an object, and of the object.
    corners, owners
        int64 and int32, (k,): pixels of cores by which other blocks name the same objects, and the object of each.
    borders
        int64, (3, m): an object in the block whose core may be smaller than `smallest`, its neighbour, and the number
        of pairs of their pixels along edges.
    """

    first: Numbers
    core_areas: Numbers
    areas: Numbers
    corners: Numbers
    owners: Labels
    borders: Numbers


class GrownObjects(NamedTuple):
    """The grown objects 1 ... n of a block; element 0 is the background. Stored as `BlockObjects`.

    Attributes
    ----------
    numbers
        int64, (n + 1,): merged number of each object.
    areas
        int64, (n + 1,): pixels of the object in the block.
    """

    numbers: Numbers
    areas: Numbers


@dataclass(frozen=True)
class Numbering:
    """The objects of a frame, by the numbers that they have in blocks.

    Attributes
    ----------
    numbers
        For each block, int64, (n + 1,): number in the frame of each object of the block, 0 for the background and for
        objects that are dropped.
    count
        Number of objects of the frame.
    """

    numbers: list[Numbers]
    count: int


class _Window(NamedTuple):
    """A block and the pixels around it, of which masks are framed by `frame` pixels (`framed`)."""

    block: Block
    margin: int
    frame: int

    @property
    def size(self) -> tuple[int, int]:
        rows, columns = self.block.around(self.margin)
        return rows.stop - rows.start, columns.stop - columns.start

    def near(self, distance: int, frame: int = 0) -> Part:
        """Return rows and columns, in the window, of the pixels up to `distance` from the block."""
        rows, columns = relative(self.block.around(distance), self.block.around(self.margin))
        return slice(rows.start + frame, rows.stop + frame), columns

    def restrict(self, mask: NDArray[np.bool_], distance: int) -> None:
        """Unset the pixels of a framed mask that are farther than `distance` from the block."""
        rows, columns = self.near(distance, self.frame)
        mask[: rows.start], mask[rows.stop :] = False, False
        mask[:, : columns.start], mask[:, columns.stop :] = False, False

    def places(self, at: NDArray[np.intp]) -> tuple[Array, Array]:
        """Return row and column in the window of pixels of a framed mask, given by flat index."""
        width = self.size[1] + self.frame
        rows = at // width  # `numpy.divmod` takes three times as long
        return rows - self.frame, at - rows * width

    def pixels(self, at: NDArray[np.intp]) -> Numbers:
        """Return the index in the flat frame of pixels of a framed mask, given by flat index."""
        (rows, columns), (top, left) = self.places(at), self.block.around(self.margin)
        pixels: Numbers = (rows.astype(np.int64) + top.start) * self.block.frame[1] + columns + left.start
        return pixels

    def require(self, values: Array, name: str) -> None:
        """Raise FrameError unless values are integers of the window's shape."""
        if values.shape != self.size or values.dtype.kind not in "uib":
            raise FrameError(
                f"{name} of block {self.block.index} must be integers {self.size}, those of "
                f"block.around({self.margin}) (got {values.dtype} {values.shape})"
            )


def decode_block(
    classes: Array, blocks: BlockPlan, index: int, decoding: Decoding | None = None
) -> tuple[Labels, BlockObjects]:
    """Return the objects of a block, numbered.

    Parameters
    ----------
    classes
        Integers, (h + margins, w + margins): class map of ``blocks[index].around(margins(decoding).decode)``.
    blocks, index
        The blocks of the frame, and the index of the block.
    decoding
        As for `instances`.

    Returns
    -------
    The block's labels, int32, (h, w), which may be a view: 0 is the background, objects have the numbers 1 ... n; and
    their summary.

    Raises
    ------
    FrameError
        The class map has another shape or type.
    """
    how = as_decoding(decoding)
    window = _Window(blocks[index], margins(how).decode, max(how.reach, 1))
    window.require(classes, "the class map")
    seeds = Seeds.of(classes, how)
    objects = np.empty(window.size, np.int32)
    seeds.paint(objects)
    corners, owners = _corners(seeds, objects, window, blocks)
    first, core_areas = _first_and_areas(seeds, window)
    areas = core_areas
    if how.method == "cores" and how.reach and seeds.count:
        beyond = min(how.smallest, 1)  # borders are those of pixels and their neighbours
        window.restrict(seeds.rest, beyond)
        grown = grow(objects, seeds.mask, seeds.rest, how.reach, how.reach**2)
        parts, which = seeds.runs.inside(*window.near(beyond, window.frame))
        areas = parts.areas(seeds.numbers[which], seeds.count) + np.bincount(grown, minlength=seeds.count + 1)
        areas -= np.bincount(_ring(objects, window, beyond), minlength=seeds.count + 1)
        areas[0] = 0
    edges = _edges(seeds, objects, window, how.smallest)
    summary = BlockObjects(first, core_areas.astype(np.int64), areas.astype(np.int64), corners, owners, edges)
    return objects[window.near(0)], summary


def _edges(seeds: Seeds, objects: Labels, window: _Window, smallest: int) -> Numbers:
    """Return the borders in the block of objects whose cores may be small, (3, m), as in `BlockObjects`."""
    # What is large in the window is large in the frame.
    small = smaller(seeds.runs.areas(seeds.numbers, seeds.count), smallest) if smallest else np.zeros(1, bool)
    if not small.any():
        return np.empty((3, 0), np.int64)
    pairs, lengths = borders(objects, small, *window.near(0))
    return np.concatenate([pairs, lengths[None]]).astype(np.int64)


def _ring(objects: Labels, window: _Window, distance: int) -> Labels:
    """Return the values, (n,), of the pixels up to `distance` from the block that are not in it."""
    (top, left), (rows, columns) = window.near(distance), window.near(0)
    strips = (
        objects[top.start : rows.start, left],
        objects[rows.stop : top.stop, left],
        objects[rows, left.start : columns.start],
        objects[rows, columns.stop : left.stop],
    )
    return np.concatenate([strip.reshape(-1) for strip in strips])


def _first_and_areas(seeds: Seeds, window: _Window) -> tuple[Numbers, Array]:
    """Return the first pixel in the block of what is connected, in the flat frame, and areas of cores, (count + 1,)."""
    inside = window.near(0, window.frame)
    parts, which = seeds.connected.inside(*inside)
    run = np.full(seeds.count + 1, -1)
    run[seeds.components[which][::-1]] = np.arange(len(which))[::-1]  # of several assignments the last remains
    first = np.full(seeds.count + 1, NOWHERE)
    first[run >= 0] = window.pixels(parts.starts[run[run >= 0]])
    if seeds.runs is not seeds.connected:
        parts, which = seeds.runs.inside(*inside)
    return first, parts.areas(seeds.numbers[which], seeds.count)


def _corners(seeds: Seeds, objects: Labels, window: _Window, blocks: BlockPlan) -> tuple[Numbers, Labels]:
    """Return the corners of cores by which other blocks name the same objects, and the object of each, (k,)."""
    on_row, on_column = (
        _lines(part, number, size, window.margin)
        for part, number, size in zip(window.block.around(window.margin), blocks.shape, blocks.size, strict=True)
    )
    mask = seeds.mask
    lines = np.flatnonzero(on_column)
    rows, which = np.nonzero(mask[:, lines] & mask[:, lines - 1])  # runs go on there; the last column is empty
    starts = np.concatenate([seeds.runs.starts, rows * mask.shape[1] + lines[which]])
    rows, columns = window.places(starts)
    (top, bottom), (left, right) = (
        # The pixels that no other block sees.
        (part.start + window.margin * (own.start > 0), part.stop - window.margin * (own.stop < length))
        for part, own, length in zip(
            window.near(0), (window.block.rows, window.block.columns), window.block.frame, strict=True
        )
    )
    seen = (rows < top) | (rows >= bottom) | (columns < left) | (columns >= right)
    starts, rows, columns = starts[seen], rows[seen], columns[seen]
    is_corner = on_row[rows] | ~mask.reshape(-1)[starts - mask.shape[1]]
    return window.pixels(starts[is_corner]), objects[rows[is_corner], columns[is_corner]]


def _lines(part: slice, number: int, size: int, margin: int) -> NDArray[np.bool_]:
    """Return at which pixels of a window's axis the window of a block begins."""
    lines = np.arange(number) * size - margin - part.start
    found = np.zeros(part.stop - part.start, bool)
    found[lines[(lines >= 0) & (lines < len(found))]] = True
    return found


def merge(found: Sequence[BlockObjects], decoding: Decoding | None = None, min_area: float = 0) -> Numbering:
    """Return the objects of a frame from the summaries of all its blocks, in the order of the blocks.

    Small cores are joined, and small objects are dropped, by their size in the frame. If objects grow after that
    (`margins`), none are dropped here, but by `merge_grown`.

    Parameters
    ----------
    found
        From `decode_block`.
    decoding, min_area
        As for `instances`.

    Raises
    ------
    FrameError
        Blocks are missing.
    """
    how = as_decoding(decoding)
    counts = [len(one.first) - 1 for one in found]
    begins = np.cumsum([-1, *counts])  # the objects of all blocks in one sequence: begin + number in the block
    first = _in_sequence([one.first[1:] for one in found])
    number, count = _ordered(
        _united(
            _in_sequence([one.corners for one in found]),
            _in_sequence([begin + one.owners.astype(np.int64) for begin, one in zip(begins, found, strict=False)]),
            len(first),
        ),
        first,
    )
    core_areas, areas = (
        np.bincount(number, _in_sequence([getattr(one, name)[1:] for one in found]), count + 1)
        for name in ("core_areas", "areas")
    )
    small = smaller(core_areas, how.smallest)
    owners = np.arange(count + 1)
    if small.any():
        pairs = _in_sequence([one.borders[:2] + begin for begin, one in zip(begins, found, strict=False)])
        pairs, which = np.unique(number[pairs], axis=1, return_inverse=True)
        lengths = np.bincount(which, _in_sequence([one.borders[2] for one in found]), pairs.shape[1])
        owners = joined(pairs, lengths, small)
    smallest = least_area(min_area, how, int(areas.sum()))
    if smallest > 1 and not margins(how).grow:
        owners = large(owners, areas, smallest)
    numbers, count = compact(owners)
    merged = np.split(numbers[number], np.cumsum(counts)[:-1])
    return Numbering([np.append(0, each).astype(np.int64) for each in merged], count)


def _in_sequence(arrays: Sequence[Array]) -> Array:
    """Return arrays one after another, along the last axis."""
    if not arrays:
        raise FrameError("blocks are missing: give the summaries of all blocks of the frame (got none)")
    return np.concatenate(arrays, axis=-1)


def _united(corners: Numbers, owners: Numbers, count: int) -> Numbers:
    """Return for each of `count` objects of blocks, (count,), one of those that are the same object of the frame."""
    united = np.arange(count)
    known, owners = np.unique(owners, return_inverse=True)
    order = np.argsort(corners)
    corners, owners = corners[order], owners[order]
    same = np.flatnonzero(corners[1:] == corners[:-1])
    graph = csr_array((np.ones(len(same), np.int8), (owners[same], owners[same + 1])), shape=(len(known),) * 2)
    _, components = connected_components(graph, directed=False)
    _, lowest = np.unique(components, return_index=True)
    united[known] = known[lowest[components]]
    return united


def _ordered(united: Numbers, first: Numbers) -> tuple[Numbers, int]:
    """Return the numbers 1 ... n of united objects, in the order of their first pixels, (count,); and n."""
    earliest = np.full(len(first), NOWHERE)
    np.minimum.at(earliest, united, first)
    objects = np.flatnonzero(united == np.arange(len(united)))
    earliest = earliest[objects]
    if NOWHERE in earliest:
        raise FrameError("blocks are missing: give the summaries of all blocks of the frame, decoded in the same way")
    numbers = np.zeros(len(first), np.int64)
    numbers[objects[np.argsort(earliest)]] = np.arange(1, len(objects) + 1)
    return numbers[united], len(objects)


def grow_block(numbers: Array, blocks: BlockPlan, index: int, decoding: Decoding) -> tuple[Labels, GrownObjects]:
    """Return the objects of a block after they have grown, numbered anew.

    Parameters
    ----------
    numbers
        Integers, (h + margins, w + margins): numbers from `merge` of the pixels of
        ``blocks[index].around(margins(decoding).grow)``.
    blocks, index
        The blocks of the frame, and the index of the block.
    decoding
        As for `decode_block`; a decoding whose objects grow after they are merged.

    Returns
    -------
    The block's labels, int32, (h, w), which may be a view: 0 is the background, objects have the numbers 1 ... n; and
    their summary.

    Raises
    ------
    FrameError
        The numbers have another shape or type.
    OptionError
        Objects do not grow after they are merged.
    """
    reach = margins(decoding).grow
    if not reach:
        raise OptionError(f"objects of {decoding} do not grow after they are merged: use the labels of decode_block")
    window = _Window(blocks[index], reach, reach)
    window.require(numbers, "the numbers")
    mask = framed(np.greater, numbers, 0, reach)
    runs = Runs.of(mask)
    # The pixels of a run belong to one component. Numbers in the frame may be large, so that these are others.
    found, which = np.unique(numbers[window.places(runs.starts)], return_inverse=True)
    which += 1
    objects = np.empty(window.size, np.int32)
    paint(objects, mask, runs, which)
    parts, inside = runs.inside(*window.near(0, reach))
    areas = parts.areas(which[inside], len(found))
    if len(found):
        wanted = between(objects, reach)
        window.restrict(wanted, 0)
        areas += np.bincount(grow(objects, mask, wanted, reach, inf), minlength=len(areas))
    return objects[window.near(0)], GrownObjects(np.append(0, found).astype(np.int64), areas.astype(np.int64))


def merge_grown(found: Sequence[GrownObjects], decoding: Decoding, min_area: float = 0) -> Numbering:
    """Return the objects of a frame from the summaries of all its blocks, in the order of the blocks.

    Objects are dropped by their size in the frame, after they have grown.

    Parameters
    ----------
    found
        From `grow_block`.
    decoding, min_area
        As for `instances`.

    Raises
    ------
    FrameError
        Blocks are missing.
    """
    numbers = _in_sequence([one.numbers for one in found])
    areas = np.bincount(numbers, _in_sequence([one.areas for one in found]))
    owners = np.arange(len(areas))
    smallest = least_area(min_area, decoding, int(areas.sum()))
    if smallest > 1:
        owners = large(owners, areas, smallest)
    final, count = compact(owners)
    return Numbering([final[one.numbers].astype(np.int64) for one in found], count)
