"""Benchmarks of the runtime around an engine: the host's path of a frame, and decoding."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.benchmarks.cases import BenchCase, Figures, store_drawn, stored
from unetrt.benchmarks.decoding import BORDER, CORES, RIM, class_maps
from unetrt.benchmarks.processes import WARM_UP, in_turn, one_core
from unetrt.benchmarks.result import Measure
from unetrt.runtime.errors import ParityError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.objects import instances
from unetrt.runtime.model.spec import METHODS, Decoding, Head, InputType, ModelSpec, Precision
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import Lane, Session
from unetrt.runtime.timings import Passed
from unetrt.trainer.drawn_cells import draw

Array = NDArray[Any]
Labels = NDArray[np.int32]

# --- The host's path

# Mpixel/s on one core, or this share of the rate at which memory is copied, whichever is lower.
GOAL, GOAL_OF_COPY = 500.0, 0.1
# Counted frames of each combination in a round; every frame is another one, so that no cache holds it.
COUNTED = 2
FIXED = Normalisation("fixed", offset=(400.0,), scale=(0.00025,))
# The network's input, and how grey values become that; raw ones are normalised in the graph.
INPUTS: dict[str, tuple[InputType, Normalisation]] = {
    "percentile": ("float32", Normalisation("percentile")),
    "zscore": ("float32", Normalisation("zscore")),
    "fixed": ("float32", FIXED),
    "raw uint16": ("uint16", FIXED),
}
# Scores of an engine below float32 are checked for overflow.
HEADS: dict[str, tuple[Head, Precision]] = {
    "logits": ("logits", "fp32"),
    "logits, checked": ("logits", "fp16"),
    "labels": ("labels", "fp16"),
}
PHASES = ("normalise", "cut", "stitch", "total")
# Combinations among the key figures: the most usual one, what GPUs need, and the least work.
KEPT = (("percentile", "logits"), ("percentile", "labels"), ("raw uint16", "labels"))


@dataclass(frozen=True)
class HostPath(BenchCase):
    """The rate at which a host can feed a GPU: a Segmenter around lanes that compute nothing.

    Attributes
    ----------
    side
        Height and width of the drawn frames, in pixels.
    tiles
        Sides of tiles, legal at depth 4.
    copied
        Bytes of the plain copy beside it: far more than a cache holds.
    """

    NAME: ClassVar[str] = "host-path"
    MEASURES: ClassVar[str] = (
        "The host's work on each frame, on one core: measure grey values, cut tiles, normalise and stitch, around "
        "lanes that compute nothing, beside a plain copy of memory."
    )
    HELP: ClassVar[str] = "Time the host's work on each frame, around lanes that compute nothing."

    side: int = field(default=2048, metadata={"--side": "Side of the drawn frames, pixels."})
    tiles: tuple[int, ...] = field(default=(2236, 1212), metadata={"--tile": "Side of tiles."})
    copied: int = 1 << 28

    @property
    def paths(self) -> list["IdlePath"]:
        """All combinations of tile, input and head."""
        return [IdlePath((self.side, self.side), *one) for one in product(self.tiles, INPUTS, HEADS)]

    def prepare(self, folder: Path) -> None:
        """Draw the frames."""
        store_drawn(folder, (self.side, self.side), WARM_UP + COUNTED)

    def round(self, folder: Path) -> dict[str, Any]:
        """Return the mean seconds of the copy, and of each combination's phases."""
        frames = [drawing.frame for drawing in stored(folder)]
        source, target = np.ones(self.copied, np.uint8), np.zeros(self.copied, np.uint8)
        with one_core():
            copies = in_turn({"copy": lambda: np.copyto(target, source)}, COUNTED)["copy"]
            seconds: dict[str, Any] = {"copy": fmean(copies)}
            for path in self.paths:
                # Lanes of one combination at a time: those of all would not fit into memory together.
                with path.open() as segmenter:
                    turns = [path.take(segmenter, frame) for frame in frames][WARM_UP:]
                seconds |= {f"{path}: {phase}": fmean(turn[phase] for turn in turns) for phase in PHASES}
        return seconds

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield rates of whole frames, of cutting and stitching alone, of the slowest combination and of the copy.

        Cutting raw grey values and stitching labels only move pixels.
        """
        pixels, goal = self.side**2 / 1e6, self._goal(seconds)
        for path in self.paths:
            cut, stitch, total = (pixels / seconds[f"{path}: {phase}"] for phase in PHASES[1:])
            if path.kind in KEPT:
                yield Measure.of(str(path), "Mpixel/s", total, goal)
            if path.kind == ("raw uint16", "labels"):
                yield Measure.of(f"{path.side}: cut alone", "Mpixel/s", cut)
                yield Measure.of(f"{path.side}: stitch alone, labels", "Mpixel/s", stitch)
            if path.kind == ("raw uint16", "logits"):
                yield Measure.of(f"{path.side}: stitch alone, logits", "Mpixel/s", stitch)
        slowest = max((seconds[f"{path}: total"] for path in self.paths), key=lambda figure: figure.median)
        yield Measure.of("slowest case", "Mpixel/s", pixels / slowest, goal)
        yield Measure.of("copy of uint16", "Mpixel/s", self.copied / 2e6 / seconds["copy"])

    def detail(self, seconds: Figures, _rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return all combinations, phase by phase; rates in Mpixel/s, 10^6 pixels, the copy's of uint16 pixels."""
        cases = [
            {
                "tile": path.side,
                "tiles": len(path.spec.plan(path.labels.shape)),
                "input": path.kind[0],
                "head": path.kind[1],
                "rate": path.labels.size / seconds[f"{path}: total"].median / 1e6,
                "seconds": {phase: asdict(seconds[f"{path}: {phase}"]) for phase in PHASES},
            }
            for path in self.paths
        ]
        copy = {"bytes": self.copied, "seconds": asdict(seconds["copy"]), "rate": self._copied(seconds)}
        return {"frame": [self.side, self.side], "copy": copy, "goal": self._goal(seconds), "cases": cases}

    def _copied(self, seconds: Figures) -> float:
        return self.copied / 2e6 / seconds["copy"].median

    def _goal(self, seconds: Figures) -> float:
        return min(GOAL, GOAL_OF_COPY * self._copied(seconds))


class IdlePath:
    """Segments frames with lanes that compute nothing.

    Parameters
    ----------
    size
        Height and width of the frames, in pixels.
    side
        Side of the square tiles, in pixels, legal at depth 4.
    input_name, head_name
        Keys of `INPUTS` and `HEADS`.
    """

    def __init__(self, size: tuple[int, int], side: int, input_name: str, head_name: str) -> None:
        self.side, self.kind = side, (input_name, head_name)
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

    def __str__(self) -> str:
        return f"{self.side}: {', '.join(self.kind)}"

    def open(self) -> Segmenter:
        """Return a segmenter with the arrays of its lanes."""
        return Segmenter(IdleSession(self.spec))

    def take(self, segmenter: Segmenter, frame: Array) -> dict[str, float]:
        """Segment a frame (H, W) uint16; return the seconds of its phases. Its labels are the lanes' outputs."""
        timings = segmenter.segment(frame, out=self.labels).timings
        return {phase: getattr(timings, phase) for phase in PHASES}


class IdleLane(Lane):
    """The arrays of a lane; the output is there from the start: random scores, or their labels."""

    def __init__(self, spec: ModelSpec) -> None:
        self.input: Array = spec.new_input()
        scores = np.random.default_rng(0).standard_normal((spec.batch, len(spec.classes), *spec.core), np.float32)
        self.output: Array = (scores[:, 1] > scores[:, 0]).view(np.uint8) if spec.head == "labels" else scores
        self.passed = Passed()

    def launch(self) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Keep the arrays."""


class IdleSession(Session):
    """Lanes that compute nothing, of two classes where they yield labels."""

    device: int | None = None

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.name = spec, "nothing"

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` idle lanes."""
        return [IdleLane(self.spec) for _ in range(count)]

    def close(self) -> None:
        """Do nothing."""


# --- Decoding

# Times as fast as the first version that decoding is to be.
DECODING_GOAL = 5.0
# Counted turns of a round.
DECODED = 5


@dataclass(frozen=True)
class ClassMapDecoding(BenchCase):
    """The processor's time in which a class map of touching cells becomes objects, on one core.

    Attributes
    ----------
    side
        Height and width of the class map, in pixels.
    density
        Share of the pixels that cells cover: 0.2 of 2048 x 2048 are 2,000 cells.
    """

    NAME: ClassVar[str] = "decoding"
    MEASURES: ClassVar[str] = (
        "Numbering the objects of a class map of drawn, touching cells, by components and by cores, beside the first "
        "version, in CPU time on one core."
    )
    HELP: ClassVar[str] = "Time the numbering of objects."

    side: int = field(default=2048, metadata={"--side": "Side of the class map, pixels."})
    density: float = field(default=0.2, metadata={"--density": "Share of the pixels that cells cover."})

    def prepare(self, folder: Path) -> None:
        """Draw the cells, and check that both versions give the same objects where both can decode."""
        labels = draw((self.side, self.side), seed=1, density=self.density).labels
        maps = class_maps(labels)
        if (instances(*maps["components"]) != first_instances(maps["components"][0], BORDER)).any():
            raise ParityError("decoding by components gives other objects than the first version")
        np.save(folder / "labels.npy", labels)

    def round(self, folder: Path) -> dict[str, Any]:
        """Return the median CPU seconds of each method and of the first version, and the numbers of objects."""
        maps = class_maps(np.load(folder / "labels.npy"))
        ways: dict[str, Callable[[], Labels]] = {name: partial(instances, *one) for name, one in maps.items()}
        ways["first version"] = lambda: first_instances(maps["components"][0], BORDER)
        with one_core():
            seconds = {name: median(each) for name, each in in_turn(ways, DECODED, clock=time.process_time).items()}
        return {**seconds, "objects": {name: int(ways[name]().max()) for name in METHODS}}

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield the seconds of each method, and how many times as fast as the first version it is.

        The first version only decodes components; cores are compared with its components of the same cells.
        """
        yield Measure.of("first version, components", "s", seconds["first version"])
        for name in METHODS:
            yield Measure.of(name, "s", seconds[name])
            yield Measure.of(
                f"{name} against the first version", "x", seconds["first version"] / seconds[name], DECODING_GOAL
            )

    def detail(self, _seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the map's size, the decodings and the numbers of objects."""
        how = {"components": asdict(Decoding("components", BORDER)), "cores": asdict(CORES), "rim": RIM}
        return {"frame": [self.side, self.side], "decoding": how, "objects": rounds[0]["objects"]}


def first_instances(classes: Array, separation_border: int) -> Labels:
    """Return the objects of a class map (H, W), as the first version of `instances` did.

    Components of the foreground; background from which two or more are up to `separation_border` pixels away along
    either axis goes to the nearest, by looking at all offsets, nearest first.
    """
    objects: Labels = np.empty(classes.shape, np.int32)
    ndimage.label(classes > 0, output=objects)
    reach, nothing = separation_border, np.iinfo(np.int32).max
    highest = ndimage.maximum_filter(objects, 2 * reach + 1)
    lowest = ndimage.minimum_filter(np.where(objects > 0, objects, nothing), 2 * reach + 1)
    gap = np.argwhere((objects == 0) & (highest > lowest)) + reach
    grown = np.pad(objects, reach)
    found: Labels = np.zeros(len(gap), np.int32)
    steps = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    for dy, dx in sorted(steps, key=lambda step: step[0] ** 2 + step[1] ** 2):
        found = np.where(found > 0, found, grown[gap[:, 0] + dy, gap[:, 1] + dx])
    grown[tuple(gap.T)] = found
    return grown[reach:-reach, reach:-reach].copy()
