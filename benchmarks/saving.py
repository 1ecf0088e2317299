"""The benchmark of the files that `--save` writes: seconds for each kind, for many objects."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.cases import BenchCase, Figures
from unetrt.benchmarks.processes import one_core
from unetrt.benchmarks.result import Measure
from unetrt.runtime.files.outputs import KINDS, opened_outputs
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.pixel_size import PixelSize

# Seconds for 100,000 objects.
GOAL, OBJECTS = 60.0, 100_000
# Distance between the middles of two discs, in pixels.
PITCH = 32


@dataclass(frozen=True)
class SavedFiles(BenchCase):
    """The processor's time in which the labels of a frame are written as each kind of file, on one core.

    Attributes
    ----------
    side
        Number of discs in a row and in a column; each seventh has a hole, each eleventh has two parts.
    """

    NAME: ClassVar[str] = "saving"
    MEASURES: ClassVar[str] = (
        "Writing the labels of one frame of discs as each kind of file, with outlines and measurements, in CPU time on "
        "one core."
    )
    HELP: ClassVar[str] = "Time the writing of each kind of file."
    ROUNDS: ClassVar[int] = 3

    side: int = field(default=317, metadata={"--side": "Discs in a row and in a column."})

    def prepare(self, folder: Path) -> None:
        """Draw the discs."""
        labels = discs(self.side)
        np.save(folder / "labels.npy", labels)
        np.save(folder / "frame.npy", np.random.default_rng(1).integers(0, 60000, (1, 1, *labels.shape), np.uint16))

    def round(self, folder: Path) -> dict[str, Any]:
        """Return the CPU seconds for each kind; each computes the outlines and measurements that it needs."""
        labels, frame = np.load(folder / "labels.npy"), np.load(folder / "frame.npy")
        seconds = {}
        with one_core():
            for kind in KINDS:
                image = LabelledImage(kind, labels, frames=frame, pixel_size=PixelSize(0.5, 0.5))
                begin = time.process_time()
                with opened_outputs(folder / "out", [kind], channels=1) as outputs:
                    outputs.write(image)
                seconds[kind] = time.process_time() - begin
        return seconds

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield the seconds of each kind; the goal is that for the number of objects."""
        for kind in KINDS:
            yield Measure.of(kind, "s", seconds[kind], GOAL * self.side**2 / OBJECTS)

    def detail(self, _seconds: Figures, _rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the size of the frame and the number of objects."""
        return {"frame": [PITCH * self.side] * 2, "objects": self.side**2}


def discs(side: int) -> NDArray[np.int32]:
    """Return side * side labels on a grid, (32 side, 32 side): discs of several sizes, with holes and in parts."""
    rng = np.random.default_rng(0)
    y, x = np.indices((PITCH, PITCH)) - (PITCH - 1) / 2
    labels = np.zeros((side * PITCH, side * PITCH), np.int32)
    for number in range(side * side):
        disc = y**2 + x**2 * rng.uniform(1, 1.5) < (PITCH * rng.uniform(0.25, 0.48)) ** 2
        if number % 7 == 0:
            disc &= y**2 + x**2 > 9
        if number % 11 == 0:
            disc[:, PITCH // 2] = False
        row, column = divmod(number, side)
        labels[row * PITCH : (row + 1) * PITCH, column * PITCH : (column + 1) * PITCH][disc] = number + 1
    return labels
