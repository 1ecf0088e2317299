"""The warping error: disagreements that no bending of the outlines explains (Jain et al. 2010; ISBI challenge 2012).

The truth is deformed towards the prediction without a change of its topology: pixels are flipped only where they are
simple points. What then still disagrees is an object merged, split, missed or made up, or a hole, and each counts with
the pixels that it takes. An outline that is merely shifted costs nothing.

Foreground is connected along edges, background also through corners, as in `unetrt.runtime.pixels.instances`.
"""

from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

# The eight neighbours of a pixel, row by row, as bits of a number from 0 to 255.
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def warping_error(predicted: NDArray[Any], truth: NDArray[Any]) -> int:
    """Return how many pixels of two masks disagree after the truth has been warped to the prediction.

    Divided by the number of pixels it is the challenge's warping error. As in its own program the deformation is
    greedy: it ends where no single flip brings the truth nearer.

    Parameters
    ----------
    predicted, truth
        (H, W), bool or numbers, above 0 is foreground. Give instances with a border between touching ones (`outlined`).
    """
    return int((warped(truth > 0, predicted > 0) != (predicted > 0)).sum())


def outlined(instances: NDArray[Any]) -> Mask:
    """Return the foreground, (H, W) bool, of an instance map (H, W), integers: a line of background parts objects."""
    around = ndimage.maximum_filter(instances, 3)
    mask: Mask = (instances > 0) & (around == instances)
    return mask


def warped(mask: Mask, target: Mask) -> Mask:
    """Return `mask` deformed towards `target`, both (H, W) bool, with its own topology.

    Pixels of one parity of row and column are no neighbours of each other, so that flipping all their simple points at
    once is the same as one after another.
    """
    padded, goal = np.pad(mask, 1), np.pad(target, 1)
    while True:
        before = padded.copy()
        for down, right in product((0, 1), repeat=2):
            _flip(padded, goal, (down, right))
        if np.array_equal(before, padded):
            return padded[1:-1, 1:-1]


def _flip(padded: Mask, goal: Mask, parity: tuple[int, int]) -> None:
    """Flip, in place, those pixels of one parity that differ from the goal and are simple."""
    rows, columns = np.nonzero(padded[1:-1, 1:-1] != goal[1:-1, 1:-1])
    of_parity = (rows % 2 == parity[0]) & (columns % 2 == parity[1])
    rows, columns = rows[of_parity] + 1, columns[of_parity] + 1
    around = np.zeros(len(rows), np.uint8)
    for bit, (dy, dx) in enumerate(NEIGHBOURS):
        around |= padded[rows + dy, columns + dx].astype(np.uint8) << bit
    simple = _simple()[around]
    padded[rows[simple], columns[simple]] ^= True


@cache
def _simple() -> Mask:
    """Return for each neighbourhood (256,) whether flipping the middle keeps the topology.

    So it is where the middle has exactly one neighbouring piece of foreground and one of background (Kong and Rosenfeld
    1989): foreground along edges, among pieces that touch the middle's edges; background also through corners.
    """
    table = np.zeros(256, bool)
    for pattern in range(256):
        around = np.zeros((3, 3), bool)
        for bit, (dy, dx) in enumerate(NEIGHBOURS):
            around[dy + 1, dx + 1] = pattern >> bit & 1
        pieces, _ = ndimage.label(around)
        touching = {pieces[0, 1], pieces[1, 0], pieces[1, 2], pieces[2, 1]} - {0}
        background = ~around
        background[1, 1] = False
        _, holes = ndimage.label(background, np.ones((3, 3)))
        table[pattern] = len(touching) == 1 and holes == 1
    return table
