"""What a tile takes on a machine: seconds, from a few passes that were measured there."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape

FrameSize = tuple[int, int]

# Values of one layer that the next finds in a cache still, 4 MiB of FP32. Measured with ONNX Runtime 1.31 on 2 cores,
# base 16: anything from 2 to 16 MiB predicts as well, while without it the largest error doubles.
CACHED = 2**20


@dataclass(frozen=True)
class TileSeconds:
    """A tile and what it took.

    Attributes
    ----------
    tile
        Height and width, in pixels.
    seconds
        Of one tile; of a pass of several, its share.
    """

    tile: FrameSize
    seconds: float


@dataclass(frozen=True)
class CostModel:
    """Seconds of a tile: what every pass takes, what each multiply-accumulate adds, and what memory does.

    Attributes
    ----------
    per_tile
        Seconds that a tile takes however small it is.
    per_mac
        Seconds a multiply-accumulate.
    per_value
        Seconds a value that a convolution writes beyond the first `CACHED`: those go through memory, so that large
        tiles and layers of few channels run at a lower rate.
    """

    per_tile: float
    per_mac: float
    per_value: float

    def __post_init__(self) -> None:
        terms = (self.per_tile, self.per_mac, self.per_value)
        if not all(isfinite(term) and term >= 0 for term in terms) or not any(terms):
            raise OptionError(f"{terms} seconds a tile, multiply-accumulate and value: none is negative, not all are 0")

    def seconds(self, tile: FrameSize, shape: UNetShape) -> float:
        """Return what one (height, width) tile takes in a network of that shape, in seconds."""
        return float(_work(tile, shape) @ (self.per_tile, self.per_mac, self.per_value))

    @classmethod
    def fit(cls, measured: Sequence[TileSeconds], shape: UNetShape) -> "CostModel":
        """Return the model that comes nearest to what was measured, errors counted as shares of the time.

        Non-negative least squares: no part of a pass gives time back. (Lawson and Hanson, Solving Least Squares
        Problems, 1974, chapter 23.)

        Raises
        ------
        OptionError
            There are fewer tiles than unknowns, or a time that is none.
        """
        from scipy.optimize import nnls

        if len({one.tile for one in measured}) < 3:
            raise OptionError(f"{len(measured)} tiles do not make a model of 3 unknowns: measure 3 or more")
        if not all(isfinite(one.seconds) and one.seconds > 0 for one in measured):
            raise OptionError("a tile took no time: measure it again")
        shares = np.array([_work(one.tile, shape) / one.seconds for one in measured])
        scale = np.maximum(shares.max(axis=0), np.finfo(float).tiny)  # of small tiles, all is cached
        terms, _ = nnls(shares / scale, np.ones(len(measured)))
        return cls(*(terms / scale).tolist())


def _work(tile: FrameSize, shape: UNetShape) -> NDArray[np.float64]:
    """Return the work in a tile that takes time: (1, multiply-accumulates, values that go through memory)."""
    layers = list(shape.layers(*tile))
    uncached = sum(max(0, layer.outputs - CACHED) for layer in layers)
    return np.array([1, sum(layer.macs for layer in layers), uncached], np.float64)
