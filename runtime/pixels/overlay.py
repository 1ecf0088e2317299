"""Pictures for people: a frame in grey with its objects outlined in colour."""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# How much of the grey value an object's inside keeps.
INSIDE = 0.75
# Colours in turn; neighbouring numbers are often neighbouring objects, so neighbours in the table differ.
COLOURS = np.array(
    [colorsys.hsv_to_rgb(turn * 0.618 % 1, 0.85, 1.0) for turn in range(32)], np.float32
)  # the golden ratio spreads the hues


def overlay(frame: Array, labels: Array) -> NDArray[np.uint8]:
    """Draw labels over a frame.

    Parameters
    ----------
    frame
        (H, W) or (C, H, W), any grey values; stretched from the 1st to the 99.8th percentile, channels averaged.
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
    """Return which pixels (H, W) of an object border on a pixel with another label, above, below, left or right."""
    edge = np.zeros(labels.shape, bool)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge & (labels > 0)


def stretched(frame: Array, every: int = 1) -> NDArray[np.float32]:
    """Return a frame (H, W) from its 1st to its 99.8th percentile as 0 to 1; both of each `every`th row and column."""
    low, high = np.percentile(frame[::every, ::every], (1, 99.8))
    width = high - low if high > low else 1
    share: NDArray[np.float32] = np.clip((frame - low) / width, 0, 1).astype(np.float32)
    return share
