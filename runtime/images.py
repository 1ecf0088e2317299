"""Image files: TIFF and PNG in, label TIFFs and overlay PNGs out."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unetrt.runtime.artifacts import whole_file
from unetrt.runtime.errors import FrameError, OutputError

Array = NDArray[Any]

TIFF = (".tif", ".tiff")
PNG = (".png",)
SUFFIXES = (*TIFF, *PNG)


def list_images(path: str | Path) -> list[Path]:
    """Return the images of a folder, sorted by name, or the file itself.

    Raises
    ------
    FrameError
        There is no such file or folder, or the folder holds no TIFF or PNG.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FrameError(f"{path} does not exist: give a folder of {', '.join(SUFFIXES)} files, or one file")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not found:
        raise FrameError(f"{path} holds no image: {', '.join(SUFFIXES)} are read")
    return found


def read_stack(path: str | Path) -> Array:
    """Read an image file as a stack (N, C, H, W) with the file's dtype; a single frame has N = 1.

    A TIFF's own axes decide: samples and channels become C, all others (time, depth, pages) are flattened into N.

    Raises
    ------
    FrameError
        The file is no image that can be read.
    """
    path = Path(path)
    try:
        return _read_tiff(path) if path.suffix.lower() in TIFF else _read_png(path)
    except UnidentifiedImageError as error:
        raise FrameError(f"{path} is not an image: {', '.join(SUFFIXES)} are read") from error
    except (OSError, ValueError, IndexError, KeyError, SyntaxError, tifffile.TiffFileError) as error:
        raise FrameError(f"{path} cannot be read: {error}") from error


def read_labels(path: str | Path) -> Array:
    """Read a label file: integers, (H, W).

    Raises
    ------
    FrameError
        The file is no image, has several frames or channels, or holds no integers.
    """
    stack = read_stack(path)
    if stack.shape[:2] != (1, 1):
        raise FrameError(f"{path} has {stack.shape[0]} frames of {stack.shape[1]} channels: labels are one plane each")
    labels: Array = stack[0, 0]
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "ui" or labels.min() < 0:
        raise FrameError(f"{path} holds {labels.dtype} values that are no labels: use whole numbers from 0")
    return labels


def write_labels(path: str | Path, labels: Array) -> None:
    """Write labels (..., H, W) as a TIFF of the smallest unsigned dtype that holds them, compressed, whole or not."""
    highest = int(labels.max(initial=0))
    dtype = next(kind for kind in (np.uint8, np.uint16, np.uint32) if highest <= np.iinfo(kind).max)
    with whole_file(path) as temporary:
        # Level 1: labels are large flat areas, so that more effort saves little.
        level = {"level": 1}
        tifffile.imwrite(
            temporary, labels.astype(dtype), photometric="minisblack", compression="zlib", compressionargs=level
        )


def write_png(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture (H, W) or (H, W, 3), uint8, as a PNG, whole or not."""
    with whole_file(path) as temporary:
        # Level 1: a third of the default's time for a few percent more bytes.
        Image.fromarray(picture).save(temporary, compress_level=1)


def require_distinct(sources: list[Path], folder: Path) -> None:
    """Raise OutputError where label files named after `sources` would overwrite each other or a source."""
    stems: dict[str, Path] = {}
    for source in sources:
        if (other := stems.setdefault(source.stem, source)) is not source:
            raise OutputError(f"{other} and {source} would both become {source.stem}.tif: rename one")
        if source.resolve() == (folder / f"{source.stem}.tif").resolve():
            raise OutputError(f"the labels of {source} would overwrite it: choose another output folder")


def _read_tiff(path: Path) -> Array:
    with tifffile.TiffFile(path) as tiff:
        if not tiff.series:
            raise ValueError("it holds no image")
        series = tiff.series[0]
        pixels, axes = series.asarray(), series.axes
    if "Y" not in axes or "X" not in axes:
        raise ValueError(f"its axes are {axes}, without rows and columns")
    channel_axes = [index for index, axis in enumerate(axes) if axis in "CS"]
    others = [index for index, axis in enumerate(axes) if axis not in "CSYX"]
    ordered = pixels.transpose(*others, *channel_axes, axes.index("Y"), axes.index("X"))
    channels = int(np.prod([pixels.shape[index] for index in channel_axes]))
    return _unsigned(ordered.reshape(-1, channels, *ordered.shape[-2:]))


def _read_png(path: Path) -> Array:
    with Image.open(path) as image:
        # A palette's indices are what a label file means; an image that is drawn with one has other colours.
        pixels = np.asarray(image)
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return _unsigned(planes[None])


def _unsigned(pixels: Array) -> Array:
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
