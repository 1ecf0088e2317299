"""An image whose labels are known: what every file that is written from labels shows.

Polygons and measurements are computed when they are first asked for, and once, however many files need them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.outputs.label_tiff import stacked_axes, write_labels
from unetrt.runtime.files.outputs.measurements import columns, measurements
from unetrt.runtime.files.outputs.polygons import Polygon, polygons
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.pixels.frames import as_frame

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import Annotation

Array = NDArray[Any]


@dataclass(frozen=True)
class LabelledImage:
    """Labels of an image, and what is known about the image.

    Attributes
    ----------
    name
        Of the files that are written, without a suffix; it may contain folders, ``"day1/a"``.
    labels
        (..., H, W), integers; 0 is the background.
    kind
        `instances`: a label is the number of an object in its frame; `classes`: it is a class.
    frames
        Grey values of the frames, (N, C, H, W), N the number of frames of the labels; None: there is no image.
    axes
        As for `write_labels`.
    pixel_size
        Physical size of a pixel; None: not known.
    confidence
        Confidence of the objects 1 ... n of each frame, (n,), from 0 to 1; None: not measured.
    source
        Name of the image's file; empty: there is no image.
    """

    name: str
    labels: Array
    kind: "Annotation" = "instances"
    frames: Array | None = None
    axes: str | None = None
    pixel_size: PixelSize | None = None
    confidence: Sequence[Array] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.frames is not None and (
            len(self.frames) != len(self.planes) or self.frames.shape[-2:] != self.labels.shape[-2:]
        ):
            raise FrameError(
                f"{self.source or self.name} has {_sizes(self.frames)}, its labels have {_sizes(self.planes)}: "
                "give the image that they were made from"
            )

    @property
    def planes(self) -> Array:
        """The labels of each frame, (N, H, W)."""
        return self.labels.reshape(-1, *self.labels.shape[-2:])

    @property
    def stacked(self) -> dict[str, int]:
        """Name and length of each axis before the rows, as they are written: T and Z."""
        letters = stacked_axes(self.labels.ndim, self.axes)
        leading = self.labels.shape[:-2] if len(letters) == self.labels.ndim else (len(self.planes),)
        return dict(zip(letters[:-2], leading, strict=True))

    def positions(self) -> Iterator[dict[str, int]]:
        """Yield the position of each frame on the axes `stacked`, from 0."""
        stacked = self.stacked
        for index in np.ndindex(*stacked.values()):
            yield dict(zip(stacked, index, strict=True))

    @cached_property
    def polygons(self) -> list[list[Polygon]]:
        """The outlines of the labels of each frame."""
        return [list(polygons(plane)) for plane in self.planes]

    @cached_property
    def measured(self) -> list[dict[str, Array]]:
        """Measurements of the labels of each frame: columns by name, (labels,) each; see `measurements.columns`."""
        found = []
        area = None if self.pixel_size is None else self.pixel_size.area
        for number, plane in enumerate(self.planes):
            frame = None if self.frames is None else as_frame(self.frames[number], self.frames.shape[1])
            confidence = None if self.confidence is None else self.confidence[number]
            found.append(columns(measurements(plane, frame), area, confidence))
        return found


def write_label_tiff(path: str | Path, image: LabelledImage) -> None:
    """Write the labels of an image as `write_labels` does."""
    write_labels(path, image.labels, axes=image.axes, pixel_size=image.pixel_size)


def _sizes(planes: Array) -> str:
    number, (height, width) = len(planes), planes.shape[-2:]
    return f"{number} frame{'s' * (number != 1)} of {height} x {width} px"
