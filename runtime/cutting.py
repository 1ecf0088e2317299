"""What the host does around a lane: cut and normalise its input, stitch the classes of its output.

Both take several passes over a tile. They are made strip by strip, so that all but the first find it in the cache.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.normalisation import Affine
from unetrt.runtime.plan import Tile
from unetrt.runtime.scores import best_class

Array = NDArray[Any]

# Values of a strip, 2 MiB as float32: much larger ones leave a core's cache, much smaller ones pay for Python's calls.
STRIP = 1 << 19


def cut(frame: Array, affine: Affine | None, tile: Tile, slot: Array) -> None:
    """Fill `slot` (C, h, w) with a tile of a raw `frame` (C, H, W), mirrored at the borders and normalised.

    Bitwise the same as cutting the whole tile and applying `affine` to it.

    Parameters
    ----------
    frame
        Integers or floats.
    affine
        How to normalise, in float32, which `slot` then is; None leaves grey values as they are.
    tile
        Which tile.
    slot
        Where it goes: what the network takes.
    """
    if affine is None:
        tile.cut(frame, slot)
        return
    for strip in tile.strips(frame, slot, _height(slot)):
        affine.apply(strip)


def stitch_labels(tile: Tile, core: Array, labels: NDArray[np.uint8]) -> None:
    """Write the best class of each pixel of a tile's valid output to its place.

    Parameters
    ----------
    tile
        Which tile.
    core
        Its scores (classes, h', w').
    labels
        uint8 (H, W), those of the frame; the same as stitching `best_class(core)` into them.
    """
    place, height = tile.place(labels), _height(core)
    for begin in range(0, len(place), height):
        strip = place[begin : begin + height]
        # Whole rows, the few pixels to the right of the frame too: without gaps it is twice as fast.
        strip[...] = best_class(core[:, begin : begin + len(strip)])[:, : strip.shape[1]]


def _height(pixels: Array) -> int:
    """Return the rows of a strip of (C, h, w)."""
    channels, _, width = pixels.shape
    return max(1, STRIP // int(channels * width))
