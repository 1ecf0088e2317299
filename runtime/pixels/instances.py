"""Objects of a class map: connected components, and their outlines drawn over the frame.

`instances` numbers the connected components of the foreground. Training cuts a border of background between touching
objects, so that the network separates them; `instances` assigns that border to the nearest object.

>>> instances(np.array([[1, 1, 0, 1]], np.uint8))
array([[1, 1, 0, 2]], dtype=int32)
"""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.runtime.errors import FrameError, OptionError

Array = NDArray[Any]
Labels = NDArray[np.int32]

# Share of the grey value inside an object; the rest is its colour.
INSIDE = 0.75
# Colours by object number. Consecutive numbers are often neighbours, so the golden ratio spreads their hues.
COLOURS = np.array([colorsys.hsv_to_rgb(turn * 0.618 % 1, 0.85, 1.0) for turn in range(32)], np.float32)


def instances(classes: Array, separation_border: int = 0, min_area: int = 0) -> Labels:
    """Return the connected components of a class map, numbered.

    Parameters
    ----------
    classes
        (..., H, W), integers; 0 is the background, everything else foreground. The planes of a stack are independent.
    separation_border
        Width in pixels of the background that training cut between touching objects; it is assigned to the nearest
        object.
    min_area
        Minimum area in pixels; smaller objects become background.

    Returns
    -------
    int32, (..., H, W): 0 is the background; objects are numbered 1 ... n in each plane.

    Raises
    ------
    FrameError
        The map has fewer than two axes, or does not hold integers.
    OptionError
        `separation_border` or `min_area` is negative.
    """
    if classes.ndim < 2 or classes.dtype.kind not in "uib":
        raise FrameError(f"a class map must be integers (..., H, W) (got {classes.dtype} {classes.shape})")
    if min(separation_border, min_area) < 0:
        raise OptionError(f"separation_border and min_area must be at least 0 (got {separation_border} and {min_area})")
    found: Labels = np.empty(classes.shape, np.int32)
    for plane in np.ndindex(classes.shape[:-2]):
        found[plane] = _plane(classes[plane], separation_border, min_area)
    return found


def _plane(classes: Array, separation_border: int, min_area: int) -> Labels:
    components: Labels = np.empty(classes.shape, np.int32)
    ndimage.label(classes > 0, output=components)
    if min_area > 1:
        components = _without_small(components, min_area)
    return grow_between(components, separation_border) if separation_border else components


def grow_between(objects: Labels, reach: int) -> Labels:
    """Assign background within `reach` px of two or more objects to the nearest; other background stays.

    This reverses the separation border of training, which exists only where two objects touch. At both ends of a gap,
    pixels up to `reach` px beyond the objects' outlines may be filled.

    Parameters
    ----------
    objects
        int32, (H, W); 0 is the background.
    reach
        Distance in pixels along either axis.
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
    """Return the object nearest to each pixel of `at` (n, 2: row, column), within `reach` px along either axis."""
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


def overlay(frame: Array, labels: Array) -> NDArray[np.uint8]:
    """Draw objects over a frame: the frame in grey, objects tinted and outlined in colour.

    Parameters
    ----------
    frame
        (H, W) or (C, H, W), any grey values; channels are averaged, and the 1st to 99.8th percentile stretched.
    labels
        (H, W), integers; 0 is not drawn.

    Returns
    -------
    uint8, (H, W, 3)
    """
    grey = stretched(frame.mean(axis=0) if frame.ndim == 3 else frame)
    colour = COLOURS[labels % len(COLOURS)]
    share = np.where(labels > 0, np.float32(INSIDE), np.float32(1))
    share[outlines(labels)] = 0
    mixed = grey[..., None] * share[..., None] + colour * (1 - share[..., None])
    picture: NDArray[np.uint8] = (mixed * 255).astype(np.uint8)
    return picture


def outlines(labels: Array) -> NDArray[np.bool_]:
    """Return a mask (H, W) of the object pixels next to another label above, below, left or right."""
    edge = np.zeros(labels.shape, bool)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge & (labels > 0)


def stretched(frame: Array, every: int = 1) -> NDArray[np.float32]:
    """Map the 1st to 99.8th percentile of a frame (H, W), from every `every`-th row and column, to 0 to 1."""
    low, high = np.percentile(frame[::every, ::every], (1, 99.8))
    width = high - low if high > low else 1
    share: NDArray[np.float32] = np.clip((frame - low) / width, 0, 1).astype(np.float32)
    return share
