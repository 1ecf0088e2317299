"""What the host does around a lane: cut and normalise its input, stitch the classes of its output.

Both take several passes over a tile. They are made strip by strip, so that all but the first find it in the cache.

Frames on the host: read, measured, cut and stitched there.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.geometry.plan import Tile, TilePlan
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import as_frame, require_raw
from unetrt.runtime.pixels.normalisation import Affine, Measure
from unetrt.runtime.pixels.scores import ONCE, Mean, Symmetry, best_class, require_sound
from unetrt.runtime.segment.loop import FramePass, Job
from unetrt.runtime.segment.timings import Timings
from unetrt.runtime.sessions.protocol import Lane

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


Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]
# Takes a tile's output to its place.
Stitch = Callable[[Tile, Array], None]


class HostSource(NamedTuple):
    """A frame on the host.

    Attributes
    ----------
    frame
        Raw grey values (C, H, W).
    affine
        How to normalise them; None where the graph does.
    """

    frame: Array
    affine: Affine | None

    def cut(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Cut a tile and normalise it."""
        cut(self.frame, self.affine, tile, lane.input[slot])


class HostSink(NamedTuple):
    """Results on the host; `take` brings a tile's output to its place."""

    take: Stitch

    def place(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Leave nothing on the device."""

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Take a slot of a lane's output to its place."""
        self.take(tile, lane.output[slot])


@dataclass
class HostCall:
    """One call for the labels of a frame or a stack on the host.

    Attributes
    ----------
    spec
        The model's.
    image
        What frames are read from, one by one, by an index of its leading axes.
    labels
        uint8, (..., H, W), to be written.
    scores
        float32, (..., classes, H, W), to be filled with probabilities; None where nobody asked.
    copies
        The turned copies of each frame over which probabilities are averaged.
    timings
        The call's.
    measure
        How to normalise a frame, in the place of what the model says.
    """

    spec: ModelSpec
    image: Any
    labels: Labels
    scores: Scores | None = None
    copies: tuple[Symmetry, ...] = ONCE
    timings: Timings = field(default_factory=Timings)
    measure: Measure | None = None

    def __len__(self) -> int:
        """Count the tiles of all copies of all frames."""
        size = (self.labels.shape[-2], self.labels.shape[-1])
        return prod(self.labels.shape[:-2]) * sum(len(plan_of(self.spec, copy.size(size))) for copy in self.copies)

    def jobs(self) -> Iterator[Job]:
        """Read one frame after the other, and yield the tiles of each."""
        for index in np.ndindex(self.labels.shape[:-2]):
            timings, begin = Timings(), time.perf_counter()
            self.timings.frames.append(timings)
            frame, affine = self._measured(index, timings)
            last = partial(_set_total, timings, begin)
            if self.scores is None and len(self.copies) == 1:
                yield from jobs_of(self.spec, frame, affine, into_labels(self.spec, self.labels[index]), timings, last)
            else:
                yield from self._averaged(frame, affine, index, timings, last)

    def _measured(self, index: tuple[int, ...], timings: Timings) -> tuple[Array, Affine | None]:
        try:
            return measured(self.spec, self.image[index], timings, self.measure)
        except FrameError as error:
            raise FrameError(f"frame {', '.join(map(str, index))}: {error}" if index else str(error)) from error

    def _averaged(
        self, frame: Array, affine: Affine | None, index: Any, timings: Timings, last: Callable[[], None]
    ) -> Iterator[Job]:
        """Yield the tiles of all copies of a frame; with the last one, probabilities become labels."""
        mean = Mean(self.spec, len(self.copies), self._room(index), self.labels[index], last)
        for copy in self.copies:
            turned = copy.apply(frame)
            room = mean.room(turned.shape[-2:])
            yield from jobs_of(self.spec, turned, affine, partial(_into, room), timings, partial(mean.add, copy, room))

    def _room(self, index: Any) -> Scores:
        if self.scores is not None:
            room: Scores = self.scores[index]
            return room
        return np.empty((len(self.spec.classes), *self.labels.shape[-2:]), np.float32)


def plan_of(spec: ModelSpec, size: tuple[int, ...]) -> TilePlan:
    """Return how a frame of that height and width is covered."""
    return _plan((size[0], size[1]), spec.tile, spec.geometry, spec.border)


# Frames come by the thousand in a few sizes.
_plan = lru_cache(maxsize=64)(TilePlan)


def measured(
    spec: ModelSpec, read: Any, timings: Timings, measure: Measure | None = None
) -> tuple[Array, Affine | None]:
    """Return what was read as a frame (C, H, W), and how to normalise it: None where the graph does.

    `measure` takes the place of what the spec says.

    Raises FrameError where the network cannot take it.
    """
    with timings.phase("normalise"):
        frame = as_frame(read, spec.channels)
        if spec.takes_raw:
            require_raw(frame.dtype, spec.input_dtype)
            return frame, None
        return frame, (measure or spec.normalisation.measure)(frame)


def jobs_of(
    spec: ModelSpec, frame: Array, affine: Affine | None, stitch: Stitch, timings: Timings, finish: Callable[[], None]
) -> Iterator[Job]:
    """Yield the tiles of a frame."""
    plan = plan_of(spec, frame.shape[-2:])
    on_its_way = FramePass(HostSource(frame, affine), HostSink(stitch), len(plan), finish, timings)
    return (Job(tile, on_its_way) for tile in plan)


def scores_jobs(spec: ModelSpec, read: Any, scores: Scores) -> Iterator[Job]:
    """Yield the tiles of one frame, whose scores go to `scores` (classes, H, W) as the network gives them."""
    timings = Timings()
    frame, affine = measured(spec, read, timings)
    yield from jobs_of(spec, frame, affine, partial(_into, scores), timings, _nothing)


def into_labels(spec: ModelSpec, labels: Labels) -> Stitch:
    """Return what takes a tile's output to labels (H, W)."""
    if spec.head == "labels":
        return partial(_into, labels)

    def stitch(tile: Tile, core: Array) -> None:
        require_sound(spec, core)
        stitch_labels(tile, core, labels)

    return stitch


def _into(out: Array, tile: Tile, core: Array) -> None:
    tile.stitch(core, out)


def _set_total(timings: Timings, begin: float) -> None:
    timings.total = time.perf_counter() - begin


def _nothing() -> None:
    pass
