"""From a class map to single objects: connected components, grown back over the border that training cut."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.runtime.errors import FrameError, OptionError

Labels = NDArray[np.int32]


def instances(classes: NDArray[Any], separation_border: int = 0, min_area: int = 0) -> Labels:
    """Return the objects of a class map, numbered.

    Parameters
    ----------
    classes
        (..., H, W), integers; 0 is the background, everything else foreground. Each plane of a stack for itself.
    separation_border
        Pixels of background that training cut between touching objects. They are given back to the nearest object.
    min_area
        Objects of fewer pixels are dropped.

    Returns
    -------
    int32, (..., H, W): 0 background, 1 ... n one number an object, without gaps, from 1 again in each plane.

    Raises
    ------
    FrameError
        The map has fewer than two axes, or holds no integers.
    OptionError
        A number of pixels is negative.
    """
    if classes.ndim < 2 or classes.dtype.kind not in "uib":
        raise FrameError(f"a class map of {classes.dtype} {classes.shape} holds no objects: give integers (..., H, W)")
    if min(separation_border, min_area) < 0:
        raise OptionError(f"separation border {separation_border} and least area {min_area} must be 0 px or more")
    found: Labels = np.empty(classes.shape, np.int32)
    for plane in np.ndindex(classes.shape[:-2]):
        found[plane] = _plane(classes[plane], separation_border, min_area)
    return found


def _plane(classes: NDArray[Any], separation_border: int, min_area: int) -> Labels:
    components: Labels = np.empty(classes.shape, np.int32)
    ndimage.label(classes > 0, output=components)
    if min_area > 1:
        components = _without_small(components, min_area)
    return grow_between(components, separation_border) if separation_border else components


def grow_between(objects: Labels, reach: int) -> Labels:
    """Fill the background between objects at most `reach` px from two of them; outer outlines stay as they are.

    This undoes the cut of training, which makes background only where two objects touch; at the two ends of a gap it
    may fill up to `reach` px beyond the objects' outlines.

    Parameters
    ----------
    objects
        int32, (H, W), 0 is the background.
    reach
        In pixels, along either axis.
    """
    size = 2 * reach + 1
    highest = ndimage.maximum_filter(objects, size)
    nothing = np.iinfo(objects.dtype).max
    lowest = ndimage.minimum_filter(np.where(objects > 0, objects, nothing), size)
    gap = np.argwhere((objects == 0) & (highest > lowest))
    grown = np.pad(objects, reach)
    if len(gap):
        grown[tuple(gap.T + reach)] = _nearest(grown, gap + reach, reach)
    return grown[reach:-reach, reach:-reach].copy()


def _nearest(objects: Labels, at: NDArray[np.intp], reach: int) -> Labels:
    """Return the object nearest to each pixel of `at` (n, 2), looking `reach` px along either axis."""
    found: Labels = np.zeros(len(at), np.int32)
    steps = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    for dy, dx in sorted(steps, key=lambda step: step[0] ** 2 + step[1] ** 2):
        found = np.where(found > 0, found, objects[at[:, 0] + dy, at[:, 1] + dx])
    return found


def _without_small(objects: Labels, min_area: int) -> Labels:
    keep = np.bincount(objects.ravel()) >= min_area
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return numbers[objects]
