"""Annotated images in memory: a set of them, and how it is split."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.runtime.errors import DatasetError, OptionError

Array = NDArray[Any]

# How many frames stand for a set, and the largest side of each, in pixels.
SOME, SIDE = 4, 512
# Instances in more separate pieces than so many each are doubted.
PIECES = 1.5


@dataclass(frozen=True)
class Annotated:
    """One image with its annotation.

    Attributes
    ----------
    name
        The file's stem; of a frame of a stack with its index, as in `stack[3]`.
    frame
        Raw grey values, (C, H, W), in the file's dtype.
    labels
        (H, W) int32: instances, one number an object, or class indices; 0 is the background.
    ignored
        (H, W) bool, true where nothing is known: such pixels neither train nor count in scores; None: nowhere.
    source
        The stack or sequence that it is a frame of: its other frames resemble it. Empty: none.
    """

    name: str
    frame: Array
    labels: NDArray[np.int32]
    ignored: NDArray[np.bool_] | None = None
    source: str = ""


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

    @cached_property
    def digest(self) -> str:
        """A hash over names, frames and labels, in hexadecimal."""
        digest = hashlib.sha256(repr((self.class_names, self.instances)).encode())
        for image in self.images:
            for array in (image.frame, image.labels, image.ignored):
                if array is not None:
                    digest.update(f"{image.name} {array.shape} {array.dtype}".encode())
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __str__(self) -> str:
        sizes = ", ".join(f"{often} of {height}x{width}" for (height, width), often in self.sizes.most_common())
        dtypes = ", ".join(sorted({str(image.frame.dtype) for image in self.images}))
        about = f"{len(self.images)} images ({sizes}; {dtypes}; channels: {self.channels}), {self._annotation()}"
        return about + (f", {self.ignored:.1%} of the pixels not annotated" if self.ignored else "")

    def _annotation(self) -> str:
        empty = sum(not image.labels.any() for image in self.images)
        without = f", {empty} images without any" if empty else ""
        if not self.instances:
            return f"classes: {', '.join(self.class_names)}{without}"
        areas = np.concatenate([np.bincount(image.labels.ravel())[1:] for image in self.images])
        return f"{np.count_nonzero(areas)} objects (median {np.median(areas[areas > 0]):.0f} px){without}"

    def doubts(self) -> list[str]:
        """Return what looks odd about the data, a sentence each."""
        said = []
        if flat := [
            image.name for image in self.images if image.labels.any() and image.frame.min() == image.frame.max()
        ]:
            said.append(f"{_named(flat)} without any contrast, but with objects")
        if self.instances:
            objects = sum(len(np.unique(image.labels[image.labels > 0])) for image in self.images)
            pieces = sum(ndimage.label(image.labels > 0)[1] for image in self.images)
            if pieces > PIECES * objects:
                said.append(f"{objects} objects in {pieces} separate pieces: if labels are classes, give --classes")
        return said

    def some_frames(self) -> tuple[Array, ...]:
        """Return up to 4 raw frames (C, H, W), cropped to a bounded size, spread over the set."""
        step = max(1, len(self.images) // SOME)
        return tuple(image.frame[:, :SIDE, :SIDE] for image in self.images[::step][:SOME])

    @property
    def ignored(self) -> float:
        """Share of the pixels that are not annotated."""
        known = sum(image.labels.size for image in self.images)
        return sum(int(image.ignored.sum()) for image in self.images if image.ignored is not None) / known

    def split(self, fraction: float, seed: int) -> tuple["Dataset", "Dataset"]:
        """Return two sets, the second with `fraction` of the images, at least one, drawn at random.

        Frames of one stack or sequence stay together, unless there is only one: they resemble each other, and scores on
        some would say little after training on the others. So the second set can come out larger.

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
        groups = list(self._by_source().values())
        if len(groups) == 1:
            groups = [[index] for index in range(len(self.images))]
        wanted = max(1, round(fraction * len(self.images)))
        held: list[int] = []
        kept: list[int] = []
        order = np.random.default_rng(seed).permutation(len(groups))
        for place, group in enumerate(order):
            last = place == len(order) - 1
            (held if len(held) < wanted and not last else kept).extend(groups[group])
        return self._subset(kept), self._subset(held)

    def split_by(self, names: Sequence[str]) -> tuple["Dataset", "Dataset"]:
        """Return two sets, the second with the images of those names, or of stacks and sequences of those names.

        Raises
        ------
        DatasetError
            A name is of no image here, or a set would hold no object.
        """
        by_name = {image.name: [index] for index, image in enumerate(self.images)} | self._by_source()
        held: set[int] = set()
        for name in names:
            if name not in by_name:
                close = difflib.get_close_matches(name, by_name, 1)
                raise DatasetError(f"no image is named {name}" + (f": did you mean {close[0]}?" if close else ""))
            held |= set(by_name[name])
        if len(held) == len(self.images):
            raise DatasetError("the list holds back every image: leave some to train on")
        return self._subset(set(range(len(self.images))) - held), self._subset(held)

    def _by_source(self) -> dict[str, list[int]]:
        """Return the images of each stack or sequence, and those that are alone under their own names."""
        groups: dict[str, list[int]] = {}
        for index, image in enumerate(self.images):
            groups.setdefault(image.source or image.name, []).append(index)
        return groups

    def _subset(self, indices: Iterable[int]) -> "Dataset":
        images = tuple(self.images[index] for index in sorted(indices))
        require_objects(images, "the split left a set in which")
        return Dataset(images, self.class_names, self.instances)


def _named(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def class_names(classes: int | None) -> tuple[str, ...]:
    """Return names for class indices; two classes are background and foreground."""
    if classes is None or classes == 2:
        return ("background", "foreground")
    return ("background", *(f"class {index}" for index in range(1, classes)))


def require_objects(images: Sequence[Annotated], where: str) -> None:
    """Raise DatasetError, which begins with `where`, if no image holds an object."""
    if any(image.labels.any() for image in images):
        return
    hint = ""
    if any(image.ignored is not None for image in images):
        hint = " (255 in class maps is what is not annotated: leave --classes out for masks of 255)"
    empty = f"{where} all {len(images)} label images are empty"
    raise DatasetError(f"{empty}: there is nothing to learn or to score{hint}")
