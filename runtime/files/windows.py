"""Windows of images: parts of frames, read without the rest of the image.

`open_windows` opens a file, a Zarr folder or an array that a program holds. The pixels of a window equal those that
`read_image` returns for the whole image, bit by bit. Memory holds the window and the strips, tiles or chunks that it
touches, one after the other; files of formats without such parts are decoded as a whole at the first read, within the
limit on the memory of an image.

>>> with open_windows(np.arange(12).reshape(3, 4), channels=1) as windows:
...     windows.shape, windows.read(0, slice(1, 3), slice(0, 2)).tolist()
((1, 1, 3, 4), [[[4, 5], [8, 9]]])
"""

import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.formats import (
    AS_STORED,
    Images,
    Layout,
    OpenedImage,
    Reading,
    channel_indices,
    opened,
    unnamed_axes,
    with_channels,
    with_named_axes,
)
from unetrt.runtime.files.images import chosen, is_grey, is_opaque, may_be_opacity, picked, readable, wrong_channels
from unetrt.runtime.files.names import require_name
from unetrt.runtime.files.outputs.label_tiff import require_pixel_size
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.files.selection import Index, Parts
from unetrt.runtime.files.sources import ImageSource, state_of
from unetrt.runtime.pixels.frames import ArrayLike, array_of, split_axes

if TYPE_CHECKING:
    from unetrt.runtime.files.sources import AnyPath

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class ArraySource:
    """An image that is no file of this machine: the counterpart of `ImageSource`. It can be pickled if its array can.

    Attributes
    ----------
    array
        (..., H, W), or (..., C, H, W) for a model of C channels, of numpy, Zarr, dask or HDF5; or the address of an
        OME-Zarr image or of a Zarr array in a file system of fsspec, such as ``"s3://bucket/image.zarr"``.
    name
        Name of what is made from it: a relative path without suffix, with `/` between folders.
    pixel_size
        Size of a pixel; None: what the image at an address says, unknown for arrays.

    Raises
    ------
    OptionError
        The name is not a relative path below a folder.
    """

    array: ArrayLike | str
    name: str = "image"
    pixel_size: PixelSize | None = None

    def __post_init__(self) -> None:
        require_name(self.name)
        require_pixel_size(self.pixel_size)

    @property
    def file_name(self) -> str:
        """What tables call the image."""
        return self.name

    @property
    def is_mapped(self) -> bool:
        """Whether the array is a whole memory map of a file, which other processes can map too."""
        array = self.array
        return isinstance(array, np.memmap) and bool(array.filename) and isinstance(array.base, mmap)

    def __str__(self) -> str:
        return self.array if isinstance(self.array, str) else self.name

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process opens: of a memory map the file, not its content."""
        kept: Any = self.array
        if self.is_mapped:
            order: Literal["C", "F"] = "C" if kept.flags.c_contiguous else "F"
            kept = _MemoryMap(str(Path(kept.filename).absolute()), kept.dtype, kept.shape, kept.offset, order)
        return {**self.__dict__, "array": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        array = state["array"]
        self.__dict__.update(state, array=array.opened() if isinstance(array, _MemoryMap) else array)

    def identity(self) -> list[Any]:
        """Return what tells the image from others, in types of JSON, as far as it is known without reading files."""
        if isinstance(self.array, str):
            return [self.array]
        array: Any = array_of(self.array)
        about = [list(array.shape), str(array.dtype)]
        if isinstance(array, np.memmap) and array.filename:
            found = Path(array.filename).stat()
            return [*about, str(Path(array.filename).absolute()), found.st_size, found.st_mtime_ns]
        if isinstance(array, np.ndarray):
            return [*about, _checksum(array)]
        if (file := getattr(getattr(array, "file", None), "filename", None)) is not None:  # of HDF5
            return [*about, str(file), str(array.name)]
        if isinstance(root := getattr(getattr(array, "store", None), "root", None), Path):  # of Zarr, in a folder
            return [*about, *state_of(root / array.path)]
        return [*about, str(getattr(array, "store_path", ""))]


class _MemoryMap(NamedTuple):
    """What a memory map is of; see `numpy.memmap`."""

    filename: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    order: Literal["C", "F"]

    def opened(self) -> Array:
        return np.memmap(self.filename, self.dtype, "r", self.offset, self.shape, self.order)


def _checksum(array: Array) -> int:
    """Return the CRC-32 of the pixels of an array in memory."""
    checksum = 0
    for part in array:
        checksum = zlib.crc32(np.ascontiguousarray(part).data, checksum)
    return checksum


@dataclass(frozen=True)
class ImageWindows:
    """An open image whose frames are read by windows; several threads may read at once.

    Attributes
    ----------
    name
        What messages call it.
    layout
        What is known about it; the names of channels are of those that are read.
    chunk
        Height and width of a stored strip, tile or chunk; those of a frame where the image is decoded as a whole.
    pixels
        The pixels with the axes of the layout.
    channels
        Indices of the channels that are read.
    dropped
        Channels that a window has more than `shape`, and which must be copies or full opacity; see `fitting`.
    """

    name: str
    layout: Layout
    chunk: tuple[int, int]
    pixels: Parts
    channels: tuple[int, ...]
    dropped: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (N, C, H, W) of the image as `read_image` returns it."""
        number, _, height, width = self.layout.stack
        given = len(self.channels) - ("opacity" in self.dropped)
        return number, 1 if "colours" in self.dropped else given, height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a window: that of the file, uint8 for bool."""
        return np.dtype(np.uint8) if self.layout.dtype == bool else self.layout.dtype

    def read(self, frame: int, rows: slice, columns: slice) -> Array:
        """Return a window of a frame, (C, h, w).

        Parameters
        ----------
        frame
            Index of the frame, from 0.
        rows, columns
            Pixels of the frame, with ends from 0 to its height and width.

        Raises
        ------
        OptionError
            The window is not in the image.
        FrameError
            The file is damaged or lacks a part of the window; the message names the file and the window.
        """
        self._require_inside(frame, rows, columns)
        place = f"{self.name} (frame {frame}, rows {rows.start}:{rows.stop}, columns {columns.start}:{columns.stop})"
        with readable(place):
            part = np.asarray(self.pixels[self._index(frame, rows, columns)])
            window = self._arranged(part.astype(self.layout.dtype, copy=False))
            return self._fitted(window)

    def fitting(self, channels: int) -> "ImageWindows":
        """Return the windows with the channels of a model, as `fitting` of whole images.

        Full opacity is left out, and three equal colours are one channel. Both are checked in each window that is read:
        `read` raises FrameError where they are not.

        Raises
        ------
        FrameError
            The image has another number of channels.
        """
        given, dropped = self.shape[1], []
        if given != channels and may_be_opacity(self.layout, given):
            dropped.append("opacity")
        left = given - len(dropped)
        if left != channels and left == 3:
            dropped.append("colours")
            left = 1
        if left != channels:
            raise wrong_channels(self.name, given, channels)
        return replace(self, dropped=tuple(dropped))

    def _require_inside(self, frame: int, rows: slice, columns: slice) -> None:
        number, _, height, width = self.shape
        for part, length, what in ((rows, height, "rows"), (columns, width, "columns")):
            if part.step not in (None, 1) or part.start is None or not 0 <= part.start < part.stop <= length:
                raise OptionError(f"{what} of a window must be in 0:{length} (got {part.start}:{part.stop})")
        if not 0 <= frame < number:
            raise OptionError(f"the frame of a window must be 0 ... {number - 1} (got {frame})")

    def _index(self, frame: int, rows: slice, columns: slice) -> Index:
        """Return the index of a window in the pixels: an int for each axis of frames, slices for others."""
        lengths = [length for _, length in self.layout.frames]
        frames = iter(int(one) for one in np.unravel_index(frame, lengths)) if lengths else iter(())
        parts = {"Y": rows, "X": columns, "C": self._read_channels, "S": self._read_channels}
        return tuple(parts[axis] if axis in parts else next(frames) for axis in self.layout.axes)

    @cached_property
    def _read_channels(self) -> slice:
        """The channels that are read from the file: those from the first to the last that are wanted."""
        if sum(axis in "CS" for axis in self.layout.axes) != 1:
            return slice(None)
        return slice(min(self.channels), max(self.channels) + 1)

    def _arranged(self, part: Array) -> Array:
        """Return a part of one frame as (C, h, w), with the channels that are wanted."""
        axes = [axis for axis in self.layout.axes if axis in "CSYX"]
        order = [index for index, axis in enumerate(axes) if axis in "CS"]
        ordered = part.transpose(*order, axes.index("Y"), axes.index("X"))
        window = ordered.reshape(-1, *ordered.shape[-2:])
        window = window.view(np.uint8) if window.dtype == bool else window
        first = self._read_channels.start or 0
        wanted = [channel - first for channel in self.channels]
        return window if wanted == list(range(len(window))) else window[wanted]

    def _fitted(self, window: Array) -> Array:
        """Return a window without opacity and copies; raises FrameError if they are something else."""
        if "opacity" in self.dropped:
            if not is_opaque(window[-1]):
                raise FrameError(f"has a last channel that is not opacity: choose with --channel, {self._hint}")
            window = window[:-1]
        if "colours" in self.dropped:
            if not is_grey(window):
                raise FrameError(f"has colours, and the model takes 1 channel: choose with --channel, {self._hint}")
            window = window[:1]
        return window

    @property
    def _hint(self) -> str:
        return f"0 ... {len(self.channels) - 1}"


@contextmanager
def open_windows(
    source: "AnyPath | ArrayLike | ArraySource", reading: Reading = AS_STORED, channels: int | None = None
) -> Iterator[ImageWindows]:
    """Open an image to read it by windows.

    Parameters
    ----------
    source
        A file; an `ImageSource`; the address of an OME-Zarr image or of a Zarr array in a file system of fsspec, such
        as ``"s3://bucket/image.zarr"``; or an array (..., H, W), or (..., C, H, W) for a model of C channels, of numpy,
        Zarr, dask or HDF5; or an `ArraySource` of one of the last two.
    reading
        How a file is read. Of an array, `axes` are the letters of its axes.
    channels
        Number of channels of the model. None: all channels, as stored; an array has the likely axes of its shape.

    Raises
    ------
    FrameError
        The image cannot be read, has other channels than the model, or its parts take more memory than is allowed.
    """
    pixel_size, called = None, "the image"
    if isinstance(source, ArraySource):
        pixel_size, called, source = source.pixel_size, str(source), source.array
    with ExitStack() as closing:
        if isinstance(source, str | os.PathLike):
            is_address = isinstance(source, str) and "://" in source
            place = ImageSource(Path(), str(source)) if is_address else picked(source, reading)
            name = str(source) if is_address else str(place)
            with readable(name):
                images = _opened_address(name) if is_address else opened(place.path, place.files)
                image = chosen(closing.enter_context(images), place, reading)
        else:
            name = called
            with readable(name):
                image = _of_array(source, reading, channels)
        with readable(name):
            image.require_room(reading.max_image_memory, by_parts=True)
            windows = _windows_of(name, image, reading.channel)
        if pixel_size is not None:
            windows = replace(windows, layout=windows.layout._replace(pixel_size=pixel_size))
        yield windows if channels is None else windows.fitting(channels)


def _opened_address(address: str) -> AbstractContextManager[Images]:
    """Open a Zarr array or an OME-Zarr image at an address of fsspec, such as ``"s3://bucket/image.zarr"``."""
    if address.startswith("file://"):
        return opened(Path(url2pathname(urlsplit(address).path)))
    from unetrt.runtime.files.ome_zarr import opened as opened_zarr
    from unetrt.runtime.files.zarr_array import Address

    return opened_zarr(Address(address))


def _windows_of(name: str, image: OpenedImage, channel: Sequence[int | str]) -> ImageWindows:
    """Return the windows of an open image; raises FrameError if it lacks a channel."""
    _, channels, height, width = image.layout.stack
    indices = channel_indices(channel, channels, image.layout.channels)
    layout = with_channels(image.layout, indices) if channel else image.layout
    pixels, chunk = image.array, (height, width)
    if pixels is None:
        pixels = WholePixels(image)
    elif len(image.part) == len(image.layout.shape):
        rows, columns = (image.part[image.layout.axes.index(axis)] for axis in "YX")
        chunk = (min(rows, height), min(columns, width))
    return ImageWindows(name, layout, chunk, pixels, indices)


class WholePixels:
    """The pixels of an image that is decoded as a whole, at the first read."""

    def __init__(self, image: OpenedImage) -> None:
        self._image, self._lock = image, threading.Lock()
        self._pixels: Array | None = None

    def __getitem__(self, index: Index, /) -> Array:
        """Return a part of the pixels."""
        with self._lock:
            if self._pixels is None:
                self._pixels = self._image.read()
        part: Array = self._pixels[index]
        return part


class DaskPixels:
    """The pixels of a dask array, computed by threads of this process.

    By default a task of a cluster would hand them over to others as tasks, and leave its place to the next block while
    it waits, so that memory would grow.
    """

    def __init__(self, array: Any) -> None:
        self._array = array

    def __getitem__(self, index: Index, /) -> Array:
        """Return a part of the pixels."""
        part: Array = self._array[index].compute(scheduler="threads")
        return part


def _of_array(given: Any, reading: Reading, channels: int | None) -> OpenedImage:
    """Return an array as an image whose axes have names."""
    array = array_of(given)
    shape = tuple(map(int, array.shape))
    if channels is not None and reading.axes is None:
        lead, _ = split_axes(shape, channels)
        layout = Layout(shape, "N" * len(lead) + ("YX" if channels == 1 else "CYX"), np.dtype(array.dtype))
    else:
        layout = with_named_axes(Layout(shape, unnamed_axes(shape), np.dtype(array.dtype)), reading)
    if 0 in shape:
        raise FrameError(f"has shape {shape}: it holds no pixels")
    chunks = getattr(array, "shards", None) or getattr(array, "chunks", None)
    part = tuple(max(one) if isinstance(one, tuple) else int(one) for one in chunks) if chunks else ()
    parts = DaskPixels(array) if hasattr(array, "__dask_graph__") else array
    image = OpenedImage(layout, part, lambda: int(getattr(array, "nbytes", 0)), lambda: np.asarray(array), array=parts)
    return image.selected(reading.select) if reading.select else image
