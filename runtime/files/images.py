"""Image files: frames in; `outputs` has the files that are made from them.

`list_images` finds the images of files and folders (`folders`), each an `ImageSource`. `read_stack` reads one as
(N, C, H, W) in its own dtype; `formats` opens the files. `predict_file` is what `unetrt predict` does with each image:
read, segment, write.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from unetrt.runtime.errors import FrameError, OptionError, OutputError, is_out_of_memory, one_line, printable
from unetrt.runtime.files.acquisitions import COMPANION
from unetrt.runtime.files.folders import images_below
from unetrt.runtime.files.formats import (
    AS_STORED,
    SUFFIXES,
    Layout,
    OpenedImage,
    Reading,
    arranged,
    is_zarr,
    named,
    named_images,
    opened,
    picked,
)
from unetrt.runtime.files.outputs import Outputs, labels_of
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.pixels.frames import as_image, is_narrow

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import Annotation
    from unetrt.runtime.segment.segmenter import Progress, Segmenter

Array = NDArray[Any]
AnyPath = str | os.PathLike[str]
log = logging.getLogger("unetrt")
# Images of a file that a message names, and the longest name in characters that is appended to a file's.
SHOWN, LONGEST = 8, 100
# Package that reads some files -> the extra that installs it.
EXTRAS = {"zarr": "zarr", "pylibCZIrw": "formats", "nd2": "formats", "liffile": "formats"}
# Folders between a Zarr group and one inside it that has metadata: the row of a plate may have none.
NESTED = 3

# Whole numbers below this are exact in float64.
EXACT = 2.0**53


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
    files
        The other files that hold planes of the image, in the same folder; empty: the planes in `path` are the image.
    acquisition
        Name that all images of one acquisition share; empty: there is one image.
    """

    path: Path
    name: str
    series: int | None = None
    files: tuple[Path, ...] = ()
    acquisition: str = ""

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def file_name(self) -> str:
        """Name of the file below the folders of `name`; of a file with several images, that of the image."""
        above = self.name.rpartition("/")[0]
        return f"{above}/{self.path.name}".lstrip("/") if self.series is None else self.name

    def __str__(self) -> str:
        more = f" (with {len(self.files)} more files)" if self.files else ""
        return f"{self.path}{more}" if self.series is None else f"{self.path}{more}, image {self.series} ({self.name})"


def source_of(path: AnyPath) -> ImageSource:
    """Return the source of a path; a source is returned as it is."""
    return path if isinstance(path, ImageSource) else ImageSource(Path(path), stem_of(path))


def list_images(path: AnyPath, reading: Reading = AS_STORED, *, results: Path | None = None) -> list[ImageSource]:
    """Return the images of a folder and its subfolders, sorted by path, or those of a file (or Zarr folder).

    Left out are files of other formats, hidden ones, folders with results of earlier runs, and annotations beside
    images; a warning of the logger `unetrt` counts them (`folders.images_below`).

    A file can hold several fields of an acquisition, each of which is an image. Files of a folder that are a set, such
    as an OME-TIFF in several files, give the images of the set; one of them alone gives the planes that it holds.

    Parameters
    ----------
    path
        Folder or file.
    reading
        How files are read; `series` picks one image of each file that holds several.
    results
        Folder that results are written to, and which is not read.

    Raises
    ------
    FrameError
        There is no such file or folder, or the folder holds no image.
    OptionError
        A file has no image of the index or name `series`.
    """
    path = Path(path)
    if path.is_file() or is_zarr(path):
        return _sources([path, *_described(path)], reading.series)
    if not path.is_dir():
        state = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise FrameError(f"{path} {state}: give a folder of {', '.join(SUFFIXES)} files, or one file")
    files, left_out = images_below(path, results)
    if not files:
        what = f" ({left_out})" if str(left_out) else ""
        raise FrameError(f"{path} holds no image: {', '.join(SUFFIXES)} are read{what}")
    if str(left_out):
        log.warning("%s: %s", printable(str(path)), left_out)
    return [_below(path, source) for source in _sources(files, reading.series)]


def _below(folder: Path, source: ImageSource) -> ImageSource:
    """Return an image of a folder with its subfolder, if any, at the beginning of its names."""
    inside = _folder_of(source)
    if inside == folder or not inside.is_relative_to(folder):
        return source
    above = inside.relative_to(folder).as_posix()
    acquisition = f"{above}/{source.acquisition}" if source.acquisition else ""
    return replace(source, name=f"{above}/{source.name}", acquisition=acquisition)


def _folder_of(source: ImageSource) -> Path:
    """Return the folder that a file, or the Zarr folder around an image, lies in."""
    return (_outermost(source.path) if is_zarr(source.path) else source.path).parent


def named_apart(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """Return the images of several places with different names, each image once.

    If images of different folders have the same name, as `a/x.tif` and `b/x.tif`, all names begin with their folders:
    `a/x` and `b/x`. Images of one folder keep theirs.
    """
    once: dict[tuple[str, int | None], ImageSource] = {}
    for source in sources:
        once.setdefault((os.path.realpath(source), source.series), source)
    kept = list(once.values())
    folders = [_parts_above(source) for source in kept]
    for depth in range(max(map(len, folders), default=0) + 1):
        names = [
            "/".join((*parts[len(parts) - depth :], source.name)) for source, parts in zip(kept, folders, strict=True)
        ]
        if len(set(names)) == len(names):
            return [replace(source, name=name) for source, name in zip(kept, names, strict=True)]
    return kept


def _parts_above(source: ImageSource) -> tuple[str, ...]:
    """Return the folders above those in an image's name."""
    parts = Path(os.path.normpath(_folder_of(source).absolute())).parts[1:]
    named = tuple(source.name.split("/")[:-1])
    shared = next((number for number in range(len(named), 0, -1) if parts[-number:] == named[:number]), 0)
    return parts[: len(parts) - shared]


def _images_of_zarr(path: Path, series: int | str | None) -> list[ImageSource]:
    """Return the images of a Zarr folder; the fields of a well, or the images of a converted file, are an acquisition.

    `series` is that of `_sources`.
    """
    paths = [""]
    with suppress(Exception):  # `read_image` says what is wrong
        from unetrt.runtime.files.ome_zarr import image_paths

        paths = image_paths(path) or paths
    name = _name_of_zarr(path)
    images = [ImageSource(path / paths[0], name)]
    if len(paths) > 1:
        places = [f"{name}/{below}" for below in paths]
        images = [
            ImageSource(path / below, place, acquisition=place.rpartition("/")[0])
            for below, place in zip(paths, places, strict=True)
        ]
    return images if series is None else [images[_index_of(series, paths, path)]]


def _name_of_zarr(path: Path) -> str:
    """Return the name of an image in a Zarr folder: it begins with that of the outermost one, as in `plate/A/1/0`."""
    top = _outermost(path.absolute())
    return "/".join((stem_of(top), *path.absolute().relative_to(top).parts))


def _outermost(path: Path) -> Path:
    """Return the outermost Zarr folder around one, or the folder itself."""
    while above := next(filter(is_zarr, path.parents[:NESTED]), None):
        path = above
    return path


def stem_of(path: AnyPath) -> str:
    """Return a file's name without its suffix; `.ome.tif` and `.ome.zarr` are one suffix."""
    path = Path(path)
    return path.stem[: -len(".ome")] if path.stem.lower().endswith(".ome") else path.stem


def _sources(files: Sequence[Path], series: int | str | None = None) -> list[ImageSource]:
    """Return the images of files, in their order; files that are a set give the images of the set.

    Parameters
    ----------
    files
        The files; one whose set is not among them gives the planes that it holds.
    series
        Image to pick of each acquisition, see `Reading`.
    """
    place = {file: index for index, file in enumerate(files)}
    found: list[tuple[int, ImageSource]] = []
    taken: set[Path] = set()
    for file in sorted(files, key=lambda file: file.suffix.lower() != COMPANION):  # these describe the others
        if file in taken:
            continue
        fields: list[tuple[str, tuple[Path, ...]]] = []
        with suppress(Exception):  # `read_image` says what is wrong
            fields = named_images(file, files)
        present = {path for _, paths in fields for path in paths if path in place and path not in taken}
        if file in present or (present and file.suffix.lower() == COMPANION):
            found += [(place[image.path], image) for image in _of_fields(fields, present, series)]
            taken |= present
        elif is_zarr(file):
            found += [(place[file], image) for image in _images_of_zarr(file, series)]
        elif series is not None:
            found.append((place[file], _picked(source_of(file), series)))
        else:
            found.append((place[file], source_of(file)))
    return [image for _, image in sorted(found, key=lambda each: each[0])]


def _of_fields(
    fields: Sequence[tuple[str, tuple[Path, ...]]],
    present: Collection[Path],
    series: int | str | None,
) -> list[ImageSource]:
    """Return the images of an acquisition.

    Parameters
    ----------
    fields
        Name and files of each, as `named_images` returns them.
    present
        Those of its files that are listed. A single one gives the planes that it holds.
    series
        As in `_sources`.
    """
    images, names = [], []
    for index, (name, paths) in enumerate(fields):
        first = next((path for path in paths if path in present), None)
        if first is None:
            continue
        beside = [number for number, (_, others) in enumerate(fields) if first in others]
        number, label = None, stem_of(first)
        if len(beside) > 1:
            number = beside.index(index)
            label = _joined(label, [fields[other][0] for other in beside], number)
        others = tuple(path for path in paths if path != first) if len(present) > 1 else ()
        images.append(ImageSource(first, label, number, others))
        names.append(name)
    if len(images) > 1:
        acquisition = stem_of(min(present))
        images = [replace(image, acquisition=acquisition) for image in images]
    return images if series is None else [images[_index_of(series, names, min(present))]]


def _joined(stem: str, names: Sequence[str], index: int) -> str:
    """Return the name of one of the images `names` of a file; characters that paths do not allow become _."""
    safe = [re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name).strip(" .")[:LONGEST] for name in names]
    if len(set(safe)) < len(safe) or not all(safe):
        return f"{stem}_{index}"
    return safe[index] if safe[index].startswith(stem) and len(safe[index]) > len(stem) else f"{stem}_{safe[index]}"


def _index_of(series: int | str, names: Sequence[str], path: Path) -> int:
    """Return the index of the image that `series` names."""
    if isinstance(series, str) and names.count(series) == 1:
        return names.index(series)
    if isinstance(series, int) and series < len(names):
        return series
    known = ", ".join(f"{index} {name}".strip() for index, name in enumerate(names[:SHOWN]))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise OptionError(f"--series (series) {series!r:.60} is no image of {path}, which holds {known}{more}")


def _picked(source: ImageSource, series: int | str) -> ImageSource:
    """Return the source of the image `series` of a file that may hold several."""
    names = [""]
    with suppress(Exception), opened(source.path) as images:  # `read_image` says what is wrong
        names = [image.name for image in images]
    index = _index_of(series, names, source.path)
    return source if len(names) == 1 else replace(source, series=index)


def _described(path: Path) -> list[Path]:
    """Return the files that a companion file describes and that exist; none for any other file."""
    if path.suffix.lower() != COMPANION:
        return []
    try:
        files = dict.fromkeys(file for _, files in named_images(path) for file in files)
    except FrameError as error:
        raise FrameError(f"{path} {error}") from error
    there = [file for file in files if file.is_file()]
    if not there:
        raise FrameError(f"{path} describes images in other files, and none of those is in its folder: add them")
    return there


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
    layout = layout_of(path, reading)
    if layout is None:
        return None
    number, channels, height, width = layout.stack
    return number, len(reading.channel) or channels, height, width


def layout_of(path: AnyPath, reading: Reading = AS_STORED) -> Layout | None:
    """Return what the header of an image says; None where it cannot be read as an image."""
    source = source_of(path)
    with suppress(Exception), opened(source.path, source.files) as images:  # `read_stack` says what is wrong
        layout = _chosen(images, source, reading).layout
        _ = layout.stack
        return layout
    return None


def read_stack(path: AnyPath, reading: Reading = AS_STORED) -> Array:
    """Read an image as a stack (N, C, H, W); see `read_image`."""
    return read_image(path, reading).pixels


def read_image(path: AnyPath, reading: Reading = AS_STORED, *, as_labels: bool = False) -> RawImage:
    """Read an image as a stack (N, C, H, W) with the file's dtype; a single frame has N = 1.

    The axes are those of the reading, else those that the file names, else the likely ones of its shape
    (`formats.guessed_axes`). Samples and channels become C, all others (time, depth, pages) are flattened into N.

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
        The file cannot be read as an image, its axes cannot be told, it lacks a channel, or its header declares too
        large an image.
    """
    source = source_of(path)
    if reading.series is not None and not isinstance(path, ImageSource):
        (source,) = _sources([source.path], reading.series)
    try:
        with opened(source.path, source.files) as images:
            image = _chosen(images, source, reading, as_labels)
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


def _chosen(
    images: Sequence[OpenedImage], source: ImageSource, reading: Reading, as_labels: bool = False
) -> OpenedImage:
    """Return the image of an open file that a source names, with all axes named."""
    index = source.series or 0
    if index < len(images) and (source.series is not None or len(images) == 1):
        image = images[index]
        if as_labels and image.as_labels is not None:
            image = image.as_labels()
        return image._replace(layout=named(image.layout, reading))
    names = ", ".join(image.name for image in images[:SHOWN])
    kinds = f" ({names})" if all(image.name for image in images) else " of different kinds"
    raise FrameError(
        f"holds {len(images)} images{kinds}: --series (series) picks one by its index from 0, or save each as a file"
    )


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
    """Return the pixels (N, C, H, W) of an image, without the opacity of grey or colours where all are opaque.

    A last channel of a microscope can be constant too, but hardly ever at the highest value.
    """
    pixels, is_whole = image.pixels, image.pixels.shape[1] == image.layout.stack[1]
    if image.layout.axes[-1] not in "CS" or pixels.shape[1] not in (2, 4) or not is_whole:
        return pixels
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1
    return pixels[:, :-1] if (pixels[:, -1] == opaque).all() else pixels


def is_grey(pixels: Array) -> bool:
    """Whether pixels (..., C, H, W) are grey, also if they are saved as three equal colours."""
    channels = pixels.shape[-3]
    return channels == 1 or (channels == 3 and bool((pixels[..., 1:, :, :] == pixels[..., :1, :, :]).all()))


def fitting(image: RawImage, channels: int) -> Array:
    """Return the pixels (N, C, H, W) of an image, with `channels` if only copies or full opacity are left out."""
    if image.pixels.shape[1] == channels:
        return image.pixels
    pixels = without_opacity(image)
    return pixels[:, :1] if channels == 1 and is_grey(pixels) else pixels


def read_frames(source: AnyPath, channels: int, reading: Reading = AS_STORED) -> Array:
    """Read an image file for a model of `channels`: a frame, (H, W) or (C, H, W), or a stack of frames.

    Grey that is saved as colours is grey, and full opacity is left out, where the model takes the rest.
    """
    return _frames_for(source, fitting(read_image(source, reading), channels), channels)


def _frames_for(source: AnyPath, stack: Array, channels: int) -> Array:
    """Return a stack (N, C, H, W) as a model of `channels` takes it."""
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
    planes = read_grey_stack(path, reading)
    try:
        return whole_numbers(planes)
    except FrameError as error:
        raise FrameError(f"{path} {error}") from error


def read_grey_stack(path: AnyPath, reading: Reading = AS_STORED) -> Array:
    """Read a file of one channel, (N, H, W) in its own dtype; raises as `read_stack` does, and for several channels.

    Grey values that were saved as colours are one channel.
    """
    image = read_image(path, replace(reading, channel=()), as_labels=True)
    stack = image.pixels if image.pixels.shape[1] == 4 else without_opacity(image)
    if is_grey(stack[:, :3]):
        stack = stack[:, :1]
    if stack.shape[1] != 1:
        raise FrameError(f"{path} has {stack.shape[1]} channels: save labels as one grey plane")
    planes: Array = stack[:, 0]
    return planes


def whole_numbers(planes: Array) -> Array:
    """Return labels of any shape as integers; raises FrameError for values that are not whole numbers from 0."""
    labels = planes
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)) and np.abs(labels).max() < EXACT:
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "ui" or labels.min() < 0:
        raise FrameError(f"holds {planes.dtype} values that are not labels: use whole numbers from 0")
    return labels


def require_distinct(
    sources: Sequence[ImageSource],
    folder: Path,
    written: Callable[[str], list[str]] = labels_of,
    inputs: Iterable[ImageSource] = (),
) -> None:
    """Raise OutputError where files named after `sources` in `folder` would overwrite each other or a source.

    Parameters
    ----------
    sources
        The images.
    folder
        The output folder.
    written
        Returns the paths in it of the files that are written for an image of this name.
    inputs
        Other images that are read.
    """
    taken = {os.path.realpath(file) for source in (*sources, *inputs) for file in (source.path, *source.files)}
    names: dict[str, ImageSource] = {}
    for source in sources:
        paths = written(source.name)
        if (other := names.setdefault(source.name, source)) is not source:
            raise OutputError(f"{other} and {source} would both become {paths[0]}: rename one, or give one of them")
        for path in (folder / path for path in paths):
            if os.path.realpath(path) in taken:
                raise OutputError(f"{path} is an input and would be overwritten: choose another output folder")


@dataclass(frozen=True)
class Output:
    """What `predict_file` computes and writes.

    Attributes
    ----------
    files
        Writes the files.
    kind
        `instances`: objects are numbered; `classes`: the class map.
    min_area
        Instances of fewer pixels are dropped.
    tta
        Whether to average over the 8 rotated and reflected copies of each frame.
    """

    files: Outputs
    kind: "Annotation" = "instances"
    min_area: int = 0
    tta: bool = False


def predict_file(
    segmenter: "Segmenter",
    path: AnyPath,
    output: Output,
    progress: "Progress | None" = None,
    reading: Reading = AS_STORED,
) -> Array:
    """Segment one image and write its labels, and other files, under the output folder.

    Returns
    -------
    The labels, (H, W) or for a stack (N, H, W).

    Raises
    ------
    FrameError
        The image cannot be read or does not fit the model; nothing is written then.
    """
    source, channels = source_of(path), segmenter.spec.channels
    image = read_image(source, reading)
    stack = fitting(image, channels)
    frames = _frames_for(source, stack, channels)
    confidence = None
    labels: Array
    try:
        if output.kind == "instances":
            is_confident = output.files.shows_confidence and segmenter.spec.head != "labels"
            found = segmenter.objects(
                _certain(frames, channels),
                min_area=output.min_area,
                confidence=is_confident,
                tta=output.tta,
                progress=progress,
            )
            labels, confidence = found.labels, found.confidence_of_frames
        else:
            labels = segmenter.segment(_certain(frames, channels), tta=output.tta, progress=progress).labels
        labels = labels[:, 0] if labels.ndim > 3 else labels
    except FrameError as error:
        raise FrameError(f"{source}: {error}") from error
    axes, lengths = stacked_axes_of(image.layout)
    output.files.write(
        LabelledImage(
            source.name,
            labels.reshape(*lengths, *labels.shape[-2:]),
            output.kind,
            frames=stack,
            axes=axes,
            pixel_size=image.layout.pixel_size,
            confidence=confidence,
            source=source.file_name,
        )
    )
    return labels


def _certain(frames: Array, channels: int) -> Array:
    """Return the frames of a file, whose axes are known, as a segmenter takes them: narrow ones as (N, 1, H, W)."""
    return frames[:, None] if channels == 1 and is_narrow(frames.shape) else frames


def stacked_axes_of(layout: Layout) -> tuple[str, tuple[int, ...]]:
    """Return the axes of the labels of an image, such as ``"ZYX"``, and the length of each before the rows.

    Axes of length 1 are left out.
    """
    kept = [(axis, length) for axis, length in layout.frames if length > 1]
    return "".join(axis for axis, _ in kept) + "YX", tuple(length for _, length in kept)
