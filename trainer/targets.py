"""What the network shall answer, and how much each pixel counts (Ronneberger et al. 2015, section 3, equation 2)."""

from math import ceil, log, sqrt
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
Labels = NDArray[np.int32]

# Where the separation weight falls below this it is left out: far below what a float32 loss can show.
NEGLIGIBLE = 5e-5


def as_instances(labels: Array) -> Labels:
    """Return instances (H, W) int32, numbered 1 ... n; a mask, one value besides 0, becomes its components."""
    values, numbers = np.unique(labels, return_inverse=True)
    if len(values[values > 0]) <= 1:
        components: Labels = np.empty(labels.shape, np.int32)
        ndimage.label(labels > 0, output=components)
        return components
    numbered: Labels = (numbers.reshape(labels.shape) + (values[0] > 0)).astype(np.int32)
    return numbered


def cut_between(objects: Labels, width: int) -> Labels:
    """Make background between touching objects (section 3: "separation border ... using morphological operations").

    Parameters
    ----------
    objects
        (H, W), 0 is the background; objects touch along an edge or a corner.
    width
        Of the border, in pixels: an even width takes as much from both, an odd one takes a pixel more from the lower
        number. 0 cuts nothing.

    Returns
    -------
    A copy in which the cut pixels are 0.
    """
    nothing = np.iinfo(objects.dtype).max
    above = ndimage.maximum_filter(objects, 2 * ceil(width / 2) + 1)
    below = ndimage.minimum_filter(np.where(objects > 0, objects, nothing), 2 * (width // 2) + 1)
    cut = (above > objects) | (below < objects)
    return np.where(cut, 0, objects)


def separation_weights(objects: Labels, w0: float = 10.0, sigma: float = 5.0) -> NDArray[np.float32]:
    """Return w0 exp(-(d1 + d2)^2 / (2 sigma^2)), d1 and d2 the distances to the borders of the two nearest objects.

    "Distance to the border" is taken at its word: outside an object it is the distance to its nearest pixel, inside it
    the distance to the nearest pixel that is not its own. So the weight falls off alike on both sides of a gap.

    Parameters
    ----------
    objects
        (H, W), one number an object, 0 is the background.
    w0
        Weight where two objects touch (10 in the paper).
    sigma
        In pixels (5 in the paper).

    Returns
    -------
    float32, (H, W), equal within 1e-4 to distance transforms of the whole image for each object: an object further away
    than where the weight is negligible is not looked at.
    """
    weights = np.zeros(objects.shape, np.float32)
    if w0 <= 0:
        return weights
    reach = ceil(sigma * sqrt(2 * max(log(w0 / NEGLIGIBLE), 0)))
    nearest, second = np.full((2, *objects.shape), np.inf, np.float32)
    for number, box in enumerate(ndimage.find_objects(objects), 1):
        if box is None:
            continue
        around = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
        # With two labels, this transform measures from each pixel to the nearest one of the other label: both sides.
        squared = edt.edtsq((objects[around] == number).view(np.uint8) + np.uint8(1))
        second[around] = np.minimum(second[around], np.maximum(nearest[around], squared))
        nearest[around] = np.minimum(nearest[around], squared)
    near = np.isfinite(second)
    weights[near] = w0 * np.exp(-((np.sqrt(nearest[near]) + np.sqrt(second[near])) ** 2) / (2 * sigma**2))
    return weights


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return w_c, which balances classes: each counts as much as any other, and the mean over all pixels is 1.

    Parameters
    ----------
    counts
        Pixels of each class in the training set, (classes,). A class without pixels gets weight 0.
    """
    present = counts > 0
    weights = np.zeros(len(counts), np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
