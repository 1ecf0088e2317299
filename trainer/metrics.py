"""How good a segmentation is: sums over pixels and over objects, which add up over images.

The scores of one image and those pooled over many are the same properties, of one tally and of the sum of many.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.trainer.overlap import Counts, Overlap

Array = NDArray[Any]

# Thresholds of the intersection over union at which objects are matched (those of the Data Science Bowl 2018).
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@dataclass(frozen=True)
class PixelTally:
    """Which class each pixel has, and which it was given.

    Attributes
    ----------
    confusion
        Pixels, (classes, classes) int64: rows are true classes, columns predicted ones; 0 is the background.
    """

    confusion: Counts

    def __add__(self, other: "PixelTally") -> "PixelTally":
        return PixelTally(self.confusion + other.confusion)

    @property
    def error(self) -> float:
        """The pixel error: share of the pixels with a wrong class."""
        pixels = int(self.confusion.sum())
        return 1 - float(np.trace(self.confusion)) / pixels if pixels else 0.0

    @property
    def class_ious(self) -> tuple[float | None, ...]:
        """Intersection over union of each class but the background; None for a class that is neither true nor found."""
        common = np.diag(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - common
        return tuple(int(c) / int(u) if u else None for c, u in zip(common[1:], union[1:], strict=True))

    @property
    def iou(self) -> float:
        """The mean of `class_ious`, for two classes the foreground's; 1 where both maps hold background alone."""
        known = [iou for iou in self.class_ious if iou is not None]
        return sum(known) / len(known) if known else 1.0


def count_pixels(predicted: Array, truth: Array, classes: int, ignored: Array | None = None) -> PixelTally:
    """Compare two class maps (H, W) of integers below `classes`; pixels where `ignored` (H, W) is true do not count."""
    pairs = truth.astype(np.int64) * classes + predicted.astype(np.int64)
    if ignored is not None:
        pairs = pairs[~ignored]
    return PixelTally(np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes))


@dataclass(frozen=True)
class ObjectTally:
    """How the objects of a truth were found.

    Attributes
    ----------
    objects, found
        How many there are in the truth and in the prediction.
    seg_sum
        Sum of the objects' SEG scores.
    matched
        Objects with a partner of their own at each of THRESHOLDS.
    merged
        Objects found as one with another: what covers more than half of it covers more than half of another too.
    split
        Objects of which at least two predicted ones have more than half of their pixels inside.
    pairs
        Pairs of pixels in one object: of the truth and of the prediction, of the truth, and of the prediction, over the
        truth's foreground.
    """

    objects: int
    found: int
    seg_sum: float
    matched: tuple[int, ...]
    merged: int
    split: int
    pairs: tuple[int, int, int]

    def __add__(self, other: "ObjectTally") -> "ObjectTally":
        return ObjectTally(
            self.objects + other.objects,
            self.found + other.found,
            self.seg_sum + other.seg_sum,
            tuple(a + b for a, b in zip(self.matched, other.matched, strict=True)),
            self.merged + other.merged,
            self.split + other.split,
            (self.pairs[0] + other.pairs[0], self.pairs[1] + other.pairs[1], self.pairs[2] + other.pairs[2]),
        )

    @property
    def seg(self) -> float | None:
        """The Cell Tracking Challenge's SEG: the mean over all true objects; None where there are none."""
        return self.seg_sum / self.objects if self.objects else None

    def average_precision(self, threshold: float = 0.5) -> float | None:
        """Return TP / (TP + FP + FN) of objects matched at an IoU of `threshold` or more, one of THRESHOLDS.

        This is the average precision of the Data Science Bowl 2018, which StarDist and Cellpose report too (no
        detection has a confidence, so there is no curve to average). None where there is no object, true or found.
        """
        true_positives = self.matched[THRESHOLDS.index(threshold)]
        either = self.objects + self.found - true_positives
        return true_positives / either if either else None

    @property
    def mean_average_precision(self) -> float | None:
        """The mean of `average_precision` over THRESHOLDS."""
        each = [self.average_precision(threshold) for threshold in THRESHOLDS]
        return None if None in each else sum(value or 0.0 for value in each) / len(each)

    @property
    def rand_f_score(self) -> float | None:
        """The Rand F-score over the truth's foreground (ISBI 2012; Arganda-Carreras et al. 2015); None without pairs.

        The harmonic mean of precision and recall over pairs of pixels in one object. What was predicted as background
        counts as one object.
        """
        both, truth, predicted = self.pairs
        return 2 * both / (truth + predicted) if truth + predicted else None


def count_objects(predicted: Array, truth: Array) -> ObjectTally:
    """Compare two instance maps (H, W) of integers, one number an object, 0 the background."""
    overlap = Overlap.of(predicted, truth)
    return ObjectTally(
        objects=len(overlap.areas),
        found=len(overlap.found_areas),
        seg_sum=float(overlap.seg_scores.sum()),
        matched=tuple(overlap.matched(threshold) for threshold in THRESHOLDS),
        merged=overlap.merged,
        split=overlap.split,
        pairs=_pairs_of_pixels(predicted, truth),
    )


def _pairs_of_pixels(predicted: Array, truth: Array) -> tuple[int, int, int]:
    """Return how many pairs of pixels of the truth's foreground lie in one object: of both, of each."""
    inside = truth > 0
    true, found = (np.unique(labels[inside], return_inverse=True)[1] for labels in (truth, predicted))
    joint = np.unique(true * (int(found.max(initial=0)) + 1) + found, return_counts=True)[1]
    both, truths, founds = (int((n * (n - 1)).sum()) // 2 for n in (joint, np.bincount(true), np.bincount(found)))
    return both, truths, founds
