"""Tables of objects: a CSV file with one row for each object, for spreadsheets, pandas and R.

Columns have the names of scikit-image's `regionprops_table`; pixels are counted from 0, rows before columns, and a
bounding box ends before its upper bounds:

    image, frame, label, area, centroid-0, centroid-1, bbox-0, bbox-1, bbox-2, bbox-3, mean_intensity, confidence

`mean_intensity` is that of the raw frame; for several channels there are `mean_intensity-0`, `mean_intensity-1` and so
on. `confidence` exists only where it was measured.
"""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.runtime.errors import printable
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.pixels.frames import as_frame, stack_of

if TYPE_CHECKING:
    from unetrt.runtime.segment.segmenter import Objects

Array = NDArray[Any]

FIXED = ("image", "frame", "label", "area", "centroid-0", "centroid-1", "bbox-0", "bbox-1", "bbox-2", "bbox-3")
INTENSITY, CONFIDENCE = "mean_intensity", "confidence"


class ObjectTable:
    """Writes rows of objects to an open CSV file.

    Parameters
    ----------
    file
        A text file, opened with ``newline=""``.
    channels
        Channels of the frames.
    confident
        Whether the objects have a confidence.
    """

    def __init__(self, file: Any, channels: int, confident: bool) -> None:
        self._rows, self._channels = csv.writer(file), channels
        intensities = [INTENSITY] if channels == 1 else [f"{INTENSITY}-{channel}" for channel in range(channels)]
        self._rows.writerow([*FIXED, *intensities, *([CONFIDENCE] if confident else [])])

    def add(self, image: str, frames: Array, found: "Objects") -> None:
        """Write the objects of an image.

        Parameters
        ----------
        image
            Its name.
        frames
            The raw frame, (H, W) or (C, H, W), or a stack (N, H, W) or (N, C, H, W).
        found
            Its objects.
        """
        counts = found.count.reshape(-1)
        confidence = None if found.confidence is None else np.split(found.confidence, np.cumsum(counts)[:-1])
        for number, (frame, labels) in enumerate(
            zip(stack_of(frames, self._channels), stack_of(found.labels, 1), strict=True)
        ):
            measured = properties(as_frame(frame, self._channels), labels)
            last = [] if confidence is None else [[f"{each:.4f}"] for each in confidence[number]]
            for row, (label, values) in enumerate(measured):
                self._rows.writerow([printable(image), number, label, *values, *(last[row] if last else ())])


@contextmanager
def object_table(path: Path, channels: int, confident: bool) -> Iterator[ObjectTable]:
    """Yield a table that is written to `path` atomically at the end; nothing is left after an exception."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield ObjectTable(file, channels, confident)


def properties(frame: Array, labels: NDArray[np.int32]) -> Iterator[tuple[int, list[Any]]]:
    """Yield number, and area, centroid, bounding box and mean intensities, of each object, as they are written.

    Parameters
    ----------
    frame
        Raw grey values, (C, H, W).
    labels
        int32, (H, W), objects numbered 1 ... n.
    """
    at = np.nonzero(labels)
    numbers = labels[at]
    areas = np.bincount(numbers)
    centroids = [np.bincount(numbers, axis) / np.maximum(areas, 1) for axis in at]
    means = [np.bincount(numbers, channel[at]) / np.maximum(areas, 1) for channel in frame]
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None:
            rows, columns = box
            middle = [f"{each[label]:.3f}" for each in centroids]
            bounds = [rows.start, columns.start, rows.stop, columns.stop]
            yield label, [areas[label], *middle, *bounds, *(f"{each[label]:.6g}" for each in means)]
