"""The stages of a run over blocks: what one task does with one block.

`Job` says what a run computes, and can be sent to another process. `BlockWorker` is a process's part in it: an open
model, an open image, and the arrays of the run. Its methods are the stages; each reads what earlier stages wrote,
writes its result and, after it, a record. A block whose record is there and fits its pixels is not computed again,
whether an earlier run was killed or another worker was lost.

    count, measure   grey values -> normalisation of a frame, in one or more passes
    classify         image -> class map of a block
    decode           class maps around a block -> objects, numbered within the block
    merge            what the blocks know of their objects -> number of each object in the frame
    grow, regrow     of objects that grow after they are merged: as `decode` and `merge`
    write            objects of a block -> labels of a block, measured
    coarsen          labels of a level -> labels of the next coarser level
"""

import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.blockwise.scratch import DAMAGED, Scratch
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import FrameError, OutputError
from unetrt.runtime.files.formats import AS_STORED, Reading
from unetrt.runtime.files.outputs.pictures import overview_step
from unetrt.runtime.files.outputs.zarr_pyramid import Pyramid
from unetrt.runtime.files.windows import open_windows
from unetrt.runtime.geometry.blocks import Block, BlockPlan, Part, common, relative
from unetrt.runtime.model.block_objects import (
    BlockObjects,
    GrownObjects,
    Numbering,
    decode_block,
    grow_block,
    margins,
    merge,
    merge_grown,
)
from unetrt.runtime.model.confidence import confidence_of, evidence
from unetrt.runtime.model.measurements import MeasuredPart, measure_part
from unetrt.runtime.pixels.normalisation import Affine
from unetrt.runtime.pixels.statistics import FrameStatistics
from unetrt.runtime.segment.segmenter import Segmenter

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import Annotation

Array = NDArray[Any]
Size = tuple[int, int]

# Largest side of a chunk, in pixels.
CHUNK = 1024
# Folder of the scratch store with the model's files.
MODEL = "model"
# Folders of the scratch store with the records of the stages, and with the confidence of the objects of each frame.
RECORDS, CONFIDENCE = "records", "confidence"


@dataclass(frozen=True)
class Job:
    """What a run computes, from what, and where to; it can be pickled.

    Attributes
    ----------
    scratch
        What is computed so far.
    model
        Name of the model's file in the scratch store, for other processes; empty: there are none.
    image
        What `open_windows` opens: an image file, or an array.
    shape
        (N, C, H, W) of the image, for the model.
    block
        Height and width of a block that are wished for, in pixels.
    reading
        How the image is read.
    kind
        `instances` or `classes`.
    min_area
        As for `instances`.
    tta
        Whether probabilities are averaged over 8 rotated and reflected copies.
    is_measured, is_confident
        Whether objects are measured, and their confidence.
    engine
        Arguments of `Segmenter`: backend, device and so on.
    name
        Tells the jobs of a process apart.
    """

    scratch: Scratch
    model: str
    image: Any
    shape: tuple[int, int, int, int]
    block: Size
    reading: Reading = AS_STORED
    kind: "Annotation" = "instances"
    min_area: int = 0
    tta: bool = False
    is_measured: bool = False
    is_confident: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)
    name: str = field(default_factory=lambda: uuid4().hex)

    @property
    def size(self) -> Size:
        """Height and width of a frame."""
        return self.shape[-2], self.shape[-1]


@dataclass(frozen=True)
class LabelArrays:
    """Where the labels of the frames go.

    Attributes
    ----------
    pyramid
        The arrays; their axes before the rows are in the order of OME-Zarr.
    lengths
        Lengths of these axes in the order of the image, in which frames are counted.
    order
        Axis of the image for each axis of the arrays.
    """

    pyramid: Pyramid
    lengths: tuple[int, ...]
    order: tuple[int, ...]

    def plane(self, frame: int) -> tuple[int, ...]:
        """Return the index in the arrays of a frame."""
        if not self.lengths:
            return ()
        index = np.unravel_index(frame, self.lengths)
        return tuple(int(index[axis]) for axis in self.order)


class BlockWorker(Closable):
    """A process's part in a run; its stages may run on several threads at once.

    Parameters
    ----------
    job
        The run.
    segmenter
        Its model, if this process has opened it; `close` leaves it open.
    """

    def __init__(self, job: Job, segmenter: Segmenter | None = None) -> None:
        self.job, self.scratch = job, job.scratch
        with ExitStack() as opened:
            self.segmenter = segmenter or opened.enter_context(self._opened_model())
            self.spec = self.segmenter.spec
            self.image = opened.enter_context(open_windows(job.image, job.reading, self.spec.channels))
            self._opened = opened.pop_all()
        self.plan = BlockPlan(self.spec.plan(job.size), job.block)
        self.margins = margins(self.spec.decoding)
        self._affines: dict[int, Affine | None] = {}
        self._lock = threading.Lock()
        # Blocks are decoded, and their labels written, in turns: that takes several times the memory of their pixels.
        self._turn = threading.Lock()

    def close(self) -> None:
        """Close the image, and the model if this object opened it; idempotent."""
        self._opened.close()

    @contextmanager
    def _opened_model(self) -> Iterator[Segmenter]:
        """Open the copy of the model in the scratch store."""
        with self.scratch.fetched(MODEL) as folder, Segmenter(folder / self.job.model, **self.job.engine) as segmenter:
            yield segmenter

    # Normalisation

    def statistics(self, frame: int) -> FrameStatistics:
        """Return what is measured of a frame so far."""
        if (stored := self.scratch.get_json(f"statistics/{frame}")) is not None:
            return FrameStatistics.from_dict(stored)
        return FrameStatistics(self.spec.normalisation, self.image.dtype, (self.spec.channels, *self.job.size))

    def count(self, frame: int, first: int, passed: int, step: int) -> FrameStatistics | None:
        """Count the grey values of each `step`-th row of blocks from the `first` on, in the pass after `passed` others.

        Returns None if that pass is over.
        """
        so_far = self.statistics(frame)
        if so_far.passed > passed:
            return None
        counted = so_far.empty()
        rows, columns = map(range, self.plan.shape)
        for row, column in product(rows[first::step], columns):
            block = self.plan[row * len(columns) + column]
            pixels = self.image.read(frame, block.rows, block.columns)
            counted.add(pixels, (block.rows.start, block.columns.start))
        return counted

    def measure(self, frame: int, passed: int, *counted: FrameStatistics | None) -> None:
        """End the pass over a frame after `passed` others, unless it is over: combine the counts of its rows of blocks.

        A pass can be over because the worker that ended it was lost before the scheduler knew.
        """
        so_far = self.statistics(frame)
        if so_far.passed > passed:
            return
        for part in counted:
            if part is not None:
                so_far.merge(part)
        try:
            so_far.next_pass()
        except FrameError as error:
            place = f" (frame {frame})" if self.job.shape[0] > 1 else ""
            raise FrameError(f"{self.image.name}{place}: {error}") from error
        self.scratch.put_json(f"statistics/{frame}", so_far.to_dict())

    def _affine(self, frame: int) -> Affine | None:
        with self._lock:
            if frame not in self._affines:
                self._affines = {frame: None if self.spec.takes_raw else self.statistics(frame).affine()}
            return self._affines[frame]

    # Blocks

    def classify(self, frame: int, index: int) -> bool:
        """Compute the class map of a block, unless it is there; return whether this run computed it, here or before."""
        block = self.plan[index]
        if self._is_done("classify", frame, block, self._classes) and self._has_probabilities(frame, block):
            return bool(self._record("classify", frame, index)["run"] == self.job.name)
        window = self.segmenter.window_of(block, tta=self.job.tta)
        pixels = self.image.read(frame, *window)
        found = self.segmenter.classify_block(
            pixels, block, self._affine(frame), tta=self.job.tta, probabilities=self.job.is_confident
        )
        about: dict[str, Any] = {"run": np.array(self.job.name)}
        if frame == 0:
            about["overview"] = self._thinned(block.part, pixels, window)
        if found.probabilities is not None:
            with self.scratch.writing():
                self._probabilities[frame, :, block.rows, block.columns] = found.probabilities
            about["probabilities"] = _checksum(found.probabilities)
        self._keep("classify", frame, block, self._classes, found.labels, about)
        return True

    def decode(self, frame: int, index: int) -> None:
        """Assign numbers to the objects of a block."""
        block = self.plan[index]
        if self._is_done("decode", frame, block, self._objects):
            return
        around = block.around(self.margins.decode)
        with self._turn:
            labels, summary = decode_block(self._classes[(frame, *around)], self.plan, index, self.spec.decoding)
            found = self._with_evidence(frame, block, labels, summary)
            self._keep("decode", frame, block, self._objects, labels, found)

    def merge(self, frame: int) -> int:
        """Assign numbers to the objects of a frame; return how many there are, or may be before they grow."""
        found = [self._record("decode", frame, index) for index in range(len(self.plan))]
        summaries = [BlockObjects(**{name: one[name] for name in BlockObjects._fields}) for one in found]
        numbering = merge(summaries, self.spec.decoding, self.job.min_area)
        self._keep_numbers(frame, numbering, found)
        return numbering.count

    def grow(self, frame: int, index: int) -> None:
        """Let the objects of a block grow, where that depends on their numbers in the frame."""
        block = self.plan[index]
        if self._is_done("grow", frame, block, self._grown):
            return
        with self._turn:
            labels, summary = self._grown_block(frame, block)
            found = self._with_evidence(frame, block, labels, summary)
            self._keep("grow", frame, block, self._grown, labels, found)

    def _grown_block(self, frame: int, block: Block) -> tuple[Array, GrownObjects]:
        """Return the objects of a block after they have grown, numbered anew, and their summary."""
        rows, columns = window = block.around(self.margins.grow)
        numbers = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.int64)
        for near in self.plan.around(block.index, self.margins.grow):
            shown = common(self.plan[near].part, window)
            numbers[relative(shown, window)] = self._numbers(frame, near)[self._objects[(frame, *shown)]]
        return grow_block(numbers, self.plan, block.index, self.spec.decoding)

    def regrow(self, frame: int) -> int:
        """Assign numbers to the objects of a frame after they have grown; return how many there are."""
        found = [self._record("grow", frame, index) for index in range(len(self.plan))]
        summaries = [GrownObjects(**{name: one[name] for name in GrownObjects._fields}) for one in found]
        numbering = merge_grown(summaries, self.spec.decoding, self.job.min_area)
        self._keep_numbers(frame, numbering, found, "grown-numbers")
        return numbering.count

    def write(self, frame: int, index: int, labels: LabelArrays) -> None:
        """Write the labels of a block, and measure its objects."""
        block, plane = self.plan[index], labels.plane(frame)
        if self._is_done("write", frame, block, labels.pyramid.levels[0], plane):
            return
        found: dict[str, Any] = {}
        numbers, dtype = self._final_numbers(frame, index), np.dtype(labels.pyramid.dtype)
        checksum, thinned = np.uint32(0), []
        for rows in self._bands(block, labels):
            part = rows, block.columns
            with self._turn:
                pixels = self._final(frame, part, numbers, dtype)
                labels.pyramid.write(*part, pixels, plane)
                checksum = _checksum(pixels, int(checksum))
                if frame == 0:
                    thinned.append(self._thinned(part, pixels, part).copy())  # a view would keep all pixels in memory
            if self.job.is_measured:
                grey = self.image.read(frame, *part)
                found = measure_part(pixels, grey, (rows.start, block.columns.start))._asdict()
            del pixels
        if frame == 0:
            found["overview"] = np.concatenate(thinned)
        self.scratch.put(_key("write", frame, index), {"checksum": checksum, **found})

    def _bands(self, block: Block, labels: LabelArrays) -> list[slice]:
        """Return the rows of a block that are written at once: those of its chunks.

        All of them where they are one shard, or are measured.
        """
        start, stop = block.rows.start, block.rows.stop
        whole = self.job.is_measured or labels.pyramid.version == "0.5"
        height = stop - start if whole else self.plan.chunk(CHUNK)[0]
        return [slice(top, min(top + height, stop)) for top in range(start, stop, height)]

    def _final_numbers(self, frame: int, index: int) -> Array | None:
        """Return the numbers in the frame of a block's objects, (n + 1,); None for classes."""
        if self.job.kind == "classes":
            return None
        return self._numbers(frame, index, "grown-numbers" if self.margins.grow else "numbers")

    def _final(self, frame: int, part: Part, numbers: Array | None, dtype: np.dtype[Any]) -> Array:
        """Return the final labels of a part of a block, (h, w); objects, which may be larger, are read chunk by chunk.

        `numbers` are those of `_final_numbers`.
        """
        rows, columns = part
        if numbers is None:
            return np.asarray(self._classes[frame, rows, columns]).astype(dtype, copy=False)
        objects, numbers = self._grown if self.margins.grow else self._objects, numbers.astype(dtype)
        labels = np.empty((rows.stop - rows.start, columns.stop - columns.start), dtype)
        height = self.plan.chunk(CHUNK)[0]
        for top in range(0, len(labels), height):
            inside = slice(rows.start + top, min(rows.start + top + height, rows.stop))
            labels[top : top + height] = numbers[objects[frame, inside, columns]]
        return labels

    def coarsen(self, level: int, rows: slice, columns: slice, plane: tuple[int, ...], labels: LabelArrays) -> None:
        """Write a region of a level of the labels from the level before."""
        labels.pyramid.coarsen(level, rows, columns, plane)

    # Records

    def create_arrays(self) -> None:
        """Create the arrays of the run that do not exist."""
        number, _, height, width = self.job.shape
        chunk = self.plan.chunk(CHUNK)
        arrays: dict[str, Any] = {"classes": np.uint8}
        if self.job.kind == "instances":
            arrays |= {"objects": np.int32} | ({"grown": np.int32} if self.margins.grow else {})
        for name, dtype in arrays.items():
            self.scratch.create(name, (number, height, width), dtype, (1, *chunk))
        if self.job.is_confident:
            classes = len(self.spec.classes)
            self.scratch.create("probabilities", (number, classes, height, width), np.float32, (1, classes, *chunk))

    @cached_property
    def _classes(self) -> Any:
        return self.scratch.array("classes")

    @cached_property
    def _probabilities(self) -> Any:
        return self.scratch.array("probabilities")

    @cached_property
    def _objects(self) -> Any:
        return self.scratch.array("objects")

    @cached_property
    def _grown(self) -> Any:
        return self.scratch.array("grown")

    def _is_done(self, stage: str, frame: int, block: Block, array: Any, plane: tuple[int, ...] | None = None) -> bool:
        """Return whether a block has a record of a stage that fits its pixels in an array."""
        found = self.scratch.get(_key(stage, frame, block.index))
        if found is None:
            return False
        place = (*((frame,) if plane is None else plane), block.rows, block.columns)
        return _is_stored(array, place, found["checksum"])

    def _has_probabilities(self, frame: int, block: Block) -> bool:
        """Return whether the probabilities of a block, if they are needed, fit the record of its classes."""
        if not self.job.is_confident:
            return True
        place = (frame, slice(None), block.rows, block.columns)
        return _is_stored(self._probabilities, place, self._record("classify", frame, block.index)["probabilities"])

    def _keep(
        self, stage: str, frame: int, block: Block, array: Any, pixels: Array, found: Mapping[str, Array]
    ) -> None:
        """Write the pixels of a block and then the record of a stage."""
        with self.scratch.writing():
            array[frame, block.rows, block.columns] = pixels
        self.scratch.put(_key(stage, frame, block.index), {"checksum": _checksum(pixels), **found})

    def _record(self, stage: str, frame: int, index: int) -> dict[str, Array]:
        found = self.scratch.get(_key(stage, frame, index))
        if found is None:
            raise OutputError(
                f"{self.scratch.address} lacks block {index} of frame {frame}: --resume computes it again"
            )
        return found

    def _keep_numbers(
        self, frame: int, numbering: Numbering, found: Sequence[Mapping[str, Array]], name: str = "numbers"
    ) -> None:
        """Write the numbers of the objects of each block, and the confidence of all, if it was measured."""
        for index, numbers in enumerate(numbering.numbers):
            self.scratch.put(_key(name, frame, index), {"numbers": numbers})
        if self.job.is_confident:
            total = np.zeros((numbering.count + 1, found[0]["evidence"].shape[1]))
            for numbers, one in zip(numbering.numbers, found, strict=True):
                np.add.at(total, numbers, one["evidence"])
            self.scratch.put(f"{CONFIDENCE}/{frame}", {"confidence": confidence_of(total)})

    def _numbers(self, frame: int, index: int, name: str = "numbers") -> Array:
        return self._record(name, frame, index)["numbers"]

    def _with_evidence(
        self, frame: int, block: Block, labels: Array, summary: BlockObjects | GrownObjects
    ) -> dict[str, Array]:
        """Return a summary of the objects of a block, with what their confidence follows from if it is measured."""
        found = summary._asdict()
        if self.job.is_confident:
            probabilities = np.asarray(self._probabilities[frame, :, block.rows, block.columns])
            count = len(summary.areas) - 1
            found["evidence"] = evidence(labels, probabilities, self.spec.decoding, count)
        return found

    def measured_part(self, frame: int, index: int) -> MeasuredPart:
        """Return what was measured of the objects of a block; raises OutputError if that is damaged."""
        found = self._record("write", frame, index)
        return MeasuredPart(**{name: found[name] for name in MeasuredPart._fields})

    def confidence(self, frame: int) -> Array:
        """Return the confidence of the objects of a frame, (n,) float32; raises OutputError if that is damaged."""
        found = self.scratch.get(f"{CONFIDENCE}/{frame}")
        if found is None:
            raise OutputError(
                f"{self.scratch.address} lacks the confidence of frame {frame}: --resume computes it again"
            )
        return found["confidence"]

    def overview(self, block: Block) -> tuple[Array, Array]:
        """Return every n-th row and column of a block of the first frame (C, h, w) and of its labels (h, w).

        They are the pixels of `overview`, of multiples of `overview_step`.
        """
        pixels, labels = (self._record(stage, 0, block.index)["overview"] for stage in ("classify", "write"))
        return pixels, labels

    def _thinned(self, part: Part, pixels: Array, window: Part) -> Array:
        """Return every n-th row and column of a part of the frame, from pixels (..., H, W) of a window around it."""
        step = overview_step(self.job.size)
        down, across = (
            slice(-(-own.start // step) * step - shown.start, own.stop - shown.start, step)
            for own, shown in zip(part, window, strict=True)
        )
        return pixels[..., down, across]


def _is_stored(array: Any, place: tuple[Any, ...], checksum: Array) -> bool:
    """Return whether the pixels at a place of an array fit their checksum; not, if their chunks are damaged."""
    try:
        pixels = np.asarray(array[place])
    except DAMAGED:
        return False
    return bool(checksum == _checksum(pixels))


def _checksum(pixels: Array, before: int = 0) -> np.uint32:
    """Return the CRC-32 of pixels after others of which `before` is that."""
    return np.uint32(zlib.crc32(np.ascontiguousarray(pixels).data, before))


def _key(stage: str, frame: int, index: int) -> str:
    return f"{RECORDS}/{stage}/{frame}/{index}"
