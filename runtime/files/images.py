"""Image files: TIFF, PNG, NPY and Zarr in; label TIFFs and overlay PNGs out.

`FORMATS` is the table of formats: suffix -> function that opens a file and reads its header, `OpenedImage`. Headers are
believed within a limit only: `OpenedImage.require_room`. `read_stack` reads a file as (N, C, H, W) in its own dtype.
`predict_file` is what `unetrt predict` does with each image: read, segment, write.
"""

import html
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from unetrt.runtime.errors import FrameError, OptionError, OutputError, is_out_of_memory, one_line, shown
from unetrt.runtime.files.atomic import require_regular, whole_file
from unetrt.runtime.files.embedded import SIZES, require_sizes
from unetrt.runtime.machine import format_bytes, free_memory
from unetrt.runtime.pixels.frames import as_image, stack_of

if TYPE_CHECKING:
    from unetrt.runtime.files.object_table import ObjectTable
    from unetrt.runtime.model.spec import Annotation
    from unetrt.runtime.segment.segmenter import Progress, Segmenter

Array = NDArray[Any]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Axes by the number of axes, where a file does not name them. Colours on the last axis are recognised by its length.
UNNAMED = {2: "YX", 3: "NYX", 4: "NCYX"}
COLOURS_LAST = {3: "YXC", 4: "NYXC"}

# Memory in bytes that an image may take without an option, whatever its files hold.
ROOM = 2 * 2**30
# Larger images may take so many times the size of their files: micrographs compress by less, and Deflate, for example,
# by up to 1032 (zlib.net/zlib_tech.html).
COMPRESSION = 16
# Memory in bytes that a frame takes at least: its timings and its place in the file.
PER_FRAME = 1024
# Largest description of a TIFF in characters, which is parsed as XML or JSON in some hundred times its size.
DESCRIPTION = 32 * 2**20


class Layout(NamedTuple):
    """What the header of an image file declares.

    Attributes
    ----------
    shape, axes
        Length of each axis, and a letter for each: Y, X, C and S (samples); all others are frames.
    dtype
        Of the pixels.
    """

    shape: tuple[int, ...]
    axes: str
    dtype: np.dtype[Any]

    @property
    def stack(self) -> tuple[int, int, int, int]:
        """Shape (N, C, H, W) of the pixels as `arranged` returns them."""
        if "Y" not in self.axes or "X" not in self.axes:
            raise FrameError(f"has the axes {self.axes}, without rows (Y) and columns (X): save it with both")
        lengths = list(zip(self.shape, self.axes, strict=True))
        height, width = (self.shape[self.axes.index(axis)] for axis in "YX")
        channels = prod(length for length, axis in lengths if axis in "CS")
        return prod(length for length, axis in lengths if axis not in "CSYX"), channels, height, width


# Strips or tiles that a TIFF may declare for each that it holds: a writer that was stopped leaves some out.
MISSING = 64


def require_image_memory(most: int | None) -> None:
    """Raise OptionError unless a limit in bytes is a number above 0, or None."""
    if most is not None and not (isinstance(most, int) and most > 0):
        raise OptionError(f"max_image_memory must be a number of bytes above 0, such as 8 * 2**30 (got {most!r:.60})")


class OpenedImage(NamedTuple):
    """An image file whose header is read.

    Attributes
    ----------
    layout
        What the header declares.
    part
        Shape of the largest part that is decoded as a whole: a strip, a tile or a chunk.
    stored
        Returns the bytes that the file, or all files of the image, take on the disk.
    read
        Returns all pixels, an array of the layout's shape.
    """

    layout: Layout
    part: tuple[int, ...]
    stored: Callable[[], int]
    read: Callable[[], Array]

    def require_room(self, most: int | None) -> None:
        """Raise FrameError if the image would take too much memory; runs before any is allocated.

        Parameters
        ----------
        most
            Memory in bytes that the pixels may take. None: 2 GiB or, where the files are large, 16 times their size,
            but not more than is free.
        """
        shape, dtype = self.layout.shape, self.layout.dtype
        if prod(self.part) > prod(shape):
            shape = self.part
        needed = max(prod(shape) * dtype.itemsize, self.layout.stack[0] * PER_FRAME)
        if needed <= (most or ROOM):
            return
        stored = self.stored()
        if most is None:
            free = free_memory()
            most = max(ROOM, int(min(COMPRESSION * stored, inf if free is None else free)))
        if needed > most:
            raise FrameError(
                f"declares {' x '.join(map(str, shape))} values of {dtype}, {format_bytes(needed)} in memory, and "
                f"holds {stored} bytes: at most {format_bytes(most)} are read; --max-image-memory (max_image_memory) "
                "raises the limit"
            )


def _stored(*paths: Path) -> int:
    """Return the bytes that files take on the disk: a sparse file takes less than its size."""
    found = [path.stat() for path in paths]
    return sum(min(about.st_size, 512 * getattr(about, "st_blocks", about.st_size)) for about in found)


@contextmanager
def _tiff(path: Path) -> Iterator[OpenedImage]:
    """Open a TIFF; the axes are those that it names, as OME-TIFF and ImageJ do."""
    with tifffile.TiffFile(path) as tiff:
        if not len(tiff.pages):
            raise FrameError("holds no image: save it again")
        others = _companions(tiff, path)
        if len(tiff.series) != 1:
            raise FrameError(f"holds {len(tiff.series)} images of different kinds: save each as a file")
        series = tiff.series[0]
        needed, held = prod(series.keyframe.chunked), len(series.keyframe.dataoffsets)
        if needed > MISSING * held:
            raise FrameError(f"declares {needed} strips or tiles and holds {held}: save it again")

        def read() -> Array:
            if series.keyframe.compression in SIZES:
                require_sizes(series)
            pixels: Array = series.asarray()
            return pixels

        layout = Layout(series.shape, series.axes, series.dtype)
        yield OpenedImage(layout, series.keyframe.chunks, lambda: _stored(path, *others), read)


def _companions(tiff: tifffile.TiffFile, path: Path) -> list[Path]:
    """Return the other files of an image in several files, which tifffile opens by itself; all are regular.

    Raises FrameError, before tifffile believes it, also for a description that is too long or names too many planes.
    """
    description = tiff.pages.first.description
    if len(description) > DESCRIPTION:
        raise FrameError(f"has a description of {len(description)} characters: at most {DESCRIPTION} are read")
    names: set[str] = set()
    if tiff.is_ome:
        names |= _files_of_ome(description)
    if tiff.is_mmstack or tiff.is_ndtiff:
        names |= {file.name for file in path.parent.glob("*.tif")} | {"NDTiff.index"}
    others = (path.parent / name for name in sorted(names - {path.name}))
    return [require_regular(file, f"refers to {file}, which ") for file in others if os.path.lexists(file)]


def _files_of_ome(description: str) -> set[str]:
    """Return the names of files in the metadata of OME-TIFF (docs.openmicroscopy.org, "OME-TIFF specification")."""
    if "<!DOCTYPE" in description:
        raise FrameError("has OME metadata with a document type, which can expand endlessly: save it without")
    text = html.unescape(description)
    planes: dict[str, int] = {}
    for name, number in re.findall(r"""\b(Size[CZT]|PlaneCount|NumPlanes|First[CZT])\s*=\s*["']\s*(\d+)""", text):
        planes[name] = max(planes.get(name, 0), int(number[:20]))
    most = ROOM // PER_FRAME
    if prod(planes.get(f"Size{axis}", 1) for axis in "CZT") > most or max(planes.values(), default=0) > most:
        raise FrameError(f"has OME metadata of more than {most} planes: save it as several files")
    return set(re.findall(r"""\bFileName\s*=\s*["']([^"']*)""", text))


@contextmanager
def _png(path: Path) -> Iterator[OpenedImage]:
    """Open a PNG: grey, colours, or a palette's indices, which are the labels of label files.

    Nothing else is opened, whatever the suffix: for PostScript, Image.open would start Ghostscript. Its limit on the
    number of pixels does not apply; `OpenedImage.require_room` has one.
    """
    with path.open("rb") as file:
        header = file.read(26)
        if header[:8] != PNG_SIGNATURE:
            raise UnidentifiedImageError
        # Bit depth and colour type of the IHDR chunk (PNG specification, 11.2.1); Pillow would cut such colours to 8
        # bits.
        if header[24:25] == b"\x10" and header[25:26] != b"\0":
            raise FrameError("is a PNG of 16-bit colours, which would be read as 8 bits: save it as TIFF")
        file.seek(0)
        with PngImageFile(file) as image:
            size, bands = (image.height, image.width), len(image.getbands())
            dtype = np.dtype(np.uint16 if image.mode.startswith("I") else np.uint8)
            layout = Layout(size, "YX", dtype) if bands == 1 else Layout((*size, bands), "YXC", dtype)
            yield OpenedImage(layout, (), lambda: _stored(path), lambda: np.asarray(image))


@contextmanager
def _npy(path: Path) -> Iterator[OpenedImage]:
    """Open a numpy array, its axes as `unnamed_axes`; Python objects are never unpickled."""
    size = path.stat().st_size
    with path.open("rb") as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        if int.from_bytes(file.peek()[: 2 if is_first else 4], "little") > size:
            raise FrameError("is cut off in its header")
        # Version 3 differs from 2 in the encoding of field names alone (documentation of numpy.lib.format).
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise FrameError("holds Python objects, which are never loaded: save an array of plain numbers")
        if dtype.kind not in "biufc":
            raise FrameError(f"holds values of type {dtype.str}, which are no pixels: save an array of plain numbers")
        declared, left = prod(shape) * dtype.itemsize, size - file.tell()
        if declared > left:
            raise FrameError(f"is cut off: it declares {declared} bytes of pixels and holds {left}")
    layout = Layout(shape, unnamed_axes(shape), dtype)
    yield OpenedImage(layout, (), lambda: _stored(path), lambda: np.load(path, allow_pickle=False))


@contextmanager
def _zarr(path: Path) -> Iterator[OpenedImage]:
    """Open a Zarr array, or the full resolution of an OME-Zarr image with its named axes."""
    import zarr

    from unetrt.runtime.files.zarr_array import open_zarr

    level, axes = open_zarr(path), None
    if not isinstance(level, zarr.Array):
        attributes: Mapping[str, Any] = level.attrs.asdict()
        # OME-Zarr 0.5 moved the metadata below `ome`; https://ngff.openmicroscopy.org/0.5
        scales = attributes.get("ome", attributes).get("multiscales")
        if not scales:
            raise FrameError("is a Zarr group without an OME-Zarr image: give an array of it")
        level = level[scales[0]["datasets"][0]["path"]]
        axes = "".join(_letter(axis) for axis in scales[0]["axes"])
    layout = Layout(level.shape, unnamed_axes(level.shape) if axes is None else axes, np.dtype(level.dtype))
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    part = getattr(level, "shards", None) or level.chunks
    yield OpenedImage(layout, part, lambda: _stored(*filter(Path.is_file, files)), lambda: np.asarray(level[...]))


def _letter(axis: str | Mapping[str, str]) -> str:
    """Return one letter for an axis of OME-Zarr: a name or, from version 0.4 on, a name and a type."""
    if isinstance(axis, str):
        return axis[0].upper()
    return "C" if axis.get("type") == "channel" else axis["name"][0].upper()


FORMATS: Mapping[str, Callable[[Path], AbstractContextManager[OpenedImage]]] = {
    ".tif": _tiff,
    ".tiff": _tiff,
    ".png": _png,
    ".npy": _npy,
    ".zarr": _zarr,
}
SUFFIXES = tuple(FORMATS)
# The format whose files are folders.
ZARR = ".zarr"


def opened(path: Path) -> AbstractContextManager[OpenedImage]:
    """Open an image file as what its suffix says; raises FrameError for a path that is no regular file.

    A Zarr array is a folder. Decoders raise all kinds of exceptions for damaged files, here and when they read.
    """
    suffix = path.suffix.lower()
    if not (suffix == ZARR and path.is_dir()):
        require_regular(path)
    return FORMATS.get(suffix, _png)(path)


def stack_shape(path: Path) -> tuple[int, int, int, int] | None:
    """Return the shape (N, C, H, W) of what `read_stack` reads, from the file's header; None where that fails."""
    with suppress(Exception), opened(path) as image:  # `read_stack` says what is wrong
        return image.layout.stack
    return None


def unnamed_axes(shape: tuple[int, ...]) -> str:
    """Return the axes of an array without axis names: (H, W), a stack (N, H, W), or (N, C, H, W).

    A last axis of length 3 or 4 next to longer ones is colours: (H, W, C) or (N, H, W, C).
    """
    if len(shape) not in UNNAMED:
        raise FrameError(f"has the shape {shape}: save (H, W), a stack (N, H, W), or (N, C, H, W)")
    colours = len(shape) in COLOURS_LAST and shape[-1] in (3, 4) and min(shape[-3:-1]) > 4
    return COLOURS_LAST[len(shape)] if colours else UNNAMED[len(shape)]


def arranged(pixels: Array, layout: Layout) -> Array:
    """Return pixels as (N, C, H, W): channels and samples become C, all other axes but Y and X become N."""
    axes = layout.axes
    channels = [index for index, axis in enumerate(axes) if axis in "CS"]
    others = [index for index, axis in enumerate(axes) if axis not in "CSYX"]
    ordered = pixels.transpose(*others, *channels, axes.index("Y"), axes.index("X"))
    stack: Array = ordered.reshape(layout.stack)
    return stack.astype(np.uint8) if stack.dtype == bool else stack


def list_images(path: str | Path) -> list[Path]:
    """Return the images of a folder, sorted by name, or the file (or Zarr folder) itself.

    Raises
    ------
    FrameError
        There is no such file or folder, or the folder holds no image.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and path.suffix.lower() == ZARR):
        return [path]
    if not path.is_dir():
        state = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise FrameError(f"{path} {state}: give a folder of {', '.join(SUFFIXES)} files, or one file")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not found:
        hint = f"; did you mean {path / 'images'}?" if (path / "images").is_dir() else ""
        raise FrameError(f"{path} holds no image: {', '.join(SUFFIXES)} are read{hint}")
    return found


def stem_of(path: str | Path) -> str:
    """Return a file's name without its suffix; `.ome.tif` and `.ome.zarr` are one suffix."""
    path = Path(path)
    return path.stem[: -len(".ome")] if path.stem.lower().endswith(".ome") else path.stem


def read_stack(path: str | Path, max_image_memory: int | None = None) -> Array:
    """Read an image file as a stack (N, C, H, W) with the file's dtype; a single frame has N = 1.

    The file's own axes decide, where it names them: samples and channels become C, all others (time, depth, pages) are
    flattened into N. NPY and plain Zarr arrays are (H, W), (N, H, W), (N, C, H, W), or have 3 or 4 colours last.

    Parameters
    ----------
    path
        The file.
    max_image_memory
        Memory in bytes that the pixels may take. None: 2 GiB or, where the file is large, 16 times its size, but not
        more than is free.

    Raises
    ------
    FrameError
        The file cannot be read as an image, or its header declares too large a one.
    OptionError
        `max_image_memory` is not a number above 0.
    """
    path = Path(path)
    require_image_memory(max_image_memory)
    try:
        with opened(path) as image:
            image.require_room(max_image_memory)
            if 0 in image.layout.shape:
                raise FrameError("holds no pixels")
            return arranged(image.read(), image.layout)
    except FrameError as error:
        raise FrameError(f"{path} {error}") from error
    except UnidentifiedImageError as error:
        raise FrameError(f"{path} is not an image: {', '.join(SUFFIXES)} are read") from error
    except Exception as error:  # decoders raise all kinds of exceptions for a damaged file
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FrameError:
    """Return the error for a file whose decoder failed."""
    if "imagecodecs" in str(error):
        return FrameError(f"{path} has a compression that needs: pip install 'unetrt[codecs]'")
    if isinstance(error, ModuleNotFoundError) and error.name == "zarr":
        return FrameError(f"{path} needs zarr: pip install 'unetrt[zarr]'")
    if is_out_of_memory(error):
        return FrameError(f"{path} needs more memory than there is: {one_line(error)}")
    reason = one_line(error, kind=isinstance(error, LookupError))  # its message is a key or an index alone
    return FrameError(f"{path} cannot be read: {reason}")


def read_frames(source: Path, channels: int, max_image_memory: int | None = None) -> Array:
    """Read an image file for a model of `channels`: a frame, (H, W) or (C, H, W), or a stack of frames.

    `max_image_memory` as for `read_stack`.
    """
    stack = read_stack(source, max_image_memory)
    if stack.shape[1] != channels:
        raise FrameError(
            f"{source} has {stack.shape[1]} channels: this model takes {channels}; save those, or train on all"
        )
    frames = as_image(stack)
    return frames[0] if len(frames) == 1 else frames


def read_labels(path: str | Path, max_image_memory: int | None = None) -> Array:
    """Read a label file with one plane: integers, (H, W); `max_image_memory` as for `read_stack`.

    Raises
    ------
    FrameError
        The file is not an image, has several frames or channels, or values other than integers from 0.
    """
    planes = read_label_stack(path, max_image_memory)
    if len(planes) > 1:
        raise FrameError(f"{path} holds {len(planes)} frames: save labels as one grey plane a file")
    plane: Array = planes[0]
    return plane


def read_label_stack(path: str | Path, max_image_memory: int | None = None) -> Array:
    """Read a label file: integers, (N, H, W); `max_image_memory` as for `read_stack`.

    Raises
    ------
    FrameError
        The file is not an image, has several channels, or values other than integers from 0.
    """
    stack = read_stack(path, max_image_memory)
    if stack.shape[1] in (3, 4) and (stack[:, 1:3] == stack[:, :1]).all():
        stack = stack[:, :1]  # grey saved as colours
    if stack.shape[1] != 1:
        raise FrameError(f"{path} has {stack.shape[1]} channels: save labels as one grey plane")
    labels: Array = stack[:, 0]
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "ui" or labels.min() < 0:
        raise FrameError(f"{path} holds {labels.dtype} values that are not labels: use whole numbers from 0")
    return labels


def write_labels(path: str | Path, labels: Array) -> None:
    """Write labels (..., H, W) atomically as a compressed TIFF of the smallest unsigned dtype that holds them.

    Raises
    ------
    FrameError
        The labels are not integers from 0 to 2^32 - 1, have fewer than two axes, or hold no pixels.
    OutputError
        The file cannot be written.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "uib" or labels.ndim < 2 or not labels.size:
        is_array = isinstance(labels, np.ndarray)
        given = f"{labels.dtype} {labels.shape}" if is_array else shown(labels)
        raise FrameError(f"labels must be a numpy array of integers (..., H, W) (got {given})")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > np.iinfo(np.uint32).max:
        raise FrameError(f"labels must be from 0 to {np.iinfo(np.uint32).max} (got {lowest} to {highest})")
    dtype = next(kind for kind in (np.uint8, np.uint16, np.uint32) if highest <= np.iinfo(kind).max)
    with whole_file(path) as temporary:
        # Level 1: labels are large flat areas, which higher levels hardly compress more.
        level = {"level": 1}
        tifffile.imwrite(
            temporary, labels.astype(dtype), photometric="minisblack", compression="zlib", compressionargs=level
        )


def write_png(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture (H, W) or (H, W, 3), uint8, atomically as a PNG."""
    with whole_file(path) as temporary:
        # Level 1: a third of the time of the default level for a few percent more bytes.
        Image.fromarray(picture).save(temporary, compress_level=1)


def require_distinct(sources: list[Path], folder: Path, overlays: bool = True) -> None:
    """Raise OutputError where files named after `sources` in `folder` would overwrite each other or a source."""
    taken = {os.path.realpath(source) for source in sources}
    stems: dict[str, Path] = {}
    for source in sources:
        stem = stem_of(source)
        if (other := stems.setdefault(stem, source)) is not source:
            raise OutputError(f"{other} and {source} would both become {stem}.tif: rename one")
        written = [folder / f"{stem}.tif", *([folder / "overlays" / f"{stem}.png"] if overlays else [])]
        for path in written:
            if os.path.realpath(path) in taken:
                raise OutputError(f"{path} is an input and would be overwritten: choose another output folder")


@dataclass(frozen=True)
class Output:
    """What `predict_file` computes and writes.

    Attributes
    ----------
    folder
        Folder of NAME.tif and overlays/NAME.png.
    kind
        `instances`: objects are numbered; `classes`: the class map.
    min_area
        Instances of fewer pixels are dropped.
    overlays
        Whether overlays are written.
    tta
        Whether to average over the 8 rotated and reflected copies of each frame.
    table
        Gets a row for each instance; None for no table.
    """

    folder: Path
    kind: "Annotation" = "instances"
    min_area: int = 0
    overlays: bool = True
    tta: bool = False
    table: "ObjectTable | None" = None


def predict_file(
    segmenter: "Segmenter",
    source: Path,
    output: Output,
    progress: "Progress | None" = None,
    max_image_memory: int | None = None,
) -> Array:
    """Segment one image file and write its labels, and its overlay, under the output folder.

    `max_image_memory` as for `read_stack`.

    Returns
    -------
    The labels, (H, W) or for a stack (N, H, W). The overlay shows a stack's first frame.

    Raises
    ------
    FrameError
        The image cannot be read or does not fit the model; nothing is written then.
    """
    from unetrt.runtime.model.objects import overlay

    channels = segmenter.spec.channels
    frames = read_frames(source, channels, max_image_memory)
    labels: Array
    try:
        if output.kind == "instances":
            labels = _objects(segmenter, source, frames, output, progress)
        else:
            labels = segmenter.segment(frames, tta=output.tta, progress=progress).labels
    except FrameError as error:
        raise FrameError(f"{source}: {error}") from error
    write_labels(output.folder / f"{stem_of(source)}.tif", labels)
    if output.overlays:
        picture = overlay(stack_of(frames, channels)[0], stack_of(labels, 1)[0])
        write_png(output.folder / "overlays" / f"{stem_of(source)}.png", picture)
    return labels


def _objects(
    segmenter: "Segmenter", source: Path, frames: Array, output: Output, progress: "Progress | None"
) -> NDArray[np.int32]:
    """Return the instances of an image, after adding them to the table, if any."""
    is_confident = output.table is not None and segmenter.spec.head != "labels"
    found = segmenter.objects(
        frames, min_area=output.min_area, confidence=is_confident, tta=output.tta, progress=progress
    )
    if output.table is not None:
        output.table.add(source.name, frames, found)
    return found.labels
