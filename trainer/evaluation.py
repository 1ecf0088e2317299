"""All scores of a segmentation, of one image and pooled over many."""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.trainer.metrics import THRESHOLDS, ObjectTally, PixelTally, count_objects, count_pixels
from unetrt.trainer.warping import outlined, warping_error

Array = NDArray[Any]


@dataclass(frozen=True)
class Tally:
    """What there is to count in images; tallies of several add up.

    Attributes
    ----------
    pixels
        Over classes; instances are foreground.
    objects
        Over instances; None for class maps.
    warping
        Pixels that disagree after warping (`unetrt.trainer.warping`), or None where that was not asked for.
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


def evaluate_instances(predicted: Array, truth: Array, ignored: Array | None = None, *, warping: bool = True) -> Tally:
    """Compare two instance maps.

    Parameters
    ----------
    predicted, truth
        (H, W) integers, one number an object, 0 is the background.
    ignored
        (H, W) bool: where it is true neither map holds anything.
    warping
        Whether to work out the warping error, which takes longer than all else.
    """
    if ignored is not None:
        predicted, truth = (np.where(ignored, 0, labels) for labels in (predicted, truth))
    pixels = count_pixels((predicted > 0).astype(np.uint8), truth > 0, 2, ignored)
    error = warping_error(outlined(predicted), outlined(truth)) if warping else None
    return Tally(pixels, count_objects(predicted, truth), error)


def evaluate_classes(predicted: Array, truth: Array, classes: int, ignored: Array | None = None) -> Tally:
    """Compare two class maps (H, W) of integers below `classes`; `ignored` as in `evaluate_instances`."""
    return Tally(count_pixels(predicted, truth, classes, ignored))


def pooled(tallies: list[Tally]) -> Tally:
    """Return the tally of all images as if they were one: a large image counts more than a small one."""
    return reduce(add, tallies)
