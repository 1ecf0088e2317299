"""Formats of image files: TIFF, PNG and other pictures, NPY and Zarr.

`FORMATS` is the table of formats: suffix -> function that opens a file and reads its header, `OpenedImage`. The memory
that a header declares is limited (`OpenedImage.require_room`). `Reading` holds what a user says about the files.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import inf, prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, OptionError, shown
from unetrt.runtime.files.acquisitions import COMPANION, described_images
from unetrt.runtime.files.atomic import require_regular
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.files.selection import (
    Index,
    Parts,
    SelectedParts,
    as_slice,
    frame_slices,
    name_patterns,
    selected_ranges,
)
from unetrt.runtime.machine import format_bytes, free_memory
from unetrt.runtime.pixels.frames import CHANNELS, NARROW, both_readings, is_narrow

Array = NDArray[Any]

# Axes by the number of axes, where a file does not name them. Channels on the last axis are recognised by its length.
UNNAMED = {2: "YX", 3: "NYX", 4: "NCYX"}
CHANNELS_LAST = {3: "YXC", 4: "NYXC"}
# Letters that a user gives to axes: time, depth, position, any frames; channels, colours; rows, columns.
AXES = "TZPNCSYX"

# Memory in bytes that an image may take without an option, whatever its files hold.
ROOM = 2 * 2**30
# Largest ratio of the memory of a larger image to the size of its files: micrographs compress by less, and Deflate, for
# example, by up to 1032 (zlib.net/zlib_tech.html).
COMPRESSION = 16
# What is done about parts of an image that its files do not hold, such as chunks.
Missing = Literal["refuse", "fill"]
# The way to an image whose windows can be read.
TILED = ", or save it in tiles, as with: bfconvert -tilex 512 -tiley 512 -compression zlib INPUT OUTPUT.ome.tif"
# Memory in bytes that a frame takes at least: its timings and its place in the file.
PER_FRAME = 1024


# Axis of labels of several channels: unlike channels of an image, they are not read together.
CHANNELS_OF_LABELS = "c"


class Layout(NamedTuple):
    """What the header of an image file declares.

    Attributes
    ----------
    shape, axes
        Length of each axis, and a letter for each: Y, X, C and S (samples); all others are frames, also c, channels of
        labels. Q and I, of arrays and TIFFs that do not name their axes, become other letters in `with_named_axes`.
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
    def frames(self) -> tuple[tuple[str, int], ...]:
        """Letter and length of each axis that becomes N, in their order; their lengths have the product N."""
        return tuple((axis, length) for axis, length in zip(self.axes, self.shape, strict=True) if axis not in "CSYX")

    @property
    def stack(self) -> tuple[int, int, int, int]:
        """Shape (N, C, H, W) of the pixels as `arranged` returns them."""
        if "Y" not in self.axes or "X" not in self.axes:
            raise FrameError(f"has the axes {self.axes}, without rows (Y) and columns (X): save it with both")
        lengths = list(zip(self.shape, self.axes, strict=True))
        height, width = (self.shape[self.axes.index(axis)] for axis in "YX")
        return prod(length for length, axis in lengths if axis not in "CSYX"), self._channels, height, width

    @property
    def _channels(self) -> int:
        return prod(length for length, axis in zip(self.shape, self.axes, strict=True) if axis in "CS")

    def with_names(self, names: tuple[str, ...]) -> "Layout":
        """Return the layout with the names of its channels, or without names if it has another number of channels."""
        return self._replace(channels=names if len(names) == self._channels else ())


@dataclass(frozen=True)
class Reading:
    """How image files are read, where a user says more than the files do.

    Attributes
    ----------
    max_image_memory
        Memory in bytes that the pixels of one image may take. None: 2 GiB or, where its files are large, 16 times their
        size, but not more than is free.
    series
        Which image to read of files that hold several: its index from 0, or its name. None: all, where they are fields
        of one acquisition.
    axes
        A letter of `AXES` for each axis, such as `TZCYX` or `YXC`, for files with as many axes, also where they name
        others, and for files with one axis fewer, which has no channels; upper case. None: as files say.
    channel
        The channels to read from images (not from labels), in order: indices from 0, or names. Empty: all.
    select
        What is read of axes of frames, such as ``"T=0:10"`` or ``"Z=3"``, and patterns for the names of the images that
        `list_images` returns, such as ``"plate/B/*"``. Empty: all.
    missing_chunks
        Whether chunks of Zarr, and strips and tiles of TIFF, that are not stored are an error, ``"refuse"``, or read as
        the fill value of the array, mostly 0, ``"fill"``. In labels they are always filled.

    Raises
    ------
    OptionError
        A value is not one of these.
    """

    max_image_memory: int | None = None
    series: int | str | None = None
    axes: str | None = None
    channel: tuple[int | str, ...] = ()
    select: tuple[str, ...] = ()
    missing_chunks: Missing = "refuse"

    def __post_init__(self) -> None:
        if isinstance(self.select, str):
            raise OptionError(f"select must be a sequence of selections, such as [{self.select!r:.60}]")
        frame_slices(self.select)
        if self.missing_chunks not in get_args(Missing):
            raise OptionError(f"missing_chunks must be refuse or fill (got {shown(self.missing_chunks)})")
        if self.axes is not None:
            require_axes(self.axes)
        for one in self.channel:
            if not (one >= 0 if type(one) is int else isinstance(one, str) and one):
                raise OptionError(f"a channel must be an index, from 0, or a name (got {shown(one)})")
        most = self.max_image_memory
        if most is not None and not (isinstance(most, int) and most > 0):
            raise OptionError(
                f"max_image_memory must be a number of bytes above 0, such as 8 * 2**30 (got {most!r:.60})"
            )
        series = self.series
        if not (series is None or isinstance(series, str) or (type(series) is int and series >= 0)):
            raise OptionError(f"series must be the index of an image, from 0, or its name (got {shown(series)})")

    @property
    def picks_images(self) -> bool:
        """Whether some of the images are picked, by `series` or by their names."""
        return self.series is not None or bool(name_patterns(self.select))


# Files are read as they say.
AS_STORED = Reading()


def require_axes(axes: object) -> None:
    """Raise OptionError unless letters can be those of an image's axes."""
    hint = f"use a letter of {AXES} for each axis, Y and X (rows, columns) among them, such as ZYX, YXC or TZCYX"
    if not isinstance(axes, str) or not set(axes) <= set(AXES):
        raise OptionError(f"axes {axes!r:.60} are not known: {hint}")
    if len(set(axes)) < len(axes) or not {"Y", "X"} <= set(axes) or {"C", "S"} <= set(axes):
        raise OptionError(f"axes {axes!r:.60} do not say which axes are rows, columns and channels: {hint}")


class OpenedImage(NamedTuple):
    """An image whose header is read; a file holds one or more.

    Attributes
    ----------
    layout
        What the header declares.
    part
        Length along each axis of the largest part that is decoded as a whole: a strip, a tile, a chunk, or a row of
        pixels that are not compressed. Empty: the image.
    stored
        Returns the bytes that the file, or all files of the image, take on the disk.
    read
        Returns all pixels, an array of the layout's shape.
    name
        Its name in a file that holds several images.
    as_labels
        Returns the image that is read where labels are wanted, such as the indices of a palette instead of its colours,
        or raises FrameError; None: this one.
    array
        The pixels with the axes of the layout, read by parts; None: the image is decoded as a whole.
    filled
        Returns the image in which parts that the file does not hold have the fill value; None: this one.
    """

    layout: Layout
    part: tuple[int, ...]
    stored: Callable[[], int]
    read: Callable[[], Array]
    name: str = ""
    as_labels: "Callable[[], OpenedImage] | None" = None
    array: Parts | None = None
    filled: "Callable[[], OpenedImage] | None" = None

    def selected(self, select: Sequence[str]) -> "OpenedImage":
        """Return the image with the frames that are selected; its axes have names.

        Raises
        ------
        FrameError
            It has no such axis, or no such frames.
        """
        kept = selected_ranges(self.layout, select)
        layout = self.layout._replace(shape=tuple(map(len, kept)))
        if self.array is None:
            index = tuple(map(as_slice, kept))
            return self._replace(layout=layout, part=self.layout.shape, read=lambda: self.read()[index])
        array = SelectedParts(self.array, kept)
        return self._replace(layout=layout, array=array, read=lambda: array[(slice(None),) * len(kept)])

    def require_room(self, most: int | None, *, by_parts: bool = False) -> None:
        """Raise FrameError if the image would take too much memory; runs before any is allocated.

        Parameters
        ----------
        most
            Memory in bytes that the pixels may take. None: 2 GiB or, where the files are large, 16 times their size,
            but not more than is free.
        by_parts
            Whether it is read by parts, so that the largest part must have room instead of all pixels.
        """
        shape, dtype = self.layout.shape, self.layout.dtype
        if prod(self.part) > prod(shape) or (by_parts and self.array is not None):
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
                f"raises the limit{TILED if by_parts else ''}"
            )


# The images of an open file.
Images = Sequence[OpenedImage]
# Opens a file; of a TIFF also with the other files of its set.
Open = Callable[..., AbstractContextManager[Images]]


def stored_bytes(*paths: Path) -> int:
    """Return the bytes that files take on the disk: a sparse file takes less than its size."""
    found = [path.stat() for path in paths]
    return sum(min(about.st_size, 512 * getattr(about, "st_blocks", about.st_size)) for about in found)


class MappedPixels:
    """Pixels that are not compressed, read by parts.

    Each part is mapped into memory and copied, so that no more than a part stays in memory.

    Parameters
    ----------
    path
        The file.
    dtype, shape, order
        Of the stored array; order is `C` or `F`.
    offset
        Its first byte in the file.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, order: Any = "C") -> None:
        self._path, self._dtype, self._shape, self._offset, self._order = path, dtype, shape, offset, order

    def __getitem__(self, index: Index, /) -> Array:
        """Return a part of the pixels; raises FrameError for a file that is too short."""
        end, size = self._offset + prod(self._shape) * self._dtype.itemsize, self._path.stat().st_size
        if end > size:
            raise FrameError(f"is cut off: its pixels end at byte {end}, and {self._path.name} has {size}")
        mapped = np.memmap(self._path, self._dtype, "r", self._offset, self._shape, self._order)
        return np.array(mapped[index], order="C")


@contextmanager
def _npy(path: Path) -> Iterator[Images]:
    """Open a numpy array, which does not name its axes; Python objects are never unpickled."""
    size = path.stat().st_size
    with path.open("rb") as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        if int.from_bytes(file.peek()[: 2 if is_first else 4], "little") > size:
            raise FrameError("is cut off in its header")
        # Version 3 differs from 2 in the encoding of field names alone (documentation of numpy.lib.format).
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if dtype.hasobject:
            raise FrameError("holds Python objects, which are never loaded: save an array of plain numbers")
        if dtype.kind not in "biufc":
            raise FrameError(f"holds values of type {dtype.str}, which are no pixels: save an array of plain numbers")
        offset = file.tell()
        declared, left = prod(shape) * dtype.itemsize, size - offset
        if declared > left:
            raise FrameError(f"is cut off: it declares {declared} bytes of pixels and holds {left}")
    layout = Layout(shape, unnamed_axes(shape), dtype)
    array = MappedPixels(path, dtype, shape, offset, "F" if is_fortran else "C")
    row = 2 if is_narrow(shape) else 1
    part = (*(1 for _ in shape[:-row]), *shape[-row:])
    yield [
        OpenedImage(layout, part, lambda: stored_bytes(path), lambda: np.load(path, allow_pickle=False), array=array)
    ]


def _module(name: str) -> Open:
    """Return what opens files with a module of this package, which is imported then."""

    def open_file(path: Path, *others: Collection[Path]) -> AbstractContextManager[Images]:
        images: AbstractContextManager[Images] = import_module(f"unetrt.runtime.files.{name}").opened(path, *others)
        return images

    return open_file


# Suffixes of TIFF, with those of large files, of Zeiss's LSM, MetaMorph's STK and whole slides.
TIFFS = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".stk", ".svs", ".ndpi", ".scn", ".qptiff")
MICROSCOPES = (".czi", ".nd2", ".lif")
_tiff, _picture, _microscope = map(_module, ("tiff", "pictures", "microscopes"))
FORMATS: Mapping[str, Open] = {
    **dict.fromkeys(TIFFS, _tiff),
    ".png": _picture,
    ".jpg": _picture,
    ".jpeg": _picture,
    ".bmp": _picture,
    ".gif": _picture,
    ".npy": _npy,
    ".zarr": _module("ome_zarr"),
    **dict.fromkeys(MICROSCOPES, _microscope),
}
SUFFIXES = (*FORMATS, COMPANION)
# The format whose files are folders, and the files that make a folder, whatever its name, one of that format.
ZARR = ".zarr"
ZARR_FILES = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs"})


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder of Zarr, by its name or by what is in it."""
    named = path.suffix.lower() == ZARR
    return path.is_dir() and (named or any(os.path.lexists(path / name) for name in ZARR_FILES))


def opened(path: Path, others: Collection[Path] = ()) -> AbstractContextManager[Images]:
    """Open a file of images as what its suffix says; raises FrameError for a path that is no regular file.

    `others` are the other files of its set. A Zarr folder needs no suffix. Decoders raise all kinds of exceptions for
    damaged files, here and when they read.
    """
    if is_zarr(path):
        return FORMATS[ZARR](path)
    require_regular(path)
    suffix = path.suffix.lower()
    if suffix == COMPANION:
        raise FrameError("describes the images of other files: give those, or list_images of it")
    return _tiff(path, others) if others else FORMATS.get(suffix, _picture)(path)


def named_images(path: Path, listed: Iterable[Path] = ()) -> list[tuple[str, tuple[Path, ...]]]:
    """Return the name of each image of a file of fields or of its set, and its files; empty for any other file.

    Parameters
    ----------
    path
        The file.
    listed
        Files that can belong to the set.
    """
    suffix = path.suffix.lower()
    if suffix in TIFFS or suffix == COMPANION:
        return described_images(path, listed)
    if suffix not in MICROSCOPES:
        return []
    with opened(path) as images:
        return [(image.name, (path,)) for image in images if image.name]


def unnamed_axes(shape: tuple[int, ...]) -> str:
    """Return the axes of an array that does not name them: Q, for unknown, for each."""
    return "Q" * len(shape)


def with_named_axes(layout: Layout, reading: Reading = AS_STORED) -> Layout:
    """Return a layout whose axes are those that the user names, else the file's, else the likely ones of its shape.

    Raises
    ------
    FrameError
        The user's axes do not fit, or nobody names the axes and the shape has several meanings.
    """
    shape, own = layout.shape, layout.axes
    unnamed = re.fullmatch("[QI]+(YX)?", own)
    if (said := _said_axes(len(shape), reading.axes)) is not None:
        for stored, letter in zip(own, said, strict=True):
            if letter not in "CS" and (stored == "S" or (stored == "C" and own.endswith("YXC"))):
                raise FrameError(f"holds {own}, its colours beside each other: --axes {reading.axes} does not fit")
        return layout._replace(axes=said)
    if unnamed and reading.axes is not None and len(shape) > 2:
        raise FrameError(f"has the shape {shape}: --axes {reading.axes} does not name {len(shape)} axes")
    return layout._replace(axes=guessed_axes(shape)) if unnamed else layout


def _said_axes(number: int, axes: str | None) -> str | None:
    """Return the letters for a number of axes, without channels where there is one fewer; None: they do not fit."""
    found = (letters for letters in (axes, re.sub("[CS]", "", axes or "")) if letters and len(letters) == number)
    return next(found, None)


def guessed_axes(shape: tuple[int, ...]) -> str:
    """Return the likely axes of an array that does not name them: (H, W), a stack (N, H, W), or (N, C, H, W).

    A last axis much shorter than the two before it is channels, (H, W, C) or (N, H, W, C), if it has up to `CHANNELS`
    elements; raises FrameError where it may as well be the width of frames.
    """
    if len(shape) < 2:
        raise FrameError(f"has the shape {shape}: save (H, W), a stack (N, H, W), or (N, C, H, W)")
    about = f"has the shape {shape} and does not name its axes"
    if len(shape) not in UNNAMED:
        raise FrameError(f"{about}: name them, as in --axes TZCYX, or save (H, W), (N, H, W) or (N, C, H, W)")
    usual = UNNAMED[len(shape)]
    if not is_narrow(shape):
        return usual
    last, others, narrow = shape[-1], min(shape[-3:-1]), CHANNELS_LAST[len(shape)]
    if (last in (3, 4) and others > 4) or (last <= CHANNELS and last * NARROW <= others):
        return narrow
    raise FrameError(f"{about}: {both_readings(shape)}; give --axes {usual} or --axes {narrow}")


def channel_indices(channel: Sequence[int | str], number: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the indices of the channels to read of `number`, all if none is said.

    Raises
    ------
    FrameError
        There is no such channel; the message lists those that there are.
    """
    return tuple(_channel_index(one, number, names) for one in channel) or tuple(range(number))


def with_channels(layout: Layout, indices: Sequence[int]) -> Layout:
    """Return the layout with the names of the channels that are read."""
    return layout._replace(channels=tuple(layout.channels[index] for index in indices) if layout.channels else ())


def _channel_index(one: int | str, number: int, names: tuple[str, ...]) -> int:
    """Return the index of one of `number` channels; raises FrameError if there is none."""
    if (index := index_of(one, names, number)) is not None:
        return index
    there = f"0 ... {number - 1}" if number > 1 else "0 only"
    called = f", named {', '.join(names)}" if names else " and does not name them"
    raise FrameError(f"has no channel {one}: it has {there}{called}")


def index_of(one: int | str, names: Sequence[str], number: int) -> int | None:
    """Return which of `number` channels or images a user means; None: none, or several.

    Parameters
    ----------
    one
        Index from 0, or a name, which is found in other case too. A number beyond the indices can be a name, such as
        488.
    names
        Their names; empty if they have none.
    number
        How many there are.
    """
    if isinstance(one, int) and one < number:
        return one
    for wanted, there in ((str(one), list(names)), (str(one).casefold(), [name.casefold() for name in names])):
        if there.count(wanted) == 1:
            return there.index(wanted)
    return None


def arranged(pixels: Array, layout: Layout) -> Array:
    """Return pixels as (N, C, H, W): channels and samples become C, all other axes but Y and X become N."""
    axes = layout.axes
    channels = [index for index, axis in enumerate(axes) if axis in "CS"]
    others = [index for index, axis in enumerate(axes) if axis not in "CSYX"]
    ordered = pixels.transpose(*others, *channels, axes.index("Y"), axes.index("X"))
    stack: Array = ordered.reshape(layout.stack)
    return stack.astype(np.uint8) if stack.dtype == bool else stack
