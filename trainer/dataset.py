"""Annotated images from a folder: `images/` and `labels/`, paired by name."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cost import MAX_CLASSES
from unetrt.runtime.errors import DatasetError, FrameError, OptionError
from unetrt.runtime.frames import as_frame
from unetrt.runtime.images import list_images, read_labels, read_stack
from unetrt.trainer.targets import as_instances

Array = NDArray[Any]


@dataclass(frozen=True)
class Annotated:
    """One image with its annotation.

    Attributes
    ----------
    name
        The file's stem.
    frame
        Raw grey values, (C, H, W), in the file's dtype.
    labels
        (H, W) int32: instances, one number an object, or class indices; 0 is the background.
    """

    name: str
    frame: Array
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class Dataset:
    """Annotated images that fit together.

    Attributes
    ----------
    images
        At least one, all with the same number of channels; not all of them empty.
    class_names
        Background first.
    instances
        Whether labels are instances rather than classes.
    """

    images: tuple[Annotated, ...]
    class_names: tuple[str, ...]
    instances: bool

    @property
    def channels(self) -> int:
        """Channels of every frame."""
        return int(self.images[0].frame.shape[0])

    @cached_property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many frames there are of each height and width."""
        return Counter(image.labels.shape for image in self.images)

    def __str__(self) -> str:
        sizes = ", ".join(f"{often} of {height}x{width}" for (height, width), often in self.sizes.most_common())
        dtypes = ", ".join(sorted({str(image.frame.dtype) for image in self.images}))
        return f"{len(self.images)} images ({sizes}; {dtypes}; channels: {self.channels}), {self._annotation()}"

    def _annotation(self) -> str:
        if not self.instances:
            return f"classes: {', '.join(self.class_names)}"
        objects = sum(len(np.unique(image.labels[image.labels > 0])) for image in self.images)
        return f"{objects} objects"

    def split(self, fraction: float, seed: int) -> tuple["Dataset", "Dataset"]:
        """Return two sets, the second with `fraction` of the images, at least one, drawn at random.

        Raises
        ------
        DatasetError
            There is only one image, or a set would hold no object.
        OptionError
            The fraction is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise OptionError(
                f"a validation fraction of {fraction} splits nothing: use one between 0 and 1, such as 0.2"
            )
        if len(self.images) < 2:
            raise DatasetError("one image cannot be split into training and validation: give --val FOLDER")
        order = np.random.default_rng(seed).permutation(len(self.images))
        held = min(max(1, round(fraction * len(order))), len(order) - 1)
        return self._subset(order[held:]), self._subset(order[:held])

    def _subset(self, indices: Iterable[int]) -> "Dataset":
        images = tuple(self.images[index] for index in sorted(indices))
        _require_objects(images, "the split left a set in which")
        return Dataset(images, self.class_names, self.instances)


def load(folder: str | Path, classes: int | None = None) -> Dataset:
    """Read every pair of a folder with `images/` and `labels/` (TIFF or PNG, paired by name without suffix).

    Parameters
    ----------
    folder
        The folder.
    classes
        None: labels are instances, one number an object; an image whose labels hold a single value besides 0 is a
        mask, and its connected components are the objects. A number: labels are class indices below it.

    Raises
    ------
    DatasetError
        A folder is missing, a file has no partner, an image and its labels differ in shape, or all labels are empty.
    FrameError
        A file cannot be read, or holds pixels that are not finite.
    """
    if classes is not None and not 2 <= classes <= MAX_CLASSES:
        raise OptionError(f"{classes} classes cannot be trained: use 2 to {MAX_CLASSES}, the background counts")
    images = tuple(_annotated(*pair, classes) for pair in find_pairs(Path(folder)))
    channels = Counter(image.frame.shape[0] for image in images)
    if len(channels) > 1:
        usual = channels.most_common(1)[0][0]
        odd = next(image for image in images if image.frame.shape[0] != usual)
        raise DatasetError(f"{odd.name} has {odd.frame.shape[0]} channels, most images have {usual}: all must agree")
    _require_objects(images, f"{folder}:")
    return Dataset(images, class_names(classes), instances=classes is None)


def class_names(classes: int | None) -> tuple[str, ...]:
    """Return names for class indices; two classes are background and foreground."""
    if classes is None or classes == 2:
        return ("background", "foreground")
    return ("background", *(f"class {index}" for index in range(1, classes)))


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Return image and label file of every pair, sorted by name; raises DatasetError where one has no partner."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist: give a folder with images/ and labels/ in it")
    found = [_by_stem(folder / part) for part in ("images", "labels")]
    images, labels = found
    for these, others, what, partner in ((images, labels, "image", "labels"), (labels, images, "label", "images")):
        if alone := sorted(these.keys() - others.keys()):
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise DatasetError(f"{what} {these[alone[0]].name}{more} has no partner of that name in {folder / partner}")
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist: images belong into images/, labels of the same name into labels/")
    try:
        files = list_images(folder)
    except FrameError as error:
        raise DatasetError(str(error)) from error
    by_stem = {file.stem: file for file in files}
    if len(by_stem) < len(files):
        twice = next(file for file in files if by_stem[file.stem] != file)
        raise DatasetError(f"{folder} holds {twice.name} and {by_stem[twice.stem].name}: names must differ in the stem")
    return by_stem


def _annotated(image: Path, labels: Path, classes: int | None) -> Annotated:
    stack = read_stack(image)
    if len(stack) > 1:
        raise DatasetError(f"{image} is a stack of {len(stack)} frames: save each frame with its labels as a file")
    try:
        frame = as_frame(stack[0], stack.shape[1])
    except FrameError as error:
        raise FrameError(f"{image}: {error}") from error
    truth = read_labels(labels)
    if frame.shape[-2:] != truth.shape:
        raise DatasetError(
            f"{image.name} is {frame.shape[-2]} x {frame.shape[-1]} px, its labels are "
            f"{truth.shape[0]} x {truth.shape[1]} px: they must have the same shape"
        )
    if classes is None:
        return Annotated(image.stem, frame, as_instances(truth))
    if truth.max() >= classes:
        raise DatasetError(f"{labels} holds class {truth.max()}, {classes} classes are 0 ... {classes - 1}")
    return Annotated(image.stem, frame, truth.astype(np.int32))


def _require_objects(images: Sequence[Annotated], where: str) -> None:
    if not any(image.labels.any() for image in images):
        raise DatasetError(f"{where} all {len(images)} label images are empty: there is nothing to learn")
