"""The host's path of a frame: a Segmenter around lanes that compute nothing."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.idle_session import IdleSession
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import Head, InputType, ModelSpec, Precision
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter

Array = NDArray[Any]

FIXED = Normalisation("fixed", offset=(400.0,), scale=(0.00025,))
# What the network takes, and how grey values become that; raw ones are normalised in the graph.
INPUTS: dict[str, tuple[InputType, Normalisation]] = {
    "percentile": ("float32", Normalisation("percentile")),
    "zscore": ("float32", Normalisation("zscore")),
    "fixed": ("float32", FIXED),
    "raw uint16": ("uint16", FIXED),
}
# Scores of an engine below float32 are checked for what overflowed.
HEADS: dict[str, tuple[Head, Precision]] = {
    "logits": ("logits", "fp32"),
    "logits, checked": ("logits", "fp16"),
    "labels": ("labels", "fp16"),
}


class Seconds(NamedTuple):
    """What one frame took, in seconds: the phases, and all together."""

    normalise: float
    cut: float
    stitch: float
    total: float


class IdlePath:
    """Takes frames through idle lanes.

    Parameters
    ----------
    size
        Height and width of the frames, pixels.
    side
        Of the square tiles, pixels, legal at depth 4.
    input_name, head_name
        Keys of INPUTS and HEADS.
    """

    def __init__(self, size: tuple[int, int], side: int, input_name: str, head_name: str) -> None:
        self.side, self.input_name, self.head_name = side, input_name, head_name
        self.labels = np.zeros(size, np.uint8)
        (dtype, normalisation), (head, precision) = INPUTS[input_name], HEADS[head_name]
        geometry = UNetShape(4).geometry
        self.spec = ModelSpec(
            (side, side),
            geometry.halo,
            geometry.grid,
            normalisation=normalisation,
            head=head,
            precision=precision,
            input_dtype=dtype,
        )

    def open(self) -> Segmenter:
        """Return a segmenter with the arrays of its lanes."""
        return Segmenter(IdleSession(self.spec))

    def take(self, segmenter: Segmenter, frame: Array) -> Seconds:
        """Take a frame (H, W) uint16 through; its labels are those of the lanes' outputs."""
        timings = segmenter.segment(frame, out=self.labels).timings
        return Seconds(timings.normalise, timings.cut, timings.stitch, timings.total)
