"""How good a segmentation is: sums over pixels and over objects, which add up over images.

The scores of one image and those pooled over many are the same properties, of one tally and of the sum of many.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

Array = NDArray[Any]
Counts = NDArray[np.int64]

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
    pairs = truth.astype(np.int64) * classes + predicted
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


@dataclass(frozen=True)
class Overlap:
    """Every pair of a true and a predicted object that share pixels.

    Attributes
    ----------
    true, found
        Which objects, (pairs,), counted from 0 in the order of their numbers.
    common
        Pixels that they share, (pairs,).
    areas, found_areas
        Pixels of every true and of every predicted object.
    """

    true: Counts
    found: Counts
    common: Counts
    areas: Counts
    found_areas: Counts

    @classmethod
    def of(cls, predicted: Array, truth: Array) -> "Overlap":
        """Return the overlap of two instance maps (H, W)."""
        areas, found_areas = (_numbered(labels[labels > 0])[1] for labels in (truth, predicted))
        both = (truth > 0) & (predicted > 0)
        # Numbers among the objects that overlap anything, back to numbers among all.
        true, found = (np.unique(labels[labels > 0]).searchsorted(labels[both]) for labels in (truth, predicted))
        width = max(1, len(found_areas))
        pairs, common = np.unique(true * width + found, return_counts=True)
        return cls(pairs // width, pairs % width, common, areas, found_areas)

    @cached_property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair."""
        jaccard: NDArray[np.float64] = self.common / (
            self.areas[self.true] + self.found_areas[self.found] - self.common
        )
        return jaccard

    @cached_property
    def covering(self) -> NDArray[np.bool_]:
        """Whether the predicted object of a pair covers more than half of the true one: at most one does."""
        return 2 * self.common > self.areas[self.true]

    @property
    def seg_scores(self) -> NDArray[np.float64]:
        """The SEG score of every true object, as the Cell Tracking Challenge defines it.

        The Jaccard index with the predicted object that covers more than half of it, 0 where there is none (Ulman et
        al. 2017, "An objective comparison of cell-tracking algorithms").
        """
        scores = np.zeros(len(self.areas))
        scores[self.true[self.covering]] = self.iou[self.covering]
        return scores

    def matched(self, threshold: float) -> int:
        """Return how many pairs there are at an IoU of `threshold` or more, each object in one at most."""
        good = self.iou >= threshold
        graph = csr_array(
            (np.ones(good.sum(), np.int8), (self.true[good], self.found[good])),
            shape=(len(self.areas), len(self.found_areas)),
        )
        return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()) if good.any() else 0

    @property
    def merged(self) -> int:
        """How many true objects are covered, each by more than half, by one that covers another by more than half."""
        covered = np.bincount(self.found[self.covering], minlength=len(self.found_areas))
        return int(covered[covered > 1].sum())

    @property
    def split(self) -> int:
        """How many true objects hold more than half of two or more predicted ones."""
        inside = 2 * self.common > self.found_areas[self.found]
        return int((np.bincount(self.true[inside]) > 1).sum()) if inside.any() else 0


def _numbered(labels: Array) -> tuple[Array, Counts]:
    """Return the values that labels (n,) have, in order, and how often each."""
    values, counts = np.unique(labels, return_counts=True)
    return values, counts


def _pairs_of_pixels(predicted: Array, truth: Array) -> tuple[int, int, int]:
    """Return how many pairs of pixels of the truth's foreground lie in one object: of both, of each."""
    inside = truth > 0
    true, found = (np.unique(labels[inside], return_inverse=True)[1] for labels in (truth, predicted))
    joint = np.unique(true * (int(found.max(initial=0)) + 1) + found, return_counts=True)[1]
    both, truths, founds = (int((n * (n - 1)).sum()) // 2 for n in (joint, np.bincount(true), np.bincount(found)))
    return both, truths, founds
