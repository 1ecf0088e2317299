"""Labels as OME-TIFF: named axes and the pixel size, for Bio-Formats (Fiji, QuPath), napari and ImageJ alone.

Readers of OME take axes and pixel size from the OME metadata. ImageJ without Bio-Formats reads the resolution tags
instead: their unit is the centimetre, as TIFF has no smaller one. It reads Deflate (`TiffDecoder` of ImageJ 1:
compressions 8 and 32946).
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt._version import __version__
from unetrt.runtime.errors import FrameError, OptionError, shown
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.files.pixel_size import PixelSize

Array = NDArray[Any]

# Axes before the rows, which OME has besides its channels, and the names of unnamed ones.
STACKED = "TZ"
# Bytes of labels from which on the file is a BigTIFF: offsets of 32 bits end at 4 GiB, less the room for metadata.
LARGE = 2**32 - 2**25
# Largest unsigned denominator or numerator of a resolution tag (TIFF 6.0, RATIONAL).
RATIONAL = 2**32 - 1


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
        A letter for each axis: T and Z before Y and X. None: T for one axis before Y and X, T and Z for two. Other
        letters become T or Z, whichever is free; more axes are flattened into T.
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
    if not isinstance(pixel_size, PixelSize | None):
        raise OptionError(f"pixel_size must be a PixelSize, such as PixelSize(0.65, 0.65) (got {shown(pixel_size)})")
    stored = smallest(labels)
    letters = stacked_axes(stored.ndim, axes)
    if len(letters) < stored.ndim:
        stored = stored.reshape(-1, *stored.shape[-2:])
    metadata = {"axes": letters, "UUID": _uuid(stored), "Creator": f"unetrt {__version__}", **_physical(pixel_size)}
    with whole_file(path) as temporary:
        # Level 1: labels are large flat areas, which higher levels hardly compress more.
        tifffile.imwrite(
            temporary,
            stored,
            bigtiff=stored.nbytes >= LARGE,
            ome=True,
            photometric="minisblack",
            compression="zlib",
            compressionargs={"level": 1},
            metadata=metadata,
            **_resolution(pixel_size),
        )


def smallest(labels: Array) -> Array:
    """Return labels in the smallest unsigned dtype that holds them; raises FrameError as `write_labels`."""
    highest = highest_of(labels)
    dtype = next(kind for kind in (np.uint8, np.uint16, np.uint32) if highest <= np.iinfo(kind).max)
    return labels.astype(dtype, copy=False)


def highest_of(labels: Array) -> int:
    """Return the highest label; raises FrameError as `write_labels`."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "uib" or labels.ndim < 2 or not labels.size:
        is_array = isinstance(labels, np.ndarray)
        given = f"{labels.dtype} {labels.shape}" if is_array else shown(labels)
        raise FrameError(f"labels must be a numpy array of integers (..., H, W) (got {given})")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > np.iinfo(np.uint32).max:
        raise FrameError(f"labels must be from 0 to {np.iinfo(np.uint32).max} (got {lowest} to {highest})")
    return highest


def stacked_axes(count: int, axes: str | None = None) -> str:
    """Return a letter for each of `count` axes as OME names them; ``"TYX"`` if they have to be flattened.

    >>> stacked_axes(3), stacked_axes(4), stacked_axes(3, "ZYX"), stacked_axes(4, "PZYX"), stacked_axes(5)
    ('TYX', 'TZYX', 'ZYX', 'TZYX', 'TYX')
    """
    if axes is None:
        axes = "?" * (count - 2) + "YX"
    if not isinstance(axes, str) or len(axes) != count or axes[-2:] != "YX" or set(axes[:-2]) & {"Y", "X"}:
        raise FrameError(f"axes must be {count} letters that end in YX, such as TYX (got {shown(axes)})")
    leading = axes[:-2]
    free = [letter for letter in STACKED if leading.count(letter) != 1]
    named = [letter if letter in STACKED and leading.count(letter) == 1 else None for letter in leading]
    if named.count(None) > len(free):
        return "TYX"
    return "".join(letter or free.pop(0) for letter in named) + "YX"


def _uuid(labels: Array) -> str:
    """Return an identifier that follows from the labels; tifffile's would hold the address of the network card."""
    digest = blake2b(np.ascontiguousarray(labels).data, digest_size=16, person=b"unetrt")
    digest.update(repr(labels.shape).encode())
    return str(UUID(bytes=digest.digest(), version=5))


def _physical(size: PixelSize | None) -> dict[str, Any]:
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
