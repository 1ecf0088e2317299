"""Labels as OME-Zarr 0.4: an image group with the labels inside, each at several resolutions.

    NAME.ome.zarr/                 the image, or the labels themselves where there is no image
        0, 1, ...                  full resolution, half, and so on
        labels/objects/            the labels: `image-label`
            0, 1, ...

Version 0.4 (Zarr 2) is what most programs read: napari with napari-ome-zarr, Fiji with MoBIE or N5, QuPath and
Bio-Formats. Coarser levels hold every second row and column of the level above, of labels and image alike, so that
labels stay labels and both stay aligned. https://ngff.openmicroscopy.org/0.4
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unetrt.runtime.files.atomic import whole_folder
from unetrt.runtime.files.outputs.label_tiff import smallest
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.pixels.drawing import colour_of

Array = NDArray[Any]

VERSION = "0.4"
# Side in pixels up to which a level gets no coarser one, and that of a chunk.
COARSEST, CHUNK = 256, 1024
# Axes in the order that OME-Zarr wants, and their types.
TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def write_zarr(path: str | Path, image: LabelledImage) -> None:
    """Write the labels of an image, and the image, atomically; an OME-Zarr at `path` is replaced.

    Raises
    ------
    FrameError
        As `write_labels`.
    OutputError
        The folder cannot be written, or something other than a Zarr group is there.
    """
    stacked = image.stacked
    names = [name.lower() for name in stacked]
    shape, size = tuple(stacked.values()), image.labels.shape[-2:]
    labels = _Pixels(smallest(image.labels).reshape(*shape, *size), [*names, "y", "x"])
    with whole_folder(path, replace=(".zgroup", "zarr.json")) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=2)
        if image.frames is None:
            _write_levels(root, labels, image)
        else:
            frames = image.frames.reshape(*shape, *image.frames.shape[1:])
            frames = frames.view(np.uint8) if frames.dtype == bool else frames
            _write_levels(root, _Pixels(frames, [*names, "c", "y", "x"]), image)
        group = root.create_group("labels")
        group.attrs["labels"] = ["objects"]
        objects = group.create_group("objects")
        _write_levels(objects, labels, image)
        objects.attrs["image-label"] = _label_metadata(image)


class _Pixels:
    """Pixels whose axes are in the order of OME-Zarr.

    Parameters
    ----------
    pixels
        The pixels, (..., H, W), with any order of axes before the rows.
    axes
        Name of each axis.
    """

    def __init__(self, pixels: Array, axes: list[str]) -> None:
        order = sorted(range(len(axes)), key=lambda index: list(TYPES).index(axes[index]))
        self.pixels, self.axes = pixels.transpose(order), [axes[index] for index in order]


def _write_levels(group: Any, given: _Pixels, image: LabelledImage) -> None:
    """Write an array of each resolution, and the metadata of all."""
    micrometres = None if image.pixel_size is None else image.pixel_size.in_micrometres
    datasets: list[dict[str, Any]] = []
    level, step = given.pixels, 1
    while True:
        path, side = str(len(datasets)), max(level.shape[-2:])
        chunks = (*(1 for _ in level.shape[:-2]), *(min(length, CHUNK) for length in level.shape[-2:]))
        group.create_array(
            path,
            data=np.ascontiguousarray(level),
            chunks=chunks,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        scale = [_scale(axis, step, micrometres) for axis in given.axes]
        datasets.append({"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        if side <= COARSEST:
            break
        level, step = level[..., ::2, ::2], 2 * step
    axes = [_axis(name, micrometres) for name in given.axes]
    name = image.name.rpartition("/")[2]
    group.attrs["multiscales"] = [
        {"version": VERSION, "name": name, "axes": axes, "datasets": datasets, "type": "nearest"}
    ]


def _axis(name: str, size: PixelSize | None) -> dict[str, str]:
    """Return the metadata of an axis; `size` is the pixel size in µm, None if it is unknown."""
    is_length = TYPES[name] == "space" and size is not None and (name != "z" or size.z is not None)
    return {"name": name, "type": TYPES[name]} | ({"unit": "micrometer"} if is_length else {})


def _scale(axis: str, step: int, size: PixelSize | None) -> float:
    """Return the distance between two pixels of a level along an axis, in µm if that is known."""
    length = (None if size is None or axis not in "zyx" else getattr(size, axis)) or 1.0
    return float(length * (step if axis in "yx" else 1))


def _label_metadata(image: LabelledImage) -> Mapping[str, Any]:
    """Return the metadata `image-label`: classes have the colours of the overlays, readers choose those of objects."""
    metadata: dict[str, Any] = {"version": VERSION, "source": {"image": "../../"}}
    if image.kind == "classes":
        classes = [int(label) for label in np.unique(image.labels) if label]
        metadata["colors"] = [{"label-value": label, "rgba": [*colour_of(label), 255]} for label in classes]
        metadata["properties"] = [{"label-value": label, "class": f"class {label}"} for label in classes]
    return metadata
