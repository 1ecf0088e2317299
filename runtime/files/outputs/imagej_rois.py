"""Labels as a ZIP file of ROIs, for ImageJ's ROI Manager.

A ROI is named after its label: `00012`, `T0003-Z0001-00012` in a stack, where ImageJ counts from 1, or `class 2`. It is
a traced ROI, as the Wand makes it; a label with holes or several parts is a composite one. The coordinates are corners
of pixels, so that filling a ROI gives its pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray
from roifile import ROI_TYPE, ImagejRoi

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.polygons import Polygon

# Largest coordinate of a traced ROI, whose bounds are signed numbers of 16 bits; those of a composite one are floats.
SHORT = 2**15 - 1
# Operations of a path (java.awt.geom.PathIterator): begin a ring, draw a line, close the ring.
MOVE, LINE, CLOSE = 0.0, 1.0, 4.0
# Most ROIs of a file: the directory of a ZIP file is kept in memory, half a kilobyte for each.
MOST = 2**20
# Largest group of a ROI that all versions read.
GROUPS = 255


def write_rois(path: str | Path, image: LabelledImage) -> None:
    """Write the labels of an image as ROIs, atomically.

    Raises
    ------
    FrameError
        There are more than `MOST` labels.
    OutputError
        The file cannot be written.
    """
    # Level 1: a third of the time of the default level for a few percent more bytes.
    with whole_file(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for number, (name, roi) in enumerate(rois(image)):
            if number == MOST:
                raise FrameError(f"{path} would hold more than {MOST} ROIs, which ImageJ does not open: save geojson")
            member = ZipInfo(f"{name}.roi")  # without today's date
            member.compress_type = ZIP_DEFLATED
            archive.writestr(member, roi.tobytes())


def rois(image: LabelledImage) -> Iterator[tuple[str, ImagejRoi]]:
    """Yield the name and the ROI of each label."""
    stacked = image.stacked
    # ImageJ shows a single axis as a plain stack, whose position is one number, and others as a hyperstack.
    is_plain = len(stacked) == 1 and image.channels <= 1
    digits = max(5, len(str(image.highest)))
    for number, position in enumerate(image.positions()):
        prefix = "".join(f"{axis}{at + 1:04d}-" for axis, at in position.items())
        for polygon in image.polygons(number):
            roi = roi_of(polygon)
            is_class = image.kind == "classes"
            roi.name = prefix + (f"class {polygon.label}" if is_class else f"{polygon.label:0{digits}d}")
            roi.group = min(polygon.label, GROUPS) if is_class else 0
            if is_plain:
                roi.position = number + 1
            else:
                roi.t_position, roi.z_position, roi.c_position = (position.get(axis, -1) + 1 for axis in "TZC")
            yield roi.name, roi


def roi_of(polygon: Polygon) -> ImagejRoi:
    """Return the ROI of a label."""
    rings = [ring for part in polygon.parts for ring in part]
    low = np.min([ring.min(axis=0) for ring in rings], axis=0)
    high = np.max([ring.max(axis=0) for ring in rings], axis=0)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    roi = ImagejRoi(left=min(left, SHORT), top=min(top, SHORT), right=min(right, SHORT), bottom=min(bottom, SHORT))
    if len(rings) == 1 and max(right, bottom) <= SHORT:
        roi.roitype, roi.n_coordinates, roi.integer_coordinates = ROI_TYPE.TRACED, len(rings[0]), rings[0] - low
    else:
        roi.roitype, roi.multi_coordinates = ROI_TYPE.RECT, _path(rings)
        roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _path(rings: list[NDArray[np.int32]]) -> NDArray[np.float32]:
    """Return the path that draws rings, as an operation and its coordinates one after another."""
    parts: list[NDArray[Any]] = []
    for ring in rings:
        steps = np.full((len(ring), 3), LINE, np.float32)
        steps[0, 0], steps[:, 1:] = MOVE, ring
        parts += [steps.reshape(-1), np.array([CLOSE], np.float32)]
    return np.concatenate(parts)
