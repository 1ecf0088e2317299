"""Annotated images: reading those of a folder, and splitting them into training and validation.

`unetrt.trainer.layouts` finds the files of each image. A stack becomes one image for each frame.

>>> train, validation = read_dataset("cells").split(0.2, seed=0)
"""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import DatasetError, FrameError, OptionError, few
from unetrt.runtime.files.atomic import require_regular
from unetrt.runtime.files.formats import AS_STORED, SUFFIXES, Reading
from unetrt.runtime.files.images import is_grey, read_image, read_label_stack, without_opacity
from unetrt.runtime.files.sources import ImageSource, stem_of
from unetrt.runtime.geometry.unet_shape import MAX_CLASSES
from unetrt.runtime.pixels.frames import as_frame
from unetrt.trainer.label_values import UNSTATED, LabelDoubts, LabelRule, components, require_background, require_ids
from unetrt.trainer.layouts import AnnotatedFiles, annotation_of, find_files, read_annotation

Array = NDArray[Any]
Mask = NDArray[np.bool_]

# The label of unannotated pixels in class maps, as in Pascal VOC.
UNANNOTATED = 255
# Number of frames in `Dataset.some_frames`, and the largest side of each, in pixels.
SOME, SIDE = 4, 512
# Share held back for validation: of the images, and of a single image.
SHARE, SHARE_OF_ONE = 0.2, 1 / 3
# Least height or width of each part of a single image, in pixels: about the size of one object and its surroundings.
LEAST = 32


@dataclass(frozen=True)
class Part:
    """A part of an image, of which the rest is in the other set.

    Attributes
    ----------
    about
        The part held back, such as `the right 33% of cell_04`.
    size
        Height and width of the whole image, in pixels.
    crossing
        Number of objects on both sides of the cut, whose pixels are ignored in both sets.
    held
        Whether this is the part held back.
    """

    about: str
    size: tuple[int, int]
    crossing: int
    held: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotation.

    Attributes
    ----------
    name
        The file's stem; for a frame of a stack with its index, as in `stack[3]`.
    frame
        Raw grey values, (C, H, W), in the file's dtype.
    labels
        (H, W) int32: instances, one number for each object, or class indices; 0 is the background.
    ignored
        (H, W) bool, true for unannotated pixels, which count neither in loss nor in scores; None: all are annotated.
    source
        The acquisition, stack or sequence of the frame, whose frames resemble each other. Empty: a single image.
    part
        Where the image is a part of a single one that is split; None for a whole image.
    """

    name: str
    frame: Array
    labels: NDArray[np.int32]
    ignored: Mask | None = None
    source: str = ""
    part: Part | None = None


@dataclass(frozen=True)
class Dataset:
    """Annotated images that fit together.

    Attributes
    ----------
    images
        At least one, all with the same number of channels; at least one with an object.
    class_names
        Background first.
    instances
        Whether labels are instances; otherwise they are class indices.
    notes
        Sentences about how the labels were taken.
    """

    images: tuple[AnnotatedImage, ...]
    class_names: tuple[str, ...]
    instances: bool
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Number of channels of every frame."""
        return int(self.images[0].frame.shape[0])

    @cached_property
    def sizes(self) -> Counter[tuple[int, int]]:
        """Number of frames of each height and width."""
        return Counter(image.labels.shape for image in self.images)

    @property
    def part(self) -> Part | None:
        """The part of a single image that this set consists of; None for whole images."""
        return self.images[0].part

    @property
    def whole_sizes(self) -> Counter[tuple[int, int]]:
        """Number of frames of each height and width, where a part counts as its whole frame."""
        return Counter({self.part.size: 1}) if self.part else self.sizes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, frames, labels and masks, in hexadecimal."""
        digest = hashlib.sha256(repr((self.class_names, self.instances)).encode())
        for image in self.images:
            for array in (image.frame, image.labels, image.ignored):
                if array is not None:
                    digest.update(f"{image.name} {array.shape} {array.dtype}".encode(errors="surrogateescape"))
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __str__(self) -> str:
        sizes = ", ".join(f"{often} of {height}x{width}" for (height, width), often in self.sizes.most_common())
        dtypes = ", ".join(sorted({str(image.frame.dtype) for image in self.images}))
        about = f"{len(self.images)} images ({sizes}; {dtypes}; channels: {self.channels}), {self._annotation()}"
        about += f", {self.ignored:.1%} of the pixels not annotated" if self.ignored else ""
        if self.part is None:
            return about
        return f"{self.part.about}: {about}" if self.part.held else f"all but {self.part.about}: {about}"

    def _annotation(self) -> str:
        empty = sum(not image.labels.any() for image in self.images)
        without = f", {empty} images without any" if empty else ""
        if not self.instances:
            return f"classes: {', '.join(self.class_names)}{without}"
        areas = np.concatenate([np.bincount(image.labels.ravel())[1:] for image in self.images])
        return f"{np.count_nonzero(areas)} objects (median {np.median(areas[areas > 0]):.0f} px){without}"

    def warnings(self) -> list[str]:
        """Return a sentence for each property of the data that is likely a mistake."""
        found = list(self.notes)
        if self.part:
            found.append(
                f"there is one image, validated on {self.part.about}: scores say little about other images "
                f"(objects across the cut, which neither part counts: {self.part.crossing})"
            )
        if flat := [
            image.name for image in self.images if image.labels.any() and image.frame.min() == image.frame.max()
        ]:
            found.append(f"{few(flat, most=1)} without any contrast, but with objects")
        return found

    def some_frames(self) -> tuple[Array, ...]:
        """Return up to 4 raw frames (C, H, W), evenly spaced in the set, cropped to 512 px a side."""
        step = max(1, len(self.images) // SOME)
        return tuple(image.frame[:, :SIDE, :SIDE] for image in self.images[::step][:SOME])

    @property
    def ignored(self) -> float:
        """Share of the pixels that are not annotated, 0 to 1."""
        pixels = sum(image.labels.size for image in self.images)
        return sum(int(image.ignored.sum()) for image in self.images if image.ignored is not None) / pixels

    def split(self, fraction: float | None, seed: int) -> tuple["Dataset", "Dataset"]:
        """Return two sets, the second with about `fraction` of the images, at least one, drawn at random.

        Frames of one acquisition, stack or sequence stay together. If there is a single acquisition, its fields stay
        whole; frames of a single stack are drawn. A single image is cut in two, see `_cut`. `fraction` None stands for
        a fifth of the images, or for a third of a single one.

        Raises
        ------
        DatasetError
            A set would hold no object, or a single image is too small.
        OptionError
            The fraction is not between 0 and 1.
        """
        if fraction is not None and not 0 < fraction < 1:
            raise OptionError(
                f"a validation fraction of {fraction} splits nothing: use one between 0 and 1, such as 0.2"
            )
        if len(self.images) == 1:
            return self._cut(fraction or SHARE_OF_ONE)
        groups = list(self._by_source().values())
        if len(groups) == 1:
            groups = list(self._by_stack().values())
        if len(groups) == 1:
            groups = [[index] for index in range(len(self.images))]
        wanted = max(1, round((fraction or SHARE) * len(self.images)))
        held: list[int] = []
        kept: list[int] = []
        order = np.random.default_rng(seed).permutation(len(groups))
        for place, group in enumerate(order):
            last = place == len(order) - 1
            (held if len(held) < wanted and not last else kept).extend(groups[group])
        return self._subset(kept), self._subset(held)

    def split_by(self, names: Sequence[str]) -> tuple["Dataset", "Dataset"]:
        """Return two sets, the second with the named images, and all images of named stacks and sequences.

        If the only image is named, it is cut in two, as in `split`.

        Raises
        ------
        DatasetError
            A name matches no image, or a set would hold no object.
        """
        by_name = {image.name: [index] for index, image in enumerate(self.images)}
        by_name |= self._by_stack() | self._by_source()
        held: set[int] = set()
        for name in names:
            if name not in by_name:
                close = difflib.get_close_matches(name, by_name, 1)
                raise DatasetError(f"no image is named {name}" + (f": did you mean {close[0]}?" if close else ""))
            held |= set(by_name[name])
        if held and len(self.images) == 1:
            return self._cut(SHARE_OF_ONE)
        if len(held) == len(self.images):
            raise DatasetError("the list holds back every image: leave some to train on")
        return self._subset(set(range(len(self.images))) - held), self._subset(held)

    def _cut(self, fraction: float) -> tuple["Dataset", "Dataset"]:
        """Return two sets, the second with about `fraction` of the single image, at least `LEAST` px high and wide.

        The cut crosses the longer side, and the end of that side (right or bottom) is held back, unless one of the
        parts would then hold no whole object: then its beginning, or a part of the other side. Frames are cut, so that
        neither set has a pixel of the other. Pixels of objects on both sides of the cut are ignored in both sets.
        """
        (image,) = self.images
        size = image.labels.shape
        axes = sorted((0, 1), key=lambda axis: -size[axis])
        axes = [axis for axis in axes if size[axis] >= 2 * LEAST]
        if not axes or min(size) < LEAST:
            raise DatasetError(
                f"{image.name} is {size[0]} x {size[1]} px, and no other image is there: too small to hold back a part "
                f"of it for validation (at least {LEAST} x {2 * LEAST} px); give --val FOLDER, or a second image"
            )
        for axis in axes:
            for ending in (True, False):
                kept, held = _parts(image, axis, fraction, ending, objects=self.instances)
                if kept.labels.any() and held.labels.any():
                    return replace(self, images=(kept,)), replace(self, images=(held,))
        raise DatasetError(
            f"no cut of {image.name} leaves a whole object on both sides, and no other image is there: give --val "
            "FOLDER, annotate a second image, or another --val-fraction"
        )

    def _by_source(self) -> dict[str, list[int]]:
        """Return the indices of the images of each stack or sequence; single images count as their own source."""
        groups: dict[str, list[int]] = {}
        for index, image in enumerate(self.images):
            groups.setdefault(image.source or image.name, []).append(index)
        return groups

    def _by_stack(self) -> dict[str, list[int]]:
        """Return the indices of the frames of each stack, and of each single image."""
        groups: dict[str, list[int]] = {}
        for index, image in enumerate(self.images):
            groups.setdefault(re.sub(r"\[\d+\]$", "", image.name), []).append(index)
        return groups

    def _subset(self, indices: Iterable[int]) -> "Dataset":
        images = tuple(self.images[index] for index in sorted(indices))
        _require_objects(images, "the split left a set in which")
        return replace(self, images=images)


def _parts(
    image: AnnotatedImage, axis: int, fraction: float, ending: bool, *, objects: bool
) -> tuple[AnnotatedImage, AnnotatedImage]:
    """Return the part of an image to train on, and the part to hold back.

    Parameters
    ----------
    image
        The whole image.
    axis
        Axis that is divided: 0 or 1, the height or the width.
    fraction
        Share to hold back; each part has at least `LEAST` pixels along the axis.
    ending
        Whether the end of the axis is held back, or its beginning.
    objects
        Whether labels are instances, of which those on both sides are ignored.
    """
    length = image.labels.shape[axis]
    count = min(max(LEAST, round(fraction * length)), length - LEAST)
    cut = length - count if ending else count
    before, after = ((slice(None),) * axis + (side,) for side in (slice(cut), slice(cut, None)))
    kept, held = (before, after) if ending else (after, before)
    labels, ignored = image.labels, image.ignored
    crossing = np.intersect1d(labels[before], labels[after])
    crossing = crossing[crossing > 0] if objects else crossing[:0]
    if len(crossing):
        across = np.isin(labels, crossing)
        labels, ignored = np.where(across, 0, labels), across if ignored is None else across | ignored
    side = (("top", "bottom"), ("left", "right"))[axis][ending]
    about = f"the {side} {count / length:.0%} of {image.name}"
    height, width = labels.shape

    def part(where: tuple[slice, ...], held: bool) -> AnnotatedImage:
        return replace(
            image,
            frame=image.frame[:, *where],
            labels=labels[where],
            ignored=None if ignored is None else ignored[where],
            part=Part(about, (height, width), len(crossing), held),
        )

    return part(kept, held=False), part(held, held=True)


def class_names(classes: int | None) -> tuple[str, ...]:
    """Return names of class indices, background first; None, for instances, gives background and foreground."""
    if classes is None or classes == 2:
        return ("background", "foreground")
    return ("background", *(f"class {index}" for index in range(1, classes)))


def read_dataset(
    folder: str | Path,
    classes: int | None = None,
    ignore: int | None = None,
    reading: Reading = AS_STORED,
    rule: LabelRule = UNSTATED,
) -> Dataset:
    """Read every annotated image of a folder.

    Parameters
    ----------
    folder
        With `images/` and `labels/` in it, and optionally `ignore/`: masks that are not 0 where nothing is annotated.
        Or another layout of `unetrt.trainer.layouts`.
    classes
        Number of classes, the background included; labels are class indices below it. None: labels are objects.
    ignore
        Label of unannotated pixels; None: 255 for class maps with at most 255 classes, no label for instances.
    reading
        How files are read.
    rule
        How values become objects.

    Raises
    ------
    DatasetError
        A folder is missing, a file has no partner, an image and its labels differ in shape, all labels are empty, or
        their values cannot be objects (`require_ids`, `require_background`).
    FrameError
        A file cannot be read, or holds pixels that are not finite.
    OptionError
        `classes` or `ignore` is out of range.
    """
    require_classes(classes, "trained")
    rule.require_objects(classes)
    ignore = ignored_label(classes, ignore)
    found, notes = find_files(Path(folder), reading)
    overlaps: Counter[str] = Counter()
    images = tuple(image for files in found for image in _read(files, classes, ignore, reading, rule, overlaps))
    if overlaps := +overlaps:
        where = f"{len(overlaps)} images, such as {next(iter(overlaps))}"
        notes.append(f"{overlaps.total()} pixels of {where}, lie in several masks: they belong to the smallest object")
    if not images:
        raise DatasetError(
            f"{folder}: no pixel is annotated, all of them are ignored: check the masks in ignore/ and --ignore-label"
        )
    if all(is_grey(image.frame) for image in images):  # some or all may be saved as colours
        images = tuple(replace(image, frame=image.frame[:1]) for image in images)
    channels = Counter(image.frame.shape[0] for image in images)
    if len(channels) > 1:
        usual = channels.most_common(1)[0][0]
        odd = next(image for image in images if image.frame.shape[0] != usual)
        raise DatasetError(
            f"{odd.name} has {odd.frame.shape[0]} channels, most images have {usual}: all must agree (a TIFF of 3 or 4 "
            "frames that says it is RGB is read as colours: save it with photometric='minisblack')"
        )
    _require_objects(images, f"{folder}:")
    if classes is not None:
        return Dataset(images, class_names(classes), instances=False, notes=tuple(notes))
    guessed = rule == UNSTATED and all(isinstance(files.labels, ImageSource) for files in found)
    images, doubts = _as_objects(images, rule, guessed)
    return Dataset(images, class_names(None), instances=True, notes=(*notes, *doubts))


def _as_objects(
    images: tuple[AnnotatedImage, ...], rule: LabelRule, guessed: bool
) -> tuple[tuple[AnnotatedImage, ...], list[str]]:
    """Return images whose labels are objects, for ids; and sentences about what may be a mistake.

    If no image holds more than one id, and labels may be `guessed`, they are masks.
    """
    notes = []
    if guessed and all(image.labels.max() <= 1 for image in images):
        images = tuple(replace(image, labels=components(image.labels)) for image in images)
        found = sum(int(image.labels.max()) for image in images)
        if any(image.labels.max() > 1 for image in images):
            notes.append(
                f"labels hold a single value, and are taken as masks, whose {found} connected components are the "
                "objects: --masks says so, --ids that each label file holds one object"
            )
    doubts = LabelDoubts()
    for image in images:
        if rule.masks is None:
            require_background(image.labels, f"labels of {image.name}")
        if rule.masks is not False:
            doubts.add(image.name, image.labels)
    return images, notes + doubts.sentences()


def read_names(path: str | Path) -> list[str]:
    """Read a list of image names, one a line, with or without suffix; lines that begin with # are comments.

    Raises
    ------
    DatasetError
        The file does not exist, or contains no name.
    """
    try:
        text = require_regular(path).read_text(encoding="utf-8")
    except (FrameError, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as a list of names, one a line: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    names = [_without_suffix(line) for line in lines if line and not line.startswith("#")]
    if not names:
        raise DatasetError(f"{path} names no image: write one name a line")
    return names


def require_classes(classes: int | None, purpose: str) -> None:
    """Raise OptionError where `classes` is a number of classes that cannot be, for example, "trained"."""
    if classes is not None and not 2 <= classes <= MAX_CLASSES:
        raise OptionError(f"{classes} classes cannot be {purpose}: use 2 to {MAX_CLASSES}, the background counts")


def ignored_label(classes: int | None, label: int | None) -> int | None:
    """Return the label of unannotated pixels: `label`, or 255 for class maps that have no class 255.

    Raises
    ------
    OptionError
        The label is the background's, or negative.
    """
    if label is not None:
        if label < 1:
            raise OptionError(f"label {label} cannot be ignored: 0 is the background; use one above, such as 255")
        return label
    return UNANNOTATED if classes is not None and classes <= UNANNOTATED else None


def _read(
    files: AnnotatedFiles,
    classes: int | None,
    ignore: int | None,
    reading: Reading,
    rule: LabelRule,
    overlaps: Counter[str],
) -> list[AnnotatedImage]:
    """Read the frames of an image; frames without any annotated pixel are left out.

    The number of pixels that lie in several masks is added to `overlaps`, by the image's name.
    """
    frames, (planes, overlaps[files.name]) = _read_frames(files, reading), read_annotation(files.labels, reading, rule)
    masks = None if files.ignored is None else read_label_stack(files.ignored, reading)
    _require_same_shape(frames, files.image, planes, annotation_of(files.labels))
    if masks is not None:
        _require_same_shape(frames, files.image, masks, files.ignored)
    images = []
    for index, (frame, plane) in enumerate(zip(frames, planes, strict=True)):
        name = files.name if len(frames) == 1 else f"{files.name}[{index}]"
        known, ignored = without_ignored(plane, ignore, None if masks is None else masks[index] > 0)
        if ignored is None or not ignored.all():
            labels = _require_labels(known, files, classes, rule)
            images.append(AnnotatedImage(name, frame, labels, ignored, files.source))
    return images


def without_ignored(plane: Array, label: int | None, mask: Mask | None) -> tuple[Array, Mask | None]:
    """Return labels (H, W) with 0 for the ignored label, and the mask (H, W) of all pixels to ignore, or None."""
    if label is None or not (plane == label).any():
        return plane, mask
    unknown: Mask = plane == label
    return np.where(unknown, 0, plane), unknown if mask is None else mask | unknown


def _read_frames(files: AnnotatedFiles, reading: Reading) -> Array:
    """Return the annotated frames of an image, (N, C, H, W)."""
    stack = without_opacity(read_image(files.image, reading))
    if files.plane is not None:
        if files.plane >= len(stack):
            labels = annotation_of(files.labels)
            raise DatasetError(f"{labels} annotates plane {files.plane} of {files.image}, which has {len(stack)}")
        stack = stack[files.plane : files.plane + 1]
    try:
        return np.stack([as_frame(frame, stack.shape[1]) for frame in stack])
    except FrameError as error:
        raise FrameError(f"{files.image}: {error}") from error


def _require_same_shape(frames: Array, image: ImageSource, planes: Array, labels: ImageSource | Path | None) -> None:
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


def _require_labels(plane: Array, files: AnnotatedFiles, classes: int | None, rule: LabelRule) -> NDArray[np.int32]:
    """Return a plane (H, W) of labels as instances or as class indices."""
    if isinstance(files.labels, tuple):
        if classes is not None:
            place = annotation_of(files.labels)
            raise DatasetError(f"{place} holds a mask for each object, and no classes: leave out --classes")
        return plane.astype(np.int32)
    if classes is None:
        if rule.threshold is None and rule.masks is not False:
            require_ids(plane, str(files.labels))
        return rule.objects(plane)
    if plane.max() >= classes:
        raise DatasetError(
            f"{files.labels} holds class {plane.max()}, {classes} classes are 0 ... {classes - 1}: "
            "use a larger --classes, or none for instances"
        )
    return plane.astype(np.int32)


def _require_objects(images: Sequence[AnnotatedImage], where: str) -> None:
    """Raise DatasetError, beginning with `where`, if no image holds an object."""
    if any(image.labels.any() for image in images):
        return
    hint = ""
    if any(image.ignored is not None for image in images):
        hint = " (255 in class maps marks unannotated pixels: leave --classes out for masks of 255)"
    empty = f"{where} all {len(images)} label images are empty"
    raise DatasetError(f"{empty}: there is nothing to learn or to score{hint}")


def _without_suffix(name: str) -> str:
    path = Path(name)
    return path.with_name(stem_of(path)).as_posix() if path.suffix.lower() in SUFFIXES else name
