"""The host's path of a frame around lanes that compute nothing: arrays and no more."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cutting import cut, stitch_labels
from unetrt.runtime.geometry import Geometry
from unetrt.runtime.normalisation import Normalisation
from unetrt.runtime.plan import Tile, TilePlan
from unetrt.runtime.scores import require_finite_scores

Array = NDArray[Any]

GEOMETRY = Geometry.unet(4)
# Two, as the segmenter has: the input of one is cut while the other computes.
LANES = 2
# None: the network takes raw grey values.
INPUTS: dict[str, Normalisation | None] = {
    "percentile": Normalisation("percentile"),
    "zscore": Normalisation("zscore"),
    "fixed": Normalisation("fixed", offset=(400.0,), scale=(0.00025,)),
    "raw uint16": None,
}
# Scores of an engine below float32 are checked for what overflowed.
HEADS = ("logits", "logits, checked", "labels")


class Seconds(NamedTuple):
    """What one frame took, in seconds: the phases, and all together."""

    normalise: float
    cut: float
    stitch: float
    total: float


@dataclass
class IdleLanes:
    """The arrays of lanes for square tiles of `side` pixels; what they might give is there from the start.

    Attributes
    ----------
    inputs
        By dtype: LANES arrays (1, side, side).
    outputs
        By head, `logits` and `labels`: LANES arrays, random scores of two classes (2, h', w') float32, or their labels.
    """

    side: int
    inputs: dict[str, list[Array]] = field(init=False)
    outputs: dict[str, list[Array]] = field(init=False)

    def __post_init__(self) -> None:
        core = GEOMETRY.core(self.side)
        self.inputs = {
            name: [np.zeros((1, self.side, self.side), name) for _ in range(LANES)] for name in ("float32", "uint16")
        }
        random = np.random.default_rng(0)
        scores: list[Array] = [random.standard_normal((2, core, core), np.float32) for _ in range(LANES)]
        self.outputs = {"logits": scores, "labels": [(each[1] > each[0]).view(np.uint8) for each in scores]}


class IdlePath:
    """Takes frames through idle lanes.

    Parameters
    ----------
    size
        Height and width of the frames, pixels.
    lanes
        Their arrays.
    input_name
        Key of INPUTS.
    head
        Element of HEADS.
    """

    def __init__(self, size: tuple[int, int], lanes: IdleLanes, input_name: str, head: str) -> None:
        self.plan = TilePlan(size, (lanes.side, lanes.side), GEOMETRY)
        self.input_name, self.head = input_name, head
        self._normalisation = INPUTS[input_name]
        self._slots = lanes.inputs["float32" if self._normalisation else "uint16"]
        self._cores = lanes.outputs["labels" if head == "labels" else "logits"]
        self.labels = np.zeros(size, np.uint8)

    def take(self, frame: Array) -> Seconds:
        """Take a frame (1, H, W) uint16 through; its labels are those of the lanes' outputs."""
        begin = perf_counter()
        affine = self._normalisation.measure(frame) if self._normalisation else None
        measured = perf_counter()
        cutting = stitching = 0.0
        for tile in self.plan:
            slot, core = self._slots[tile.index % LANES], self._cores[tile.index % LANES]
            start = perf_counter()
            cut(frame, affine, tile, slot)
            half = perf_counter()
            self._stitch(tile, core)
            cutting, stitching = cutting + half - start, stitching + perf_counter() - half
        return Seconds(measured - begin, cutting, stitching, perf_counter() - begin)

    def _stitch(self, tile: Tile, core: Array) -> None:
        if self.head == "labels":
            tile.stitch(core, self.labels)
            return
        if self.head == "logits, checked":
            require_finite_scores(core)
        stitch_labels(tile, core, self.labels)
