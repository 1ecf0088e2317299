"""Confidence of objects: how certain the network is of each, from its probabilities.

The features of an object are means of probabilities over its pixels, and a calibration that was fitted to annotated
images converts them to the probability that the object is right.
"""

from dataclasses import dataclass
from math import exp
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.model.spec import CORE, Decoding
from unetrt.runtime.pixels.drawing import outlines
from unetrt.runtime.pixels.frames import as_array
from unetrt.runtime.pixels.scores import best_class

Array = NDArray[Any]
Labels = NDArray[np.int32]
Counts = NDArray[Any]
Confidence = NDArray[np.float32]


class ObjectFeatures(NamedTuple):
    """What the confidence of objects 1 ... n follows from; float64, (n,) each, from 0 to 1, higher is more certain.

    Attributes
    ----------
    core
        Mean probability of the class core over the pixels of an object that are core; without that class, mean
        probability of the foreground over those that are foreground.
    foreground
        Mean probability of the foreground over all pixels of an object.
    outline
        Mean of ``|2 p - 1|`` over the pixels of an object that touch another label, p the probability of the
        foreground; 1 for an object that fills the frame.
    """

    core: Counts
    foreground: Counts
    outline: Counts


@dataclass(frozen=True)
class Calibration:
    """Converts features to a confidence: Platt scaling (Platt 1999) of the logit of a weighted geometric product.

    ::

        q = core^a * foreground^b * outline^c
        confidence = 1 / (1 + exp(-(slope * log(q / (1 - q)) + offset)))

    It rises with each feature whose exponent is positive. With slope 1 and offset 0 it is q.

    Attributes
    ----------
    core, foreground, outline
        The exponents a, b and c, at least 0.
    slope, offset
        Of the logit; the slope is positive.
    """

    core: float = 1.0
    foreground: float = 1.0
    outline: float = 0.0
    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, features: ObjectFeatures) -> Confidence:
        """Return the confidence of each object, (n,) float32, from 0 to 1."""
        product = features.core**self.core * features.foreground**self.foreground * features.outline**self.outline
        # The logistic function of the scaled logit, written so that it is exact at 0 and 1.
        for_it, against = product**self.slope, exp(-self.offset) * (1 - product) ** self.slope
        found: Confidence = (for_it / (for_it + against)).astype(np.float32)
        return found


# Fitted by docs/calibration.py on the validation images of docs/training.md, to the model `nuclei` and three trainings.
CALIBRATION = Calibration(core=1.29, foreground=1.19, slope=2.52, offset=0.54)


def confidence(
    objects: ArrayLike,
    probabilities: ArrayLike,
    decoding: Decoding | None = None,
    calibration: Calibration = CALIBRATION,
) -> Confidence:
    """Return how certain the network is of each object, from 0 to 1.

    Parameters
    ----------
    objects
        int32, (H, W), from `instances`: 0 is the background, objects are numbered 1 ... n.
    probabilities
        float32, (classes, H, W), from `Segmenter.segment`.
    decoding
        As for `instances`.
    calibration
        How features become the confidence.

    Returns
    -------
    float32, (n,): element i belongs to object i + 1.

    Raises
    ------
    FrameError
        The shapes do not belong together.
    """
    return calibration(object_features(objects, probabilities, decoding))


def object_features(objects: ArrayLike, probabilities: ArrayLike, decoding: Decoding | None = None) -> ObjectFeatures:
    """Return the features from which the confidence of each object follows; see `confidence`."""
    objects, probabilities = _of_one_frame(objects, probabilities)
    count = int(objects.max(initial=0))
    features = _features(evidence(objects, probabilities, decoding, count))
    edge = outlines(objects)
    outline = np.bincount(objects[edge], np.abs(2 * (1 - probabilities[0][edge]) - 1), count + 1)
    return features._replace(outline=_means(outline, np.bincount(objects[edge], minlength=count + 1), 1)[1:])


def evidence(
    objects: ArrayLike, probabilities: ArrayLike, decoding: Decoding | None = None, count: int | None = None
) -> Counts:
    """Return the sums from which the confidence of objects follows.

    They add up over the blocks of a frame: with `labels` and `numbers` of `unetrt.runtime.model.block_objects`,
    ``numpy.add.at(total, numbers, evidence(labels, probabilities, decoding, len(numbers) - 1))`` adds those of a block
    to the total of the frame, (objects of the frame + 1, 4).

    Parameters
    ----------
    objects, probabilities, decoding
        As for `confidence`; of a frame or a block.
    count
        Number of objects; None: the highest number in `objects`.

    Returns
    -------
    float64, (count + 1, 4), element 0 is the background: sum of the core probability over the core pixels of each
    object, and their number; sum of the foreground probability over all its pixels, and their number. See
    `ObjectFeatures`.

    Raises
    ------
    FrameError
        The shapes do not belong together, or an object has a number above `count`.
    """
    objects, probabilities = _of_one_frame(objects, probabilities)
    highest = int(objects.max(initial=0))
    count = highest if count is None else count
    if highest > count:
        raise FrameError(f"objects have numbers up to {highest}: count must be at least that (got {count})")
    at = np.flatnonzero(objects)
    numbers, classes = objects.reshape(-1)[at], probabilities.reshape(len(probabilities), -1)[:, at]
    foreground, best = 1 - classes[0], best_class(classes)
    has_cores = decoding is not None and decoding.method == "cores"
    inside = best == CORE if has_cores else best > 0
    inner = classes[CORE] if has_cores else foreground
    sums = [
        total
        for values, which in ((inner[inside], numbers[inside]), (foreground, numbers))
        for total in (np.bincount(which, values, count + 1), np.bincount(which, minlength=count + 1))
    ]
    return np.stack(sums, axis=1)


def confidence_of(summed: Counts, calibration: Calibration = CALIBRATION) -> Confidence:
    """Return the confidence of objects 1 ... n, (n,) float32, from their `evidence` in the frame, (n + 1, 4).

    The outline of objects is not known: the feature `outline` counts as 1. `CALIBRATION` does not use it.
    """
    return calibration(_features(summed))


def _of_one_frame(objects: ArrayLike, probabilities: ArrayLike) -> tuple[Array, Array]:
    """Return objects (H, W) and probabilities (classes, H, W), or raise FrameError if the shapes differ."""
    objects, probabilities = as_array(objects), as_array(probabilities)
    if objects.ndim != 2 or probabilities.ndim != 3 or probabilities.shape[1:] != objects.shape:
        raise FrameError(
            f"objects {objects.shape} and probabilities {probabilities.shape} do not belong together: give (H, W) and "
            "(classes, H, W)"
        )
    return objects, probabilities


def _features(summed: Counts) -> ObjectFeatures:
    """Return the features of objects 1 ... n from their evidence, (n + 1, 4), with an outline of 1."""
    core, core_area, foreground, area = summed[1:].T
    return ObjectFeatures(_means(core, core_area, 0), _means(foreground, area, 0), np.ones(len(core)))


def _means(sums: Counts, areas: Counts, empty: float) -> Counts:
    """Return the means of values from 0 to 1, (n,), given their sums and numbers; `empty` where there are no values."""
    means = np.divide(sums, areas, out=np.full(len(sums), float(empty)), where=areas > 0)
    bounded: Counts = np.clip(means, 0, 1)  # probabilities are rounded
    return bounded
