"""Labels as OME-Zarr: an image group with the labels inside, each at several resolutions.

    NAME.ome.zarr/                 the image
        0, 1, ...                  full resolution, half, and so on
        labels/objects/            the labels: `image-label`
            0, 1, ...

Where no image is stored, the image group refers to the arrays of the labels, as `labels/objects/0`, without a copy.

Version 0.4 (Zarr 2) is what most programs read: napari with napari-ome-zarr, Fiji with MoBIE or N5, QuPath and
Bio-Formats. Version 0.5 is Zarr 3, where a shard holds the chunks of a block in one file.
https://ngff.openmicroscopy.org/0.4, https://ngff.openmicroscopy.org/0.5

`write_zarr` writes an image in memory. Larger labels are written by blocks:

>>> labels = Pyramid("a.ome.zarr", (40000, 40000), "uint32", chunk=(1024, 1024), block=(4096, 4096))  # doctest: +SKIP
>>> labels.create()  # doctest: +SKIP
>>> labels.write(slice(0, 4096), slice(4096, 8192), numbers)  # each block  # doctest: +SKIP
>>> for level in range(1, len(labels.shapes)):  # level by level, the regions of each in any order  # doctest: +SKIP
...     for rows, columns in labels.regions(level):
...         labels.coarsen(level, rows, columns)
>>> write_metadata(labels, "a")  # last: without metadata, no program takes the arrays for an image  # doctest: +SKIP
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.files.atomic import whole_folder
from unetrt.runtime.files.outputs.label_tiff import smallest
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.zarr_pyramid import TYPES, Pyramid, Version
from unetrt.runtime.pixels.drawing import colour_of

Array = NDArray[Any]


def write_metadata(
    labels: Pyramid, name: str, *, image: Pyramid | None = None, classes: Sequence[int] | None = None
) -> None:
    """Write the metadata that make an OME-Zarr of labels, and of an image, once all pixels are written.

    Parameters
    ----------
    labels
        The labels.
    name
        Name of the image.
    image
        The image, in the same store; None: the image group refers to the labels.
    classes
        The labels that there are, if they are classes; None: they are objects.

    Raises
    ------
    OutputError
        The store cannot be written.
    """
    objects = {"multiscales": [labels.multiscales(name)], "image-label": label_metadata(labels.version, classes)}
    whole = labels.multiscales(name, f"{labels.path}/") if image is None else image.multiscales(name)
    parent, _, child = labels.path.rpartition("/")
    groups: Mapping[str, Mapping[str, Any]] = {
        labels.path: objects,
        parent: {"labels": [child]},
        "": {"multiscales": [whole]},
    }
    for path, attributes in groups.items():
        labels.annotate(path, attributes)


def write_zarr(path: str | Path, image: LabelledImage, version: Version = "0.4") -> None:
    """Write the labels of an image, and the image, atomically; an OME-Zarr at `path` is replaced.

    Raises
    ------
    FrameError
        The labels are not integers from 0, have fewer than two axes, or hold no pixels.
    OutputError
        The folder cannot be written, or something other than a Zarr group is there.
    """
    stacked = image.stacked
    shape, size = tuple(stacked.values()), image.labels.shape[-2:]
    labels, axes = _ordered(smallest(image.labels, np.uint64).reshape(*shape, *size), [*stacked, "Y", "X"])
    about: Any = {"pixel_size": image.pixel_size, "version": version, "name": str(path)}
    with whole_folder(path, replace=(".zgroup", "zarr.json")) as temporary:
        objects, whole = Pyramid(temporary, labels.shape, labels.dtype, axes, **about), None
        objects.create()
        objects.fill(labels)
        if image.frames is not None:
            frames = image.frames.view(np.uint8) if image.frames.dtype == bool else image.frames
            frames, axes = _ordered(frames.reshape(*shape, *frames.shape[1:]), [*stacked, "C", "Y", "X"])
            whole = Pyramid(temporary, frames.shape, frames.dtype, axes, **about, path="", reduction="mean")
            whole.create()
            whole.fill(frames)
        classes = None if image.kind == "instances" else [int(label) for label in np.unique(image.labels) if label]
        write_metadata(objects, image.name.rpartition("/")[2], image=whole, classes=classes)


def _ordered(pixels: Array, axes: list[str]) -> tuple[Array, str]:
    """Return pixels and their axes in the order of OME-Zarr."""
    order = sorted(range(len(axes)), key=lambda index: list(TYPES).index(axes[index].lower()))
    return pixels.transpose(order), "".join(axes[index] for index in order)


def label_metadata(version: Version, classes: Sequence[int] | None) -> Mapping[str, Any]:
    """Return the metadata `image-label`: classes have the colours of the overlays, readers choose those of objects."""
    metadata: dict[str, Any] = {"version": version, "source": {"image": "../../"}}
    if classes is not None:
        metadata["colors"] = [{"label-value": label, "rgba": [*colour_of(label), 255]} for label in classes]
        metadata["properties"] = [{"label-value": label, "class": f"class {label}"} for label in classes]
    return metadata
