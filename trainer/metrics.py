"""Segmentation metrics of one image: confusion of pixels, matching of objects, warping error.

Tallies hold sums, so tallies of several images add up, and their scores are properties of a tally: the scores of one
image and those pooled over many are computed alike.

>>> (count_objects(a, b) + count_objects(c, d)).seg
"""

from dataclasses import dataclass
from functools import cache, cached_property
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

Array = NDArray[Any]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Thresholds of the intersection over union at which objects are matched (Data Science Bowl 2018).
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
LEAST = THRESHOLDS[0]
# Integers up to four times the number of pixels plus this are counted by value: a tenth of the time of sorting them.
DENSE = 1024
# Offsets (dy, dx) of the eight neighbours of a pixel, row by row: the bits, from the lowest, of a neighbourhood's code.
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


@dataclass(frozen=True)
class PixelTally:
    """The confusion matrix of the pixels.

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
        """Pixel error: share of the pixels with a wrong class."""
        pixels = int(self.confusion.sum())
        return 1 - float(np.trace(self.confusion)) / pixels if pixels else 0.0

    @property
    def class_ious(self) -> tuple[float | None, ...]:
        """Intersection over union of each class but the background; None for a class neither true nor predicted."""
        common = np.diag(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - common
        return tuple(int(c) / int(u) if u else None for c, u in zip(common[1:], union[1:], strict=True))

    @property
    def iou(self) -> float:
        """Mean of `class_ious`, for two classes the foreground's; 1 where both maps hold background alone."""
        known = [iou for iou in self.class_ious if iou is not None]
        return sum(known) / len(known) if known else 1.0


def count_pixels(predicted: Array, truth: Array, classes: int, ignored: Mask | None = None) -> PixelTally:
    """Compare two class maps (H, W) of integers below `classes`; pixels where `ignored` (H, W) is true do not count."""
    pairs = truth.astype(np.int64) * classes + predicted.astype(np.int64)
    if ignored is not None:
        pairs = pairs[~ignored]
    return PixelTally(np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes))


@dataclass(frozen=True)
class ObjectTally:
    """Agreement of true and predicted objects.

    Attributes
    ----------
    objects, found
        Number of true and of predicted objects.
    seg_sum
        Sum of the SEG scores of the true objects.
    matched
        Number of matched pairs of objects at each of THRESHOLDS; an object is in one pair at most.
    merged
        True objects found as one with another: the predicted object that covers more than half of it covers more than
        half of another too.
    split
        True objects that hold more than half of the pixels of at least two predicted ones.
    pairs
        Pairs of pixels of the true foreground that lie in one object: of the truth and of the prediction, of the truth,
        of the prediction.
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
        """SEG of the Cell Tracking Challenge: mean over all true objects; None without any."""
        return self.seg_sum / self.objects if self.objects else None

    def average_precision(self, threshold: float = 0.5) -> float | None:
        """Return TP / (TP + FP + FN) of objects matched at an IoU of at least `threshold`, one of THRESHOLDS.

        The average precision of the Data Science Bowl 2018, which StarDist and Cellpose report too: predicted objects
        have no confidence, so there is no curve to average. None without any object, true or predicted.
        """
        true_positives = self.matched[THRESHOLDS.index(threshold)]
        either = self.objects + self.found - true_positives
        return true_positives / either if either else None

    @property
    def mean_average_precision(self) -> float | None:
        """Mean of `average_precision` over THRESHOLDS."""
        each = [self.average_precision(threshold) for threshold in THRESHOLDS]
        return None if None in each else sum(value or 0.0 for value in each) / len(each)

    @property
    def rand_f_score(self) -> float | None:
        """Rand F-score over the true foreground (ISBI 2012; Arganda-Carreras et al. 2015); None without pairs.

        The harmonic mean of precision and recall over pairs of pixels in one object. Predicted background counts as one
        object.
        """
        both, truth, predicted = self.pairs
        return 2 * both / (truth + predicted) if truth + predicted else None


def count_objects(predicted: Array, truth: Array) -> ObjectTally:
    """Compare two instance maps (H, W) of integers, one number for each object, 0 the background."""
    overlap = _Overlap.of(predicted, truth)
    return ObjectTally(
        objects=len(overlap.areas),
        found=len(overlap.found_areas),
        seg_sum=fsum(overlap.seg_scores),  # exact, so that it does not depend on the order of the objects
        matched=tuple(overlap.matched(threshold) for threshold in THRESHOLDS),
        merged=overlap.merged,
        split=overlap.split,
        pairs=_pairs_of_pixels(predicted, truth),
    )


def correct_objects(predicted: Array, truth: Array, threshold: float = 0.5) -> Mask:
    """Return for each predicted object, in the order of numbers, whether a true one has an IoU of `threshold` with it.

    Parameters
    ----------
    predicted, truth
        (H, W) integers, one number for each object, 0 is the background.
    threshold
        Least intersection over union, at least 0.5: at most one true object reaches it.

    Returns
    -------
    bool, (found,)
    """
    overlap = _Overlap.of(predicted, truth)
    return np.bincount(overlap.found[overlap.iou >= threshold], minlength=len(overlap.found_areas)) > 0


def calibration_error(confidence: Array, correct: Mask, bins: int = 10) -> float:
    """Return the expected calibration error (Guo et al. 2017, equation 3), from 0 to 1; 0 without objects.

    Objects are sorted into bins of equal width by their confidence. The error is the mean over objects of the
    difference between the share of correct objects of their bin and its mean confidence.

    Parameters
    ----------
    confidence
        (n,), from 0 to 1.
    correct
        (n,) bool.
    bins
        Number of bins.
    """
    which = np.minimum((np.asarray(confidence) * bins).astype(np.intp), bins - 1)
    excess = np.bincount(which, np.asarray(confidence, np.float64) - correct, bins)
    return float(np.abs(excess).sum() / max(1, len(which)))


def _pairs_of_pixels(predicted: Array, truth: Array) -> tuple[int, int, int]:
    """Return the number of pairs of true foreground pixels in one object of both maps, of the truth, of the other."""
    true, found = truth[truth > 0], predicted[truth > 0]
    (numbers, areas), (found_numbers, found_areas) = _counted(true), _counted(found)
    pairs = numbers.searchsorted(true) * len(found_numbers) + found_numbers.searchsorted(found)
    both, truths, founds = (int((n * (n - 1)).sum()) // 2 for n in (_counted(pairs)[1], areas, found_areas))
    return both, truths, founds


def _counted(values: Array) -> tuple[Array, Counts]:
    """Return the integers in a flat array, ascending, and how often each occurs, as `numpy.unique` does."""
    if values.size and values.min() >= 0 and values.max() <= 4 * values.size + DENSE:
        counts = np.bincount(values.astype(np.intp, copy=False))
        numbers = np.flatnonzero(counts)
        return numbers, counts[numbers]
    return np.unique(values, return_counts=True)


@dataclass(frozen=True)
class _Overlap:
    """Every pair of a true and a predicted object that share pixels.

    Attributes
    ----------
    true, found
        Indices of the two objects, (pairs,), in the order of their numbers.
    common
        Number of pixels that they share, (pairs,).
    areas, found_areas
        Number of pixels of every true, (objects,), and every predicted object, (found,).
    """

    true: Counts
    found: Counts
    common: Counts
    areas: Counts
    found_areas: Counts

    @classmethod
    def of(cls, predicted: Array, truth: Array) -> "_Overlap":
        """Return the overlap of two instance maps (H, W) of integers."""
        is_true, is_found = truth > 0, predicted > 0
        numbers, areas = _counted(truth[is_true])
        found_numbers, found_areas = _counted(predicted[is_found])
        both = is_true & is_found
        true, found = numbers.searchsorted(truth[both]), found_numbers.searchsorted(predicted[both])
        width = max(1, len(found_areas))
        pairs, common = _counted(true * width + found)
        return cls(pairs // width, pairs % width, common, areas, found_areas)

    @cached_property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair."""
        jaccard: NDArray[np.float64] = self.common / (
            self.areas[self.true] + self.found_areas[self.found] - self.common
        )
        return jaccard

    @cached_property
    def is_one_to_one(self) -> bool:
        """Whether each object is in one pair at most, of those with an IoU of at least `LEAST`."""
        good = self.iou >= LEAST
        true, found = self.true[good].tolist(), self.found[good].tolist()
        return len(set(true)) == len(set(found)) == len(true)

    @cached_property
    def covering(self) -> Mask:
        """Whether the predicted object of a pair covers more than half of the true one; at most one does."""
        return 2 * self.common > self.areas[self.true]

    @property
    def seg_scores(self) -> NDArray[np.float64]:
        """SEG score of every true object (Ulman et al. 2017, "An objective comparison of cell-tracking algorithms").

        The Jaccard index with the predicted object that covers more than half of it, 0 without one.
        """
        scores = np.zeros(len(self.areas))
        scores[self.true[self.covering]] = self.iou[self.covering]
        return scores

    def matched(self, threshold: float) -> int:
        """Return the size of a maximum bipartite matching of the pairs at an IoU of at least `threshold`."""
        good = self.iou >= threshold
        # Above an IoU of 0.5 each object is in one pair at most (Kirillov et al. 2019, "Panoptic segmentation", 4.1).
        if threshold >= LEAST and self.is_one_to_one:
            return int(np.count_nonzero(good))
        true, found = self.true[good], self.found[good]
        shape = (len(self.areas), len(self.found_areas))
        graph = csr_array((np.ones(len(true), np.int8), (true, found)), shape=shape)
        return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())

    @property
    def merged(self) -> int:
        """Number of true objects whose covering object covers another true object too."""
        covered = np.bincount(self.found[self.covering], minlength=len(self.found_areas))
        return int(covered[covered > 1].sum())

    @property
    def split(self) -> int:
        """Number of true objects that hold more than half of two or more predicted ones."""
        inside = 2 * self.common > self.found_areas[self.found]
        return int((np.bincount(self.true[inside]) > 1).sum()) if inside.any() else 0


def warping_error(predicted: Array, truth: Array) -> int:
    """Return the number of pixels that differ after the true mask is warped to the predicted one.

    The warping error of Jain et al. 2010 and of the ISBI challenge 2012, which divides it by the number of pixels. The
    warp preserves topology: what still differs is an object merged, split, missed or made up, or a hole. A shifted
    outline costs nothing. As in the challenge's program the warp is greedy: it ends where no single flip reduces the
    difference.

    Parameters
    ----------
    predicted, truth
        (H, W), bool or numbers, above 0 is foreground. Pass touching instances through `outlined` first.
    """
    return int((warped(truth > 0, predicted > 0) != (predicted > 0)).sum())


def outlined(instances: Array) -> Mask:
    """Return the foreground, (H, W) bool, of instances (H, W), with a line of background between touching ones.

    Objects touch along edges, as foreground is connected in `warped`. Of two such pixels, the upper or the left one
    becomes background, whatever the numbers of the objects.
    """
    mask: Mask = instances > 0
    for before, after in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        mask[before] &= (instances[after] == instances[before]) | (instances[after] == 0)
    return mask


def warped(mask: Mask, target: Mask) -> Mask:
    """Return `mask` deformed towards `target`, both (H, W) bool, by flips of simple points, which preserve topology.

    Foreground is connected along edges, background along edges and corners, as in `unetrt.runtime.model.objects`.
    """
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    inside = padded[1:-1, 1:-1]
    inside[...] = mask
    while True:
        rows, columns = np.nonzero(inside != target)
        # Pixels of one parity of row and column are not neighbours: flipping all at once equals one after another. A
        # flip takes a pixel to its goal, so that those of the other parities still differ.
        parity = rows % 2 * 2 + columns % 2
        flips = sum(
            _flip_simple_points(padded, rows[of_parity] + 1, columns[of_parity] + 1)
            for of_parity in (parity == number for number in range(4))
            if of_parity.any()
        )
        if not flips:
            return inside


def _flip_simple_points(padded: Mask, rows: Counts, columns: Counts) -> int:
    """Flip, in place, those of the pixels that are simple points, and return their number."""
    around = np.zeros(len(rows), np.uint8)
    for bit, (dy, dx) in enumerate(NEIGHBOURS):
        around |= padded[rows + dy, columns + dx].astype(np.uint8) << bit
    simple = _simple_points()[around]
    padded[rows[simple], columns[simple]] ^= True
    return int(np.count_nonzero(simple))


@cache
def _simple_points() -> Mask:
    """Return for each code of a neighbourhood, (256,) bool, whether its centre is a simple point.

    A pixel is simple if it has exactly one adjacent component of foreground and one of background (Kong and Rosenfeld
    1989). Foreground components are connected along edges and count if they share an edge with the pixel; background
    components are connected along edges and corners.
    """
    table = np.zeros(256, bool)
    for code in range(256):
        around = np.zeros((3, 3), bool)
        for bit, (dy, dx) in enumerate(NEIGHBOURS):
            around[dy + 1, dx + 1] = code >> bit & 1
        pieces, _ = ndimage.label(around)
        touching = {pieces[0, 1], pieces[1, 0], pieces[1, 2], pieces[2, 1]} - {0}
        background = ~around
        background[1, 1] = False
        _, holes = ndimage.label(background, np.ones((3, 3)))
        table[code] = len(touching) == 1 and holes == 1
    return table
