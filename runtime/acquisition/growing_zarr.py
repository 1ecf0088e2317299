"""OME-Zarr 0.5 that grows while it is read: frames are appended, and readers see whole frames only.

    out.ome.zarr/                    a collection of images (`bioformats2raw.layout`)
        OME/                         the list of the images, `series`, and the same as OME-XML
        0/                           an image (t, y, x), or (t, c, y, x)
            0/                       its pixels
            labels/objects/0/        its labels (t, y, x)
        1/ ...

A frame is one chunk, encoded by zarr. Files are written in an order in which everything that metadata refer to is there
before them: chunks, the lengths of the arrays, groups, the lists of images. Each file is replaced atomically. A process
can thus be killed at any moment: the store is valid, and has each frame whose `ImageSeries.append` has returned.
https://ngff.openmicroscopy.org/0.5
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from unetrt.runtime.acquisition.label_stream import METADATA, NAMESPACE
from unetrt.runtime.errors import printable
from unetrt.runtime.files.atomic import replace_file
from unetrt.runtime.files.outputs.label_tiff import physical_size
from unetrt.runtime.files.outputs.label_zarr import label_metadata
from unetrt.runtime.files.outputs.zarr_pyramid import FORMATS, OBJECTS, Version, axis_metadata, axis_scale
from unetrt.runtime.files.pixel_size import PixelSize

Array = NDArray[Any]

VERSION: Version = "0.5"
# Halves grey values of 2048 x 2048 pixels in 20 ms, and shrinks labels several hundred times.
CODEC = {"cname": "zstd", "clevel": 5, "shuffle": "shuffle"}
# Namespace of OME-XML, and its names of dtypes; others have no name there.
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
PIXEL_TYPES = {
    **{name: name for name in ("int8", "int16", "int32", "uint8", "uint16", "uint32")},
    "float32": "float",
    "float64": "double",
}


class GrowingArray:
    """A Zarr array of frames along its first axis; each frame is one chunk.

    Parameters
    ----------
    folder
        The array.
    shape, dtype
        Those of a frame.
    axes
        Letter for each axis, first that of the frames.

    Attributes
    ----------
    axes, shape, dtype
        Those given.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: DTypeLike, axes: str) -> None:
        self.axes, self.shape, self.dtype = axes, shape, np.dtype(dtype)
        self._folder = folder
        # An array of one frame in memory, of which zarr encodes chunks and metadata.
        self._files: dict[str, Any] = {}
        self._encoder = zarr.create_array(
            MemoryStore(self._files),
            shape=(1, *shape),
            chunks=(1, *shape),
            dtype=dtype,
            compressors=BloscCodec(**CODEC),  # type: ignore[arg-type] # names of enumerations
            fill_value=0,
            dimension_names=list(axes),
            config={"write_empty_chunks": True},
        )
        self._metadata = json.loads(self._files[METADATA].to_bytes())
        self._stored = 0  # frames

    def put(self, frame: int, pixels: Array | None) -> None:
        """Write the chunk of a frame, and of those skipped before it, with 0; readers do not see them yet.

        Parameters
        ----------
        frame
            Its index, at least the number of frames that readers see.
        pixels
            Of the shape and dtype of a frame; None for 0.
        """
        for skipped in range(self._stored, frame):
            self._write(skipped, np.zeros(self.shape, self.dtype))
        self._write(frame, np.zeros(self.shape, self.dtype) if pixels is None else pixels)
        self._stored = frame

    def grow(self, frames: int) -> None:
        """Let readers see a number of frames, all of which were put."""
        self._metadata["shape"][0] = frames
        replace_json(self._folder / METADATA, self._metadata)
        self._stored = frames

    def _write(self, frame: int, pixels: Array) -> None:
        self._encoder[0] = pixels
        # The only chunk, such as "c/0/0/0"; on the disk the first 0 is the frame.
        name = next(name for name in self._files if name != METADATA)
        kind, _, *others = name.split("/")
        # Not kept: there may be thousands of images.
        replace_file(self._folder.joinpath(kind, str(frame), *others), self._files.pop(name).to_bytes())


class ImageSeries:
    """An image of a collection, with its labels: frames of one shape and dtype, in order of arrival.

    Parameters
    ----------
    folder
        The image.
    shape, dtype
        Of a frame: (H, W) or (C, H, W).
    pixel_size
        Size of a pixel; None if it is unknown.
    name
        Name of the image, for display.
    attributes
        Stored in the metadata of the image under the key `unetrt`.

    Attributes
    ----------
    length
        Number of frames.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        *,
        pixel_size: PixelSize | None,
        name: str,
        attributes: Mapping[str, Any],
    ) -> None:
        self.length = 0
        self._folder, self._name, self._pixel_size, self._attributes = folder, name, pixel_size, attributes
        self._image = GrowingArray(folder / "0", shape, dtype, _axes(shape))
        self._labels: GrowingArray | None = None
        self._lists_labels = False

    def append(self, pixels: Array, labels: Array | None) -> int:
        """Store a frame, and return its index on the first axis.

        Parameters
        ----------
        pixels
            Of the shape and dtype of the image.
        labels
            (H, W), of one dtype for all frames; None for a frame without labels, whose labels are 0.

        Raises
        ------
        OSError
            The disk cannot be written to; the frame is not in the image, and the next one takes its place.
        """
        frame = self.length
        if labels is not None and self._labels is None:
            self._labels = GrowingArray(self._folder / OBJECTS / "0", labels.shape, labels.dtype, _axes(labels.shape))
        self._image.put(frame, pixels)
        if self._labels is not None:
            self._labels.put(frame, labels)
            self._labels.grow(frame + 1)
            self._list_labels()
        self._image.grow(frame + 1)
        if frame == 0:
            write_group(self._folder, {"multiscales": [self._multiscales("image")]}, self._attributes)
        self.length += 1
        return frame

    def as_xml(self, number: int) -> Element:
        """Return the image as an element of OME-XML, with its number in the collection."""
        image = Element("Image", ID=f"Image:{number}", Name=printable(self._name))
        shape = self._image.shape
        planes = shape[0] if len(shape) == 3 else 1
        sizes = {"SizeX": shape[-1], "SizeY": shape[-2], "SizeC": planes, "SizeZ": 1, "SizeT": self.length}
        about = {name: str(value) for name, value in {**sizes, **physical_size(self._pixel_size)}.items()}
        kind = PIXEL_TYPES.get(self._image.dtype.name, "double")
        pixels = SubElement(image, "Pixels", about, ID=f"Pixels:{number}", DimensionOrder="XYZCT", Type=kind)
        SubElement(pixels, "MetadataOnly")
        return image

    def _list_labels(self) -> None:
        """Write the groups of the labels, once."""
        if self._lists_labels:
            return
        about = {"multiscales": [self._multiscales("labels")], "image-label": label_metadata(VERSION, None)}
        write_group(self._folder / OBJECTS, about)
        folder, _, name = OBJECTS.rpartition("/")
        write_group(self._folder / folder, {"labels": [name]})
        self._lists_labels = True

    def _multiscales(self, part: Literal["image", "labels"]) -> dict[str, Any]:
        micrometres = None if self._pixel_size is None else self._pixel_size.in_micrometres
        axes = self._image.axes if part == "image" or self._labels is None else self._labels.axes
        scale = {"type": "scale", "scale": [axis_scale(axis, 1, micrometres) for axis in axes]}
        return {
            "name": self._name,
            "axes": [axis_metadata(axis, micrometres) for axis in axes],
            "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        }


def _axes(shape: tuple[int, ...]) -> str:
    return "tyx" if len(shape) == 2 else "tcyx"


def write_collection(folder: Path, images: Sequence[ImageSeries]) -> None:
    """Write the OME-XML of a collection, which some readers take for its list of images; raises OSError."""
    root = Element("OME", xmlns=OME)
    root.extend(image.as_xml(number) for number, image in enumerate(images) if image.length)
    replace_file(folder / "OME" / "METADATA.ome.xml", tostring(root, "utf-8", xml_declaration=True))


def write_group(folder: Path, about: Mapping[str, Any], attributes: Mapping[str, Any] | None = None) -> None:
    """Write the metadata of a group: those of OME-Zarr, and ours under the key `unetrt`; raises OSError."""
    stored = {"ome": {"version": VERSION, **about}} | ({} if attributes is None else {NAMESPACE: dict(attributes)})
    replace_json(folder / METADATA, {"zarr_format": FORMATS[VERSION], "node_type": "group", "attributes": stored})


def replace_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; values that JSON does not know are stored as text. Raises OSError."""
    replace_file(path, json.dumps(content, default=str).encode())
