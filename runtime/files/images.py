"""Image files: TIFF, PNG, NPY and Zarr in; label TIFFs and overlay PNGs out.

`READERS` is the table of formats: suffix -> function that reads a file as a stack (N, C, H, W) in the file's dtype.
`SHAPES` are their counterparts that read no pixels.
`predict_file` is what `unetrt predict` does with each image: read, segment, write.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unetrt.runtime.errors import FrameError, OutputError, one_line, shown
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.pixels.frames import as_image, stack_of

if TYPE_CHECKING:
    from unetrt.runtime.files.object_table import ObjectTable
    from unetrt.runtime.model.spec import Annotation
    from unetrt.runtime.segment.segmenter import Progress, Segmenter

Array = NDArray[Any]

# Pillow would try every format that it knows, whatever the suffix; for PostScript it starts Ghostscript.
PNG = ("PNG",)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Axes by the number of axes, where a file does not name them. Colours on the last axis are recognised by its length.
UNNAMED = {2: "YX", 3: "NYX", 4: "NCYX"}
COLOURS_LAST = {3: "YXC", 4: "NYXC"}


def read_tiff(path: Path) -> Array:
    """Read a TIFF; the axes are those that it names, as OME-TIFF and ImageJ do."""
    with tifffile.TiffFile(path) as tiff:
        series = _series(tiff)
        return arranged(series.asarray(), series.axes)


def _series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    if len(tiff.series) != 1:
        raise FrameError(f"holds {len(tiff.series)} images of different kinds: save each as a file")
    return tiff.series[0]


def read_png(path: Path) -> Array:
    """Read a PNG: grey, colours, or a palette's indices."""
    with path.open("rb") as file:
        header = file.read(26)
    # Bit depth and colour type of the IHDR chunk (PNG specification, 11.2.1); Pillow would cut such colours to 8 bits.
    if header[:8] == PNG_SIGNATURE and header[24] == 16 and header[25] != 0:
        raise FrameError("is a PNG of 16-bit colours, which would be read as 8 bits: save it as TIFF")
    with Image.open(path, formats=PNG) as image:
        # Palette indices, not colours: in a label file they are the labels.
        pixels = np.asarray(image)
    return arranged(pixels, "YX" if pixels.ndim == 2 else "YXC")


def read_npy(path: Path) -> Array:
    """Read a numpy array, its axes as `unnamed_axes`; Python objects are never unpickled."""
    with path.open("rb") as file:
        magic = np.lib.format.read_magic(file)
        dtype = np.lib.format.read_array_header_1_0(file)[2] if magic == (1, 0) else None
    if dtype is not None and dtype.hasobject:
        raise FrameError("holds Python objects, which are never loaded: save an array of plain numbers")
    pixels: Array = np.load(path, allow_pickle=False)
    return arranged(pixels, unnamed_axes(pixels.shape))


def read_zarr(path: Path) -> Array:
    """Read a Zarr array, or the full resolution of an OME-Zarr image with its named axes."""
    level, axes = _zarr_level(path)
    return arranged(np.asarray(level[...]), axes)


def _zarr_level(path: Path) -> tuple[Any, str]:
    """Return a Zarr array, that of the full resolution in an OME-Zarr image, and its axes; reads no pixels."""
    import zarr

    store = zarr.open(path, mode="r")
    if isinstance(store, zarr.Array):
        return store, unnamed_axes(store.shape)
    attributes: Mapping[str, Any] = store.attrs.asdict()
    # OME-Zarr 0.5 moved the metadata below `ome`; https://ngff.openmicroscopy.org/0.5
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        raise FrameError("is a Zarr group without an OME-Zarr image: give an array of it")
    level = store[scales[0]["datasets"][0]["path"]]
    return level, "".join(_letter(axis) for axis in scales[0]["axes"])


def _letter(axis: str | Mapping[str, str]) -> str:
    """Return one letter for an axis of OME-Zarr: a name or, from version 0.4 on, a name and a type."""
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


# Shape and axes of an array in a file.
Layout = tuple[tuple[int, ...], str]


def _tiff_layout(path: Path) -> Layout:
    with tifffile.TiffFile(path) as tiff:
        series = _series(tiff)
        return series.shape, series.axes


def _png_layout(path: Path) -> Layout:
    with Image.open(path, formats=PNG) as image:
        bands = len(image.getbands())
        return ((image.height, image.width), "YX") if bands == 1 else ((image.height, image.width, bands), "YXC")


def _npy_layout(path: Path) -> Layout:
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    return shape, unnamed_axes(shape)


def _zarr_layout(path: Path) -> Layout:
    level, axes = _zarr_level(path)
    return level.shape, axes


SHAPES: Mapping[str, Callable[[Path], Layout]] = {
    ".tif": _tiff_layout,
    ".tiff": _tiff_layout,
    ".png": _png_layout,
    ".npy": _npy_layout,
    ".zarr": _zarr_layout,
}


def stack_shape(path: Path) -> tuple[int, int, int, int] | None:
    """Return the shape (N, C, H, W) of what `read_stack` reads, from the file's header; None where that fails."""
    with suppress(Exception):  # decoders raise all kinds of exceptions; `read_stack` says what is wrong
        shape, axes = SHAPES.get(path.suffix.lower(), _png_layout)(path)
        # Without strides it needs no memory, whatever its shape.
        number, channels, height, width = arranged(np.broadcast_to(np.uint8(0), shape), axes).shape
        return number, channels, height, width
    return None


def unnamed_axes(shape: tuple[int, ...]) -> str:
    """Return the axes of an array without axis names: (H, W), a stack (N, H, W), or (N, C, H, W).

    A last axis of length 3 or 4 next to longer ones is colours: (H, W, C) or (N, H, W, C).
    """
    if len(shape) not in UNNAMED:
        raise FrameError(f"has the shape {shape}: save (H, W), a stack (N, H, W), or (N, C, H, W)")
    colours = len(shape) in COLOURS_LAST and shape[-1] in (3, 4) and min(shape[-3:-1]) > 4
    return COLOURS_LAST[len(shape)] if colours else UNNAMED[len(shape)]


def arranged(pixels: Array, axes: str) -> Array:
    """Return pixels as (N, C, H, W): channels and samples become C, all other axes but Y and X become N."""
    if "Y" not in axes or "X" not in axes:
        raise FrameError(f"has the axes {axes}, without rows (Y) and columns (X): save it with both")
    channel_axes = [index for index, axis in enumerate(axes) if axis in "CS"]
    others = [index for index, axis in enumerate(axes) if axis not in "CSYX"]
    ordered = pixels.transpose(*others, *channel_axes, axes.index("Y"), axes.index("X"))
    channels = int(np.prod([pixels.shape[index] for index in channel_axes]))
    stack: Array = ordered.reshape(-1, channels, *ordered.shape[-2:])
    return stack.astype(np.uint8) if stack.dtype == bool else stack


SUFFIXES = tuple(READERS)
# The format whose files are folders.
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


def stem_of(path: str | Path) -> str:
    """Return a file's name without its suffix; `.ome.tif` and `.ome.zarr` are one suffix."""
    path = Path(path)
    return path.stem[: -len(".ome")] if path.stem.lower().endswith(".ome") else path.stem


def read_stack(path: str | Path) -> Array:
    """Read an image file as a stack (N, C, H, W) with the file's dtype; a single frame has N = 1.

    The file's own axes decide, where it names them: samples and channels become C, all others (time, depth, pages) are
    flattened into N. NPY and plain Zarr arrays are (H, W), (N, H, W), (N, C, H, W), or have 3 or 4 colours last.

    Raises
    ------
    FrameError
        The file cannot be read as an image.
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
    except Exception as error:  # decoders raise all kinds of exceptions for a damaged file
        if "imagecodecs" in str(error):
            raise FrameError(f"{path} has a compression that needs: pip install 'unetrt[codecs]'") from error
        if isinstance(error, ModuleNotFoundError) and error.name == "zarr":
            raise FrameError(f"{path} needs zarr: pip install 'unetrt[zarr]'") from error
        raise FrameError(f"{path} cannot be read: {one_line(error)}") from error


def read_frames(source: Path, channels: int) -> Array:
    """Read an image file for a model of `channels`: a frame, (H, W) or (C, H, W), or a stack of frames."""
    stack = read_stack(source)
    if stack.shape[1] != channels:
        raise FrameError(
            f"{source} has {stack.shape[1]} channels: this model takes {channels}; save those, or train on all"
        )
    frames = as_image(stack)
    return frames[0] if len(frames) == 1 else frames


def read_labels(path: str | Path) -> Array:
    """Read a label file with one plane: integers, (H, W).

    Raises
    ------
    FrameError
        The file is not an image, has several frames or channels, or values other than integers from 0.
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
        The file is not an image, has several channels, or values other than integers from 0.
    """
    stack = read_stack(path)
    if stack.shape[1] in (3, 4) and (stack[:, 1:3] == stack[:, :1]).all():
        stack = stack[:, :1]  # grey saved as colours
    if stack.shape[1] != 1:
        raise FrameError(f"{path} has {stack.shape[1]} channels: save labels as one grey plane")
    labels: Array = stack[:, 0]
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "ui" or labels.min() < 0:
        raise FrameError(f"{path} holds {labels.dtype} values that are not labels: use whole numbers from 0")
    return labels


def write_labels(path: str | Path, labels: Array) -> None:
    """Write labels (..., H, W) atomically as a compressed TIFF of the smallest unsigned dtype that holds them.

    Raises
    ------
    FrameError
        The labels are not integers from 0 to 2^32 - 1, have fewer than two axes, or hold no pixels.
    OutputError
        The file cannot be written.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "uib" or labels.ndim < 2 or not labels.size:
        is_array = isinstance(labels, np.ndarray)
        given = f"{labels.dtype} {labels.shape}" if is_array else shown(labels)
        raise FrameError(f"labels must be a numpy array of integers (..., H, W) (got {given})")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > np.iinfo(np.uint32).max:
        raise FrameError(f"labels must be from 0 to {np.iinfo(np.uint32).max} (got {lowest} to {highest})")
    dtype = next(kind for kind in (np.uint8, np.uint16, np.uint32) if highest <= np.iinfo(kind).max)
    with whole_file(path) as temporary:
        # Level 1: labels are large flat areas, which higher levels hardly compress more.
        level = {"level": 1}
        tifffile.imwrite(
            temporary, labels.astype(dtype), photometric="minisblack", compression="zlib", compressionargs=level
        )


def write_png(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture (H, W) or (H, W, 3), uint8, atomically as a PNG."""
    with whole_file(path) as temporary:
        # Level 1: a third of the time of the default level for a few percent more bytes.
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


@dataclass(frozen=True)
class Output:
    """What `predict_file` computes and writes.

    Attributes
    ----------
    folder
        Folder of NAME.tif and overlays/NAME.png.
    kind
        `instances`: objects are numbered; `classes`: the class map.
    min_area
        Instances of fewer pixels are dropped.
    overlays
        Whether overlays are written.
    tta
        Whether to average over the 8 rotated and reflected copies of each frame.
    table
        Gets a row for each instance; None for no table.
    """

    folder: Path
    kind: "Annotation" = "instances"
    min_area: int = 0
    overlays: bool = True
    tta: bool = False
    table: "ObjectTable | None" = None


def predict_file(segmenter: "Segmenter", source: Path, output: Output, progress: "Progress | None" = None) -> Array:
    """Segment one image file and write its labels, and its overlay, under the output folder.

    Returns
    -------
    The labels, (H, W) or for a stack (N, H, W). The overlay shows a stack's first frame.

    Raises
    ------
    FrameError
        The image cannot be read or does not fit the model; nothing is written then.
    """
    from unetrt.runtime.model.objects import overlay

    channels = segmenter.spec.channels
    frames = read_frames(source, channels)
    labels: Array
    try:
        if output.kind == "instances":
            labels = _objects(segmenter, source, frames, output, progress)
        else:
            labels = segmenter.segment(frames, tta=output.tta, progress=progress).labels
    except FrameError as error:
        raise FrameError(f"{source}: {error}") from error
    write_labels(output.folder / f"{stem_of(source)}.tif", labels)
    if output.overlays:
        picture = overlay(stack_of(frames, channels)[0], stack_of(labels, 1)[0])
        write_png(output.folder / "overlays" / f"{stem_of(source)}.png", picture)
    return labels


def _objects(
    segmenter: "Segmenter", source: Path, frames: Array, output: Output, progress: "Progress | None"
) -> NDArray[np.int32]:
    """Return the instances of an image, after adding them to the table, if any."""
    is_confident = output.table is not None and segmenter.spec.head != "labels"
    found = segmenter.objects(
        frames, min_area=output.min_area, confidence=is_confident, tta=output.tta, progress=progress
    )
    if output.table is not None:
        output.table.add(source.name, frames, found)
    return found.labels
