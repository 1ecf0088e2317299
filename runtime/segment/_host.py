"""Frames on the host: read, normalised and cut into a lane's input, stitched from its output.

A call for labels or probabilities, `HostCall`, yields `TileJob`s: a tile, and the `FramePass` that it belongs to. A
`FramePass` has a source, where tiles are cut from, and a sink, where results go; either may also be on a GPU
(`unetrt.runtime.segment._device`). `TileLoop` takes the jobs through the lanes. A `BlockPass` yields the tiles of one
block of a frame, for frames that are not in memory as a whole.

Cutting and stitching take several passes over a tile. They work strip by strip, so that all but the first pass find the
strip in the processor's cache.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.geometry.blocks import Block, Part, covering, relative, spanning
from unetrt.runtime.geometry.plan import Tile, TilePlan
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import as_frame, require_raw
from unetrt.runtime.pixels.normalisation import Affine, Measure
from unetrt.runtime.pixels.scores import ONCE, Mean, Symmetry, best_class, require_sound
from unetrt.runtime.sessions import Lane
from unetrt.runtime.timings import Timings

if TYPE_CHECKING:
    from unetrt.runtime.sessions.cuda import Step

Array = NDArray[Any]
Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]

# Values of a strip, 2 MiB as float32: larger ones exceed a core's cache, smaller ones pay more for Python's calls.
STRIP = 1 << 19


class TileSource(Protocol):
    """Where a frame's tiles are cut from."""

    def cut(self, tile: Tile, lane: Lane, slot: int) -> "Step | None":
        """Fill a slot of a lane's input, or return the step that does so on the device. Runs before the launch."""


class TileSink(Protocol):
    """Where a frame's results are written."""

    def place(self, tile: Tile, lane: Lane, slot: int) -> "Step | None":
        """Return the step that writes a slot of a lane's output on the device; None where `stitch` writes it."""

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Write a slot of a lane's output on the host, if it belongs there. Runs after the pass."""


@dataclass
class FramePass:
    """One pass of a frame through the network, tile by tile.

    Attributes
    ----------
    source, sink
        Where tiles are cut from, and where results are written.
    left
        Number of tiles that are not written yet.
    finish
        Called after the last tile is written.
    timings
        Sums of the frame's phases.
    """

    source: TileSource
    sink: TileSink
    left: int
    finish: Callable[[], None]
    timings: Timings = field(default_factory=Timings)

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Write a tile's result, and finish with the last one."""
        self.sink.stitch(tile, lane, slot)
        self.left -= 1
        if not self.left:
            self.finish()


class TileJob(NamedTuple):
    """A tile, and the pass of the frame that it belongs to."""

    tile: Tile
    frame: FramePass


# Writes a tile's output (..., h', w') to its place in a frame.
Stitch = Callable[[Tile, Array], None]
# Called with the index of a frame in its stack, after its last tile, and with its probabilities (classes, H, W) if they
# were computed.
Written = Callable[[tuple[int, ...], Scores | None], None]


class HostSource(NamedTuple):
    """A frame on the host.

    Attributes
    ----------
    frame
        Raw grey values (C, H, W).
    affine
        The normalisation; None where the graph normalises.
    """

    frame: Array
    affine: Affine | None

    def cut(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Cut a tile and normalise it."""
        cut(self.frame, self.affine, tile, lane.input[slot])


class HostSink(NamedTuple):
    """Results on the host, written by `write`."""

    write: Stitch

    def place(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Do nothing on the device."""

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Write a slot of a lane's output."""
        self.write(tile, lane.output[slot])


@dataclass
class HostCall:
    """A call for the labels of a frame or a stack on the host.

    Attributes
    ----------
    spec
        The model's spec.
    image
        An array or array-like (..., H, W) or (..., C, H, W); frames are read one by one, by their leading index.
    labels
        uint8, (..., H, W), to be written.
    scores
        float32, (..., classes, H, W), to be filled with probabilities; None where they are not kept.
    copies
        The symmetries over which probabilities are averaged.
    timings
        The call's timings.
    measure
        Replaces the normalisation of the spec.
    written
        Called after each frame, on the calling thread; gets the frame's probabilities if `probabilities` is set.
    """

    spec: ModelSpec
    image: Any
    labels: Labels
    scores: Scores | None = None
    copies: tuple[Symmetry, ...] = ONCE
    timings: Timings = field(default_factory=Timings)
    measure: Measure | None = None
    written: Written | None = None
    probabilities: bool = False

    def __len__(self) -> int:
        """Return the number of tiles of all copies of all frames."""
        height, width = self.labels.shape[-2:]
        tiles = sum(len(self.spec.plan(copy.size((height, width)))) for copy in self.copies)
        return prod(self.labels.shape[:-2]) * tiles

    def jobs(self) -> Iterator[TileJob]:
        """Read one frame after another, and yield the tiles of each."""
        for index in np.ndindex(self.labels.shape[:-2]):
            timings, begin = Timings(), time.perf_counter()
            self.timings.frames.append(timings)
            frame, affine = self._measured(index, timings)
            last = partial(self._finish, index, timings, begin)
            if len(self.copies) == 1 and self.scores is None and not self.probabilities:
                plan = self.spec.plan(frame.shape[-2:])
                yield from jobs_of(plan, frame, affine, into_labels(self.spec, self.labels[index]), timings, last)
            else:
                yield from self._averaged(frame, affine, index, timings, last)

    def _finish(self, index: tuple[int, ...], timings: Timings, begin: float, scores: Scores | None = None) -> None:
        timings.total = time.perf_counter() - begin
        if self.written is not None:
            self.written(index, scores)

    def _measured(self, index: tuple[int, ...], timings: Timings) -> tuple[Array, Affine | None]:
        with frame_named(index):
            return measured(self.spec, self.image[index], timings, self.measure)

    def _averaged(
        self, frame: Array, affine: Affine | None, index: Any, timings: Timings, last: Callable[..., None]
    ) -> Iterator[TileJob]:
        """Yield the tiles of all copies of a frame; after the last tile, probabilities become labels."""
        if self.scores is not None:
            out = self.scores[index]
        else:
            out = np.empty((len(self.spec.classes), *self.labels.shape[-2:]), np.float32)
        height, width = frame.shape[-2:]
        whole = slice(0, height), slice(0, width)
        block = covering(self.spec.plan((height, width)), whole)
        part = BlockPass(self.spec, block, frame, whole, affine, timings)
        yield from part.averaged(self.copies, out, self.labels[index], partial(last, out))


@contextmanager
def frame_named(index: tuple[int, ...]) -> Iterator[None]:
    """Name the frame of a stack in a FrameError."""
    try:
        yield
    except FrameError as error:
        raise FrameError(f"frame {', '.join(map(str, index))}: {error}" if index else str(error)) from error


class BlockPass(NamedTuple):
    """The passes that compute one block of a frame.

    Attributes
    ----------
    spec
        The model's spec.
    block
        A block of the spec's plan for the frame.
    pixels
        Raw grey values (C, h, w) of a part of the frame that holds the window of `window_of`.
    window
        That part, its rows and columns.
    affine
        The normalisation of the whole frame; None where the graph normalises.
    timings
        Sums of the frame's phases.
    """

    spec: ModelSpec
    block: Block
    pixels: Array
    window: Part
    affine: Affine | None
    timings: Timings

    def classes(self, labels: Labels, last: Callable[[], None]) -> Iterator[TileJob]:
        """Yield the tiles of the block; labels (h, w) are written, then `last` is called."""
        pixels = self.pixels[:, *relative(self.block.window, self.window)]
        tiles = list(self.block.tiles)
        yield from jobs_of(tiles, pixels, self.affine, into_labels(self.spec, labels), self.timings, last)

    def averaged(
        self, copies: tuple[Symmetry, ...], scores: Scores, labels: Labels, last: Callable[[], None]
    ) -> Iterator[TileJob]:
        """Yield the tiles of all copies of the frame that the block needs.

        Mean probabilities (classes, h, w) and labels (h, w) of the block are written, then `last` is called.
        """
        mean = Mean(self.spec, len(copies), scores, labels, last)
        frame = self.block.frame
        for copy in copies:
            turned = turned_block(self.spec, self.block, copy)
            window = relative(copy.part_before(turned.window, frame), self.window)
            pixels, room = copy.apply(self.pixels[:, *window]), mean.room(turned.size)
            part = relative(copy.part(self.block.part, frame), turned.part)
            add = partial(mean.add, copy, room, part)
            yield from jobs_of(list(turned.tiles), pixels, self.affine, partial(_into, room), self.timings, add)


def turned_block(spec: ModelSpec, block: Block, copy: Symmetry) -> Block:
    """Return the tiles of a transformed copy of a frame that hold the pixels of a block."""
    return covering(spec.plan(copy.size(block.frame)), copy.part(block.part, block.frame))


def window_of(spec: ModelSpec, block: Block, copies: tuple[Symmetry, ...]) -> Part:
    """Return the rows and columns of a frame that the tiles of a block read, in all copies of the frame."""
    return spanning(copy.part_before(turned_block(spec, block, copy).window, block.frame) for copy in copies)


def measured(
    spec: ModelSpec, read: Any, timings: Timings, measure: Measure | None = None
) -> tuple[Array, Affine | None]:
    """Return a frame that was read as (C, H, W), and its normalisation: None where the graph normalises.

    `measure` replaces the normalisation of the spec. Raises FrameError for a frame that does not fit the model.
    """
    with timings.phase("normalise"):
        frame = as_frame(read, spec.channels)
        if spec.takes_raw:
            require_raw(frame.dtype, spec.input_dtype)
            return frame, None
        return frame, (measure or spec.normalisation.measure)(frame)


def jobs_of(
    tiles: TilePlan | list[Tile],
    frame: Array,
    affine: Affine | None,
    stitch: Stitch,
    timings: Timings,
    finish: Callable[[], None],
) -> Iterator[TileJob]:
    """Return tiles of a frame (C, H, W); `stitch` writes each, and `finish` is called after the last."""
    frame_pass = FramePass(HostSource(frame, affine), HostSink(stitch), len(tiles), finish, timings)
    return (TileJob(tile, frame_pass) for tile in tiles)


def scores_jobs(spec: ModelSpec, read: Any, scores: Scores) -> Iterator[TileJob]:
    """Yield the tiles of one frame, whose scores are written to `scores` (classes, H, W) without conversion."""
    timings = Timings()
    frame, affine = measured(spec, read, timings)
    plan = spec.plan(frame.shape[-2:])
    yield from jobs_of(plan, frame, affine, partial(_into, scores), timings, _nothing)


def into_labels(spec: ModelSpec, labels: Labels) -> Stitch:
    """Return the function that writes a tile's output to labels (H, W)."""
    if spec.head == "labels":
        return partial(_into, labels)

    def stitch(tile: Tile, core: Array) -> None:
        require_sound(spec, core)
        stitch_labels(tile, core, labels)

    return stitch


def cut(frame: Array, affine: Affine | None, tile: Tile, slot: Array) -> None:
    """Fill `slot` with a tile of a frame, mirrored at the borders and normalised.

    Bitwise equal to cutting the whole tile and applying `affine` to it.

    Parameters
    ----------
    frame
        Raw grey values (C, H, W), integers or floats.
    affine
        The normalisation; None leaves grey values as they are.
    tile
        The tile to cut.
    slot
        The network's input (C, h, w), to be filled: float32 with `affine`, else the graph's dtype.
    """
    if affine is None:
        tile.cut(frame, slot)
        return
    for strip in tile.strips(frame, slot, _height(slot)):
        affine.apply(strip)


def stitch_labels(tile: Tile, core: Array, labels: NDArray[np.uint8]) -> None:
    """Write the best class of each pixel of a tile to its place; equal to stitching `best_class(core)`.

    Parameters
    ----------
    tile
        The tile to write.
    core
        Its scores (classes, h', w').
    labels
        The frame's labels, uint8 (H, W), to be written.
    """
    place, height = tile.place(labels), _height(core)
    for begin in range(0, len(place), height):
        strip = place[begin : begin + height]
        # Whole rows, with the few pixels beyond the frame: contiguous memory is twice as fast.
        strip[...] = best_class(core[:, begin : begin + len(strip)])[:, : strip.shape[1]]


def _height(pixels: Array) -> int:
    """Return the number of rows of a strip of (C, h, w)."""
    channels, _, width = pixels.shape
    return max(1, STRIP // int(channels * width))


def _into(out: Array, tile: Tile, core: Array) -> None:
    tile.stitch(core, out)


def _nothing() -> None:
    pass
