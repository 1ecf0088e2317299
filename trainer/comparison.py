"""Predicted labels against true ones, file by file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import DatasetError, FrameError, OptionError
from unetrt.runtime.files.images import read_label_stack
from unetrt.runtime.geometry.unet_shape import MAX_CLASSES
from unetrt.trainer.evaluation import Tally, evaluate_classes, evaluate_instances
from unetrt.trainer.layouts import by_stem
from unetrt.trainer.reading import ignored_label
from unetrt.trainer.targets import as_instances

Array = NDArray[Any]


@dataclass(frozen=True)
class Meaning:
    """What labels mean.

    Attributes
    ----------
    classes
        How many classes they index; None: they are instances.
    ignore_label
        Label of pixels that are not annotated; None: 255 for class maps, none for instances.
    masks
        Folder, or file, of masks that are not 0 where nothing is annotated; None: there are none.
    """

    classes: int | None = None
    ignore_label: int | None = None
    masks: Path | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and not 2 <= self.classes <= MAX_CLASSES:
            raise OptionError(
                f"{self.classes} classes cannot be compared: use 2 to {MAX_CLASSES}, the background counts"
            )

    def tally(self, predicted: Array, truth: Array, ignored: Array | None, name: str) -> Tally:
        """Compare two planes (H, W) of integers; pixels where `ignored` (H, W) bool is true do not count.

        Raises
        ------
        FrameError
            A class index is too high; the message names `name`.
        """
        label = ignored_label(self.classes, self.ignore_label)
        if label is not None and (truth == label).any():
            ignored = (truth == label) if ignored is None else ignored | (truth == label)
        found, known = (plane if ignored is None else np.where(ignored, 0, plane) for plane in (predicted, truth))
        if self.classes is None:
            return evaluate_instances(as_instances(found), as_instances(known), ignored)
        for what, plane in (("predicted", found), ("true", known)):
            if plane.max() >= self.classes:
                raise FrameError(
                    f"{name}: class {plane.max()} is {what}, {self.classes} classes are 0 ... {self.classes - 1}"
                )
        return evaluate_classes(found, known, self.classes, ignored)


def compare(predicted: Path, labels: Path, meaning: Meaning) -> Iterator[tuple[str, Tally]]:
    """Compare every plane of every file of `labels` with that of the same name in `predicted`: folders, or two files.

    Yields
    ------
    The name, with an index where a file holds several planes, and the tally.

    Raises
    ------
    DatasetError
        A file has no partner, or one of another size.
    FrameError
        A file holds no labels, or labels that `meaning` excludes.
    """
    truths, found = by_stem(labels), {_key(stem): path for stem, path in by_stem(predicted).items()}
    masks = {} if meaning.masks is None else by_stem(meaning.masks)
    if predicted.is_file() and labels.is_file():
        found = {_key(stem): predicted for stem in truths}
    for stem, path in sorted(truths.items()):
        if _key(stem) not in found:
            raise DatasetError(f"{predicted} has no labels for {path.name}")
        guess, truth = read_label_stack(found[_key(stem)]), read_label_stack(path)
        mask = read_label_stack(masks[stem]) if stem in masks else None
        _require_same_size(path, predicted=guess, true=truth, ignored=mask)
        for index in range(len(truth)):
            name = stem if len(truth) == 1 else f"{stem}[{index}]"
            unknown = None if mask is None else mask[index] > 0
            yield name, meaning.tally(guess[index], truth[index], unknown, path.name)


def _key(stem: str) -> str:
    """Return what pairs two files: their stem, or the time in a name of the Cell Tracking Challenge."""
    match = re.fullmatch(r"(?:man_seg|mask|t)(\d+)", stem)
    return match[1] if match else stem


def _require_same_size(path: Path, **planes: Any) -> None:
    """Raise DatasetError unless all of `planes` (N, H, W), or None, have one shape."""
    shapes = {what: array.shape for what, array in planes.items() if array is not None}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{what} {_size(shape)}" for what, shape in shapes.items())
        raise DatasetError(f"{path.name}: {said}: sizes must agree")


def _size(shape: tuple[int, ...]) -> str:
    frames = f"{shape[0]} frames of " if shape[0] > 1 else ""
    return f"{frames}{shape[-2]} x {shape[-1]} px"
