"""Image files: frames in; label TIFFs and overlay PNGs out.

`list_images` finds the images of files and folders (`folders`), each an `ImageSource`. `read_stack` reads one as
(N, C, H, W) in its own dtype; `formats` opens the files. `predict_file` is what `unetrt predict` does with each image:
read, segment, write.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unetrt.runtime.errors import FrameError, OutputError, is_out_of_memory, one_line, printable, shown
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.files.folders import images_below
from unetrt.runtime.files.formats import (
    AS_STORED,
    SUFFIXES,
    ZARR,
    Layout,
    OpenedImage,
    Reading,
    arranged,
    named,
    opened,
    picked,
)
from unetrt.runtime.pixels.frames import as_image, is_narrow, stack_of

if TYPE_CHECKING:
    from unetrt.runtime.files.object_table import ObjectTable
    from unetrt.runtime.model.spec import Annotation
    from unetrt.runtime.segment.segmenter import Progress, Segmenter

Array = NDArray[Any]
AnyPath = str | os.PathLike[str]
log = logging.getLogger("unetrt")


@dataclass(frozen=True)
class ImageSource(os.PathLike[str]):
    """An image to read: a file, or one of the images of a file. It stands for its path wherever a path is read.

    Attributes
    ----------
    path
        The file, or the folder of a Zarr array.
    name
        Name of what is made from it: the path below the folder that was listed, without suffix, with `/` between
        folders; of a file with several images, their names are appended.
    series
        Index of the image in the file, from 0; None: the only one.
    """

    path: Path
    name: str
    series: int | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path) if self.series is None else f"{self.path}, image {self.series} ({self.name})"


def source_of(path: AnyPath) -> ImageSource:
    """Return the source of a path; a source is returned as it is."""
    return path if isinstance(path, ImageSource) else ImageSource(Path(path), stem_of(path))


def list_images(path: AnyPath, *, results: Path | None = None) -> list[ImageSource]:
    """Return the images of a folder and its subfolders, sorted by path, or those of a file (or Zarr folder).

    Left out are files of other formats, hidden ones, folders with results of earlier runs, and annotations beside
    images; a warning of the logger `unetrt` counts them (`folders.images_below`).

    Parameters
    ----------
    path
        The folder or file.
    results
        Folder that results are written to, and which is not read.

    Raises
    ------
    FrameError
        There is no such file or folder, or the folder holds no image.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and path.suffix.lower() == ZARR):
        return [source_of(path)]
    if not path.is_dir():
        state = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise FrameError(f"{path} {state}: give a folder of {', '.join(SUFFIXES)} files, or one file")
    files, left_out = images_below(path, results)
    if not files:
        what = f" ({left_out})" if str(left_out) else ""
        raise FrameError(f"{path} holds no image: {', '.join(SUFFIXES)} are read{what}")
    if str(left_out):
        log.warning("%s: %s", printable(str(path)), left_out)
    return [ImageSource(file, name_below(path, file)) for file in files]


def name_below(folder: Path, file: Path) -> str:
    """Return the name of an image: its path below a folder, without suffix, with `/` between folders."""
    return file.with_name(stem_of(file)).relative_to(folder).as_posix()


def named_apart(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """Return the images of several places with different names, each image once.

    If images of different folders have the same name, as `a/x.tif` and `b/x.tif`, all names begin with their folders:
    `a/x` and `b/x`. Images of one folder keep theirs.
    """
    once: dict[tuple[str, int | None], ImageSource] = {}
    for source in sources:
        once.setdefault((os.path.realpath(source), source.series), source)
    kept = list(once.values())
    places = [Path(os.path.normpath(source.path.absolute())) for source in kept]
    folders = [place.parents[source.name.count("/")].parts[1:] for place, source in zip(places, kept, strict=True)]
    for depth in range(max(map(len, folders), default=0) + 1):
        names = [
            "/".join((*parts[len(parts) - depth :], source.name)) for source, parts in zip(kept, folders, strict=True)
        ]
        if len(set(names)) == len(names):
            return [replace(source, name=name) for source, name in zip(kept, names, strict=True)]
    return kept


def stem_of(path: AnyPath) -> str:
    """Return a file's name without its suffix; `.ome.tif` and `.ome.zarr` are one suffix."""
    path = Path(path)
    return path.stem[: -len(".ome")] if path.stem.lower().endswith(".ome") else path.stem


class RawImage(NamedTuple):
    """An image as it is stored.

    Attributes
    ----------
    pixels
        (N, C, H, W), in the file's dtype.
    layout
        What the file says about it; `channels` are the names of those that were read.
    """

    pixels: Array
    layout: Layout


def stack_shape(path: AnyPath, reading: Reading = AS_STORED) -> tuple[int, int, int, int] | None:
    """Return the shape (N, C, H, W) of what `read_stack` reads, from the file's header; None where that fails."""
    source = source_of(path)
    with suppress(Exception), opened(source.path) as images:  # `read_stack` says what is wrong
        number, channels, height, width = _chosen(images, source, reading).layout.stack
        return number, len(reading.channel) or channels, height, width
    return None


def read_stack(path: AnyPath, reading: Reading = AS_STORED) -> Array:
    """Read an image as a stack (N, C, H, W); see `read_image`."""
    return read_image(path, reading).pixels


def read_image(path: AnyPath, reading: Reading = AS_STORED) -> RawImage:
    """Read an image as a stack (N, C, H, W) with the file's dtype; a single frame has N = 1.

    The axes are those of the reading, else those that the file names, else the likely ones of its shape
    (`formats.guessed_axes`). Samples and channels become C, all others (time, depth, pages) are flattened into N.

    Parameters
    ----------
    path
        The file, or an `ImageSource`.
    reading
        How it is read.

    Raises
    ------
    FrameError
        The file cannot be read as an image, its axes cannot be told, it lacks a channel, or its header declares too
        large an image.
    """
    source = source_of(path)
    try:
        with opened(source.path) as images:
            image = _chosen(images, source, reading)
            image.require_room(reading.max_image_memory)
            if 0 in image.layout.shape:
                raise FrameError("holds no pixels")
            return RawImage(*picked(arranged(image.read(), image.layout), image.layout, reading.channel))
    except FrameError as error:
        raise FrameError(f"{source} {error}") from error
    except UnidentifiedImageError as error:
        raise FrameError(f"{source} is not an image: {', '.join(SUFFIXES)} are read") from error
    except Exception as error:  # decoders raise all kinds of exceptions for a damaged file
        raise _unreadable(source, error) from error


def _chosen(images: Sequence[OpenedImage], source: ImageSource, reading: Reading) -> OpenedImage:
    """Return the image of an open file that a source names, with all axes named."""
    if source.series is None and len(images) != 1:
        raise FrameError(f"holds {len(images)} images of different kinds: save each as a file")
    image = images[source.series or 0]
    return image._replace(layout=named(image.layout, reading))


def _unreadable(path: ImageSource, error: Exception) -> FrameError:
    """Return the error for a file whose decoder failed."""
    if "imagecodecs" in str(error):
        return FrameError(f"{path} has a compression that needs: pip install 'unetrt[codecs]'")
    if isinstance(error, ModuleNotFoundError) and error.name == "zarr":
        return FrameError(f"{path} needs zarr: pip install 'unetrt[zarr]'")
    if is_out_of_memory(error):
        return FrameError(f"{path} needs more memory than there is: {one_line(error)}")
    reason = one_line(error, kind=isinstance(error, LookupError))  # its message is a key or an index alone
    return FrameError(f"{path} cannot be read: {reason}")


def read_frames(source: AnyPath, channels: int, reading: Reading = AS_STORED) -> Array:
    """Read an image file for a model of `channels`: a frame, (H, W) or (C, H, W), or a stack of frames."""
    stack = read_stack(source, reading)
    if stack.shape[1] != channels:
        raise FrameError(
            f"{source} has {stack.shape[1]} channels: this model takes {channels}; choose with --channel, or train on "
            "all (if they are no channels, name the axes with --axes)"
        )
    frames = as_image(stack)
    return frames[0] if len(frames) == 1 else frames


def read_labels(path: AnyPath, reading: Reading = AS_STORED) -> Array:
    """Read a label file with one plane: integers, (H, W).

    Raises
    ------
    FrameError
        The file is not an image, has several frames or channels, or values other than integers from 0.
    """
    planes = read_label_stack(path, reading)
    if len(planes) > 1:
        raise FrameError(f"{path} holds {len(planes)} frames: save labels as one grey plane a file")
    plane: Array = planes[0]
    return plane


def read_label_stack(path: AnyPath, reading: Reading = AS_STORED) -> Array:
    """Read a label file: integers, (N, H, W). `reading.channel` is for images, and ignored.

    Raises
    ------
    FrameError
        The file is not an image, has several channels, or values other than integers from 0.
    """
    stack = read_stack(path, replace(reading, channel=()))
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


def require_distinct(sources: Sequence[ImageSource], folder: Path, overlays: bool = True) -> None:
    """Raise OutputError where files named after `sources` in `folder` would overwrite each other or a source."""
    taken = {os.path.realpath(source) for source in sources}
    names: dict[str, ImageSource] = {}
    for source in sources:
        name = source.name
        if (other := names.setdefault(name, source)) is not source:
            raise OutputError(f"{other} and {source} would both become {name}.tif: rename one, or give one of them")
        written = [folder / f"{name}.tif", *([folder / "overlays" / f"{name}.png"] if overlays else [])]
        for path in written:
            if os.path.realpath(path) in taken:
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


def predict_file(
    segmenter: "Segmenter",
    path: AnyPath,
    output: Output,
    progress: "Progress | None" = None,
    reading: Reading = AS_STORED,
) -> Array:
    """Segment one image and write its labels, and its overlay, under the output folder.

    Returns
    -------
    The labels, (H, W) or for a stack (N, H, W). The overlay shows a stack's first frame.

    Raises
    ------
    FrameError
        The image cannot be read or does not fit the model; nothing is written then.
    """
    from unetrt.runtime.model.objects import overlay

    source, channels = source_of(path), segmenter.spec.channels
    frames = read_frames(source, channels, reading)
    labels: Array
    try:
        if output.kind == "instances":
            labels = _objects(segmenter, source, frames, output, progress)
        else:
            labels = segmenter.segment(_certain(frames, channels), tta=output.tta, progress=progress).labels
            labels = labels[:, 0] if labels.ndim > 3 else labels
    except FrameError as error:
        raise FrameError(f"{source}: {error}") from error
    write_labels(output.folder / f"{source.name}.tif", labels)
    if output.overlays:
        picture = overlay(stack_of(frames, channels)[0], stack_of(labels, 1)[0])
        write_png(output.folder / "overlays" / f"{source.name}.png", picture)
    return labels


def _certain(frames: Array, channels: int) -> Array:
    """Return the frames of a file, whose axes are known, as a segmenter takes them: narrow ones as (N, 1, H, W)."""
    return frames[:, None] if channels == 1 and is_narrow(frames.shape) else frames


def _objects(
    segmenter: "Segmenter", source: ImageSource, frames: Array, output: Output, progress: "Progress | None"
) -> NDArray[np.int32]:
    """Return the instances of an image, after adding them to the table, if any."""
    is_confident = output.table is not None and segmenter.spec.head != "labels"
    found = segmenter.objects(
        _certain(frames, segmenter.spec.channels),
        min_area=output.min_area,
        confidence=is_confident,
        tta=output.tta,
        progress=progress,
    )
    if found.count.ndim > 1:
        found = replace(found, labels=found.labels[:, 0], count=found.count[:, 0])
    if output.table is not None:
        output.table.add(f"{source.name.rpartition('/')[0]}/{source.path.name}".lstrip("/"), frames, found)
    return found.labels
