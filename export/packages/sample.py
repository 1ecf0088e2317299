"""The example in a package: one real tile, and what the model makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetrt.runtime.errors import FrameError
from unetrt.runtime.geometry.plan import Tile, TilePlan
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import as_frame, require_raw
from unetrt.runtime.pixels.instances import overlay
from unetrt.runtime.pixels.scores import best_class, require_finite_scores
from unetrt.runtime.sessions import Session

Array = NDArray[Any]

# Side of each half of a cover: the model zoo asks for 2:1 and less than 500 kB.
COVER = 256


@dataclass(frozen=True)
class Sample:
    """A tile and its result.

    Attributes
    ----------
    input
        Raw grey values of a whole tile, (1, C, h, w), of the spec's input dtype.
    output
        What the model gives for it, (1, classes, h', w') float32 or (1, h', w') uint8, normalised as if the tile were
        the whole frame: that is what a program does that is handed the tile alone.
    """

    input: Array
    output: Array

    def cover(self, path: Path, spec: ModelSpec) -> None:
        """Draw input and labels side by side, the middle of the core, into an image file."""
        inner = slice(spec.halo, -spec.halo or None)
        frame = self.input[0][..., inner, inner]
        labels = self.output[0] if spec.head == "labels" else best_class(self.output[0])
        side = min(spec.core)
        row, column = ((length - side) // 2 for length in spec.core)
        middle = (..., slice(row, row + side), slice(column, column + side))
        halves = [overlay(frame[middle], shown[middle]) for shown in (np.zeros_like(labels), labels)]
        Image.fromarray(np.concatenate(halves, axis=1)).resize((2 * COVER, COVER)).save(path)


def take(session: Session, frames: Sequence[Array]) -> Sample:
    """Return the tile of most contrast of the first frame in which the model finds something.

    Parameters
    ----------
    session
        The model, with batch 1.
    frames
        Raw frames (C, H, W).

    Raises
    ------
    FrameError
        A frame does not fit the model, or none shows anything: a program could then not be tested with it.
    """
    for frame in frames:
        sample = _run(session, _tile(session.spec, frame))
        if np.ptp(sample.input) > 0 and np.ptp(sample.output) > 0:
            return sample
    raise FrameError(
        f"of {len(frames)} frames the model makes one flat answer, which tests nothing: give one that shows objects"
    )


def _tile(spec: ModelSpec, frame: Array) -> Array:
    """Cut the tile (C, h, w) whose core has the most contrast, mirrored at the frame's borders."""
    if frame.ndim != 3 or frame.shape[0] != spec.channels:
        raise FrameError(f"the frame has shape {frame.shape}: a package needs ({spec.channels}, H, W)")
    frame = as_frame(frame, spec.channels)
    if spec.takes_raw:
        require_raw(frame.dtype, spec.input_dtype)
    plan = TilePlan((frame.shape[1], frame.shape[2]), spec.tile, spec.geometry, spec.border)

    def contrast(tile: Tile) -> float:
        return float(frame[:, tile.rows.core, tile.columns.core].std())

    cut: Array = spec.new_input()[0]
    max(plan, key=contrast).cut(frame, cut)
    return cut


def _run(session: Session, tile: Array) -> Sample:
    spec = session.spec
    lane = session.lanes(1)[0]
    lane.input[0] = tile if spec.takes_raw else spec.normalisation(tile)
    lane.launch()
    lane.wait()
    output = lane.output.copy()
    if spec.head != "labels":
        require_finite_scores(output)
    return Sample(tile[None], output)
