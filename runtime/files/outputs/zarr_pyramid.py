"""The arrays of an image or of labels in an OME-Zarr, one for each resolution, written by blocks.

Each pixel of a coarser level stands for 2 x 2 pixels of the level before, of labels and image alike, so that both stay
aligned: the most frequent label, so that labels stay labels, or the mean grey value. A `translation` in the metadata
states that its centre is that of the 2 x 2 pixels.

Blocks are written in any order and by several threads or processes. All regions that are written, at full resolution
and at coarser ones, begin at multiples of chunks, and of shards in version 0.5: no two writers share a file.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.abc.store import Store

from unetrt.runtime.errors import FrameError, OptionError, OutputError, one_line, shown
from unetrt.runtime.files.outputs.label_tiff import require_pixel_size
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.geometry.plan import is_size

Array = NDArray[Any]
Size = tuple[int, int]
Version = Literal["0.4", "0.5"]
Reduction = Literal["mode", "mean"]

# Versions of OME-Zarr, and the format of Zarr that each is stored in.
FORMATS: Mapping[str, Literal[2, 3]] = {"0.4": 2, "0.5": 3}
# Side in pixels up to which a level gets no coarser one, and that of a chunk.
COARSEST, CHUNK = 256, 1024
# Axes in the order that OME-Zarr wants, and their types.
TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
# Path of the labels in an image group.
OBJECTS = "labels/objects"
# Kinds of dtypes (numpy) that each reduction is defined for.
KINDS: Mapping[Reduction, str] = {"mode": "ui", "mean": "uif"}


@dataclass(frozen=True)
class Pyramid:
    """The arrays of an image in an OME-Zarr, one for each resolution; it can be pickled, for other processes.

    Attributes
    ----------
    store
        The OME-Zarr: a folder, an address of fsspec such as ``"s3://bucket/a.ome.zarr"``, or a store of zarr.
    shape
        (..., H, W), at full resolution.
    dtype
        dtype of the pixels; integers for labels.
    axes
        Letter for each axis, in the order of OME-Zarr: those of ``"TCZYX"`` that there are.
    pixel_size
        Size of a pixel; None where it is unknown.
    chunk
        Height and width of the chunks.
    block
        Height and width of the regions that are written at once, at whose multiples they begin: a multiple of `chunk`,
        unless it is at least that of the image. In version 0.5, also those of the shards.
    version
        Version of OME-Zarr.
    path
        Path of the arrays in the store.
    reduction
        What a pixel of a coarser level is of 2 x 2 pixels: `mode`, for labels, or `mean`; see `halved`.
    name
        Name of the store in error messages; empty: its address.

    Raises
    ------
    FrameError
        The shape, the dtype or the axes are not those of labels.
    OptionError
        Another attribute is invalid.
    """

    store: str | Path | Store
    shape: tuple[int, ...]
    dtype: DTypeLike
    axes: str = "YX"
    pixel_size: PixelSize | None = None
    chunk: Size = (CHUNK, CHUNK)
    block: Size = (CHUNK, CHUNK)
    version: Version = "0.4"
    path: str = OBJECTS
    reduction: Reduction = "mode"
    name: str = ""

    def __post_init__(self) -> None:
        names = [axis for axis in TYPES if axis.upper() in self.axes]
        if self.axes != "".join(names).upper() or self.axes[-2:] != "YX" or len(self.axes) != len(self.shape):
            raise FrameError(
                f"axes must be {len(self.shape)} letters of TCZYX in this order, with Y and X (got {shown(self.axes)})"
            )
        if min(self.shape) < 1:
            raise FrameError(f"an image must have pixels along all axes (got {shown(self.shape)})")
        if (dtype := np.dtype(self.dtype)).kind not in KINDS[self.reduction]:
            what = "labels must be integers" if self.reduction == "mode" else "grey values must be integers or floats"
            raise FrameError(f"{what} (got {dtype})")
        if not isinstance(self.store, str | Path | Store):
            raise OptionError(f"store must be a folder, an address or a store of zarr (got {shown(self.store)})")
        require_pixel_size(self.pixel_size)
        if self.version not in FORMATS:
            raise OptionError(f"version must be {' or '.join(FORMATS)} (got {shown(self.version)})")
        for name, size in (("chunk", self.chunk), ("block", self.block)):
            if not is_size(size) or min(size) < 1:
                raise OptionError(f"{name} must be a height and a width in pixels, from 1 (got {shown(size)})")
        for chunk, block, length in zip(self.chunk, self.block, self.shape[-2:], strict=True):
            if block % chunk and block < length:
                nearest = ceil(block / chunk) * chunk
                raise OptionError(f"block must be a multiple of chunk, {chunk}: use {nearest} (got {block})")

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each level, from full resolution down; sides are halved, and rounded up."""
        shapes = [self.shape]
        while max(shapes[-1][-2:]) > COARSEST:
            *leading, height, width = shapes[-1]
            shapes.append((*leading, ceil(height / 2), ceil(width / 2)))
        return shapes

    def create(self) -> None:
        """Create the arrays of all levels; those of an earlier run that was not finished stay, with their pixels.

        Raises
        ------
        OutputError
            The store cannot be written, or holds a finished image, or arrays of another layout.
        """
        with self._writing():
            if self._is_finished():
                raise OutputError(f"{self._shown} exists: give another name, or remove it first")
            for level in range(len(self.shapes)):
                self._create_array(level)

    @cached_property
    def levels(self) -> list[Any]:
        """The arrays, `zarr.Array`, from full resolution down; raises OutputError where they are not created."""
        with self._writing():
            return [self._opened(level) for level in range(len(self.shapes))]

    def regions(self, level: int) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of the regions of a level that are written at once, row by row."""
        height, width = self.shapes[level][-2:]
        down, across = self._region(level)
        for top in range(0, height, down):
            for left in range(0, width, across):
                yield slice(top, min(top + down, height)), slice(left, min(left + across, width))

    def write(self, rows: slice, columns: slice, pixels: Array, plane: tuple[int, ...] = ()) -> None:
        """Write a region at full resolution.

        Writers in several threads or processes must have regions that begin and end at multiples of `block`, or at the
        end of the image.

        Parameters
        ----------
        rows, columns
            Where; they begin at multiples of the chunks, in version 0.5 of `block`, and end there or with the image.
        pixels
            (rows, columns), of any dtype that holds no pixel that `dtype` does not.
        plane
            Index on each axis before the rows.

        Raises
        ------
        FrameError
            The pixels do not fit the region or the dtype.
        OptionError
            The region is not aligned with the chunks, or lies outside of the image.
        OutputError
            The store cannot be written.
        """
        self._require_region(rows, columns, plane)
        region = (rows.stop - rows.start, columns.stop - columns.start)
        if pixels.shape != region:
            raise FrameError(f"pixels must be those of the region, {region} (got {pixels.shape})")
        pixels = self._stored(pixels)
        with self._writing():
            self.levels[0][(*plane, rows, columns)] = pixels

    def coarsen(self, level: int, rows: slice, columns: slice, plane: tuple[int, ...] = ()) -> None:
        """Write a region of a level from the level before, where its pixels have to be complete.

        The memory that this takes is some six times that of a chunk, in version 0.5 three times that of the region.

        Parameters
        ----------
        level
            Which, from 1.
        rows, columns
            One of `regions(level)`.
        plane
            Index on each axis before the rows.

        Raises
        ------
        OutputError
            The store cannot be read or written.
        """
        down, across = self._region(level) if self.version == "0.5" else self._chunk(level)
        with self._writing():
            for top in range(rows.start, rows.stop, down):
                for left in range(columns.start, columns.stop, across):
                    part = (slice(top, min(top + down, rows.stop)), slice(left, min(left + across, columns.stop)))
                    self.levels[level][(*plane, *part)] = self._coarsened(level, *part, plane)

    def _coarsened(self, level: int, rows: slice, columns: slice, plane: tuple[int, ...]) -> Array:
        """Return a part of a level, from the level before."""
        finer = self.levels[level - 1]
        part = np.empty((rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        strip = max(1, self._chunk(level - 1)[0] // 2)  # from one row of chunks
        for top in range(rows.start, rows.stop, strip):
            bottom = min(top + strip, rows.stop)
            window = (slice(2 * top, 2 * bottom), slice(2 * columns.start, 2 * columns.stop))
            pixels = np.asarray(finer[(*plane, *window)])
            part[top - rows.start : bottom - rows.start] = halved(pixels, self.reduction)
        return part

    def fill(self, pixels: Array) -> None:
        """Write all levels of an image in memory, of `shape` and `dtype`; raises OutputError."""
        with self._writing():
            for array in self.levels:
                array[...] = np.ascontiguousarray(pixels)
                if array is not self.levels[-1]:
                    pixels = halved(pixels, self.reduction)

    def multiscales(self, name: str, prefix: str = "") -> dict[str, Any]:
        """Return the metadata `multiscales` of a group that refers to the arrays as `prefix` and their level."""
        micrometres = None if self.pixel_size is None else self.pixel_size.in_micrometres
        axes = self.axes.lower()
        datasets = []
        for level in range(len(self.shapes)):
            scale = [axis_scale(axis, 2**level, micrometres) for axis in axes]
            transformations = [{"type": "scale", "scale": scale}]
            if level:
                # From the centre of the first pixel at full resolution to that of the first pixel here.
                first = [
                    axis_scale(axis, 1, micrometres) * (2**level - 1) / 2 if axis in "yx" else 0.0 for axis in axes
                ]
                transformations.append({"type": "translation", "translation": first})
            datasets.append({"path": f"{prefix}{level}", "coordinateTransformations": transformations})
        about = {"name": name, "axes": [axis_metadata(axis, micrometres) for axis in axes], "datasets": datasets}
        return about | {"type": self.reduction} | ({"version": "0.4"} if self.version == "0.4" else {})

    def annotate(self, path: str, attributes: Mapping[str, Any]) -> None:
        """Write metadata of OME-Zarr of a group of the store, which is created; raises OutputError."""
        stored = attributes if self.version == "0.4" else {"ome": {"version": self.version, **attributes}}
        with self._writing():
            group = zarr.open_group(self._store, path=path, mode="a", zarr_format=FORMATS[self.version])
            group.update_attributes(dict(stored))

    @cached_property
    def _store(self) -> str | Path | Store:
        """The store for zarr; a local one is a path: stores of fsspec create no folders, and read `::` as a chain."""
        if not isinstance(self.store, str):
            return self.store
        if self.store.startswith("file:"):
            return Path(url2pathname(urlsplit(self.store).path))
        return self.store if "://" in self.store else Path(self.store)

    @property
    def _shown(self) -> str:
        return self.name or str(self.store)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what zarr raises for a store that cannot be read or written into OutputError.

        ValueError and RuntimeError come from damaged chunks, ImportError from an address whose package is missing.
        """
        try:
            yield
        except OutputError:
            raise
        except (
            OSError,
            ValueError,
            RuntimeError,
            ImportError,
        ) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            raise OutputError(f"cannot write {self._shown}: {reason}") from error

    def _is_finished(self) -> bool:
        """Return whether the store, or the group of the arrays in it, has the metadata of an image."""
        try:
            groups = [zarr.open_group(self._store, path=path, mode="r") for path in dict.fromkeys(("", self.path))]
        except FileNotFoundError:
            return False
        return any("multiscales" in group.attrs or "ome" in group.attrs for group in groups)

    def _opened(self, level: int) -> Any:
        # Chunks of zeros are left out of labels, and not of images, where a missing chunk is an error.
        with zarr.config.set({"array.write_empty_chunks": self.reduction == "mean"}):
            return zarr.open_array(self._store, path=self._place(level), mode="r+", zarr_format=FORMATS[self.version])

    def _create_array(self, level: int) -> None:
        chunks, shards = self._layout(level)
        try:
            found = self._opened(level)
        except FileNotFoundError:
            is_early = self.version == "0.4"
            zarr.create_array(
                self._store,
                name=self._place(level),
                shape=self.shapes[level],
                dtype=self.dtype,
                chunks=chunks,
                shards=shards,
                fill_value=0,
                zarr_format=FORMATS[self.version],
                dimension_names=None if is_early else list(self.axes.lower()),
                chunk_key_encoding={"name": "v2", "separator": "/"} if is_early else None,
            )
            return
        layout = (found.shape, found.dtype, found.chunks, found.shards)
        if layout != (self.shapes[level], np.dtype(self.dtype), chunks, shards):
            raise OutputError(
                f"{self._shown} holds an unfinished image of {found.dtype} {found.shape} in chunks of {found.chunks}: "
                "remove it first"
            )

    def _place(self, level: int) -> str:
        return f"{self.path}/{level}" if self.path else str(level)

    def _chunk(self, level: int) -> Size:
        """Height and width of the chunks of a level."""
        height, width = self.shapes[level][-2:]
        return min(self.chunk[0], height), min(self.chunk[1], width)

    def _region(self, level: int) -> Size:
        """Height and width of the regions of a level: a block, or fewer chunks that hold the whole level."""
        sides = zip(self.block, self._chunk(level), self.shapes[level][-2:], strict=True)
        return tuple(ceil(min(block, length) / chunk) * chunk for block, chunk, length in sides)  # type: ignore[return-value]

    def _layout(self, level: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Shapes of the chunks and of the shards of a level."""
        leading = (1,) * (len(self.shape) - 2)
        shards = (*leading, *self._region(level)) if self.version == "0.5" else None
        return (*leading, *self._chunk(level)), shards

    def _require_region(self, rows: slice, columns: slice, plane: tuple[int, ...]) -> None:
        """Raise OptionError unless a region at full resolution consists of whole chunks or shards."""
        leading = self.shape[:-2]
        if len(plane) != len(leading) or not all(
            0 <= index < length for index, length in zip(plane, leading, strict=True)
        ):
            raise OptionError(f"plane must be an index for each axis before the rows, {leading} (got {shown(plane)})")
        units = self._region(0) if self.version == "0.5" else self._chunk(0)
        for part, unit, length in zip((rows, columns), units, self.shape[-2:], strict=True):
            if (
                not 0 <= part.start < part.stop <= length
                or part.start % unit
                or (part.stop % unit and part.stop < length)
            ):
                raise OptionError(
                    f"a region must begin and end at multiples of {units[0]} x {units[1]} pixels, or with the image of "
                    f"{self.shape[-2]} x {self.shape[-1]} (got {part.start} to {part.stop})"
                )

    def _stored(self, pixels: Array) -> Array:
        """Return pixels in the dtype that is stored; raises FrameError if it does not hold them."""
        dtype = np.dtype(self.dtype)
        if not np.can_cast(pixels.dtype, dtype):
            limits = np.iinfo(dtype) if dtype.kind in "ui" and pixels.dtype.kind in "uib" else None
            lowest, highest = pixels.min(), pixels.max()
            if limits is None or int(lowest) < limits.min or int(highest) > limits.max:
                raise FrameError(f"pixels must be of {dtype} (got {pixels.dtype}, from {lowest} to {highest})")
        return pixels.astype(dtype, copy=False)


def halved(pixels: Array, reduction: Reduction) -> Array:
    """Return an image of half the size, each pixel for 2 x 2 pixels; fewer at the end of an odd side.

    Parameters
    ----------
    pixels
        (..., H, W); integers for `mode`.
    reduction
        `mode`: the most frequent of the 2 x 2 pixels; of several, that whose first pixel comes first, row by row.
        `mean`: their mean; integers are rounded, halves up.

    Returns
    -------
    (..., ceil(H / 2), ceil(W / 2)), of the same dtype.
    """
    height, width = pixels.shape[-2:]
    if height % 2 or width % 2:  # a repeated last row or column changes neither mode nor mean
        pixels = np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + [(0, height % 2), (0, width % 2)], mode="edge")
    corners = [pixels[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return _mode(*corners) if reduction == "mode" else _mean(corners)


def _mode(first: Array, second: Array, third: Array, fourth: Array) -> Array:
    """Return the most frequent of four values, of several the earliest."""
    is_first = (first == second) | (first == third) | (first == fourth)
    is_second = (second == third) | (second == fourth)
    alone = ~is_first
    found: Array = first.copy()
    np.copyto(found, third, where=alone & (third == fourth))
    np.copyto(found, second, where=alone & is_second)
    return found


def _mean(values: Sequence[Array]) -> Array:
    """Return the mean of four arrays, in their dtype; sums do not overflow."""
    if values[0].dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # the mean of both infinities
            quarters = [value * value.dtype.type(0.25) for value in values]
            mean: Array = quarters[0] + quarters[1] + quarters[2] + quarters[3]
            return mean
    two, three = (values[0].dtype.type(number) for number in (2, 3))
    whole: Array = values[0] >> two
    rest = values[0] & three
    for value in values[1:]:
        whole += value >> two
        rest += value & three
    whole += (rest + two) >> two
    return whole


def axis_metadata(name: str, size: PixelSize | None) -> dict[str, str]:
    """Return the metadata of an axis; `size` is the pixel size in µm, None if it is unknown."""
    is_length = TYPES[name] == "space" and size is not None and (name != "z" or size.z is not None)
    return {"name": name, "type": TYPES[name]} | ({"unit": "micrometer"} if is_length else {})


def axis_scale(axis: str, step: int, size: PixelSize | None) -> float:
    """Return the distance between two pixels of a level along an axis, in µm if that is known."""
    length = (None if size is None or axis not in "zyx" else getattr(size, axis)) or 1.0
    return float(length * (step if axis in "yx" else 1))
