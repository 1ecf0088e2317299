"""Image formats as one table: suffix -> what reads it. All give a stack (N, C, H, W) in the file's dtype."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from unetrt.runtime.errors import FrameError

Array = NDArray[Any]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Axes of an array that does not name them; colours last are told by their number.
UNNAMED = {2: "YX", 3: "NYX", 4: "NCYX"}
COLOURS_LAST = {3: "YXC", 4: "NYXC"}


def read_tiff(path: Path) -> Array:
    """Read a TIFF; its own axes decide, OME's and ImageJ's too."""
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.series) != 1:
            raise FrameError(f"holds {len(tiff.series)} images of different kinds: save each as a file")
        series = tiff.series[0]
        return arranged(series.asarray(), series.axes)


def read_png(path: Path) -> Array:
    """Read a PNG: grey, colours, or a palette's indices."""
    with path.open("rb") as file:
        header = file.read(26)
    # Bit depth and colour type of the IHDR chunk (PNG specification, 11.2.1); Pillow would cut such colours to 8 bits.
    if header[:8] == PNG_SIGNATURE and header[24] == 16 and header[25] != 0:
        raise FrameError("is a PNG of 16-bit colours, which would be read as 8 bits: save it as TIFF")
    with Image.open(path) as image:
        # A palette's indices are what a label file means; an image that is drawn with one has other colours.
        pixels = np.asarray(image)
    return arranged(pixels, "YX" if pixels.ndim == 2 else "YXC")


def read_npy(path: Path) -> Array:
    """Read a numpy array (`unnamed_axes` says which axes mean what); objects are never unpickled."""
    with path.open("rb") as file:
        magic = np.lib.format.read_magic(file)
        dtype = np.lib.format.read_array_header_1_0(file)[2] if magic == (1, 0) else None
    if dtype is not None and dtype.hasobject:
        raise FrameError("holds Python objects, which are never loaded: save an array of plain numbers")
    pixels: Array = np.load(path, allow_pickle=False)
    return arranged(pixels, unnamed_axes(pixels.shape))


def read_zarr(path: Path) -> Array:
    """Read a Zarr array, or the full resolution of an OME-Zarr image with its named axes."""
    import zarr

    store = zarr.open(path, mode="r")
    if isinstance(store, zarr.Array):
        return arranged(np.asarray(store[...]), unnamed_axes(store.shape))
    attributes: Mapping[str, Any] = store.attrs.asdict()
    # OME-Zarr 0.5 moved the metadata below `ome`; https://ngff.openmicroscopy.org/0.5
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        raise FrameError("is a Zarr group without an OME-Zarr image: give an array of it")
    level = store[scales[0]["datasets"][0]["path"]]
    return arranged(np.asarray(level), "".join(_letter(axis) for axis in scales[0]["axes"]))


def _letter(axis: str | Mapping[str, str]) -> str:
    """Return one letter for an axis of OME-Zarr, which names it and, from 0.4 on, says what type it is of."""
    if isinstance(axis, str):
        return axis[0].upper()
    return "C" if axis.get("type") == "channel" else axis["name"][0].upper()


READERS: Mapping[str, Callable[[Path], Array]] = {
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".png": read_png,
    ".npy": read_npy,
    ".zarr": read_zarr,
}


def unnamed_axes(shape: tuple[int, ...]) -> str:
    """Return what the axes of an array mean that does not say: (H, W), a stack (N, H, W), or (N, C, H, W).

    A last axis of 3 or 4 beside larger ones is colours: (H, W, C) or (N, H, W, C).
    """
    if len(shape) not in UNNAMED:
        raise FrameError(f"has the shape {shape}: save (H, W), a stack (N, H, W), or (N, C, H, W)")
    colours = len(shape) in COLOURS_LAST and shape[-1] in (3, 4) and min(shape[-3:-1]) > 4
    return COLOURS_LAST[len(shape)] if colours else UNNAMED[len(shape)]


def arranged(pixels: Array, axes: str) -> Array:
    """Return pixels as (N, C, H, W): channels and samples become C, all axes but those and Y and X become N."""
    if "Y" not in axes or "X" not in axes:
        raise FrameError(f"has the axes {axes}, without rows and columns")
    channel_axes = [index for index, axis in enumerate(axes) if axis in "CS"]
    others = [index for index, axis in enumerate(axes) if axis not in "CSYX"]
    ordered = pixels.transpose(*others, *channel_axes, axes.index("Y"), axes.index("X"))
    channels = int(np.prod([pixels.shape[index] for index in channel_axes]))
    stack: Array = ordered.reshape(-1, channels, *ordered.shape[-2:])
    return stack.astype(np.uint8) if stack.dtype == bool else stack
