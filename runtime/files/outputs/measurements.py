"""Measurements of labels: those of scikit-image's `regionprops`, for all labels of a frame at once.

Everything follows from runs, the pixels of one label side by side in a row: there are far fewer of them than of pixels.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


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
        Of the ellipse with the same second moments, from 0, a circle, to 1, (n,).
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


# Rows of labels whose hulls are measured at once, which bounds the memory where labels are spread over a frame.
ROWS = 2**22


class LabelRuns(NamedTuple):
    """Pixels of one label side by side in a row, in the order of rows.

    Attributes
    ----------
    owner
        Index of the label among those of the frame, (runs,).
    row, left, right
        Row, first column, and column after the last, (runs,).
    """

    owner: NDArray[np.intp]
    row: Counts
    left: Counts
    right: Counts


def measurements(labels: Array, frame: Array | None = None) -> Measurements:
    """Measure all labels of a frame.

    Parameters
    ----------
    labels
        (H, W), integers; 0 is the background.
    frame
        Grey values, (C, H, W); None for no intensities.
    """
    flat, width = labels.reshape(-1), labels.shape[1]
    begins = np.ones(labels.shape, bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    inside = flat[starts] > 0
    present, index = np.unique(flat[starts[inside]], return_inverse=True)
    row, left = np.divmod(starts[inside], width)
    runs = LabelRuns(index, row, left, left + np.diff(starts, append=flat.size)[inside])
    length, middle = runs.right - runs.left, (runs.left + runs.right - 1) / 2
    area = _sums(length, index, len(present)).astype(np.int64)
    centroid = np.stack([_sums(length * along, index, len(present)) / area for along in (row, middle)], axis=1)
    channels = () if frame is None else frame.reshape(len(frame), -1)
    sums = [_sums(np.add.reduceat(each, starts, dtype=np.float64)[inside], index, len(present)) for each in channels]
    integrated = np.stack(sums, axis=1) if sums else np.empty((len(present), 0))
    highest = [_most(np.maximum.reduceat(each, starts)[inside], index, len(present)) for each in channels]
    return Measurements(
        present,
        area,
        centroid,
        _bounds(runs, len(present)),
        integrated / area[:, None],
        np.stack(highest, axis=1) if highest else np.empty((len(present), 0)),
        integrated,
        _eccentricity(runs, area, centroid),
        area / _convex_areas(runs, len(present)),
    )


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
    several = found.mean.shape[1] > 1
    intensities = {
        name: {f"{name}-{channel}" if several else name: values[:, channel] for channel in range(values.shape[1])}
        for name, values in (
            ("mean_intensity", found.mean),
            ("max_intensity", found.maximum),
            ("integrated_intensity", found.integrated),
        )
    }
    return {
        "label": found.labels,
        "area": found.area,
        **{f"centroid-{axis}": found.centroid[:, axis] for axis in range(2)},
        **{f"bbox-{side}": found.bbox[:, side] for side in range(4)},
        **intensities["mean_intensity"],
        **({} if confidence is None else {"confidence": confidence[found.labels - 1]}),
        "area_um2": found.area * (np.nan if pixel_area is None else pixel_area),
        **intensities["max_intensity"],
        **intensities["integrated_intensity"],
        "eccentricity": found.eccentricity,
        "solidity": found.solidity,
    }


def _sums(values: Array, index: NDArray[np.intp], count: int) -> Numbers:
    sums: Numbers = np.bincount(index, values, count).astype(np.float64, copy=False)
    return sums


def _most(values: Array, index: NDArray[np.intp], count: int) -> Array:
    """Return the maximum of the values of each index 0 ... count - 1, each of which occurs."""
    if not count:
        return values[:0]
    order = np.argsort(index, kind="stable")
    found: Array = np.maximum.reduceat(values[order], np.searchsorted(index[order], np.arange(count)))
    return found


def _bounds(runs: LabelRuns, count: int) -> Counts:
    """Return the bounding box of each label, (count, 4)."""
    lowest = [-_most(-each, runs.owner, count) for each in (runs.row, runs.left)]
    highest = [_most(each, runs.owner, count) for each in (runs.row + 1, runs.right)]
    return np.stack([*lowest, *highest], axis=1)


def _eccentricity(runs: LabelRuns, area: Counts, centroid: Numbers) -> Numbers:
    """Return the eccentricity that follows from the second central moments of each label, (n,)."""
    length = runs.right - runs.left
    down = runs.row - centroid[runs.owner, 0]
    across = (runs.left + runs.right - 1) / 2 - centroid[runs.owner, 1]
    # A run of n pixels has the second moment n (n^2 - 1) / 12 about its middle.
    moments = (length * down**2, length * across**2 + length * (length**2 - 1) / 12, length * down * across)
    yy, xx, xy = (_sums(moment, runs.owner, len(area)) / area for moment in moments)
    middle, spread = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    minor, major = np.maximum(middle - spread, 0), middle + spread
    eccentricity: Numbers = np.sqrt(1 - np.divide(minor, major, out=np.ones(len(area)), where=major > 0))
    return eccentricity


def _convex_areas(runs: LabelRuns, count: int) -> Counts:
    """Return the number of pixels whose centre lies in the convex hull of each label, (count,).

    As in scikit-image, the hull is that of the middles of the pixels' edges.
    """
    if not count:
        return np.zeros(0, np.int64)
    order = np.lexsort((runs.row, runs.owner))
    index, row = runs.owner[order], runs.row[order]
    begins = np.flatnonzero((np.diff(index, prepend=-1) != 0) | (np.diff(row, prepend=-1) != 0))
    left = np.minimum.reduceat(runs.left[order], begins)
    right = np.maximum.reduceat(runs.right[order], begins) - 1
    index, row = index[begins], row[begins]
    first = np.searchsorted(index, np.arange(count))
    last = np.append(first[1:], len(index)) - 1
    # All rows from the first to the last of each label, also those without a pixel of it.
    heights = row[last] - row[first] + 1
    west, east = Hull.of(index, row, left), Hull.of(index, row, -right)
    areas = np.zeros(count, np.int64)
    for some in np.split(np.arange(count), np.flatnonzero(np.diff(np.cumsum(heights) // ROWS)) + 1):
        inside, lengths = np.repeat(some, heights[some]), heights[some]
        rows = row[first][inside] + np.arange(len(inside)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
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
    def of(cls, index: Array, row: Counts, column: Counts) -> "Hull":
        """Return the hulls of pixels: the first column of each row of each label, in their order, (m,)."""
        # A pixel has the middles of three edges on its left half.
        owner = np.repeat(index, 3)
        y: Counts = (2 * row[:, None] + np.array([-1, 0, 1])).reshape(-1)
        x: Counts = (2 * column[:, None] + np.array([0, -1, 0])).reshape(-1)
        order = np.lexsort((x, y, owner))
        owner, y, x = owner[order], y[order], x[order]
        leftmost = (np.diff(owner, prepend=-1) != 0) | (np.diff(y, prepend=-2) != 0)
        owner, y, x = _hull(owner[leftmost], y[leftmost], x[leftmost])
        span = 2 * int(row.max()) + 4
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
