"""Image files: frames in; label TIFFs and overlay PNGs out.

`list_images` finds the images of files and folders, each an `ImageSource`. `read_stack` reads one as (N, C, H, W) in
its own dtype; `formats` opens the files. `predict_file` is what `unetrt predict` does with each image: read, segment,
write.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unetrt.runtime.errors import FrameError, OutputError, is_out_of_memory, one_line, shown
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.files.formats import AS_STORED, SUFFIXES, Layout, OpenedImage, Reading, arranged, is_zarr, opened
from unetrt.runtime.pixels.frames import as_image, stack_of

if TYPE_CHECKING:
    from unetrt.runtime.files.object_table import ObjectTable
    from unetrt.runtime.model.spec import Annotation
    from unetrt.runtime.segment.segmenter import Progress, Segmenter

Array = NDArray[Any]
AnyPath = str | os.PathLike[str]
# Package that reads some files -> the extra that installs it.
EXTRAS = {"zarr": "zarr", "pylibCZIrw": "formats", "nd2": "formats", "liffile": "formats"}
# Folders between a Zarr group and one inside it that has metadata: the row of a plate may have none.
NESTED = 3


@dataclass(frozen=True)
class ImageSource(os.PathLike[str]):
    """An image to read: a file, or one of the images of a file. It stands for its path wherever a path is read.

    Attributes
    ----------
    path
        The file, or the folder of a Zarr array or OME-Zarr image, also inside another, such as a plate.
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


def list_images(path: AnyPath) -> list[ImageSource]:
    """Return the images of a folder, sorted by name, or those of a file (or Zarr folder).

    Raises
    ------
    FrameError
        There is no such file or folder, or the folder holds no image.
    """
    path = Path(path)
    if path.is_file() or is_zarr(path):
        return _images_of(path)
    if not path.is_dir():
        state = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise FrameError(f"{path} {state}: give a folder of {', '.join(SUFFIXES)} files, or one file")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES or is_zarr(file))
    found = [image for file in files if file.name[0] != "." for image in _images_of(file)]
    if not found:
        hint = f"; did you mean {path / 'images'}?" if (path / "images").is_dir() else ""
        raise FrameError(f"{path} holds no image: {', '.join(SUFFIXES)} are read{hint}")
    return found


def _images_of(path: Path) -> list[ImageSource]:
    """Return the images of a file or a Zarr folder."""
    if not is_zarr(path):
        return [source_of(path)]
    name, paths = _name_of_zarr(path), [""]
    with suppress(Exception):  # `read_image` says what is wrong
        from unetrt.runtime.files.ome_zarr import image_paths

        paths = image_paths(path) or paths
    if len(paths) == 1:
        return [ImageSource(path / paths[0], name)]
    return [ImageSource(path / below, f"{name}/{below}") for below in paths]


def _name_of_zarr(path: Path) -> str:
    """Return the name of an image in a Zarr folder: it begins with that of the outermost one, as in `plate/A/1/0`."""
    whole = top = path.absolute()
    while above := next(filter(is_zarr, top.parents[:NESTED]), None):
        top = above
    return "/".join((stem_of(top), *whole.relative_to(top).parts))


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
        What the file says about it.
    """

    pixels: Array
    layout: Layout


def stack_shape(path: AnyPath) -> tuple[int, int, int, int] | None:
    """Return the shape (N, C, H, W) of what `read_stack` reads, from the file's header; None where that fails."""
    source = source_of(path)
    with suppress(Exception), opened(source.path) as images:  # `read_stack` says what is wrong
        return _chosen(images, source).layout.stack
    return None


def read_stack(path: AnyPath, reading: Reading = AS_STORED) -> Array:
    """Read an image as a stack (N, C, H, W); see `read_image`."""
    return read_image(path, reading).pixels


def read_image(path: AnyPath, reading: Reading = AS_STORED, *, as_labels: bool = False) -> RawImage:
    """Read an image as a stack (N, C, H, W) with the file's dtype; a single frame has N = 1.

    The file's own axes decide, where it names them: samples and channels become C, all others (time, depth, pages) are
    flattened into N. NPY and plain Zarr arrays are (H, W), (N, H, W), (N, C, H, W), or have 3 or 4 colours last.

    Parameters
    ----------
    path
        The file, or an `ImageSource`.
    reading
        How it is read.
    as_labels
        Whether its values are labels: a palette's indices, and not its colours.

    Raises
    ------
    FrameError
        The file cannot be read as an image, or its header declares too large a one.
    """
    source = source_of(path)
    try:
        with opened(source.path) as images:
            image = _chosen(images, source)
            if as_labels and image.as_labels is not None:
                image = image.as_labels()
            image.require_room(reading.max_image_memory)
            if 0 in image.layout.shape:
                raise FrameError("holds no pixels")
            return RawImage(arranged(image.read(), image.layout), image.layout)
    except FrameError as error:
        raise FrameError(f"{source} {error}") from error
    except UnidentifiedImageError as error:
        raise FrameError(f"{source} is not an image: {', '.join(SUFFIXES)} are read") from error
    except Exception as error:  # decoders raise all kinds of exceptions for a damaged file
        raise _unreadable(source, error) from error


def _chosen(images: Sequence[OpenedImage], source: ImageSource) -> OpenedImage:
    """Return the image of an open file that a source names."""
    if source.series is not None:
        return images[source.series]
    if len(images) != 1:
        raise FrameError(f"holds {len(images)} images of different kinds: save each as a file")
    return images[0]


def _unreadable(path: ImageSource, error: Exception) -> FrameError:
    """Return the error for a file whose decoder failed."""
    if "imagecodecs" in str(error):
        return FrameError(f"{path} has a compression that needs: pip install 'unetrt[codecs]'")
    package = error.name if isinstance(error, ModuleNotFoundError) else None
    if package in EXTRAS:
        return FrameError(f"{path} needs {package}: pip install 'unetrt[{EXTRAS[package]}]'")
    if is_out_of_memory(error):
        return FrameError(f"{path} needs more memory than there is: {one_line(error)}")
    reason = one_line(error, kind=isinstance(error, LookupError))  # its message is a key or an index alone
    return FrameError(f"{path} cannot be read: {reason}")


def without_opacity(image: RawImage) -> Array:
    """Return the pixels (N, C, H, W) of an image; the opacity of grey or colours is left out where it is constant."""
    pixels = image.pixels
    if image.layout.axes[-1] in "CS" and pixels.shape[1] in (2, 4) and (pixels[:, -1] == pixels[0, -1, 0, 0]).all():
        return pixels[:, :-1]
    return pixels


def is_grey(pixels: Array) -> bool:
    """Whether pixels (..., C, H, W) are grey, also if they are saved as three equal colours."""
    channels = pixels.shape[-3]
    return channels == 1 or (channels == 3 and bool((pixels[..., 1:, :, :] == pixels[..., :1, :, :]).all()))


def fitting(image: RawImage, channels: int) -> Array:
    """Return the pixels (N, C, H, W) of an image, with `channels` if only copies or constant opacity are left out."""
    if image.pixels.shape[1] == channels:
        return image.pixels
    pixels = without_opacity(image)
    return pixels[:, :1] if channels == 1 and is_grey(pixels) else pixels


def read_frames(source: AnyPath, channels: int, reading: Reading = AS_STORED) -> Array:
    """Read an image file for a model of `channels`: a frame, (H, W) or (C, H, W), or a stack of frames.

    Grey that is saved as colours is grey, and constant opacity is left out, where the model takes the rest.
    """
    stack = fitting(read_image(source, reading), channels)
    if stack.shape[1] != channels:
        raise FrameError(
            f"{source} has {stack.shape[1]} channels: this model takes {channels}; save those, or train on all"
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
    """Read a label file: integers, (N, H, W).

    Raises
    ------
    FrameError
        The file is not an image, has several channels, or values other than integers from 0.
    """
    image = read_image(path, reading, as_labels=True)
    stack = image.pixels if image.pixels.shape[1] == 4 else without_opacity(image)
    if is_grey(stack[:, :3]):
        stack = stack[:, :1]
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
            raise OutputError(f"{other} and {source} would both become {name}.tif: rename one")
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
            labels = segmenter.segment(frames, tta=output.tta, progress=progress).labels
    except FrameError as error:
        raise FrameError(f"{source}: {error}") from error
    write_labels(output.folder / f"{source.name}.tif", labels)
    if output.overlays:
        picture = overlay(stack_of(frames, channels)[0], stack_of(labels, 1)[0])
        write_png(output.folder / "overlays" / f"{source.name}.png", picture)
    return labels


def _objects(
    segmenter: "Segmenter", source: ImageSource, frames: Array, output: Output, progress: "Progress | None"
) -> NDArray[np.int32]:
    """Return the instances of an image, after adding them to the table, if any."""
    is_confident = output.table is not None and segmenter.spec.head != "labels"
    found = segmenter.objects(
        frames, min_area=output.min_area, confidence=is_confident, tta=output.tta, progress=progress
    )
    if output.table is not None:
        output.table.add(source.path.name, frames, found)
    return found.labels
