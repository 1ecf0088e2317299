"""Formats of image files: TIFF, PNG and other pictures, NPY and Zarr.

`FORMATS` is the table of formats: suffix -> function that opens a file and reads its header, `OpenedImage`. Headers are
believed within a limit only: `OpenedImage.require_room`. `Reading` holds what a user says about how files are read.
"""

import html
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.atomic import require_regular
from unetrt.runtime.files.embedded import SIZES, require_sizes
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.machine import format_bytes, free_memory

Array = NDArray[Any]

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
    pixel_size
        Physical size of a pixel; None: not known.
    channels
        Names of the channels, if the file has some.
    """

    shape: tuple[int, ...]
    axes: str
    dtype: np.dtype[Any]
    pixel_size: PixelSize | None = None
    channels: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class Reading:
    """How image files are read, where a user says more than the files do.

    Attributes
    ----------
    max_image_memory
        Memory in bytes that the pixels of one image may take. None: 2 GiB or, where its files are large, 16 times their
        size, but not more than is free.

    Raises
    ------
    OptionError
        `max_image_memory` is not a number above 0.
    """

    max_image_memory: int | None = None

    def __post_init__(self) -> None:
        most = self.max_image_memory
        if most is not None and not (isinstance(most, int) and most > 0):
            raise OptionError(
                f"max_image_memory must be a number of bytes above 0, such as 8 * 2**30 (got {most!r:.60})"
            )


# Files are read as they say.
AS_STORED = Reading()


class OpenedImage(NamedTuple):
    """An image whose header is read; a file holds one or more.

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
    name
        Its name in a file that holds several images.
    as_labels
        Returns the image that is read where labels are wanted, such as the indices of a palette instead of its colours,
        or raises FrameError; None: this one.
    """

    layout: Layout
    part: tuple[int, ...]
    stored: Callable[[], int]
    read: Callable[[], Array]
    name: str = ""
    as_labels: "Callable[[], OpenedImage] | None" = None

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


# The images of an open file.
Images = Sequence[OpenedImage]
# Opens a file.
Open = Callable[[Path], AbstractContextManager[Images]]


def stored_bytes(*paths: Path) -> int:
    """Return the bytes that files take on the disk: a sparse file takes less than its size."""
    found = [path.stat() for path in paths]
    return sum(min(about.st_size, 512 * getattr(about, "st_blocks", about.st_size)) for about in found)


@contextmanager
def _tiff(path: Path) -> Iterator[Images]:
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
        yield [OpenedImage(layout, series.keyframe.chunks, lambda: stored_bytes(path, *others), read)]


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
def _npy(path: Path) -> Iterator[Images]:
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
    yield [OpenedImage(layout, (), lambda: stored_bytes(path), lambda: np.load(path, allow_pickle=False))]


def _module(name: str) -> Open:
    """Return what opens files with a module of this package, which is imported then."""

    def open_file(path: Path) -> AbstractContextManager[Images]:
        images: AbstractContextManager[Images] = import_module(f"unetrt.runtime.files.{name}").opened(path)
        return images

    return open_file


_picture, _microscope = _module("pictures"), _module("microscopes")
FORMATS: Mapping[str, Open] = {
    ".tif": _tiff,
    ".tiff": _tiff,
    ".png": _picture,
    ".jpg": _picture,
    ".jpeg": _picture,
    ".bmp": _picture,
    ".gif": _picture,
    ".npy": _npy,
    ".zarr": _module("ome_zarr"),
    ".czi": _microscope,
    ".nd2": _microscope,
    ".lif": _microscope,
}
SUFFIXES = tuple(FORMATS)
# The format whose files are folders, and the files that make a folder, whatever its name, one of that format.
ZARR = ".zarr"
ZARR_FILES = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs"})


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder of Zarr, by its name or by what is in it."""
    named = path.suffix.lower() == ZARR
    return path.is_dir() and (named or any(os.path.lexists(path / name) for name in ZARR_FILES))


def opened(path: Path) -> AbstractContextManager[Images]:
    """Open a file of images as what its suffix says; raises FrameError for a path that is no regular file.

    A Zarr folder needs no suffix. Decoders raise all kinds of exceptions for damaged files, here and when they read.
    """
    if is_zarr(path):
        return FORMATS[ZARR](path)
    require_regular(path)
    return FORMATS.get(path.suffix.lower(), _picture)(path)


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
