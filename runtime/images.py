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
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
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
    except FrameError as error:
        raise FrameError(f"{path} {error}") from error
    except UnidentifiedImageError as error:
        raise FrameError(f"{path} is not an image: {', '.join(SUFFIXES)} are read") from error
    except Exception as error:  # a damaged file makes the decoders fail in every way there is
        if "imagecodecs" in str(error):
            raise FrameError(f"{path} is compressed in a way that needs: pip install 'unetrt[codecs]'") from error
        raise FrameError(f"{path} cannot be read: {error or type(error).__name__}") from error


def read_labels(path: str | Path) -> Array:
    """Read a label file: integers, (H, W).

    Raises
    ------
    FrameError
        The file is no image, has several frames or channels, or holds no integers.
    """
    stack = read_stack(path)
    if len(stack) == 1 and stack.shape[1] in (3, 4) and (stack[:, 1:3] == stack[:, :1]).all():
        stack = stack[:, :1]  # grey, saved as colours
    if stack.shape[:2] != (1, 1):
        raise FrameError(
            f"{path} holds {stack.shape[0]} frames with {stack.shape[1]} channels: save labels as one grey plane a file"
        )
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


def require_distinct(sources: list[Path], folder: Path, overlays: bool = True) -> None:
    """Raise OutputError where files named after `sources` in `folder` would overwrite each other or a source."""
    taken = {source.resolve() for source in sources}
    stems: dict[str, Path] = {}
    for source in sources:
        if (other := stems.setdefault(source.stem, source)) is not source:
            raise OutputError(f"{other} and {source} would both become {source.stem}.tif: rename one")
        written = [folder / f"{source.stem}.tif", *([folder / "overlays" / f"{source.stem}.png"] if overlays else [])]
        for path in written:
            if path.resolve() in taken:
                raise OutputError(f"{path} is an input and would be overwritten: choose another output folder")


def _read_tiff(path: Path) -> Array:
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.series) != 1:
            raise FrameError(f"holds {len(tiff.series)} images of different kinds: save each as a file")
        series = tiff.series[0]
        pixels, axes = series.asarray(), series.axes
    if "Y" not in axes or "X" not in axes:
        raise FrameError(f"has the axes {axes}, without rows and columns")
    channel_axes = [index for index, axis in enumerate(axes) if axis in "CS"]
    others = [index for index, axis in enumerate(axes) if axis not in "CSYX"]
    ordered = pixels.transpose(*others, *channel_axes, axes.index("Y"), axes.index("X"))
    channels = int(np.prod([pixels.shape[index] for index in channel_axes]))
    return _unsigned(ordered.reshape(-1, channels, *ordered.shape[-2:]))


def _read_png(path: Path) -> Array:
    with path.open("rb") as file:
        header = file.read(26)
    # Bit depth and colour type of the IHDR chunk (PNG specification, 11.2.1); Pillow would cut such colours to 8 bits.
    if header[:8] == PNG_SIGNATURE and header[24] == 16 and header[25] != 0:
        raise FrameError("is a PNG of 16-bit colours, which would be read as 8 bits: save it as TIFF")
    with Image.open(path) as image:
        # A palette's indices are what a label file means; an image that is drawn with one has other colours.
        pixels = np.asarray(image)
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return _unsigned(planes[None])


def _unsigned(pixels: Array) -> Array:
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
