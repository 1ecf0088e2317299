"""Which objects of two instance maps share pixels, and what follows from that."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

Array = NDArray[Any]
Counts = NDArray[np.int64]


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
        """Return the overlap of two instance maps (H, W) of integers, one number an object, 0 the background."""
        numbers, areas = np.unique(truth[truth > 0], return_counts=True)
        found_numbers, found_areas = np.unique(predicted[predicted > 0], return_counts=True)
        both = (truth > 0) & (predicted > 0)
        true, found = numbers.searchsorted(truth[both]), found_numbers.searchsorted(predicted[both])
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
