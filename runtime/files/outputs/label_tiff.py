"""Labels as OME-TIFF: named axes and the pixel size, for Bio-Formats (Fiji, QuPath), napari and ImageJ alone.

Readers of OME take axes and pixel size from the OME metadata. ImageJ without Bio-Formats reads the resolution tags
instead: their unit is the centimetre, as TIFF has no smaller one. It reads Deflate (`TiffDecoder` of ImageJ 1:
compressions 8 and 32946).

`write_labels` writes arrays in memory as strips. `write_label_levels` writes arrays of any size as tiles, with coarser
levels in SubIFDs, as Bio-Formats, QuPath, napari and tifffile read them; ImageJ alone reads no tiles.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt._version import __version__
from unetrt.runtime.errors import FrameError, OptionError, one_line, shown
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.files.formats import CHANNELS_OF_LABELS
from unetrt.runtime.files.pixel_size import PixelSize

Array = NDArray[Any]

# Axes before the rows, which OME has besides its channels, and the names of unnamed ones.
STACKED = "TZ"
# Bytes of labels from which on the file is a BigTIFF: offsets of 32 bits end at 4 GiB, less the room for metadata.
LARGE = 2**32 - 2**25
# Largest unsigned denominator or numerator of a resolution tag (TIFF 6.0, RATIONAL).
RATIONAL = 2**32 - 1
# Side of a tile in pixels, and of the chunks up to which tiles are chunks; sides are multiples of 16 (TIFF 6.0, section
# 15).
TILE, LARGEST_TILE = 512, 1024
# Tiles that are compressed together, in threads.
TOGETHER = 8
# Compression level 1: labels are large flat areas, which higher levels hardly compress more.
DEFLATE: dict[str, Any] = {"compression": "zlib", "compressionargs": {"level": 1}, "photometric": "minisblack"}
# Stands for the identifier of a file until its labels are known.
UNKNOWN = str(UUID(int=0))


def write_labels(
    path: str | Path, labels: Array, *, axes: str | None = None, pixel_size: PixelSize | None = None
) -> None:
    """Write labels atomically as a compressed OME-TIFF of the smallest unsigned dtype that holds them.

    ImageJ shows labels above 65535 (uint32) as 32-bit floating point numbers, which are exact up to 16777216.

    Parameters
    ----------
    path
        The file.
    labels
        (..., H, W), integers from 0 to 2^32 - 1.
    axes
        A letter for each axis: T, Z and c (channels of labels) before Y and X. None: T for one axis before Y and X, T
        and Z for two. Other letters become T or Z, whichever is free; more axes are flattened into T.
    pixel_size
        Size of a pixel; None where it is unknown.

    Raises
    ------
    FrameError
        The labels are not integers from 0 to 2^32 - 1, have fewer than two axes, or hold no pixels; or `axes` does not
        fit their shape.
    OptionError
        `pixel_size` is of another type.
    OutputError
        The file cannot be written.
    """
    require_pixel_size(pixel_size)
    stored = smallest(labels)
    letters = stacked_axes(stored.ndim, axes)
    if len(letters) < stored.ndim:
        stored = stored.reshape(-1, *stored.shape[-2:])
    identifier = _uuid(_digest(np.ascontiguousarray(stored).data), stored.shape)
    with whole_file(path) as temporary:
        tifffile.imwrite(
            temporary,
            stored,
            bigtiff=stored.nbytes >= LARGE,
            ome=True,
            metadata=_metadata(letters, identifier, pixel_size),
            **DEFLATE,
            **_resolution(pixel_size),
        )


def write_label_levels(
    path: str | Path, levels: Sequence[Any], *, axes: str | None = None, pixel_size: PixelSize | None = None
) -> None:
    """Write labels of any size atomically as a tiled, compressed OME-TIFF with coarser levels.

    Labels are read and written tile by tile. OME has no integers of 64 bits, and Bio-Formats and ImageJ read none:
    labels above 2^32 - 1 are for OME-Zarr.

    Parameters
    ----------
    path
        The file.
    levels
        Arrays of numpy or Zarr, (..., H, W), of one dtype, uint8, uint16 or uint32: the labels at full resolution, and
        any coarser ones, such as `Pyramid.levels`.
    axes, pixel_size
        As for `write_labels`.

    Raises
    ------
    FrameError
        The levels are of other dtypes or have different axes, `axes` does not fit them, or they cannot be read.
    OptionError
        `pixel_size` is of another type.
    OutputError
        The file cannot be written.
    """
    require_pixel_size(pixel_size)
    _require_levels(levels)
    first, *coarser = levels
    letters = stacked_axes(first.ndim, axes)
    shapes = [
        level.shape if len(letters) == first.ndim else (prod(level.shape[:-2]), *level.shape[-2:]) for level in levels
    ]
    tile, digest = _tile(first), _digest()
    size = sum(prod(shape) for shape in shapes) * first.dtype.itemsize
    common = {"dtype": first.dtype, "tile": tile, **DEFLATE, "buffersize": TOGETHER * prod(tile) * first.dtype.itemsize}
    with whole_file(path) as temporary:
        with tifffile.TiffWriter(temporary, bigtiff=size >= LARGE, ome=True) as tiff:
            about = _metadata(letters, UNKNOWN, pixel_size)
            resolution = _resolution(pixel_size)
            pixels = _tiles(first, tile, digest)
            tiff.write(pixels, shape=shapes[0], subifds=len(coarser), metadata=about, **resolution, **common)
            for level, shape in zip(coarser, shapes[1:], strict=True):
                tiff.write(_tiles(level, tile), shape=shape, subfiletype=1, metadata=None, **common)
        _identify(temporary, _uuid(digest, (*first.shape, *tile)))


def require_pixel_size(pixel_size: object) -> None:
    """Raise OptionError unless a pixel size is a PixelSize, or None."""
    if not isinstance(pixel_size, PixelSize | None):
        raise OptionError(f"pixel_size must be a PixelSize, such as PixelSize(0.65, 0.65) (got {shown(pixel_size)})")


def _require_levels(levels: Sequence[Any]) -> None:
    """Raise FrameError unless levels are arrays of one dtype that OME-TIFF has, with the same axes before the rows."""
    if not levels or min(level.ndim for level in levels) < 2 or min(min(level.shape) for level in levels) < 1:
        raise FrameError(f"labels must be arrays with pixels, (..., H, W) (got {[level.shape for level in levels]})")
    for dtype in {level.dtype for level in levels}:
        if dtype not in (np.uint8, np.uint16, np.uint32):
            hint = (
                ": OME has no integers of 64 bits, write OME-Zarr" if dtype.kind in "ui" and dtype.itemsize == 8 else ""
            )
            raise FrameError(f"labels in an OME-TIFF must be uint8, uint16 or uint32 (got {dtype}){hint}")
    if len({(level.dtype, level.shape[:-2]) for level in levels}) > 1:
        shapes = ", ".join(f"{level.dtype} {level.shape}" for level in levels)
        raise FrameError(f"levels must have one dtype, and the same axes before the rows (got {shapes})")


def _tile(level: Any) -> tuple[int, int]:
    """Return height and width of the tiles of an array: its chunks where TIFF allows, so that each is read once."""
    chunk = getattr(level, "chunks", None) or (TILE, TILE)
    if any(side % 16 or side > LARGEST_TILE for side in chunk[-2:]):
        chunk = (TILE, TILE)
    height, width = (
        min(side, ceil(length / 16) * 16) for side, length in zip(chunk[-2:], level.shape[-2:], strict=True)
    )
    return height, width


def _tiles(level: Any, tile: tuple[int, int], digest: blake2b | None = None) -> Iterator[Array]:
    """Yield the tiles of each plane row by row, those at the ends smaller; `digest` is updated with their pixels."""
    height, width = level.shape[-2:]
    corners = list(product(range(0, height, tile[0]), range(0, width, tile[1])))
    for plane, (top, left) in product(np.ndindex(level.shape[:-2]), corners):
        try:
            pixels = np.ascontiguousarray(level[(*plane, slice(top, top + tile[0]), slice(left, left + tile[1]))])
        except (OSError, ValueError, RuntimeError) as error:
            where = f"rows from {top} and columns from {left}"
            raise FrameError(f"labels cannot be read in {where}: {one_line(error)}") from error
        if digest is not None:
            digest.update(pixels.data)
        yield pixels


def _identify(path: Path, identifier: str) -> None:
    """Replace the identifier `UNKNOWN` in the OME metadata of a file, in place."""
    comment = str(tifffile.tiffcomment(path))
    tifffile.tiffcomment(path, comment.replace(UNKNOWN, identifier).encode())


def smallest(labels: Array, largest: type[np.unsignedinteger[Any]] = np.uint32) -> Array:
    """Return labels in the smallest unsigned dtype, up to `largest`, that holds them; raises FrameError otherwise."""
    highest = highest_of(labels, largest)  # before anything is assumed about `labels`
    return labels.astype(smallest_dtype(highest), copy=False)


def smallest_dtype(highest: int) -> np.dtype[Any]:
    """Return the smallest unsigned dtype that holds labels up to the highest."""
    return np.dtype(next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if highest <= np.iinfo(kind).max))


def highest_of(labels: Array, largest: type[np.unsignedinteger[Any]] = np.uint32) -> int:
    """Return the highest label; raises FrameError unless they are integers that the dtype `largest` holds."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "uib" or labels.ndim < 2 or not labels.size:
        is_array = isinstance(labels, np.ndarray)
        given = f"{labels.dtype} {labels.shape}" if is_array else shown(labels)
        raise FrameError(f"labels must be a numpy array of integers (..., H, W) (got {given})")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > np.iinfo(largest).max:
        raise FrameError(f"labels must be from 0 to {np.iinfo(largest).max} (got {lowest} to {highest})")
    return highest


def stacked_axes(count: int, axes: str | None = None) -> str:
    """Return a letter for each of `count` axes as OME names them; ``"TYX"`` if they have to be flattened.

    >>> stacked_axes(3), stacked_axes(4), stacked_axes(3, "ZYX"), stacked_axes(4, "PZYX"), stacked_axes(5)
    ('TYX', 'TZYX', 'ZYX', 'TZYX', 'TYX')
    >>> stacked_axes(5, "TcZYX")
    'TCZYX'
    """
    if axes is None:
        axes = "?" * (count - 2) + "YX"
    if not isinstance(axes, str) or len(axes) != count or axes[-2:] != "YX" or set(axes[:-2]) & {"Y", "X"}:
        raise FrameError(f"axes must be {count} letters that end in YX, such as TYX (got {shown(axes)})")
    leading = axes[:-2]
    free = [letter for letter in STACKED if leading.count(letter) != 1]
    known = {letter: letter for letter in STACKED} | {CHANNELS_OF_LABELS: "C"}
    named = [known.get(letter) if leading.count(letter) == 1 else None for letter in leading]
    if named.count(None) > len(free):
        return "TYX"
    return "".join(letter or free.pop(0) for letter in named) + "YX"


def _digest(pixels: bytes | memoryview = b"") -> blake2b:
    return blake2b(pixels, digest_size=16, person=b"unetrt")


def _uuid(digest: blake2b, shape: tuple[int, ...]) -> str:
    """Return an identifier that follows from the labels; tifffile's would hold the address of the network card."""
    digest.update(repr(shape).encode())
    return str(UUID(bytes=digest.digest(), version=5))


def _metadata(axes: str, identifier: str, size: PixelSize | None) -> dict[str, Any]:
    """Return the metadata from which tifffile makes those of OME."""
    return {"axes": axes, "UUID": identifier, "Creator": f"unetrt {__version__}", **physical_size(size)}


def physical_size(size: PixelSize | None) -> dict[str, Any]:
    """Return the attributes of OME that hold a pixel size."""
    if size is None:
        return {}
    sizes = {"X": size.x, "Y": size.y} | ({} if size.z is None else {"Z": size.z})
    return {
        key: value
        for axis, length in sizes.items()
        for key, value in ((f"PhysicalSize{axis}", length), (f"PhysicalSize{axis}Unit", size.unit))
    }


def _resolution(size: PixelSize | None) -> dict[str, Any]:
    """Return the arguments of tifffile for the resolution tags, where they can hold a pixel size."""
    micrometres = None if size is None else size.in_micrometres
    if micrometres is None:
        return {}
    across, down = 1e4 / micrometres.x, 1e4 / micrometres.y  # pixels per centimetre
    if not all(1 / RATIONAL < each < RATIONAL for each in (across, down)):
        return {}
    return {"resolution": (across, down), "resolutionunit": "CENTIMETER"}
