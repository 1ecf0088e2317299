"""Reading image files as frames and as labels; `outputs` writes the files that are made from them.

`sources` lists the images of files and folders. `read_stack` reads one as (N, C, H, W) in its own dtype; `formats`
opens the files. `predict_file` is what `unetrt predict` does with each image: read, segment, write.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from unetrt.runtime.errors import FrameError, OutputError, few, is_out_of_memory, one_line
from unetrt.runtime.files.formats import (
    AS_STORED,
    SUFFIXES,
    Layout,
    OpenedImage,
    Reading,
    arranged,
    channel_indices,
    opened,
    with_channels,
    with_named_axes,
)
from unetrt.runtime.files.names import NAME, same_name
from unetrt.runtime.files.outputs import KINDS, Outputs, labels_of
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.sources import SHOWN, AnyPath, ImageSource, source_of, sources_of
from unetrt.runtime.pixels.frames import as_image, is_narrow

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import Annotation
    from unetrt.runtime.segment.segmenter import Progress, Segmenter

Array = NDArray[Any]
# Package that reads some files -> the extra that installs it.
EXTRAS = {"zarr": "zarr", "fsspec": "distributed", "pylibCZIrw": "formats", "nd2": "formats", "liffile": "formats"}
# Whole numbers below this are exact in float64.
EXACT = 2.0**53

# Pixels of a frame, and of all frames of an image, above which an image is processed in blocks: the objects of these
# take some 2 GB as a whole.
LARGE, LARGE_STACK = 2**26, 2**28


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


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether an image of a shape (N, C, H, W) is processed in blocks, unless a user says otherwise."""
    number, _, height, width = shape
    return height * width > LARGE or number * height * width > LARGE_STACK


def layout_of(path: AnyPath, reading: Reading = AS_STORED) -> Layout | None:
    """Return what the header of an image says; None where it cannot be read as an image."""
    source = source_of(path)
    with suppress(Exception), opened(source.path, source.files) as images:  # `read_stack` says what is wrong
        layout = chosen(images, source, reading).layout
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
        The file cannot be read as an image, its axes are not known, it lacks a channel, or its header declares too
        large an image.
    """
    source = picked(path, reading)
    with readable(source), opened(source.path, source.files) as images:
        image = chosen(images, source, reading, as_labels)
        image.require_room(reading.max_image_memory)
        pixels, layout = arranged(image.read(), image.layout), image.layout
        if not reading.channel:
            return RawImage(pixels, layout)
        indices = channel_indices(reading.channel, pixels.shape[1], layout.channels)
        return RawImage(pixels[:, indices], with_channels(layout, indices))


def picked(path: AnyPath, reading: Reading) -> ImageSource:
    """Return the source of a path; of a file that holds several images, the one that the reading picks, if it does."""
    source = source_of(path)
    if reading.series is not None and not isinstance(path, ImageSource):
        (source,) = sources_of([source.path], reading.series)
    return source


@contextmanager
def readable(source: ImageSource | str) -> Iterator[None]:
    """Raise what goes wrong inside as a FrameError that begins with the image, in one line."""
    try:
        yield
    except FrameError as error:
        raise FrameError(f"{source} {error}") from error
    except UnidentifiedImageError as error:
        raise FrameError(f"{source} is not an image: {', '.join(SUFFIXES)} are read") from error
    except Exception as error:  # decoders raise all kinds of exceptions for a damaged file
        raise _unreadable(source, error) from error


def chosen(
    images: Sequence[OpenedImage], source: ImageSource, reading: Reading, as_labels: bool = False
) -> OpenedImage:
    """Return the image of an open file that a source names, with all axes named, and the frames that are selected.

    Raises FrameError if the file holds several images or no pixels, or its axes do not fit the reading.
    """
    index = source.series or 0
    if index < len(images) and (source.series is not None or len(images) == 1):
        image = images[index]
        if as_labels and image.as_labels is not None:
            image = image.as_labels()
        if (as_labels or reading.missing_chunks == "fill") and image.filled is not None:
            image = image.filled()
        image = image._replace(layout=with_named_axes(image.layout, reading))
        if 0 in image.layout.shape:
            _ = image.layout.stack
            raise FrameError("holds no pixels")
        return image.selected(reading.select) if reading.select else image
    names = few([image.name for image in images], most=SHOWN)
    kinds = f" ({names})" if all(image.name for image in images) else " of different kinds"
    raise FrameError(
        f"holds {len(images)} images{kinds}: --series (series) picks one by its index from 0, or save each as a file"
    )


def _unreadable(path: ImageSource | str, error: Exception) -> FrameError:
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
    pixels = image.pixels
    is_opacity = may_be_opacity(image.layout, pixels.shape[1]) and is_opaque(pixels[:, -1])
    return pixels[:, :-1] if is_opacity else pixels


def may_be_opacity(layout: Layout, channels: int) -> bool:
    """Whether the last of the channels that are read can be opacity: that of grey or colours, stored last."""
    return layout.axes[-1] in "CS" and channels in (2, 4) and channels == layout.stack[1]


def is_opaque(opacity: Array) -> bool:
    """Whether a channel has the highest value of its dtype, or 1, everywhere."""
    return bool((opacity == (np.iinfo(opacity.dtype).max if opacity.dtype.kind in "ui" else 1)).all())


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
        raise wrong_channels(source, stack.shape[1], channels)
    frames = as_image(stack)
    return frames[0] if len(frames) == 1 else frames


def wrong_channels(source: AnyPath, given: int, channels: int) -> FrameError:
    """Return the error for an image with another number of channels than a model takes."""
    return FrameError(
        f"{source} has {given} channels: this model takes {channels}; choose with --channel, or train on "
        "all (if they are no channels, name the axes with --axes)"
    )


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
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)) and float(np.abs(labels).max()) < EXACT:
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
    around = {str(above) for file in taken for above in Path(file).parents}
    key = same_name if _ignores_case(folder) else str
    shared = {*written("a")} & {*written("b")}
    owners: dict[str, ImageSource] = {}
    for source in sources:
        paths = list(written(source.name))
        for path in shared:
            paths.remove(path)
        for path in paths:
            if (length := len(os.fsencode(PurePosixPath(path).name))) > NAME:
                raise OutputError(f"{path}, of {length} bytes, is too long for the name of a file: rename {source}")
            if path in shared:
                raise OutputError(f"{source} would become {path}, which shows all images: rename it")
            if (other := owners.setdefault(key(path), source)) is not source:
                raise OutputError(f"{other} and {source} would both become {path}: rename one, or give one of them")
        for place in (folder / path for path in written(source.name)):
            if (real := os.path.realpath(place)) in taken:
                raise OutputError(f"{place} is an input and would be overwritten: choose another output folder")
            if real in around:
                raise OutputError(f"{place} holds an input and would be replaced: choose another output folder")
    _require_apart(owners)


def _require_apart(owners: Mapping[str, ImageSource]) -> None:
    """Raise OutputError where the file of an image would lie in a folder that is written for another.

    Parameters
    ----------
    owners
        The image of each path that is written.
    """
    outlines, suffix = KINDS["outlines"].place.split("{}")
    for path, source in owners.items():
        for above in map(str, PurePosixPath(path).parents):
            if above in owners:
                raise OutputError(
                    f"{source} would be written into {above}, which is made from {owners[above]}: rename one, or give "
                    "one of them"
                )
        above, _, name = path.rpartition("/")
        stack = owners.get(above + suffix)  # a stack has its outlines in a folder, by number
        if stack and path.startswith(outlines) and name.removesuffix(suffix).isdecimal():
            raise OutputError(
                f"{stack}, if it is a stack, and {source} would both become {path}: rename one, or give one of them"
            )


def _ignores_case(folder: Path) -> bool:
    """Return whether the disk of a folder, which need not exist, ignores the case of names."""
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    with suppress(OSError):
        return there.with_name(there.name.swapcase()).samefile(there) and there.name.swapcase() != there.name
    return False


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
