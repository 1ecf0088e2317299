"""How good a segmentation is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Label values above this are not counted in a table.
MANY = 1 << 24


def foreground_iou(predicted: Array, truth: Array) -> float:
    """Return intersection over union of the foregrounds (above 0) of two label images (H, W); 1 if both are empty."""
    union = np.count_nonzero((predicted > 0) | (truth > 0))
    return np.count_nonzero((predicted > 0) & (truth > 0)) / union if union else 1.0


def class_iou(predicted: Array, truth: Array) -> float:
    """Return intersection over union, the mean over all classes but the background that either map (H, W) holds.

    1 if both hold background alone. With one foreground class it is `foreground_iou`.
    """
    classes = np.union1d(predicted, truth)
    scores = [foreground_iou(predicted == index, truth == index) for index in classes[classes > 0]]
    return float(np.mean(scores)) if scores else 1.0


def seg(predicted: Array, truth: Array) -> float | None:
    """Return the SEG of an image, the mean of `seg_scores`; None where the truth holds no object to be found."""
    scores = seg_scores(predicted, truth)
    return float(scores.mean()) if len(scores) else None


def seg_scores(predicted: Array, truth: Array) -> NDArray[np.float64]:
    """Return the SEG score of every object of the truth, as the Cell Tracking Challenge defines it.

    An object R matches the predicted S that covers more than half of it; its score is their Jaccard index, or 0 where
    nothing matches (Ulman et al. 2017, "An objective comparison of cell-tracking algorithms").

    Parameters
    ----------
    predicted, truth
        (H, W), instance labels, 0 is the background.

    Returns
    -------
    float64, (objects,), in the order of their numbers; SEG is its mean.
    """
    objects, reference = _numbered(truth)
    found, guess = _numbered(predicted)
    shape = (len(objects), len(found))
    overlap = np.bincount(reference * shape[1] + guess, minlength=shape[0] * shape[1]).reshape(shape)
    area, predicted_area = overlap.sum(axis=1), overlap.sum(axis=0)
    overlap[:, found == 0] = 0
    best = overlap.argmax(axis=1)
    common = overlap[np.arange(len(objects)), best]
    jaccard = common / (area + predicted_area[best] - common)
    scores: NDArray[np.float64] = np.where(2 * common > area, jaccard, 0.0)
    return scores[objects > 0]


def _numbered(labels: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the values of a label image in order, and which of them each pixel has."""
    flat = labels.ravel()
    if flat.max() > MANY:
        return np.unique(flat, return_inverse=True)
    values = np.flatnonzero(np.bincount(flat))  # without a sort: several times faster
    positions = np.zeros(int(values[-1]) + 1, np.intp)
    positions[values] = np.arange(len(values))
    return values, positions[flat]
