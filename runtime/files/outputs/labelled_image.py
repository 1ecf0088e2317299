"""An image whose labels are known: what every file that is written from labels shows.

Polygons and measurements are computed when they are first asked for, and once, however many files need them.

Labels that are larger than the memory are an array that is read by windows, such as a Zarr array. Their objects were
measured by parts, and are in a file (`ObjectRows`); outlines are traced in windows around groups of objects, again for
each file. What is written is the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.outputs.label_tiff import stacked_axes, write_labels
from unetrt.runtime.files.outputs.polygons import Polygon, polygons, traced
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.model.measurements import Measurements, columns, in_groups, measurements
from unetrt.runtime.pixels.frames import as_frame

if TYPE_CHECKING:
    from unetrt.runtime.files.outputs.object_rows import ObjectRows
    from unetrt.runtime.model.spec import Annotation

Array = NDArray[Any]

ALL = slice(None)


@dataclass(frozen=True)
class LabelledImage:
    """Labels of an image, and what is known about the image.

    Attributes
    ----------
    name
        Of the files that are written, without a suffix; it may contain folders, ``"day1/a"``.
    labels
        (..., H, W), integers; 0 is the background. A numpy array, or any array that is indexed by integers and slices.
    kind
        `instances`: a label is the number of an object in its frame; `classes`: it is a class.
    frames
        Grey values of the frames, (N, C, H, W), N the number of frames of the labels; None: there is no image. Of
        measured objects, only the shape is used.
    axes
        As for `write_labels`.
    pixel_size
        Physical size of a pixel; None: not known.
    confidence
        Confidence of the objects 1 ... n of each frame, (n,), from 0 to 1; None: not measured.
    source
        Name of the image's file; empty: there is no image.
    rows
        Measurements of the objects of each frame, where they were measured by parts; None: they are measured here.
    """

    name: str
    labels: Array
    kind: "Annotation" = "instances"
    frames: Array | None = None
    axes: str | None = None
    pixel_size: PixelSize | None = None
    confidence: Sequence[Array] | None = None
    source: str = ""
    rows: "Sequence[ObjectRows] | None" = None

    def __post_init__(self) -> None:
        shape = (self.count, *self.labels.shape[-2:])
        if self.frames is not None and (self.frames.shape[0], *self.frames.shape[-2:]) != shape:
            raise FrameError(
                f"{self.source or self.name} has {_sizes(self.frames.shape)}, its labels have {_sizes(shape)}: "
                "give the image that they were made from"
            )
        if self.rows is not None and len(self.rows) != self.count:
            raise FrameError(f"{self.name} has {self.count} frames, and measurements of {len(self.rows)}: give all")

    @property
    def count(self) -> int:
        """Number of frames, N."""
        return prod(self.labels.shape[:-2])

    @property
    def planes(self) -> Array:
        """The labels of each frame, (N, H, W)."""
        return self.labels.reshape(-1, *self.labels.shape[-2:])

    @property
    def channels(self) -> int:
        """Number of channels of the frames; 0 if there is no image."""
        return 0 if self.frames is None else int(self.frames.shape[1])

    @property
    def highest(self) -> int:
        """The highest label; 0 without labels."""
        if self.rows is not None:
            return max(rows.highest for rows in self.rows)
        return max(int(self.window(frame).max(initial=0)) for frame in range(self.count))

    @property
    def stacked(self) -> dict[str, int]:
        """Name and length of each axis before the rows, as they are written: T, Z and C."""
        letters = stacked_axes(self.labels.ndim, self.axes)
        leading = self.labels.shape[:-2] if len(letters) == self.labels.ndim else (self.count,)
        return dict(zip(letters[:-2], leading, strict=True))

    def positions(self) -> Iterator[dict[str, int]]:
        """Yield the position of each frame on the axes `stacked`, from 0."""
        stacked = self.stacked
        for index in np.ndindex(*stacked.values()):
            yield dict(zip(stacked, index, strict=True))

    def window(self, frame: int, rows: slice = ALL, columns: slice = ALL) -> Array:
        """Return the labels of a part of a frame, (h, w)."""
        index = np.unravel_index(frame, self.labels.shape[:-2]) if self.labels.ndim > 2 else ()
        place: Any = (*map(int, index), rows, columns)
        return np.asarray(self.labels[place])

    def polygons(self, frame: int) -> Iterator[Polygon]:
        """Yield the outline of each label of a frame, in ascending order.

        Raises
        ------
        FrameError
            The labels are read by windows, and an object is too large for that.
        """
        if self.rows is None:
            yield from self._polygons[frame]
        else:
            for found in self.rows[frame].groups():
                yield from traced(partial(self.window, frame), found.labels, found.bbox)

    def columns(self, frame: int) -> Iterator[dict[str, Array]]:
        """Yield measurements of at most `measurements.GROUP` labels of a frame at a time, in ascending order.

        They are columns by name, (labels,) each; see `measurements.columns`. There is at least one group, empty for a
        frame without labels.
        """
        area = None if self.pixel_size is None else self.pixel_size.area
        confidence = None if self.confidence is None else self.confidence[frame]
        groups = in_groups(self._measured[frame]) if self.rows is None else self.rows[frame].groups()
        for found in groups:
            yield columns(found, area, confidence)

    @cached_property
    def _polygons(self) -> list[list[Polygon]]:
        return [list(polygons(self.window(frame))) for frame in range(self.count)]

    @cached_property
    def _measured(self) -> list[Measurements]:
        frames = [None] * self.count if self.frames is None else [as_frame(one, self.channels) for one in self.frames]
        return [measurements(self.window(number), frame) for number, frame in enumerate(frames)]


def write_label_tiff(path: str | Path, image: LabelledImage) -> None:
    """Write the labels of an image as `write_labels` does."""
    write_labels(path, image.labels, axes=image.axes, pixel_size=image.pixel_size)


def _sizes(shape: tuple[int, ...]) -> str:
    number, (height, width) = shape[0], shape[-2:]
    return f"{number} frame{'s' * (number != 1)} of {height} x {width} px"
