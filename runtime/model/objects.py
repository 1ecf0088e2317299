"""Objects of a class map, numbered.

Networks predict classes, and two kinds of class maps describe objects that touch:

- `components` (Ronneberger et al. 2015, section 3): background and foreground, with a border of background cut between
  touching objects. Objects are the connected components of the foreground, and the border goes to the nearest of them.
- `cores`: background, rim and core. Each connected core is an object, and each rim pixel goes to the nearest core
  within `reach`.

Pixels are connected along edges. Of several cores (or components) at the same distance, the pixel in the highest row
wins, then the one furthest left. Except for the extent of connected cores, a pixel's object therefore depends on
nothing farther away than `reach`, so that a frame can be decoded in blocks with the same result
(`unetrt.runtime.model.block_objects`).

>>> instances(np.array([[2, 1, 1, 1, 2, 0]], np.uint8), Decoding("cores", reach=3))
array([[1, 1, 1, 2, 2, 0]], dtype=int32)
"""

from dataclasses import dataclass
from math import inf, isqrt, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from unetrt.runtime.errors import FrameError, OptionError, shown
from unetrt.runtime.model.spec import CORE, Decoding
from unetrt.runtime.pixels.frames import as_array, require_rows_and_columns

Array = NDArray[Any]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]
Counts = NDArray[Any]

# Rows that are searched at once: their arrays fit in a core's cache.
BLOCK = 96
# Distance in pixels up to which all rows are searched for every pixel.
NEAR = 4
EVERY = slice(None)
# Pixels of small planes that are decoded together: less time per plane than one call each.
GROUP = 1 << 14


def instances(classes: ArrayLike, decoding: Decoding | None = None, min_area: int = 0) -> Labels:
    """Return the objects of a class map, numbered.

    Parameters
    ----------
    classes
        (..., H, W), integers; 0 is the background. The planes of a stack are independent. What numpy converts, such as
        a list or a tensor on the host, is taken too.
    decoding
        How classes become objects, `spec.decoding` of the model; None: connected components.
    min_area
        Minimum area in pixels, if it is more than that of the decoding; smaller objects become background. It is the
        area that objects are returned with, after they have grown over the border or their rims.

    Returns
    -------
    int32, (..., H, W): 0 is the background; objects are numbered 1 ... n in each plane.

    Raises
    ------
    FrameError
        The map cannot be converted to an array, has fewer than two axes, does not hold integers, or its last axis seems
        to be channels.
    OptionError
        `decoding` is of another type, or `min_area` is negative.
    """
    planes = as_array(classes)
    if planes.ndim < 2 or planes.dtype.kind not in "uib":
        hint = ": scores become one with argmax over the classes" if planes.dtype.kind == "f" else ""
        raise FrameError(f"a class map must be integers (..., H, W) (got {planes.dtype} {planes.shape}){hint}")
    require_rows_and_columns(planes.shape, "the class map", "the last two axes are (H, W)")
    how = as_decoding(decoding)
    smallest = least_area(min_area, how, planes.size)
    found: Labels = np.empty(planes.shape, np.int32)
    group = max(1, GROUP // max(1, prod(planes.shape[-2:])))
    # Components that grow are measured with what they would grow over beyond their plane.
    if group > 1 and found.size and (how.method == "cores" or not how.reach or smallest <= 1):
        frames, labels = (array.reshape(-1, *planes.shape[-2:]) for array in (planes, found))
        for begin in range(0, len(frames), group):
            _decode_together(frames[begin : begin + group], how, smallest, labels[begin : begin + group])
        return found
    for plane in np.ndindex(planes.shape[:-2]):
        _decode(planes[plane], how, smallest, found[plane])
    return found


def _decode_together(classes: Array, how: Decoding, min_area: float, objects: Labels) -> None:
    """Write the objects of small planes (N, H, W): one below the other, too far apart for objects to meet."""
    number, height, width = classes.shape
    tall = np.zeros((number, height + max(how.reach, 1), width), classes.dtype)
    tall[:, :height] = classes
    numbered = np.empty((number * tall.shape[1], width), np.int32)
    _decode(tall.reshape(-1, width), how, min_area, numbered)
    objects[...] = numbered.reshape(tall.shape)[:, :height]
    # Numbers ascend from plane to plane.
    highest = np.maximum.accumulate(objects.max((1, 2)))
    objects -= np.where(objects > 0, np.append(0, highest[:-1]).astype(np.int32)[:, None, None], 0)


def as_decoding(decoding: Decoding | None) -> Decoding:
    """Return how classes become objects, connected components for None; raise OptionError for another type."""
    how = Decoding() if decoding is None else decoding
    if not isinstance(how, Decoding):
        raise OptionError(f"decoding must be a Decoding, such as spec.decoding of a model (got {shown(how)})")
    return how


def least_area(min_area: float, how: Decoding, size: int) -> float:
    """Return the minimum area of the objects of a map of `size` pixels: the larger one of option and decoding."""
    require_min_area(min_area)
    return max(min(min_area, size + 1), how.area)  # numpy compares with numbers of 64 bits


def require_min_area(min_area: object) -> None:
    """Raise OptionError unless a minimum area in pixels is a number from 0."""
    if not isinstance(min_area, int | float | np.integer | np.floating) or not min_area >= 0:
        raise OptionError(f"min_area must be at least 0 (got {shown(min_area)})")


def _decode(classes: Array, how: Decoding, min_area: float, objects: Labels) -> None:
    """Write the objects of a plane (H, W)."""
    seeds = Seeds.of(classes, how)
    seeds.paint(objects)
    areas = seeds.runs.areas(seeds.numbers, seeds.count)
    small = smaller(areas, how.smallest)
    grown = objects.reshape(-1)[:0]
    if how.reach and seeds.count:
        if how.method == "cores":
            grown = grow(objects, seeds.mask, seeds.rest, how.reach, how.reach**2)
        else:
            grown = grow(objects, seeds.mask, between(objects, how.reach), how.reach, inf)
    owners = joined(*borders(objects, small), small) if small.any() else np.arange(seeds.count + 1)
    if min_area > 1:
        areas += np.bincount(grown, minlength=seeds.count + 1)
        owners = large(owners, areas, min_area)
    numbers, count = compact(owners)
    if count < seeds.count:
        np.take(numbers.astype(np.int32), objects, out=objects, mode="clip")


def framed(compare: np.ufunc, classes: Array, value: int, margin: int) -> Mask:
    """Return ``compare(classes, value)`` for a map (H, W), framed by background: bool, (H + 2 margin, W + margin).

    `margin` rows are above and below the map, and as many columns on the right of each row. In flat order, the pixels
    up to `margin` before and after one are then those of its row, or background. Shifts of whole masks are shifts of
    flat arrays, which take a third of the time.
    """
    height, width = classes.shape
    found = np.zeros((height + 2 * margin, width + margin), bool)
    compare(classes, value, out=found[margin : margin + height, :width])
    return found


def _widened(cores: Mask, within: Mask, steps: int) -> Mask:
    """Return framed cores, widened along edges by a number of pixels that lie in the framed mask `within`."""
    row = cores.shape[1]
    for _ in range(steps):
        wide = cores.copy()
        for step in (1, row):
            wide.reshape(-1)[step:] |= cores.reshape(-1)[:-step]
            wide.reshape(-1)[:-step] |= cores.reshape(-1)[step:]
        wide &= within
        cores = wide
    return cores


class Runs(NamedTuple):
    """The pixels of a framed mask as runs along its rows, in order; far fewer than pixels.

    Attributes
    ----------
    starts, stops
        Flat index of the first pixel of each run, and of the one after its last, (n,).
    width
        Columns of the framed mask.
    """

    starts: NDArray[np.intp]
    stops: NDArray[np.intp]
    width: int

    @classmethod
    def of(cls, framed: Mask) -> "Runs":
        """Return the runs of the pixels of a framed mask that are set."""
        flat = framed.reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        return cls(changes[::2], changes[1::2], framed.shape[1])

    def components(self) -> tuple[NDArray[np.intp], int]:
        """Return the number, from 1, of each run's component, (n,), connected along edges, and the number of them.

        Components are numbered in the order of their first pixels, as `scipy.ndimage.label` does.
        """
        # Runs of the next row that begin before a run ends and end after it begins.
        first = np.searchsorted(self.stops, self.starts + self.width, side="right")
        after = np.searchsorted(self.starts, self.stops + self.width, side="left")
        touching = np.maximum(after - first, 0)
        rows = np.concatenate([[0], np.cumsum(touching)])
        columns = np.repeat(first - rows[:-1], touching) + np.arange(rows[-1])
        graph = csr_array((np.ones(rows[-1], np.int8), columns, rows), shape=(len(self.starts),) * 2)
        count, numbers = connected_components(graph, directed=False)
        return numbers.astype(np.intp) + 1, int(count)

    def containing(self, parts: "Runs") -> NDArray[np.intp]:
        """Return the index of the run in which each run of a part of the mask lies, (n,)."""
        return np.searchsorted(self.starts, parts.starts, side="right") - 1

    def inside(self, rows: slice, columns: slice) -> tuple["Runs", NDArray[np.intp]]:
        """Return the parts of the runs in a window of the framed mask, and the index of the run each is a part of."""
        first, last = np.searchsorted(self.starts, (rows.start * self.width, rows.stop * self.width))
        starts, stops = self.starts[first:last], self.stops[first:last]
        row = starts // self.width * self.width
        starts, stops = np.maximum(starts, row + columns.start), np.minimum(stops, row + columns.stop)
        which = np.flatnonzero(starts < stops)
        return Runs(starts[which], stops[which], self.width), which + first

    def areas(self, numbers: NDArray[np.intp], count: int) -> Counts:
        """Return the number of pixels of each number, (count + 1,), that runs have."""
        return np.bincount(numbers, self.stops - self.starts, count + 1)


@dataclass(frozen=True)
class Seeds:
    """The pixels from which objects grow, connected and numbered: the cores of a class map, or its components.

    Attributes
    ----------
    mask, rest
        The seeds, and the other pixels of the foreground; for components both are the foreground. Framed by
        `max(reach, 1)`.
    connected, components
        The runs that are connected, which are those of the seeds, widened by `bridge`; and the number of each, (n,).
    runs, numbers
        The runs of the seeds, and the number of each, (m,).
    count
        Numbers are 1 ... count, in the order of the first pixels of what is connected.
    """

    mask: Mask
    rest: Mask
    connected: Runs
    components: NDArray[np.intp]
    runs: Runs
    numbers: NDArray[np.intp]
    count: int

    @classmethod
    def of(cls, classes: Array, how: Decoding) -> "Seeds":
        """Return the seeds of a class map (H, W)."""
        margin = max(how.reach, 1)
        mask = rest = framed(np.greater, classes, 0, margin)
        if how.method == "cores":
            mask = framed(np.equal, classes, CORE, margin)
        connected = Runs.of(_widened(mask, rest, how.bridge))
        components, count = connected.components()
        runs = Runs.of(mask) if how.bridge else connected
        numbers = components[connected.containing(runs)] if how.bridge else components
        if rest is not mask:
            rest ^= mask
        return cls(mask, rest, connected, components, runs, numbers, count)

    def paint(self, objects: Labels) -> None:
        """Set the seeds of a map (H, W) to their numbers, and all other pixels to 0."""
        paint(objects, self.mask, self.runs, self.numbers)


def paint(objects: Labels, framed: Mask, runs: Runs, numbers: Counts) -> None:
    """Set the pixels (H, W) of a framed mask to the numbers of their runs, and all others to 0."""
    height, width = objects.shape
    margin = framed.shape[1] - width
    objects.fill(0)
    inside = framed[margin : margin + height, :width]
    objects[inside] = np.repeat(numbers.astype(np.int32), runs.stops - runs.starts)


def smaller(areas: Counts, smallest: int) -> Mask:
    """Return which numbers have cores of fewer pixels than `smallest`; the background, 0, has none."""
    small: Mask = areas < smallest
    small[0] = False
    return small


def borders(objects: Labels, small: Mask, rows: slice = EVERY, columns: slice = EVERY) -> tuple[Counts, Counts]:
    """Return the borders of small objects with others.

    Parameters
    ----------
    objects
        int32, (H, W).
    small
        Whether an object is small, by number.
    rows, columns
        The pixels of small objects that count. Their neighbours may lie outside.

    Returns
    -------
    Small objects and their neighbours, (2, n), and the number of pairs of pixels along edges, (n,).
    """
    height, width = objects.shape
    inside = objects[rows, columns]
    down, right = np.divmod(np.flatnonzero(np.take(small, inside, mode="clip")), inside.shape[1])
    down, right = down + rows.indices(height)[0], right + columns.indices(width)[0]
    # Beyond the edges each pixel is its own neighbour.
    beside = [
        objects[np.clip(down + dy, 0, height - 1), np.clip(right + dx, 0, width - 1)]
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))
    ]
    pairs = np.stack([np.tile(objects[down, right], len(beside)), np.concatenate(beside)])
    return np.unique(pairs[:, (pairs[1] > 0) & (pairs[0] != pairs[1])], axis=1, return_counts=True)


def joined(pairs: Counts, lengths: Counts, small: Mask) -> NDArray[np.intp]:
    """Return for each number that of the object it belongs to: small ones join the neighbour of the longest border.

    If borders are equally long, the neighbour with the lowest number wins. Neighbours that are small do not count.
    """
    counts = small[pairs[0]] & ~small[pairs[1]]
    (which, neighbour), lengths = pairs[:, counts], lengths[counts]
    numbers = np.arange(len(small))
    ascending = np.lexsort((-neighbour, lengths))  # of several assignments the last remains
    numbers[which[ascending]] = neighbour[ascending]
    return numbers


def large(owners: NDArray[np.intp], areas: Counts, area: float) -> NDArray[np.intp]:
    """Return the object of each number, 0 where the object has fewer than `area` pixels, from the areas of numbers."""
    return np.where(np.bincount(owners, areas, len(owners))[owners] >= area, owners, 0)


def compact(owners: NDArray[np.intp]) -> tuple[NDArray[np.intp], int]:
    """Return new numbers, 1 ... n in order, for the objects to which numbers belong, 0 for none; and n."""
    owners[0] = 0
    kept = np.unique(owners)
    return np.searchsorted(kept, owners), len(kept) - 1


def between(objects: Labels, reach: int) -> Mask:
    """Return, framed, the background pixels from which two or more objects are up to `reach` away along both axes."""
    height, width = objects.shape
    row = width + reach
    highest = int(objects.max())
    # The background, 0, becomes the highest number of the other plane.
    kind = np.min_scalar_type(highest + 1).type
    found = np.zeros((height + 2 * reach, row), bool)
    for top in range(0, height, BLOCK):
        bottom = min(top + BLOCK, height)
        above, below = max(0, top - reach), min(bottom + reach, height)
        # Framed, with `reach` more pixels before the first row and after the last.
        flat = np.zeros((bottom - top + 2 * reach) * row + 2 * reach, kind)
        block = flat[reach:-reach].reshape(-1, row)[:, :width]
        block[above - top + reach : below - top + reach] = objects[above:below]
        most, least = (
            _running(_running(plane, reach, row, best), reach, 1, best).reshape(-1, row)[:, :width]
            for plane, best in ((flat, np.maximum), (flat - kind(1), np.minimum))
        )
        background = block[reach:-reach] == 0
        found[top + reach : bottom + reach, :width] = background & (most > least + kind(1))
    return found


def _running(flat: Array, reach: int, stride: int, best: np.ufunc) -> Array:
    """Return the maximum or minimum of pixels i, i + stride, ... i + 2 reach stride, for each i of a flat array."""
    known = 0
    while known < 2 * reach:  # `flat` holds those of i ... i + known strides; each pass doubles it
        step = min(known + 1, 2 * reach - known)
        flat = best(flat[: -step * stride], flat[step * stride :])
        known += step
    return flat


def grow(objects: Labels, found: Mask, wanted: Mask, reach: int, furthest: float) -> Labels:
    """Assign each wanted background pixel to the nearest object, in place; return the numbers assigned, (n,).

    The nearest pixel is found in two passes, as in the exact distance transform of Saito and Toriwaki (1994): the
    nearest in each row, then the best of `2 reach + 1` rows.

    Parameters
    ----------
    objects
        int32, (H, W); 0 is the background.
    found, wanted
        Framed by `reach`: the pixels of objects, and pixels without an object.
    reach
        Largest distance in pixels along either axis.
    furthest
        Largest squared Euclidean distance, in pixels.
    """
    height, width = objects.shape
    row, labels = width + reach, objects.reshape(-1)
    assigned = [labels[:0]]
    for top in range(reach, height + reach, BLOCK):
        bottom = min(top + BLOCK, height + reach)
        at = np.flatnonzero(wanted[top:bottom])
        if not len(at):
            continue
        left, right = _distances_in_row(found[top - reach : bottom + reach].reshape(-1), reach)
        squared, down = _nearest_row(np.minimum(left, right), row, reach, at)
        near = squared <= min(furthest, 2 * reach**2)
        if not near.all():
            at, down = at[near], down[near]
        source = at + (down + reach) * row
        west, east = left[source].astype(np.intp), right[source].astype(np.intp)
        at += (top - reach) * width - at // row * reach  # in `labels`, whose rows are shorter
        grown = labels[at + down * width + np.where(west <= east, -west, east)]
        labels[at] = grown
        assigned.append(grown)
    return np.concatenate(assigned)


def _distances_in_row(found: Mask, reach: int) -> tuple[Array, Array]:
    """Return the distance, (n,), to the nearest found pixel of a framed mask on the left and on the right, in pixels.

    Where it is more than `reach`, it is given as more than the diagonal of the window.
    """
    none = isqrt(2 * reach**2) + 1
    kind = np.min_scalar_type(none + reach).type
    left = np.multiply(~found, kind(none), dtype=kind)
    right, further, known = left.copy(), np.empty_like(left), 0
    while known < reach:  # distances up to `known` are exact
        step = min(known + 1, reach - known)
        for to, of in ((left[step:], left[:-step]), (right[:-step], right[step:])):
            np.minimum(to, np.add(of, kind(step), out=further[step:]), out=to)
        known += step
    return left, right


def _nearest_row(distances: Array, row: int, reach: int, at: NDArray[np.intp]) -> tuple[Array, NDArray[np.intp]]:
    """Return the squared distance to the nearest found pixel, and how many rows it is below, for pixels `at`.

    Parameters
    ----------
    distances
        (n,), to the nearest found pixel in the row of a framed mask.
    row
        Columns of the framed mask.
    reach
        Number of rows above and below that are searched, and that the mask has above and below the pixels `at`.
    """
    side, size = 2 * reach + 1, len(distances) - 2 * reach * row
    # Keys order candidates by squared distance, then by row.
    kind = np.min_scalar_type(((isqrt(2 * reach**2) + 1) ** 2 + reach**2 + 1) * side).type
    keys = distances.astype(kind)
    keys *= keys
    keys *= kind(side)
    best = np.full(size, np.iinfo(kind).max, kind)
    candidates = np.empty_like(best)
    near = min(reach, NEAR)
    for offset in range(-near, near + 1):
        start = (reach + offset) * row
        np.add(keys[start : start + size], kind(offset**2 * side + offset + reach), out=candidates)
        np.minimum(best, candidates, out=best)
    nearest = best[at]
    # Most rims are thinner than NEAR. The other pixels, few of them, look at the remaining rows one by one.
    left = np.arange(len(at))
    for far in range(near + 1, reach + 1):
        left = left[nearest[left] >= far**2 * side]
        for offset in (-far, far):
            key = keys[at[left] + (reach + offset) * row] + kind(offset**2 * side + offset + reach)
            nearest[left] = np.minimum(nearest[left], key)
    squared = nearest // kind(side)
    return squared, (nearest - squared * kind(side)).astype(np.intp) - reach
