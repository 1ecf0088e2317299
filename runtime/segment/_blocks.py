"""Frames that are not in memory as a whole: computed block by block.

`block_pass` returns the pass of one block whose pixels the caller read, for `Segmenter.classify_block`.

`StoredCall` is the counterpart of `HostCall` for images and labels of any kind that have a shape and are read or
written by slices: Zarr, HDF5, dask, memory maps. A frame larger than `LARGE` is never read as a whole. It is measured
in passes over its blocks (`FrameStatistics`); then the tiles of one block after another go through the lanes, so that
the size of a block bounds the memory. Labels equal those of the frame in memory.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, OptionError, one_line, shown
from unetrt.runtime.geometry.blocks import Block, BlockPlan, Part
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import as_array, as_frame, as_planes, frame_axes, require_raw
from unetrt.runtime.pixels.normalisation import Affine, Measure
from unetrt.runtime.pixels.scores import ONCE, Symmetry
from unetrt.runtime.pixels.statistics import FrameStatistics
from unetrt.runtime.segment._host import (
    BlockPass,
    Labels,
    Scores,
    TileJob,
    frame_named,
    measured,
    turned_block,
    window_of,
)
from unetrt.runtime.timings import Timings

# Pixels of a frame up to which it is read as a whole: 64 MiB of uint16.
LARGE = 1 << 25
# Height and width of blocks that are wished for: with a halo of 92 px, the windows of these have 9 % more pixels.
SIDE = 4096
# The same where probabilities are computed, which take many times the memory of pixels and labels.
SIDE_OF_SCORES = 2048

# Returns raw grey values (C, h, w) of rows and columns of a frame.
Read = Callable[[Part], NDArray[Any]]


def is_stored(image: Any) -> bool:
    """Return whether an image is read by windows, if its frames are large: any but an array in memory."""
    return not isinstance(image, np.ndarray) or isinstance(image, np.memmap)


def block_pass(
    spec: ModelSpec, block: Block, read: Any, affine: Affine | None, copies: tuple[Symmetry, ...], timings: Timings
) -> BlockPass:
    """Return the pass of a block whose window was read as (C, h, w); raises FrameError and OptionError."""
    require_block(spec, block)
    _require_affine(spec, affine)
    window = window_of(spec, block, copies)
    size = tuple(side.stop - side.start for side in window)
    with timings.phase("normalise"):
        given = as_array(read)
        wanted = (spec.channels, *size)
        if given.shape != wanted and not (given.shape == size and spec.channels == 1):
            rows, columns = window
            raise FrameError(
                f"the pixels have shape {given.shape}: give those of the block's window, {wanted}, from row "
                f"{rows.start} and column {columns.start} of the frame on"
            )
        pixels = as_frame(given, spec.channels, (window[0].start, window[1].start))
        if spec.takes_raw:
            require_raw(pixels.dtype, spec.input_dtype)
    return BlockPass(spec, block, pixels, window, affine, timings)


def require_block(spec: ModelSpec, block: Block) -> None:
    """Raise OptionError unless a block consists of tiles of the model."""
    if not isinstance(block, Block):
        raise OptionError(f"block must be a Block of a BlockPlan (got {shown(block)})")
    plan = spec.plan(block.frame)
    if not all(axis in axes for axes, held in zip((plan.rows, plan.columns), block.axes, strict=True) for axis in held):
        raise OptionError(
            f"the block consists of other tiles than the model's, {spec.tile[0]} x {spec.tile[1]} px with a halo of "
            f"{spec.halo}: make its plan with spec.plan({block.frame})"
        )


def _require_affine(spec: ModelSpec, affine: Affine | None) -> None:
    if spec.takes_raw and affine is not None:
        raise OptionError("this model normalises raw pixels itself: give None for affine")
    if not spec.takes_raw and affine is None:
        raise OptionError(
            "this model needs the normalisation of the whole frame: give spec.normalisation.measure(frame), or the "
            "affine() of FrameStatistics"
        )
    if affine is not None and any(len(side) != spec.channels for side in affine):
        raise OptionError(f"affine is for {len(affine.offset)} channels, and the model has {spec.channels}")


@dataclass
class StoredCall:
    """A call for the labels of a frame or a stack that is read or written block by block.

    Attributes
    ----------
    spec
        The model's spec.
    image
        An array or array-like (..., H, W) or (..., C, H, W).
    labels
        uint8, (..., H, W): an array or array-like that is written by slices.
    scores
        float32, (..., classes, H, W), to be filled with probabilities; None where they are not kept.
    copies
        The symmetries over which probabilities are averaged.
    timings
        The call's timings.
    measure
        Replaces the normalisation of the spec; frames are then read as a whole.
    """

    spec: ModelSpec
    image: Any
    labels: Any
    scores: Scores | None = None
    copies: tuple[Symmetry, ...] = ONCE
    timings: Timings = field(default_factory=Timings)
    measure: Measure | None = None

    @cached_property
    def blocks(self) -> BlockPlan:
        """The blocks of each frame."""
        side = SIDE_OF_SCORES if self._is_scored else SIDE
        return BlockPlan(self.spec.plan(self.labels.shape[-2:]), (side, side))

    def __len__(self) -> int:
        """Return the number of tiles of all blocks of all copies of all frames."""
        tiles: int = sum(len(turned_block(self.spec, block, copy)) for block in self.blocks for copy in self.copies)
        frames: int = prod(self.labels.shape[:-2])
        return frames * tiles

    def jobs(self) -> Iterator[TileJob]:
        """Read one block after another, and yield the tiles of each."""
        for index in np.ndindex(*self.labels.shape[:-2]):
            timings, begin = Timings(), time.perf_counter()
            self.timings.frames.append(timings)
            with frame_named(index):
                read, affine = self._opened(index, timings)
            for block in self.blocks:
                window = window_of(self.spec, block, self.copies)
                with timings.phase("normalise"), frame_named(index):
                    pixels = read(window)
                one = BlockPass(self.spec, block, pixels, window, affine, timings)
                yield from self._jobs_of(one, index, begin)

    def _jobs_of(self, one: BlockPass, index: tuple[int, ...], begin: float) -> Iterator[TileJob]:
        labels = np.empty(one.block.size, np.uint8)
        if not self._is_scored:
            return one.classes(labels, partial(self._write, one, index, begin, labels))
        scores = np.empty((len(self.spec.classes), *one.block.size), np.float32)
        return one.averaged(self.copies, scores, labels, partial(self._write, one, index, begin, labels, scores))

    @property
    def _is_scored(self) -> bool:
        return self.scores is not None or len(self.copies) > 1

    def _write(
        self, one: BlockPass, index: tuple[int, ...], begin: float, labels: Labels, scores: Scores | None = None
    ) -> None:
        try:
            self.labels[(*index, *one.block.part)] = labels
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise FrameError(
                f"labels cannot be written to out, a {type(self.labels).__name__} ({one_line(error)}): give an array "
                "that is open for writing and is assigned by slices"
            ) from error
        if self.scores is not None and scores is not None:
            self.scores[index][:, *one.block.part] = scores
        one.timings.total = time.perf_counter() - begin

    def _opened(self, index: tuple[int, ...], timings: Timings) -> tuple[Read, Affine | None]:
        """Return what reads parts of a frame, and the normalisation of the frame."""
        size = self.labels.shape[-2:]
        if self.measure is not None or not is_stored(self.image) or prod(size) <= LARGE:
            frame, affine = measured(self.spec, self.image[index], timings, self.measure)
            return lambda part: frame[:, *part], affine
        read = partial(self._read, index)
        with timings.phase("normalise"):
            dtype = self._dtype(read)
            if self.spec.takes_raw:
                require_raw(dtype, self.spec.input_dtype)
                return read, None
            statistics = FrameStatistics(self.spec.normalisation, dtype, (self.spec.channels, *size))
            return read, statistics.measure([block.part for block in self.blocks], read)

    def _read(self, index: tuple[int, ...], part: Part) -> NDArray[Any]:
        channels = self.spec.channels
        planes = (slice(None),) * (frame_axes(channels) - 2)
        rows, columns = part
        try:
            given = self.image[(*index, *planes, rows, columns)]
        except (IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise FrameError(
                f"rows {rows.start} to {rows.stop - 1}, columns {columns.start} to {columns.stop - 1} of the image, a "
                f"{type(self.image).__name__}, cannot be read ({one_line(error)}): an image must be readable by "
                "integers and slices, as numpy's arrays are"
            ) from error
        found = as_planes(given, channels)
        wanted = (channels, *(side.stop - side.start for side in part))
        if found.shape != wanted:
            raise FrameError(
                f"a part of the image has shape {found.shape}, not {wanted}: give an array whose slices fit"
            )
        return found

    def _dtype(self, read: Read) -> np.dtype[Any]:
        """Return the dtype of the image's parts, which need not be what the image says."""
        return read((slice(0, 1), slice(0, 1))).dtype
