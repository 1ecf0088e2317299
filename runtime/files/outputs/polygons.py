"""Polygons of labels: they follow the edges of pixels, so that filling them gives the labels back.

Vertices are corners of pixels, (x, y) from (0, 0), the top left corner of the frame; all edges are horizontal or
vertical. Rings are closed (the last vertex leads to the first) and touch neither themselves nor a ring of the same part
except in single vertices. Seen on a screen, where y points down, outer rings run clockwise and holes counter-clockwise.

Pixels of a part are connected along edges. Where two pixels of a label touch in a corner only, they belong to two
parts, or to two places of one ring, which is cut there. Parts and their holes are therefore valid polygons of the OGC's
Simple Features (ISO 19125-1), which is what GeoJSON, shapely and JTS (QuPath) want.

>>> labels = np.array([[5, 5, 5], [5, 0, 5], [5, 5, 5]])
>>> (found,) = polygons(labels)
>>> found.label, [[ring.tolist() for ring in part] for part in found.parts]
(5, [[[[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 2], [2, 2], [2, 1], [1, 1]]]])
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from unetrt.runtime.errors import FrameError

Array = NDArray[Any]
Ring = NDArray[np.int32]
Indices = NDArray[np.intp]

# Rows of pixels whose corners are looked for at once: their arrays fit in a core's cache.
BLOCK = 256
# Side in pixels of the squares of a frame whose objects are traced in one window.
SIDE = 1024
# Pixels of the largest window. Tracing takes up to 8 bytes for each of them.
MOST = 2**27
# Directions along an edge; the label is on the right hand side. A right turn adds 1, a left turn subtracts 1.
RIGHT, DOWN, LEFT, UP = range(4)
# For a way through a vertex in each direction: which of the pixels around the vertex, 0 top left, 1 top right, 2 bottom
# left, 3 bottom right, lies ahead on the right, ahead on the left, behind on the right, and behind on the left.
AROUND = {RIGHT: (3, 1, 2, 0), DOWN: (2, 3, 0, 1), LEFT: (0, 2, 1, 3), UP: (1, 0, 3, 2)}


class Polygon(NamedTuple):
    """The outline of one label.

    Attributes
    ----------
    label
        The label.
    parts
        Parts that do not touch along an edge; of each, the outer ring, then its holes. A ring is int32, (n, 2):
        vertices (x, y), in pixels.
    """

    label: int
    parts: list[list[Ring]]


class Corners(NamedTuple):
    """Where the outlines of all labels turn.

    Attributes
    ----------
    at
        Flat index of the vertex on the grid of (H + 1, W + 1) vertices, (n,).
    labels
        Label on the right hand side, (n,).
    following
        Index of the next corner on the outline, (n,).
    """

    at: Indices
    labels: Array
    following: Indices


def polygons(labels: Array) -> Iterator[Polygon]:
    """Yield the polygon of each label of a frame, in ascending order.

    Parameters
    ----------
    labels
        (H, W), integers; 0 is the background.
    """
    corners = _corners(labels)
    rings = list(_simple(_rings(corners.following.tolist()), corners.at))
    if not rings:
        return
    lengths = np.array([len(ring) for ring in rings])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    vertices = np.concatenate([np.asarray(ring, np.intp) for ring in rings])
    y, x = np.divmod(corners.at[vertices], labels.shape[1] + 1)
    points = np.stack([x, y], axis=1).astype(np.int32)
    is_outer = _doubled_areas(x, y, starts) > 0
    owners = corners.labels[vertices[starts]]
    parts = _parts(labels, owners, is_outer, points[starts], points[starts + 1])
    # By label, then by part, the outer ring first; parts and holes in the order of their first vertices.
    order = np.lexsort((starts, ~is_outer, parts, owners))
    bounds = np.flatnonzero(np.diff(owners[order], prepend=-1))
    rows, ends, outer = starts.tolist(), (starts + lengths).tolist(), is_outer.tolist()
    for first, after in zip(bounds, [*bounds[1:], len(order)], strict=True):
        found: list[list[Ring]] = []
        for index in order[first:after].tolist():
            ring = points[rows[index] : ends[index]]
            if outer[index]:
                found.append([ring])
            else:
                found[-1].append(ring)
        yield Polygon(int(owners[order[first]]), found)


def traced(read: Callable[[slice, slice], Array], labels: Array, boxes: Array) -> Iterator[Polygon]:
    """Yield the polygons of some labels of a frame that is read by windows; they are those of the whole frame.

    Windows hold the objects whose bounding boxes begin in one square of `SIDE` pixels. A larger object has a window of
    its own.

    Parameters
    ----------
    read
        Returns some rows and columns of the frame, integers (h, w).
    labels
        The labels, (n,), in ascending order.
    boxes
        Bounding box of each: first row, first column, row after the last, column after the last, (n, 4).

    Raises
    ------
    FrameError
        The bounding box of an object has more than `MOST` pixels.
    """
    is_large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) > SIDE
    small, corners = labels[~is_large], boxes[~is_large]
    _, square = np.unique(corners[:, :2] // SIDE, axis=0, return_inverse=True)
    found: dict[int, Polygon] = {}
    order = np.argsort(square.reshape(-1), kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(square.reshape(-1)[order])) + 1):
        found.update((one.label, one) for one in _in_window(read, small[chosen], corners[chosen]))
    for label, box in zip(labels.tolist(), boxes, strict=True):
        yield found.pop(label) if label in found else _alone(read, label, box)


def _in_window(read: Callable[[slice, slice], Array], labels: Array, boxes: Array) -> Iterator[Polygon]:
    """Yield the polygons of labels, in one window."""
    if not len(labels):
        return
    (top, left), (bottom, right) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    window, first, last = read(slice(top, bottom), slice(left, right)), int(labels[0]), int(labels[-1])
    is_chosen = np.zeros(last - first + 1, bool)
    is_chosen[(labels - labels[0]).astype(np.intp)] = True
    inside = (window >= first) & (window <= last)
    inside[inside] = is_chosen[window[inside] - first]
    for polygon in polygons(np.where(inside, window, 0)):
        yield _moved(polygon, left, top)


def _alone(read: Callable[[slice, slice], Array], label: int, box: Array) -> Polygon:
    """Return the polygon of a label in a window of its own, which is read in strips."""
    top, left, bottom, right = box.tolist()
    height, width = bottom - top, right - left
    if height * width > MOST:
        raise FrameError(
            f"label {label} covers {height} x {width} px, and outlines are traced up to {MOST} px: use --save ome-zarr "
            "instead of geojson and rois"
        )
    step = max(1, SIDE * SIDE // width)
    strips = (slice(first, min(first + step, bottom)) for first in range(top, bottom, step))
    window = np.concatenate([(read(rows, slice(left, right)) == label).view(np.uint8) for rows in strips])
    for polygon in polygons(window):
        return _moved(polygon._replace(label=label), left, top)
    raise FrameError(
        f"label {label} has no pixel in rows {top} to {bottom - 1}, where it was measured: measure it anew"
    )


def _moved(polygon: Polygon, left: int, top: int) -> Polygon:
    """Return the polygon in a frame, from that in a window."""
    corner = np.array([left, top], np.int32)
    return Polygon(polygon.label, [[ring + corner for ring in part] for part in polygon.parts])


def _corners(labels: Array) -> Corners:
    """Return the corners of all outlines.

    Between two corners an outline is straight: one begins the edge, the other ends it. Edges in one direction along one
    line do not overlap, whatever their labels, so that the k-th beginning belongs to the k-th end.
    """
    height, width = labels.shape
    begins: list[list[Indices]] = [[] for _ in range(4)]
    ends: list[list[Indices]] = [[] for _ in range(4)]
    turns: list[list[Array]] = [[] for _ in range(4)]
    owners: list[list[Array]] = [[] for _ in range(4)]
    for top in range(0, height + 1, BLOCK):
        at, around = _vertices(labels, top, min(top + BLOCK, height + 1))
        at += top * (width + 1)
        for way, places in AROUND.items():
            ahead, ahead_left, behind, behind_left = (around[place] for place in places)
            is_begin = (ahead > 0) & (ahead != ahead_left) & ((behind != ahead) | (behind_left == ahead))
            is_end = (behind > 0) & (behind != behind_left) & ((ahead != behind) | (ahead_left == behind))
            begins[way].append(at[is_begin])
            owners[way].append(ahead[is_begin])
            ends[way].append(at[is_end])
            turns[way].append(np.where(ahead == behind, -1, 1)[is_end])
    starts = [np.concatenate(found) for found in begins]
    offsets = np.cumsum([0, *map(len, starts)])
    following = np.empty(offsets[-1], np.intp)
    for way in range(4):
        stops, turned = np.concatenate(ends[way]), (way + np.concatenate(turns[way])) % 4
        where = np.empty(len(stops), np.intp)
        for turn in ((way - 1) % 4, (way + 1) % 4):
            chosen = turned == turn
            where[chosen] = offsets[turn] + np.searchsorted(starts[turn], stops[chosen])
        first = offsets[way] + np.arange(len(stops))
        if way in (UP, DOWN):  # by columns, then by rows
            first = first[np.argsort(starts[way] % (width + 1), kind="stable")]
            where = where[np.argsort(stops % (width + 1), kind="stable")]
        following[first] = where
    return Corners(np.concatenate(starts), np.concatenate([one for way in owners for one in way]), following)


def _vertices(labels: Array, top: int, bottom: int) -> tuple[Indices, list[Array]]:
    """Return the vertices of some rows of the grid where labels differ, and the labels of the pixels around them.

    Returns
    -------
    Flat indices from the first of these rows, (n,), and the labels at the top left, top right, bottom left and bottom
    right, (n,) each; 0 beyond the frame.
    """
    height, width = labels.shape
    padded = np.zeros((bottom - top + 1, width + 2), labels.dtype)
    above, below = max(top - 1, 0), min(bottom, height)
    padded[above - top + 1 : below - top + 1, 1:-1] = labels[above:below]
    sideways, downwards = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
    differs = sideways[1:] | sideways[:-1] | downwards[:, 1:] | downwards[:, :-1]
    y, x = np.nonzero(differs)
    return y * (width + 1) + x, [padded[y + down, x + right] for down in (0, 1) for right in (0, 1)]


def _rings(following: list[int]) -> Iterator[list[int]]:
    """Yield the cycles of a permutation."""
    seen = bytearray(len(following))
    for first in range(len(following)):
        if seen[first]:
            continue
        ring, at = [], first
        while not seen[at]:
            seen[at] = 1
            ring.append(at)
            at = following[at]
        yield ring


def _simple(rings: Iterator[list[int]], at: Indices) -> Iterator[list[int]]:
    """Yield rings of corners, cut where they pass a vertex twice."""
    twice = np.zeros(len(at), bool)
    _, first, times = np.unique(at, return_index=True, return_counts=True)
    if (times > 1).any():
        twice = np.isin(at, at[first[times > 1]])
    is_twice, vertices = twice.tolist(), at.tolist()
    for ring in rings:
        if not any(is_twice[corner] for corner in ring):
            yield ring
            continue
        path: list[int] = []
        place: dict[int, int] = {}  # vertex -> its place in the path
        for corner in ring:
            if (vertex := vertices[corner]) in place:
                since = place[vertex]
                loop, path = path[since:], path[:since]
                for left in loop:
                    del place[vertices[left]]
                yield loop
            place[vertex] = len(path)
            path.append(corner)
        yield path


def _doubled_areas(x: Indices, y: Indices, starts: Indices) -> Indices:
    """Return twice the signed area of each ring (shoelace formula), positive where it runs clockwise on a screen."""
    following = np.arange(1, len(x) + 1)
    following[[*(starts[1:] - 1), len(x) - 1]] = starts
    areas: Indices = np.add.reduceat(x * y[following] - x[following] * y, starts)
    return areas


def _parts(labels: Array, owners: Array, is_outer: Array, first: Ring, second: Ring) -> Indices:
    """Return the number of the part of its label that each ring belongs to, (rings,).

    Parameters
    ----------
    labels
        (H, W).
    owners, is_outer
        Label of each ring, and whether it is an outer one, (rings,).
    first, second
        First two vertices of each ring, (rings, 2).
    """
    labels_of_outer, number = np.unique(owners[is_outer], return_counts=True)
    several = np.isin(owners, labels_of_outer[number > 1])
    if not (several & ~is_outer).any():
        numbers = np.cumsum(is_outer)  # holes have one outer ring to belong to
        return np.where(several, numbers, 0)
    runs, component = _components(labels)
    # The pixel on the right of the first edge.
    x, y = first[:, 0].astype(np.intp), first[:, 1].astype(np.intp)
    step = np.sign(second - first)
    column = x - ((step[:, 0] < 0) | (step[:, 1] > 0))
    row = y - ((step[:, 0] < 0) | (step[:, 1] < 0))
    parts: Indices = component[runs[row, column]]
    return parts


def _components(labels: Array) -> tuple[NDArray[np.int32], Indices]:
    """Return the number of each pixel's run along its row, (H, W), and the component of each run, along edges."""
    begins = np.ones(labels.shape, bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    runs = np.cumsum(begins.reshape(-1), dtype=np.int32).reshape(labels.shape)
    runs -= 1
    same = labels[1:] == labels[:-1]
    same[:, 1:] &= begins[1:, 1:] | begins[:-1, 1:]
    above, below = runs[:-1][same], runs[1:][same]
    count = int(runs[-1, -1]) + 1
    graph = csr_array((np.ones(len(above), np.int8), (above, below)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    return runs, component.astype(np.intp)
