"""Evaluation: all scores of a segmentation, for arrays and for files, of each image and pooled over many.

>>> tallies = dict(compare_files(Path("predicted"), Path("labels"), LabelFormat()))
>>> pooled(list(tallies.values())).to_dict()["seg"]
0.786
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import DatasetError, FrameError
from unetrt.runtime.files.formats import AS_STORED, Reading
from unetrt.runtime.files.images import read_label_stack
from unetrt.runtime.files.sources import LABEL_ENDINGS, ImageSource, holds_images
from unetrt.trainer.dataset import Mask, ignored_label, require_classes, without_ignored
from unetrt.trainer.label_values import UNSTATED, LabelDoubts, LabelRule, require_background, require_ids
from unetrt.trainer.layouts import annotation_of, images_by_name, labels_by_name, read_annotation
from unetrt.trainer.metrics import (
    THRESHOLDS,
    ObjectTally,
    PixelTally,
    count_objects,
    count_pixels,
    outlined,
    warping_error,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Tally:
    """All counts of an image; tallies of several images add up.

    Attributes
    ----------
    pixels
        Confusion of the classes; for instances, of foreground and background.
    objects
        Agreement of the instances; None for class maps.
    warping
        Number of pixels that differ after warping (`unetrt.trainer.metrics.warping_error`); None: not computed.
    """

    pixels: PixelTally
    objects: ObjectTally | None = None
    warping: int | None = None

    def __add__(self, other: "Tally") -> "Tally":
        objects = None if self.objects is None or other.objects is None else self.objects + other.objects
        warping = None if self.warping is None or other.warping is None else self.warping + other.warping
        return Tally(self.pixels + other.pixels, objects, warping)

    def to_dict(self) -> dict[str, Any]:
        """Return every score by name; None where it is not defined, as SEG without objects."""
        scores: dict[str, Any] = {"iou": self.pixels.iou, "pixel_error": self.pixels.error}
        if self.objects is None:
            return scores | {"class_ious": list(self.pixels.class_ious)}
        each = self.objects
        scores |= {
            "seg": each.seg,
            "ap": {f"{threshold:.2f}": each.average_precision(threshold) for threshold in THRESHOLDS},
            "mean_ap": each.mean_average_precision,
            "rand_f_score": each.rand_f_score,
            "objects": each.objects,
            "found": each.found,
            "merged": each.merged,
            "split": each.split,
        }
        if self.warping is not None:
            scores["warping_error"] = self.warping / max(1, int(self.pixels.confusion.sum()))
        return scores


def evaluate_instances(predicted: Array, truth: Array, ignored: Mask | None = None, *, warping: bool = True) -> Tally:
    """Compare two instance maps.

    Parameters
    ----------
    predicted, truth
        (H, W) integers, one number for each object, 0 is the background.
    ignored
        (H, W) bool: both maps are taken as empty where it is true.
    warping
        Whether to compute the warping error, which takes longer than everything else.
    """
    if ignored is not None:
        predicted, truth = (np.where(ignored, 0, labels) for labels in (predicted, truth))
    pixels = count_pixels((predicted > 0).astype(np.uint8), truth > 0, 2, ignored)
    error = warping_error(outlined(predicted), outlined(truth)) if warping else None
    return Tally(pixels, count_objects(predicted, truth), error)


def evaluate_classes(predicted: Array, truth: Array, classes: int, ignored: Mask | None = None) -> Tally:
    """Compare two class maps (H, W) of integers below `classes`; `ignored` as in `evaluate_instances`."""
    return Tally(count_pixels(predicted, truth, classes, ignored))


def pooled(tallies: list[Tally]) -> Tally:
    """Return the tally of all images as if they were one: a large image counts more than a small one."""
    return reduce(add, tallies)


@dataclass(frozen=True)
class LabelFormat:
    """Meaning of the numbers in label files.

    Attributes
    ----------
    classes
        Number of classes that labels index; None: labels are instances.
    ignore_label
        Label of unannotated pixels; None: 255 for class maps, no label for instances.
    ignore
        Folder, or file, of masks that are not 0 where nothing is annotated; None: no masks.
    rule
        How values become objects, in both maps; the threshold is for annotations alone.
    """

    classes: int | None = None
    ignore_label: int | None = None
    ignore: Path | None = None
    rule: LabelRule = UNSTATED

    def __post_init__(self) -> None:
        require_classes(self.classes, "compared")
        self.rule.require_objects(self.classes)


def compare_files(
    predicted: Path,
    labels: Path,
    labelled: LabelFormat,
    reading: Reading = AS_STORED,
    doubts: LabelDoubts | None = None,
) -> Iterator[tuple[str, Tally]]:
    """Compare every plane of every file of `labels` with that of the same name in `predicted`.

    Parameters
    ----------
    predicted, labels
        Two folders, or two files; `labels` may be a folder of annotated images (`unetrt.trainer.layouts`). Names pair
        without suffix, without ends such as _mask, and without folders `images/`; those of the Cell Tracking Challenge
        by time: man_seg007, mask007, t007.
    labelled
        Meaning of the labels in both.
    reading
        How files are read.
    doubts
        Gets what may be a mistake in the labels.

    Yields
    ------
    The file's stem, with an index where the file holds several planes, and the tally.

    Raises
    ------
    DatasetError
        A file has no partner, or one of another size, or annotations cannot be objects (`require_ids`,
        `require_background`).
    FrameError
        A file holds no labels, or a class index that is too high.
    """
    truths, guesses = labels_by_name(labels) or dict(_images_of(labels, reading)), _images_of(predicted, reading)
    found = {_key(stem): path for stem, path in guesses.items()} | guesses
    masks = {_key(stem): path for stem, path in images_by_name(labelled.ignore).items()} if labelled.ignore else {}
    doubts = LabelDoubts() if doubts is None else doubts
    if predicted.is_file() and labels.is_file() and len(truths) == len(guesses):
        # Two files pair whatever their names, and their images in order.
        found = dict(zip(truths, guesses.values(), strict=True))
    for stem, path in sorted(truths.items()):
        key, place = _key(stem), Path(annotation_of(path))
        if (file := found.get(stem) or found.get(key)) is None:
            close = difflib.get_close_matches(stem, guesses, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise DatasetError(
                f"{predicted} has no labels for {place.name}: each file of {labels} needs one of the same name{hint}"
            )
        guess, (truth, _) = read_label_stack(file, reading), read_annotation(path, reading, labelled.rule)
        mask = read_label_stack(masks[key], reading) if key in masks else None
        _require_same_size(place, predicted=guess, true=truth, ignored=mask)
        # The masks of single objects are joined: what is left are ids.
        meaning = labelled if isinstance(path, ImageSource) else replace(labelled, rule=UNSTATED)
        for index in range(len(truth)):
            name = stem if len(truth) == 1 else f"{stem}[{index}]"
            ignored = None if mask is None else mask[index] > 0
            yield name, _compare_planes(guess[index], truth[index], ignored, meaning, name, doubts)


def _images_of(path: Path, reading: Reading) -> dict[str, ImageSource]:
    """Return the images by name; `reading.series` picks one of each file with several, and leaves other files whole."""
    images = images_by_name(path)
    if not any(image.series is not None for image in images.values()):
        reading = replace(reading, series=None)
    return images_by_name(path, reading) if reading.picks_images else images


def _compare_planes(
    predicted: Array, truth: Array, ignored: Mask | None, labelled: LabelFormat, name: str, doubts: LabelDoubts
) -> Tally:
    """Compare two planes (H, W) of numbers named `name`, `ignored` (H, W) bool."""
    truth, ignored = without_ignored(truth, ignored_label(labelled.classes, labelled.ignore_label), ignored)
    found, known = (plane if ignored is None else np.where(ignored, 0, plane) for plane in (predicted, truth))
    classes, rule = labelled.classes, labelled.rule
    if classes is None:
        objects = _annotated(known, rule, f"{name} of the annotations", doubts)
        # The threshold is that of the annotations: predictions are labels, good or bad.
        guesses = replace(rule, threshold=None).objects(found)
        if rule.masks is None:
            doubts.add_pieces(f"{name} of the predictions", guesses)
        return evaluate_instances(guesses, objects, ignored)
    for what, plane in (("predicted", found), ("true", known)):
        if plane.max() >= classes:
            raise FrameError(
                f"{name}: class {plane.max()} is {what}, {classes} classes are 0 ... {classes - 1}: "
                "use a larger --classes, or none for instances"
            )
    return evaluate_classes(found, known, classes, ignored)


def _annotated(plane: Array, rule: LabelRule, name: str, doubts: LabelDoubts) -> Array:
    """Return the objects in the values (H, W) of annotations, unless they cannot be objects."""
    if rule.threshold is None and rule.masks is not False:
        require_ids(plane, name)
    objects = rule.objects(plane)
    if rule.masks is None:
        require_background(objects, name)
    if rule.masks is not False:
        doubts.add(name, objects)
    return objects


def _key(stem: str) -> str:
    """Return the key by which two files pair: their name, without ends and without folders that say no more.

    >>> _key("01/man_seg007"), _key("cell_mask"), _key("images/cell"), _key("7f/images/7f")
    ('01/007', 'cell', 'cell', '7f')
    """
    *folders, name = stem.split("/")
    match = re.fullmatch(r"(?:man_seg|mask|t)(\d+)", name)
    name = match[1] if match else LABEL_ENDINGS.sub("", name)
    folders = [folder for folder in folders if not holds_images(folder)]
    return "/".join([*folders, name] if folders[-1:] != [name] else folders)


def _require_same_size(path: Path, **planes: Array | None) -> None:
    """Raise DatasetError unless all of `planes`, (N, H, W) or None, have the same shape."""
    shapes = {what: array.shape for what, array in planes.items() if array is not None}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{what} {_size(shape)}" for what, shape in shapes.items())
        raise DatasetError(f"{path.name}: {sizes}: sizes must agree")


def _size(shape: tuple[int, ...]) -> str:
    frames = f"{shape[0]} frames of " if shape[0] > 1 else ""
    return f"{frames}{shape[-2]} x {shape[-1]} px"
