"""Measurements of labels: those of scikit-image's `regionprops`, for all labels of a frame at once.

Everything follows from runs, the pixels of one label side by side in a row: there are far fewer of them than of pixels.

A frame that is larger than the memory is measured by parts: `measure_part` returns sums, extremes and convex hulls of
the labels in a window, `merged` combines those of several windows, and `finished` returns the measurements. Sums of
coordinates are integers, and the hull of hulls is that of all pixels, so that the result is bitwise that of the whole
frame, whatever the parts and their order; only sums of grey values that are not integers depend on the order, by
rounding.

`object_columns` is for the frames of a camera: what costs little of all that, which leaves out the convex hulls.

>>> labels = np.array([[0, 7, 7, 7], [0, 7, 0, 0]])
>>> parts = [measure_part(labels[:, :2]), measure_part(labels[:, 2:], origin=(0, 2))]
>>> finished(merged(parts)).area, measurements(labels).area
(array([4]), array([4]))
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, one_line

Array = NDArray[Any]
Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]
Indices = NDArray[np.intp]


class Measurements(NamedTuple):
    """What is measured of each label of a frame, in ascending order; as `regionprops` defines it.

    Attributes
    ----------
    labels
        The labels, (n,).
    area
        In pixels, (n,).
    centroid
        Mean row and mean column, in pixels, (n, 2).
    bbox
        First row, first column, row after the last, column after the last, (n, 4).
    mean, maximum, integrated
        Mean, maximum and sum of the grey values of each channel, (n, channels); without channels if there is no image.
    eccentricity
        Of the ellipse with the same second moments, from 0, a circle, to 1, (n,). NaN for labels that are too large for
        64 bits: the area times the square of the longer side of the bounding box is 2**63 or more.
    solidity
        Area over that of the convex hull, (n,).
    """

    labels: Array
    area: Counts
    centroid: Numbers
    bbox: Counts
    mean: Numbers
    maximum: Array
    integrated: Numbers
    eccentricity: Numbers
    solidity: Numbers


class MeasuredPart(NamedTuple):
    """What is measured of each label in a part of a frame, in ascending order; it can be added to that of other parts.

    Coordinates are those of the frame.

    Attributes
    ----------
    labels
        The labels, (n,).
    area
        In pixels, (n,).
    sums
        Sums of rows and of columns, (n, 2).
    squares
        Sums of row * row, column * column and row * column, modulo 2**64, (n, 3).
    bbox
        First row, first column, row after the last, column after the last, (n, 4).
    maximum
        Of the grey values of each channel, (n, channels), in their dtype; without channels if there is no image.
    integrated
        Sum of the grey values of each channel, (n, channels).
    west, east
        Vertices of the left and of the right side of convex hulls, (vertices, 3): index of the label, y and x, in
        ascending order. Coordinates are doubled, so that middles of the edges of pixels are integers; x of the right
        side is negative.
    """

    labels: Array
    area: Counts
    sums: Counts
    squares: Counts
    bbox: Counts
    maximum: Array
    integrated: Numbers
    west: Counts
    east: Counts

    def save(self, file: BinaryIO) -> None:
        """Write the part to an open file, as arrays of numpy (`numpy.savez`)."""
        np.savez(file, **self._asdict())

    @classmethod
    def load(cls, file: BinaryIO) -> "MeasuredPart":
        """Read what `save` wrote; raises FrameError if the file is damaged."""
        try:
            with NpzFile(file, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in cls._fields})
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            name = getattr(file, "name", "the file")
            raise FrameError(f"{name} holds no measurements of a part of a frame: {one_line(error)}") from error

    def only(self, chosen: NDArray[np.bool_]) -> "MeasuredPart":
        """Return the part with the chosen labels alone, (n,)."""
        number = np.cumsum(chosen) - 1
        sides = []
        for side in (self.west, self.east):
            kept = side[chosen[side[:, 0]]]
            sides.append(np.column_stack([number[kept[:, 0]], kept[:, 1:]]))
        return MeasuredPart._make([*(values[chosen] for values in self[:-2]), *sides])


# Labels whose measurements are written to files at once, which bounds the memory where there are many.
GROUP = 2**16
# Rows of labels whose hulls are measured at once, which bounds the memory where labels are spread over a frame.
ROWS = 2**22
# Pixels of 16 bits whose sum fits in 32 bits.
LONGEST_RUN = 2**16


class LabelRuns(NamedTuple):
    """Pixels of one label side by side in a row, in the order of labels, then of rows, then of columns.

    Attributes
    ----------
    labels
        The labels, (n,).
    first
        Index of the first run of each label, (n,).
    owner
        Index of the label of each run, (runs,).
    row, left, right
        Row, first column, and column after the last, (runs,).
    starts
        Index of the first pixel of each run of the part, those of the background included.
    places
        Index of each run in `starts`, (runs,).
    """

    labels: Array
    first: Indices
    owner: Indices
    row: Counts
    left: Counts
    right: Counts
    starts: Indices
    places: Indices


def measurements(labels: Array, frame: Array | None = None) -> Measurements:
    """Measure all labels of a frame.

    Parameters
    ----------
    labels
        (H, W), integers; 0 is the background.
    frame
        Grey values, (C, H, W); None for no intensities.
    """
    return finished(measure_part(labels, frame))


def measure_part(labels: Array, frame: Array | None = None, origin: tuple[int, int] = (0, 0)) -> MeasuredPart:
    """Measure the labels in a part of a frame.

    Parameters
    ----------
    labels
        (h, w), integers; 0 is the background.
    frame
        Grey values of the part, (C, h, w); None for no intensities.
    origin
        Row and column of the frame at which the part begins. Sums are exact up to rows and columns of 2**21.

    Raises
    ------
    FrameError
        The grey values are not those of as many pixels.
    """
    channels = _channels(labels, frame)
    runs = _runs(labels)
    first, row, left = runs.first, runs.row + origin[0], runs.left + origin[1]
    length, across = _sums_of_runs(runs, left)
    # Sum of column * column over the pixels of a run.
    squared = left * (left * length + length * (length - 1)) + length * (length - 1) // 2 * (2 * length - 1) // 3
    return MeasuredPart(
        runs.labels,
        np.add.reduceat(length, first),
        _reduced(np.add, [row * length, across], first),
        _reduced(np.add, [row * row * length, squared, row * across], first),
        _bounds(row, left, left + length, first),
        _maximum(runs, channels),
        _integrated(runs, channels),
        *_sides(runs.owner, row, left, left + length),
    )


def object_columns(labels: Array, frame: Array | None = None, confidence: Array | None = None) -> dict[str, Array]:
    """Return the first of `columns` for all labels of a frame: label, area, centroid, bounding box, mean, confidence.

    They are bitwise those of `columns`, in a fifth of the time of `measurements`, most of which convex hulls take.

    >>> object_columns(np.array([[0, 7, 7, 7], [0, 7, 0, 0]]))["area"]
    array([4])

    Parameters
    ----------
    labels, frame
        As for `measurements`.
    confidence
        As for `columns`.

    Raises
    ------
    FrameError
        The grey values are not those of as many pixels.
    """
    channels = _channels(labels, frame)
    runs = _runs(labels)
    length, across = _sums_of_runs(runs, runs.left)
    area = np.add.reduceat(length, runs.first)
    sums = _reduced(np.add, [runs.row * length, across], runs.first)
    bounds = _bounds(runs.row, runs.left, runs.right, runs.first)
    mean = _integrated(runs, channels) / area[:, None]
    return _first_columns(runs.labels, area, sums / area[:, None], bounds, mean, confidence)


def merged(parts: Sequence[MeasuredPart]) -> MeasuredPart:
    """Return the measurements of parts that have no pixel in common, at least one, in any order.

    Raises
    ------
    FrameError
        The parts have different numbers of channels.
    """
    if len(channels := {part.maximum.shape[1] for part in parts}) > 1:
        raise FrameError(f"parts of one frame have the same channels (got {', '.join(map(str, sorted(channels)))})")
    labels, owner = np.unique(np.concatenate([part.labels for part in parts]), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[order], np.arange(len(labels)))

    def reduced(ufunc: np.ufunc, values: list[Array]) -> Array:
        found: Array = ufunc.reduceat(np.concatenate(values)[order], first)
        return found

    ends = np.cumsum([len(part.labels) for part in parts])
    owners = np.split(owner, ends[:-1])
    sides = []
    for name in ("west", "east"):
        given = [(each, getattr(part, name)) for each, part in zip(owners, parts, strict=True)]
        sides.append(_side(np.concatenate([np.column_stack([each[v[:, 0]], v[:, 1:]]) for each, v in given])))
    return MeasuredPart(
        labels,
        reduced(np.add, [part.area for part in parts]),
        reduced(np.add, [part.sums for part in parts]),
        reduced(np.add, [part.squares for part in parts]),
        np.concatenate(
            [
                reduced(np.minimum, [part.bbox[:, :2] for part in parts]),
                reduced(np.maximum, [part.bbox[:, 2:] for part in parts]),
            ],
            axis=1,
        ),
        reduced(np.maximum, [part.maximum for part in parts]),
        reduced(np.add, [part.integrated for part in parts]),
        *sides,
    )


def finished(part: MeasuredPart) -> Measurements:
    """Return the measurements of the labels of a part that holds all their pixels."""
    area = part.area
    return Measurements(
        part.labels,
        area,
        part.sums / area[:, None],
        part.bbox,
        part.integrated / area[:, None],
        part.maximum,
        part.integrated,
        _eccentricity(part),
        area / _convex_areas(part),
    )


def in_groups(found: Measurements) -> Iterator[Measurements]:
    """Yield at most `GROUP` labels at a time; at least once."""
    for first in range(0, max(len(found.labels), 1), GROUP):
        yield Measurements._make(values[first : first + GROUP] for values in found)


def columns(found: Measurements, pixel_area: float | None, confidence: Array | None) -> dict[str, Array]:
    """Return measurements by the names that they have in tables and other files, (n,) each.

    Names are those of scikit-image's `regionprops_table`, where it has the measurement. With several channels there are
    `mean_intensity-0`, `mean_intensity-1` and so on.

    Parameters
    ----------
    found
        The measurements.
    pixel_area
        Area of a pixel in µm²; None where it is unknown, which makes `area_um2` NaN.
    confidence
        Of objects 1 ... n, (n,); None for no such column.
    """
    return {
        **_first_columns(found.labels, found.area, found.centroid, found.bbox, found.mean, confidence),
        "area_um2": found.area * (np.nan if pixel_area is None else pixel_area),
        **_by_channel("max_intensity", found.maximum),
        **_by_channel("integrated_intensity", found.integrated),
        "eccentricity": found.eccentricity,
        "solidity": found.solidity,
    }


def _first_columns(
    labels: Array, area: Counts, centroid: Numbers, bbox: Counts, mean: Numbers, confidence: Array | None
) -> dict[str, Array]:
    """Return the columns that all tables of objects begin with."""
    return {
        "label": labels,
        "area": area,
        **{f"centroid-{axis}": centroid[:, axis] for axis in range(2)},
        **{f"bbox-{side}": bbox[:, side] for side in range(4)},
        **_by_channel("mean_intensity", mean),
        **({} if confidence is None else {"confidence": confidence[labels - 1]}),
    }


def _by_channel(name: str, values: Array) -> dict[str, Array]:
    """Return the columns of values (n, channels), which have the channel in their name if there are several."""
    several = values.shape[1] > 1
    return {f"{name}-{channel}" if several else name: values[:, channel] for channel in range(values.shape[1])}


def _channels(labels: Array, frame: Array | None) -> Array:
    """Return the grey values of each channel, (C, h * w); raises FrameError unless they fit the labels."""
    if frame is None:
        return np.empty((0, labels.size))
    if frame.shape[1:] != labels.shape:
        raise FrameError(
            f"grey values must be (C, {labels.shape[0]}, {labels.shape[1]}), as labels (got {frame.shape})"
        )
    return (frame.view(np.uint8) if frame.dtype == bool else frame).reshape(len(frame), labels.size)


def _runs(labels: Array) -> LabelRuns:
    """Return the runs of the labels of a part, (h, w); rows and columns are those of the part."""
    flat, width = labels.reshape(-1), labels.shape[1]
    begins = np.ones(labels.shape, bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    values = flat[starts]
    places = np.flatnonzero(values > 0)
    places = places[np.argsort(values[places], kind="stable")]
    values = values[places]
    is_first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    row, left = np.divmod(starts[places], width)
    length = np.diff(starts, append=flat.size)[places]
    return LabelRuns(values[first], first, np.cumsum(is_first) - 1, row, left, left + length, starts, places)


def _reduced(ufunc: np.ufunc, values: Sequence[Array], first: Indices) -> Array:
    """Return the reductions of the runs of each label, (n, len(values))."""
    return np.stack([ufunc.reduceat(each, first) for each in values], axis=1)


def _sums_of_runs(runs: LabelRuns, left: Counts) -> tuple[Counts, Counts]:
    """Return the number of pixels of each run, and the sum of their columns, where runs begin in the columns `left`."""
    length = runs.right - runs.left
    return length, length * (2 * left + length - 1) // 2


def _maximum(runs: LabelRuns, channels: Array) -> Array:
    """Return the maximum of the grey values of each label and channel, (n, channels), in their dtype."""
    if not len(channels):
        return np.empty((len(runs.labels), 0))
    highest = [np.maximum.reduceat(each, runs.starts)[runs.places] for each in channels]
    return _reduced(np.maximum, highest, runs.first)


def _integrated(runs: LabelRuns, channels: Array) -> Numbers:
    """Return the sum of the grey values of each label and channel, (n, channels)."""
    if not len(channels):
        return np.empty((len(runs.labels), 0))
    # The sum over a run of small integers fits in 32 bits, which takes a third of the time of 64; both are exact.
    is_small = channels.dtype.kind == "u" and channels.itemsize <= 2 and np.max(runs.right, initial=0) <= LONGEST_RUN
    dtype = np.uint32 if is_small else np.float64
    sums = [np.add.reduceat(each, runs.starts, dtype=dtype)[runs.places] for each in channels]
    return _reduced(np.add, [each.astype(np.float64, copy=False) for each in sums], runs.first)


def _bounds(row: Counts, left: Counts, right: Counts, first: Indices) -> Counts:
    """Return the bounding box of each label, (n, 4), from its runs."""
    lowest, highest = _reduced(np.minimum, [row, left], first), _reduced(np.maximum, [row + 1, right], first)
    return np.concatenate([lowest, highest], axis=1)


def _eccentricity(part: MeasuredPart) -> Numbers:
    """Return the eccentricity that follows from the second central moments of each label, (n,).

    Sums of squares about the pixel that holds the centroid are exact if they are below 2**63, although they follow from
    sums modulo 2**64.
    """
    area = part.area
    is_exact = area * np.max(part.bbox[:, 2:] - part.bbox[:, :2], axis=1, initial=0).astype(np.float64) ** 2 < 2**63
    down, across = (part.sums // area[:, None]).T
    rows, columns = part.sums.T
    yy = part.squares[:, 0] + down * (down * area - 2 * rows)
    xx = part.squares[:, 1] + across * (across * area - 2 * columns)
    xy = part.squares[:, 2] - down * columns - across * (rows - down * area)
    y, x = (rows - down * area) / area, (columns - across * area) / area
    yy, xx, xy = yy / area - y * y, xx / area - x * x, xy / area - y * x
    middle, spread = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    minor, major = np.maximum(middle - spread, 0), middle + spread
    eccentricity: Numbers = np.sqrt(1 - np.divide(minor, major, out=np.ones(len(area)), where=major > 0))
    return np.where(is_exact, eccentricity, np.nan)


def _sides(owner: Indices, row: Counts, left: Counts, right: Counts) -> tuple[Counts, Counts]:
    """Return the vertices of the left and of the right side of the convex hull of each label, (vertices, 3) each.

    As in scikit-image, the hull is that of the middles of the pixels' edges.
    """
    begins = np.ones(len(owner), bool)
    begins[1:] = (owner[1:] != owner[:-1]) | (row[1:] != row[:-1])
    first, last = np.flatnonzero(begins), np.flatnonzero(np.append(begins[1:], True)[: len(owner)])
    owner, row = np.repeat(owner[first], 3), row[first]
    y = (2 * row[:, None] + np.array([-1, 0, 1])).reshape(-1)
    # A pixel has the middles of three edges on its left half.
    sides = ((2 * column[:, None] + np.array([0, -1, 0])).reshape(-1) for column in (left[first], 1 - right[last]))
    west, east = (_side(np.column_stack([owner, y, x])) for x in sides)
    return west, east


def _side(points: Counts) -> Counts:
    """Return the vertices of the left side of each label's convex hull, of points (m, 3) in any order."""
    owner, y, x = points[np.lexsort(points.T[::-1])].T
    leftmost = np.ones(len(owner), bool)
    leftmost[1:] = (owner[1:] != owner[:-1]) | (y[1:] != y[:-1])
    return np.column_stack(_hull(owner[leftmost], y[leftmost], x[leftmost]))


def _convex_areas(part: MeasuredPart) -> Counts:
    """Return the number of pixels whose centre lies in the convex hull of each label, (n,)."""
    count = len(part.labels)
    areas = np.zeros(count, np.int64)
    if not count:
        return areas
    # All rows from the first to the last of each label, also those without a pixel of it.
    top, heights = part.bbox[:, 0], part.bbox[:, 2] - part.bbox[:, 0]
    west, east = Hull.of(part.west), Hull.of(part.east)
    for some in np.split(np.arange(count), np.flatnonzero(np.diff(np.cumsum(heights) // ROWS)) + 1):
        inside, lengths = np.repeat(some, heights[some]), heights[some]
        rows = top[inside] + np.arange(len(inside)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        # The last column is that of the mirror image, negative.
        areas += np.bincount(inside, 1 - west.columns(inside, rows) - east.columns(inside, rows), count).astype(int)
    return areas


class Hull(NamedTuple):
    """Left sides of the convex hulls of labels; coordinates are doubled, so that middles of edges are integers.

    Attributes
    ----------
    keys
        Label and y of each vertex, as one ascending number: ``label * span + y``.
    y, x
        Of each vertex.
    span
        More than any y.
    """

    keys: Counts
    y: Counts
    x: Counts
    span: int

    @classmethod
    def of(cls, side: Counts) -> "Hull":
        """Return the hulls of labels from their vertices, (vertices, 3); see `MeasuredPart.west`."""
        owner, y, x = side.T
        span = int(y.max()) + 3
        return cls(owner * span + y, y, x, span)

    def columns(self, index: Array, rows: Counts) -> Counts:
        """Return the first column whose pixel has its centre in the hull, for rows of labels, (k,)."""
        at = np.searchsorted(self.keys, index * self.span + 2 * rows, side="right") - 1
        high = self.y[at + 1] - self.y[at]
        wide: Counts = (self.x[at + 1] - self.x[at]) * (2 * rows - self.y[at])
        return -(-(self.x[at] * high + wide) // (2 * high))  # rounded up


def _hull(owner: Array, y: Counts, x: Counts) -> tuple[Array, Counts, Counts]:
    """Return the vertices of the left side of each owner's convex hull, of points in the order of owners and y.

    Points on or to the right of the line between their neighbours are no vertices. They are removed, all at once, until
    there are none.
    """
    kept = np.ones(len(owner), bool)
    active = np.arange(len(owner))
    while len(active):
        o, v, u = owner[active], y[active], x[active]
        is_inner = np.zeros(len(active), bool)
        is_inner[1:-1] = (o[:-2] == o[2:]) & (
            (u[1:-1] - u[:-2]) * (v[2:] - v[:-2]) >= (u[2:] - u[:-2]) * (v[1:-1] - v[:-2])
        )
        kept[active[is_inner]] = False
        # Owners that lost none are finished.
        changed = np.zeros(int(owner[-1]) + 1, bool)
        changed[o[is_inner]] = True
        active = active[changed[o] & ~is_inner]
    return owner[kept], y[kept], x[kept]
