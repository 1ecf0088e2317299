"""Image files: TIFF, PNG, NPY and Zarr in, label TIFFs and overlay PNGs out."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unetrt.runtime.artifacts import whole_file
from unetrt.runtime.errors import FrameError, OutputError
from unetrt.runtime.image_formats import READERS

Array = NDArray[Any]

SUFFIXES = tuple(READERS)
# A format that is a folder.
ZARR = ".zarr"


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
        raise FrameError(f"{path} does not exist: give a folder of {', '.join(SUFFIXES)} files, or one file")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not found:
        hint = f"; did you mean {path / 'images'}?" if (path / "images").is_dir() else ""
        raise FrameError(f"{path} holds no image: {', '.join(SUFFIXES)} are read{hint}")
    return found


def stem_of(path: Path) -> str:
    """Return a file's name without its suffix; `.ome.tif` and `.ome.zarr` are one suffix."""
    return path.stem[: -len(".ome")] if path.stem.lower().endswith(".ome") else path.stem


def read_stack(path: str | Path) -> Array:
    """Read an image file as a stack (N, C, H, W) with the file's dtype; a single frame has N = 1.

    The file's own axes decide, where it names them: samples and channels become C, all others (time, depth, pages) are
    flattened into N. NPY and plain Zarr arrays are (H, W), (N, H, W), (N, C, H, W), or have 3 or 4 colours last.

    Raises
    ------
    FrameError
        The file is no image that can be read.
    """
    path = Path(path)
    try:
        stack = READERS.get(path.suffix.lower(), READERS[".png"])(path)
        if stack.size == 0:
            raise FrameError("holds no pixels")
        return stack
    except FrameError as error:
        raise FrameError(f"{path} {error}") from error
    except UnidentifiedImageError as error:
        raise FrameError(f"{path} is not an image: {', '.join(SUFFIXES)} are read") from error
    except Exception as error:  # a damaged file makes the decoders fail in every way there is
        if "imagecodecs" in str(error):
            raise FrameError(f"{path} is compressed in a way that needs: pip install 'unetrt[codecs]'") from error
        if isinstance(error, ModuleNotFoundError) and error.name == "zarr":
            raise FrameError(f"{path} needs zarr: pip install 'unetrt[zarr]'") from error
        raise FrameError(f"{path} cannot be read: {error or type(error).__name__}") from error


def read_labels(path: str | Path) -> Array:
    """Read a label file with one plane: integers, (H, W).

    Raises
    ------
    FrameError
        The file is no image, has several frames or channels, or holds no integers.
    """
    planes = read_label_stack(path)
    if len(planes) > 1:
        raise FrameError(f"{path} holds {len(planes)} frames: save labels as one grey plane a file")
    plane: Array = planes[0]
    return plane


def read_label_stack(path: str | Path) -> Array:
    """Read a label file: integers, (N, H, W).

    Raises
    ------
    FrameError
        The file is no image, has several channels, or holds no integers.
    """
    stack = read_stack(path)
    if stack.shape[1] in (3, 4) and (stack[:, 1:3] == stack[:, :1]).all():
        stack = stack[:, :1]  # grey, saved as colours
    if stack.shape[1] != 1:
        raise FrameError(f"{path} has {stack.shape[1]} channels: save labels as one grey plane")
    labels: Array = stack[:, 0]
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
        stem = stem_of(source)
        if (other := stems.setdefault(stem, source)) is not source:
            raise OutputError(f"{other} and {source} would both become {stem}.tif: rename one")
        written = [folder / f"{stem}.tif", *([folder / "overlays" / f"{stem}.png"] if overlays else [])]
        for path in written:
            if path.resolve() in taken:
                raise OutputError(f"{path} is an input and would be overwritten: choose another output folder")
