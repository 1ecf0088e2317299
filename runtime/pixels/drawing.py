"""Pictures of labels: colours, outlines, and objects drawn over a frame in grey.

>>> outlines(np.array([[1, 1, 2], [1, 1, 2]]))
array([[False,  True,  True],
       [False,  True,  True]])
"""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Share of the grey value inside an object of an overlay; the rest is its colour.
INSIDE = 0.75
# Pixels that `overlay` draws at once, each of which takes some 50 bytes meanwhile.
BAND = 2**16
# Colours by object number. Consecutive numbers are often neighbours, so the golden ratio spreads their hues.
COLOURS = np.array([colorsys.hsv_to_rgb(turn * 0.618 % 1, 0.85, 1.0) for turn in range(32)], np.float32)


def colour_of(label: int) -> list[int]:
    """Return the colour in which a label is drawn: red, green and blue, 0 to 255."""
    colour: list[int] = (255 * COLOURS[label % len(COLOURS)]).astype(np.uint8).tolist()
    return colour


def overlay(frame: Array, labels: Array, inside: float = INSIDE) -> NDArray[np.uint8]:
    """Draw objects over a frame: the frame in grey, objects tinted and outlined in colour.

    Parameters
    ----------
    frame
        (H, W) or (C, H, W), any grey values; channels are averaged, and the 1st to 99.8th percentile stretched.
    labels
        (H, W), integers; 0 is not drawn.
    inside
        Share of the grey value inside an object, 0 to 1; the rest is its colour.

    Returns
    -------
    uint8, (H, W, 3)
    """
    if frame.ndim == 3:
        frame = frame[0] if len(frame) == 1 and frame.dtype.kind in "uif" else frame.mean(axis=0)
    black, width = limits(frame)
    picture = np.empty((*labels.shape, 3), np.uint8)
    height = max(1, BAND // labels.shape[1])
    for top in range(0, len(labels), height):
        band, above = slice(top, top + height), min(top, 1)
        edge = outlines(labels[top - above : top + height + 1])[above:][: len(labels[band])]
        picture[band] = _mixed(scaled(frame[band], black, width), labels[band], edge, inside)
    return picture


def _mixed(grey: NDArray[np.float32], labels: Array, edge: NDArray[np.bool_], inside: float) -> NDArray[np.uint8]:
    """Return grey values from 0 to 1 with objects tinted, and coloured where `edge` is true, (H, W, 3)."""
    colour = COLOURS[labels % len(COLOURS)]
    share = np.where(labels > 0, np.float32(inside), np.float32(1))
    share[edge] = 0
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


def limits(frame: Array) -> tuple[Any, Any]:
    """Return the 1st to 99.8th percentile of a frame: the lower one, and their difference or 1 if that is 0."""
    low, high = np.percentile(frame, (1, 99.8))
    return low, high - low if high > low else 1


def scaled(frame: Array, low: Any, width: Any) -> NDArray[np.float32]:
    """Map grey values from `low` to `low + width` to 0 to 1; those outside are clipped."""
    share: NDArray[np.float32] = np.clip((frame - low) / width, 0, 1).astype(np.float32)
    return share
