"""Zarr folders: arrays, and the images of OME-Zarr.

The metadata of a group say what it holds (https://ngff.openmicroscopy.org, versions 0.1 to 0.5; 0.5 has them below
`ome`):

- `multiscales`: an image, of which the full resolution is read, with its axes, pixel size and channel names;
- `plate` and `well`: fields, each an image; `bioformats2raw.layout`: the images of a converted file;
- `labels`: the names of label images, in the folder `labels` of an image.

`image_paths` lists them. An array is an image too; one that is a resolution of an image, such as `x.zarr/0`, has the
axes and the pixel size that the image states for it. Metadata and chunks are read within limits: `zarr_array`.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr

from unetrt.runtime.errors import FrameError, few, shown
from unetrt.runtime.files.formats import (
    CHANNELS_OF_LABELS,
    Images,
    Layout,
    OpenedImage,
    is_zarr,
    stored_bytes,
    unnamed_axes,
)
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.files.zarr_array import Address, ZarrPixels, open_zarr

log = logging.getLogger("unetrt")
Metadata = Mapping[str, Any]

# Axes of OME-Zarr before version 0.3, which does not name them.
EARLY_AXES = "tczyx"
# Folders between an image and an array that is a resolution of it.
DEPTH = 3
# Members that a message names, and folders that are searched for them.
NAMED, SEARCHED = 8, 1000


def image_paths(folder: Path) -> list[str]:
    """Return the path of each image below a Zarr folder, in the order of the metadata.

    An array, a single image, and a folder that does not say what it holds give one empty path.

    Raises
    ------
    FrameError
        The metadata name a path that leads out of the folder.
    """
    about = _metadata(folder)
    if "plate" in about:
        wells = [_inside(well["path"]) for well in about["plate"]["wells"]]
        return [f"{well}/{field}" if field else well for well in wells for field in _fields(folder / well)]
    if "well" in about:
        return _fields(folder)
    if "multiscales" not in about:
        return _converted(folder, about) or [_inside(name) for name in about.get("labels", ())] or [""]
    return [""]


def _fields(well: Path) -> list[str]:
    """Return the paths of the fields of a well; an empty path for a well that is not there, which cannot be read."""
    if not is_zarr(well):
        return [""]
    return [_inside(image["path"]) for image in _metadata(well).get("well", {"images": [{"path": ""}]})["images"]]


def _converted(folder: Path, about: Metadata) -> list[str]:
    """Return the paths of the images of a file that was converted by bioformats2raw, or in its layout."""
    if "bioformats2raw.layout" not in about:
        return []
    if is_zarr(folder / "OME") and (series := _metadata(folder / "OME").get("series")):
        return [_inside(path) for path in series]
    return list(takewhile(lambda name: is_zarr(folder / name), map(str, count())))


def _metadata(folder: Path | Address) -> Metadata:
    """Return the metadata of OME-Zarr of a group; empty for an array."""
    node = open_zarr(folder)
    return {} if isinstance(node, zarr.Array) else _of_group(node)


def _of_group(group: zarr.Group) -> Metadata:
    attributes: Metadata = group.attrs.asdict()
    about: Metadata = attributes.get("ome", attributes)
    return about


def _inside(path: Any) -> str:
    """Return a path in the metadata; raises FrameError unless it stays below the folder."""
    parts = PurePosixPath(path).parts if isinstance(path, str) else ("..",)
    if not all(part.isprintable() for part in parts) or ".." in parts or "/" in parts or "\\" in str(path):
        raise FrameError(f"names {shown(path)} as a part of it, which is not in the folder: save it again")
    return "/".join(parts)


@contextmanager
def opened(path: Path | Address) -> Iterator[Images]:
    """Open a Zarr array, an image of OME-Zarr, or, in a folder, a group of one image."""
    node = open_zarr(path)
    if isinstance(node, zarr.Array):
        yield [_array(path, node)]
        return
    about = _of_group(node)
    if scales := about.get("multiscales"):
        yield [_image(path, about, scales[0])]
    elif isinstance(path, Address):
        raise FrameError("is a group without an image: give the address of an OME-Zarr image or of an array in it")
    elif names := _label_names(path):
        yield [_label_image(path, names)]
    else:
        with opened(path / _only_image(path)) as images:
            yield images


def _only_image(path: Path) -> str:
    """Return the path of the only image in a group that is no image; raises FrameError for none or several."""
    paths = image_paths(path)
    if len(paths) > 1:
        raise FrameError(f"holds {len(paths)} images: give one, such as {path / paths[0]}, or pick one with --series")
    if paths and paths[0]:
        return paths[0]
    found = _members(path)
    if not found:
        raise FrameError("is a Zarr group without an OME-Zarr image and without arrays: save an array in it")
    more = " and more" if len(found) > NAMED else ""
    raise FrameError(
        f"is a Zarr group without an OME-Zarr image: give what is in it, such as {', '.join(found[:NAMED])}{more}"
    )


def _members(path: Path) -> list[str]:
    """Return the first arrays and images of OME-Zarr below a group, more than `NAMED` if there are."""
    found: list[str] = []
    folders, searched = [path], 0
    while folders and searched < SEARCHED and len(found) <= NAMED:
        folder, searched = folders.pop(0), searched + 1
        node = open_zarr(folder) if folder != path and is_zarr(folder) else None
        if isinstance(node, zarr.Array) or (node is not None and "multiscales" in _of_group(node)):
            found.append(str(folder))
        else:
            folders += sorted(entry for entry in folder.iterdir() if entry.is_dir())
    return found


def _image(path: Path | Address, about: Metadata, scale: Metadata) -> OpenedImage:
    """Return an image of OME-Zarr at full resolution; as labels it is the label image that belongs to it, if any."""
    dataset = scale["datasets"][0]
    where = path / _inside(dataset["path"])
    level = open_zarr(where)
    if not isinstance(level, zarr.Array):
        raise FrameError(f"holds {where}, which is no array: save it again")
    above = dataset["path"].rpartition("/")[0]  # that of a label image, where an image refers to it
    is_label = "image-label" in about or (above != "" and "image-label" in _metadata(path / above))
    layout = _layout(level, about, scale, dataset)
    image = _opened_array(where, level, _of_labels(layout) if is_label else layout, fill=is_label)
    if isinstance(path, Address) or "image-label" in about or not (names := _label_names(path)):
        return image
    return image._replace(as_labels=lambda: _label_image(path, names))


def _label_names(path: Path) -> list[str]:
    """Return the names of the label images of an image."""
    return [_inside(name) for name in _metadata(path / "labels").get("labels", ())] if is_zarr(path / "labels") else []


def _label_image(path: Path, names: Sequence[str]) -> OpenedImage:
    """Return the only label image of an image; raises FrameError if there are several."""
    where = [path / "labels" / name for name in names]
    if len(where) > 1:
        raise FrameError(f"holds {len(where)} label images: give one, {few(list(map(str, where)), most=NAMED)}")
    about = _metadata(where[0])
    log.info("%s: its labels are %s", path, where[0])
    return _image(where[0], {**about, "image-label": {}}, about["multiscales"][0])


def _array(path: Path | Address, array: zarr.Array[Any]) -> OpenedImage:
    """Return an array, with the axes of the image that it is a resolution of, or its own."""
    above = () if isinstance(path, Address) else path.absolute().parents[:DEPTH]
    for folder in filter(is_zarr, above):
        about = _metadata(folder)
        for scale in about.get("multiscales", ()):
            for dataset in scale["datasets"]:
                if folder / dataset["path"] == Path(path).absolute():
                    layout, is_label = _layout(array, about, scale, dataset), "image-label" in about
                    return _opened_array(path, array, _of_labels(layout) if is_label else layout, fill=is_label)
    attributes: Metadata = array.attrs.asdict()
    names = getattr(array.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS") or ()
    axes = "".join(str(name).upper() for name in names)
    if len(axes) != array.ndim or not {"Y", "X"} <= set(axes) <= set(EARLY_AXES.upper()):
        axes = unnamed_axes(array.shape)
    return _opened_array(path, array, Layout(array.shape, axes, np.dtype(array.dtype)))


def _opened_array(path: Path | Address, array: zarr.Array[Any], layout: Layout, *, fill: bool = False) -> OpenedImage:
    """Return an array as an image; `fill` is that of `ZarrPixels`. The bytes stored at an address are not counted."""
    folders = () if isinstance(path, Address) else os.walk(path)
    files = (Path(folder, name) for folder, _, names in folders for name in names)
    part = getattr(array, "shards", None) or array.chunks
    pixels = ZarrPixels(array, layout.axes, fill=fill)
    filled = partial(_opened_array, path, array, layout, fill=True)
    return OpenedImage(
        layout,
        part,
        lambda: stored_bytes(*filter(Path.is_file, files)),
        lambda: pixels[(slice(None),) * array.ndim],
        array=pixels,
        filled=None if fill else filled,
    )


def _layout(array: zarr.Array[Any], about: Metadata, scale: Metadata, dataset: Metadata) -> Layout:
    """Return the layout of a resolution of an image."""
    named = scale.get("axes") or EARLY_AXES[-array.ndim :]
    axes = "".join(map(_letter, named))
    if len(axes) != array.ndim:
        raise FrameError(f"names {len(axes)} axes for an array of {array.ndim}: save it again")
    size = _pixel_size(named, axes, [scale, dataset])
    return Layout(array.shape, axes, np.dtype(array.dtype), size).with_names(_channel_names(about))


def _of_labels(layout: Layout) -> Layout:
    """Return the layout of labels: those of each channel are a frame, on an axis `c`."""
    return layout._replace(axes=layout.axes.replace("C", CHANNELS_OF_LABELS), channels=())


def _letter(axis: str | Mapping[str, str]) -> str:
    """Return one letter for an axis of OME-Zarr: a name or, from version 0.4 on, a name and a type."""
    name, kind = (axis, "") if isinstance(axis, str) else (axis["name"], axis.get("type"))
    letter = "C" if kind == "channel" or name.lower() == "channel" else name[:1].upper()
    return "N" if letter in "SYX" and len(name) > 1 else letter


def _pixel_size(named: Sequence[Any], axes: str, parts: Sequence[Metadata]) -> PixelSize | None:
    """Return the product of the scales of an image and of one of its resolutions, in the unit of its rows."""
    sizes: dict[str, float] = dict.fromkeys(axes, 1.0)
    found = False
    for transformation in (one for part in parts for one in part.get("coordinateTransformations") or ()):
        factors = transformation.get("scale") or ()
        if transformation.get("type") == "scale" and len(factors) == len(axes):
            found = True
            sizes = {axis: sizes[axis] * float(factor) for axis, factor in zip(axes, factors, strict=True)}
    units = {axis: one.get("unit", "") for axis, one in zip(axes, named, strict=True) if not isinstance(one, str)}
    return PixelSize.of_axes({axis: (sizes.get(axis), units.get(axis)) for axis in "YXZ"}) if found else None


def _channel_names(about: Metadata) -> tuple[str, ...]:
    """Return the names of the channels, if each has one."""
    named = (about.get("omero") or {}).get("channels") or ()
    labels = [one.get("label") for one in named if isinstance(one, dict)]
    names = tuple(label for label in labels if isinstance(label, str) and label)
    return names if len(names) == len(labels) else ()
