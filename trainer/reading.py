"""Annotated images from a disk: read, and checked against each other."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import DatasetError, FrameError, OptionError
from unetrt.runtime.files.images import SUFFIXES, read_label_stack, read_stack, stem_of
from unetrt.runtime.geometry.unet_shape import MAX_CLASSES
from unetrt.runtime.pixels.frames import as_frame
from unetrt.trainer.dataset import Annotated, Dataset, class_names, require_objects
from unetrt.trainer.layouts import Pair, find_pairs
from unetrt.trainer.targets import as_instances

Array = NDArray[Any]

# The label that segmentation data sets commonly give to what is not annotated, as Pascal VOC does.
UNANNOTATED = 255


def load(folder: str | Path, classes: int | None = None, ignore: int | None = None) -> Dataset:
    """Read every pair of a folder (`unetrt.trainer.layouts`); stacks become one image a frame.

    Parameters
    ----------
    folder
        The folder.
    classes
        None: labels are instances, one number an object; an image whose labels hold a single value besides 0 is a
        mask, and its connected components are the objects. A number: labels are class indices below it.
    ignore
        Label of pixels that are not annotated; None: 255 for class maps that do not use it, none for instances.

    Raises
    ------
    DatasetError
        A folder is missing, a file has no partner, an image and its labels differ in shape, or all labels are empty.
    FrameError
        A file cannot be read, or holds pixels that are not finite.
    """
    if classes is not None and not 2 <= classes <= MAX_CLASSES:
        raise OptionError(f"{classes} classes cannot be trained: use 2 to {MAX_CLASSES}, the background counts")
    ignore = ignored_label(classes, ignore)
    images = tuple(image for pair in find_pairs(Path(folder)) for image in _annotated(pair, classes, ignore))
    if not images:
        raise DatasetError(f"{folder}: no pixel is annotated, all of them are to be ignored")
    channels = Counter(image.frame.shape[0] for image in images)
    if len(channels) > 1:
        usual = channels.most_common(1)[0][0]
        odd = next(image for image in images if image.frame.shape[0] != usual)
        raise DatasetError(
            f"{odd.name} has {odd.frame.shape[0]} channels, most images have {usual}: all must agree (a TIFF of 3 or 4 "
            "frames that says it is RGB is read as colours: save it with photometric='minisblack')"
        )
    require_objects(images, f"{folder}:")
    return Dataset(images, class_names(classes), instances=classes is None)


def read_names(path: str | Path) -> list[str]:
    """Read a list of image names, a line each, with or without suffix; lines that begin with # are comments.

    Raises
    ------
    DatasetError
        There is no such file, or it names nothing.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as a list of names, a line each: {error}") from error
    names = [_without_suffix(line) for line in lines if line and not line.startswith("#")]
    if not names:
        raise DatasetError(f"{path} names no image: write one name a line")
    return names


def ignored_label(classes: int | None, asked: int | None) -> int | None:
    """Return which label marks pixels that are not annotated: the one asked for, or for class maps 255 if it is free.

    Raises
    ------
    OptionError
        It is the background's.
    """
    if asked is not None:
        if asked < 1:
            raise OptionError(f"label {asked} cannot be ignored: 0 is the background; use one above, such as 255")
        return asked
    return UNANNOTATED if classes is not None and classes <= UNANNOTATED else None


def _without_suffix(name: str) -> str:
    path = Path(name)
    return path.with_name(stem_of(path)).as_posix() if path.suffix.lower() in SUFFIXES else name


def _annotated(pair: Pair, classes: int | None, ignore: int | None) -> list[Annotated]:
    """Read a pair: one image a frame."""
    frames, planes = _frames(pair), read_label_stack(pair.labels)
    masks = None if pair.ignored is None else read_label_stack(pair.ignored)
    _require_same_shape(frames, pair.image, planes, pair.labels)
    if masks is not None:
        _require_same_shape(frames, pair.image, masks, pair.ignored)
    images = []
    for index, (frame, plane) in enumerate(zip(frames, planes, strict=True)):
        name = pair.name if len(frames) == 1 else f"{pair.name}[{index}]"
        ignored = None if masks is None else masks[index] > 0
        if ignore is not None and (plane == ignore).any():
            unknown = plane == ignore
            ignored = unknown if ignored is None else ignored | unknown
            plane = np.where(unknown, 0, plane)  # noqa: PLW2901 - the same plane, without the mark
        if ignored is None or not ignored.all():  # else there is nothing to learn from it
            images.append(Annotated(name, frame, _labels(plane, pair.labels, classes), ignored, pair.source))
    return images


def _frames(pair: Pair) -> Array:
    """Return the annotated frames of a pair's image, (N, C, H, W)."""
    stack = read_stack(pair.image)
    if pair.plane is not None:
        if pair.plane >= len(stack):
            raise DatasetError(f"{pair.labels} annotates plane {pair.plane} of {pair.image}, which has {len(stack)}")
        stack = stack[pair.plane : pair.plane + 1]
    try:
        return np.stack([as_frame(frame, stack.shape[1]) for frame in stack])
    except FrameError as error:
        raise FrameError(f"{pair.image}: {error}") from error


def _require_same_shape(frames: Array, image: Path, planes: Array, labels: Path | None) -> None:
    if len(frames) != len(planes):
        raise DatasetError(
            f"{image} is a stack of {len(frames)} frames, {labels} of {len(planes)}: they must have as many; an array "
            "of channels is saved as (1, C, H, W)"
        )
    if frames.shape[-2:] != planes.shape[-2:]:
        raise DatasetError(
            f"{image} is {frames.shape[-2]} x {frames.shape[-1]} px, {labels} is "
            f"{planes.shape[-2]} x {planes.shape[-1]} px: they must have the same shape"
        )


def _labels(plane: Array, path: Path, classes: int | None) -> NDArray[np.int32]:
    if classes is None:
        return as_instances(plane)
    if plane.max() >= classes:
        raise DatasetError(f"{path} holds class {plane.max()}, {classes} classes are 0 ... {classes - 1}")
    return plane.astype(np.int32)
