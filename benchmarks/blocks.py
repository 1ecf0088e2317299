"""Benchmarks of images in blocks: speed beside that of the session alone, and memory beside the size of the image.

What they run is in `block_runs`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from unetrt.benchmarks.block_runs import BUNDLED, MEBIBYTE, compared, in_blocks, in_memory, mosaic
from unetrt.benchmarks.cases import BenchCase, Figures
from unetrt.benchmarks.processes import fresh
from unetrt.benchmarks.result import Measure
from unetrt.runtime.errors import OptionError
from unetrt.runtime.model.onnx_file import read_spec, resolved

# Least share of the session's own rate, most memory in MiB (1.5 GB), and its growth from the smallest image on.
SPEED_GOAL, MEMORY_GOAL, GROWTH_GOAL = 0.9, 1.5e9 / MEBIBYTE, 1.05
# Network of the memory's benchmark: base, depth and tile; small, as the memory of blocks does not depend on it.
BASE, DEPTH, TILE = 4, 2, (316, 316)
# Names of the image, of the folder of its labels, and of the model, in the folder of a case.
IMAGE, LABELS, MODEL = "image.zarr", "labels", "model.onnx"


@dataclass(frozen=True)
class BlockSpeed(BenchCase):
    """The rate from one Zarr store to another, in blocks, beside that of the session for a part in memory.

    Attributes
    ----------
    model
        An exported model, or the name of one that comes with unetrt.
    height, width
        Of the image, in pixels.
    part
        Largest side of the part that the session segments in memory, in pixels.
    """

    NAME: ClassVar[str] = "blocks"
    MEASURES: ClassVar[str] = (
        "Objects of an image of nuclei in blocks, from a Zarr store to an OME-Zarr, beside the objects of a part of it "
        "in memory; and the peak of the memory above that of a process that has opened the model."
    )
    HELP: ClassVar[str] = "Time the way in blocks from store to store."
    ROUNDS: ClassVar[int] = 3

    model: str = field(default=BUNDLED, metadata={"--model": "A model file, or the name of a bundled one."})
    height: int = field(default=10_000, metadata={"--height": "Height of the image, pixels."})
    width: int = field(default=10_000, metadata={"--width": "Width of the image, pixels."})
    part: int = field(default=2048, metadata={"--part": "Side of the part in memory, pixels."})

    def prepare(self, folder: Path) -> None:
        """Write the image; raises OptionError for a model of several channels."""
        if (channels := read_spec(resolved(Path(self.model))).channels) != 1:
            raise OptionError(f"{self.model} takes {channels} channels, and the benchmark's image has 1: give another")
        mosaic(folder / IMAGE, (self.height, self.width))

    def steps(self, folder: Path) -> Mapping[str, Callable[[], Any]]:
        """Return both ways, each in fresh processes."""
        model, image = resolved(Path(self.model)), folder / IMAGE
        return {
            "session": partial(fresh, in_memory, model, image, self._part),
            "blocks": partial(fresh, in_blocks, model, image, folder / LABELS),
        }

    @property
    def _part(self) -> tuple[int, int]:
        return min(self.part, self.height), min(self.part, self.width)

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield both rates, their ratio, and the peak."""
        if not {"session", "blocks"} <= set(seconds):
            return
        height, width = self._part
        alone = height * width / 1e6 / seconds["session"]
        stores = self.height * self.width / 1e6 / seconds["blocks"]
        yield Measure.of("session alone", "Mpixel/s", alone)
        yield Measure.of("store to store", "Mpixel/s", stores)
        if len(alone.rounds) == len(stores.rounds):
            yield Measure.of("store to store against the session", "x", stores / alone, SPEED_GOAL)
        yield Measure.of("peak memory", "MiB", seconds["peak"], MEMORY_GOAL)

    def detail(self, _seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the sizes, the engine, and the number of objects."""
        facts = {name: value for one in rounds for name, value in one.items() if not isinstance(value, float)}
        return {"frame": [self.height, self.width], "part": list(self._part), "model": self.model, **facts}


@dataclass(frozen=True)
class BlockMemory(BenchCase):
    """The peak of the memory for square images in blocks, of several sizes, sparse on disk.

    Objects of a part of each image are compared with those that are decoded in memory.

    Attributes
    ----------
    sides
        Of the images, in pixels, from the smallest on.
    crop
        Side of the part that is compared, in pixels.
    every
        One chunk of the images in `every` is stored; the others are zeros.
    """

    NAME: ClassVar[str] = "block-memory"
    MEASURES: ClassVar[str] = (
        "The peak of the memory above that of a process that has opened the model, for square uint16 images whose "
        f"objects and overlay are written in blocks, and a network of base {BASE} and depth {DEPTH}."
    )
    HELP: ClassVar[str] = "Measure the memory for images of several sizes."
    ROUNDS: ClassVar[int] = 1

    sides: tuple[int, ...] = field(default=(10_000, 40_000), metadata={"--side": "Side of an image, pixels."})
    crop: int = field(default=3000, metadata={"--crop": "Side of the part that is compared, pixels."})
    every: int = field(default=7, metadata={"--every": "One chunk in this many is stored."})

    def prepare(self, folder: Path) -> None:
        """Write the images and the model."""
        from unetrt.benchmarks.networks import fitted, write_model
        from unetrt.export.exporter import Options

        write_model(fitted(BASE, DEPTH), Options(TILE), folder / MODEL)
        for side in self.sides:
            mosaic(folder / str(side) / IMAGE, (side, side), self.every)

    def steps(self, folder: Path) -> Mapping[str, Callable[[], Any]]:
        """Return one step for each size."""
        return {str(side): partial(self._at, folder, side) for side in self.sides}

    def _at(self, folder: Path, side: int) -> dict[str, Any]:
        """Return the seconds and the peak for a size, and the number of objects that were compared."""
        files = (folder / MODEL, folder / str(side) / IMAGE, folder / str(side) / LABELS)
        measured = {
            f"{side}: {name}": value for name, value in fresh(partial(in_blocks, overlays=True), *files).items()
        }
        return {**measured, "compared": {str(side): fresh(compared, *files, self.crop)}}

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield the peak and the rate for each size, and the growth from the smallest to the largest."""
        peaks = {side: seconds[name] for side in self.sides if (name := f"{side}: peak") in seconds}
        for side, peak in peaks.items():
            yield Measure.of(f"{side}: peak memory", "MiB", peak, MEMORY_GOAL)
            yield Measure.of(f"{side}: store to store", "Mpixel/s", side**2 / 1e6 / seconds[f"{side}: blocks"])
        if len(peaks) == len(self.sides) and len({len(peak.rounds) for peak in peaks.values()}) == 1:
            smallest, largest = (peaks[side] for side in (min(peaks), max(peaks)))
            yield Measure.of("smallest image's peak against the largest's", "x", smallest / largest, 1 / GROWTH_GOAL)

    def detail(self, _seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the sizes, and the number of objects that were compared in each image."""
        compared = {side: number for one in rounds for side, number in one["compared"].items()}
        return {"sides": list(self.sides), "crop": self.crop, "compared": compared}
