"""The segmenter: frames of any size in, label maps without a seam out."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.frames import Size, as_frame, require_raw, split_axes
from unetrt.runtime.loop import Stitch, TileLoop, Timings
from unetrt.runtime.normalisation import Affine
from unetrt.runtime.plan import Tile, TilePlan
from unetrt.runtime.scores import best_class, require_finite_scores, softmax
from unetrt.runtime.sessions import AUTO, Session, open_session
from unetrt.runtime.symmetries import ONCE, SQUARE, Symmetry

Array = NDArray[Any]
Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]
Progress = Callable[[int, int], None]

# Enough to cut the next tile and stitch the last one while one is computed.
LANES = 2


class ArrayLike(Protocol):
    """What an image must offer: numpy arrays, memmaps, Zarr and HDF5 arrays do."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return the part of the image at `index`, as an array; () is the whole."""


@dataclass(frozen=True)
class Segmentation:
    """The result for an image.

    Attributes
    ----------
    labels
        uint8, (..., H, W): the index of the best class of each pixel; 0 is the background.
    probabilities
        float32, (..., classes, H, W), or None where they were not asked for.
    timings
        Where the time went.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    timings: Timings


class Segmenter:
    """A model, ready for frames of any size.

    Thread-safe: calls from several threads run one after another. Use it in a `with`, or call `close`.

    Parameters
    ----------
    model
        An ONNX file that `unetrt export` wrote, or an open session, which `close` then leaves open.
    backend
        Which engine loads the file; `auto` takes the first that is usable.
    lanes
        How many passes may be in flight.

    Raises
    ------
    ModelFileError
        The file is not a model of ours.
    BackendUnavailableError
        The engine is not usable here; the message says why.
    """

    def __init__(self, model: str | Path | Session, *, backend: str = AUTO, lanes: int = LANES) -> None:
        if lanes < 1:
            raise OptionError(f"{lanes} lanes compute nothing: use 1 or more")
        self._owns_session = isinstance(model, str | Path)
        self.session = open_session(model, backend) if isinstance(model, str | Path) else model
        self.spec = self.session.spec
        self._lanes = self.session.lanes(lanes)
        self._lock = threading.Lock()

    def segment(
        self,
        image: ArrayLike,
        *,
        out: NDArray[np.uint8] | None = None,
        probabilities: bool = False,
        tta: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment one frame or a stack.

        Parameters
        ----------
        image
            Integers or finite floats. For a model of one channel the last two axes are (H, W), for one of C channels
            the last three are (C, H, W); all axes before these are a stack, read frame by frame.
            For one channel a last axis of 3 or 4 is refused where it can only be colours.
        out
            uint8, (..., H, W): where the labels are written.
        probabilities
            Whether to return the probabilities of all classes too.
        tta
            Test-time averaging: the probabilities are the mean over the 8 rotated and reflected copies of each frame,
            and labels follow from them. Takes 8 times as long.
        progress
            Called with the number of tiles in place and of all tiles, after each batch, on the calling thread.

        Raises
        ------
        FrameError
            Shape, dtype or pixels do not fit the model.
        OptionError
            Probabilities, or an average over them, were asked of a model whose head gives labels only.
        InferenceError
            The engine failed; the segmenter can be used again.
        """
        timings = Timings()
        with timings.phase("total"):
            image = _array(image)
            leading, size = split_axes(image.shape, self.spec.channels)
            labels = _labels(out, image, (*leading, *size))
            scores = self._new_scores((*leading, len(self.spec.classes), *size)) if probabilities else None
            copies = SQUARE if tta else ONCE
            tiles = sum(len(self._plan(copy.size(size))) for copy in copies)
            count = _Count(tiles * prod(leading), progress)
            with timings.phase("queue"):
                self._lock.acquire()
            try:
                self._stack(image, labels, scores, _Call(copies, timings, count))
            finally:
                self._lock.release()
        return Segmentation(labels, scores, timings)

    def scores(self, frame: ArrayLike) -> NDArray[np.float32]:
        """Return what the network itself says of one frame, stitched: logits or probabilities, (classes, H, W) float32.

        Raises as `segment` does.
        """
        frame = _array(frame)
        leading, size = split_axes(frame.shape, self.spec.channels)
        if leading:
            raise FrameError(f"the image has shape {tuple(frame.shape)}: scores takes one frame, segment takes stacks")
        scores = self._new_scores((len(self.spec.classes), *size))
        with self._lock:
            call = _Call(ONCE, Timings(), _Count(0, None))
            self._tiles(*self._measured(frame[()], call), partial(_into, scores), call)
        return scores

    def close(self) -> None:
        """Free the session if it was opened here; idempotent."""
        if self._owns_session:
            self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stack(self, image: ArrayLike, labels: Labels, scores: Scores | None, call: "_Call") -> None:
        """Segment every frame of a checked image, with the lanes in hand."""
        for index in np.ndindex(labels.shape[:-2]):
            frame, affine = self._measured(image[index], call)
            if scores is None and len(call.copies) == 1:
                self._tiles(frame, affine, self._into_labels(labels[index]), call)
                continue
            room = self._new_scores((len(self.spec.classes), *frame.shape[-2:])) if scores is None else scores[index]
            self._probabilities(frame, affine, room, call)
            with call.timings.phase("stitch"):
                labels[index] = best_class(room)

    def _measured(self, read: Any, call: "_Call") -> tuple[Array, Affine | None]:
        """Return a frame and how to normalise it: None where the graph does."""
        with call.timings.phase("normalise"):
            frame = as_frame(read, self.spec.channels)
            if self.spec.takes_raw:
                require_raw(frame, self.spec.input_dtype)
                return frame, None
            return frame, self.spec.normalisation.measure(frame)

    def _probabilities(self, frame: Array, affine: Affine | None, out: Scores, call: "_Call") -> None:
        """Fill `out` (classes, H, W) with the mean of the probabilities over the call's copies of a frame."""
        for copy in call.copies:
            turned = copy.apply(frame)
            room = out if len(call.copies) == 1 else self._new_scores((len(out), *turned.shape[-2:]))
            self._tiles(turned, affine, partial(_into, room), call)
            with call.timings.phase("stitch"):
                self._check(room)
                if self.spec.head == "logits":
                    softmax(room)
                if room is not out:
                    share = copy.undo(room) / np.float32(len(call.copies))
                    out[:] = share if copy is call.copies[0] else out + share

    def _tiles(self, frame: Array, affine: Affine | None, stitch: Stitch, call: "_Call") -> None:
        plan = self._plan((frame.shape[-2], frame.shape[-1]))
        TileLoop(self._lanes, call.timings).run(plan, partial(_cut, frame, affine), stitch, call.tiles)

    def _plan(self, size: Size) -> TilePlan:
        return TilePlan(size, self.spec.tile, self.spec.geometry, self.spec.border)

    def _into_labels(self, labels: NDArray[np.uint8]) -> Stitch:
        if self.spec.head == "labels":
            return partial(_into, labels)

        def stitch(tile: Tile, core: Array) -> None:
            self._check(core)
            tile.stitch(best_class(core), labels)

        return stitch

    def _check(self, scores: Array) -> None:
        """Refuse what a lower precision's range has spoilt."""
        if self.spec.precision != "fp32":
            require_finite_scores(scores)

    def _new_scores(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if self.spec.head == "labels":
            raise OptionError("this model's head gives labels only: export it with --head logits or probabilities")
        return np.empty(shape, np.float32)


class _Count:
    """Adds up finished tiles, of so many in all, for a progress callback."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, tiles: int) -> None:
        self.done += tiles
        if self.progress is not None:
            self.progress(self.done, self.total)


class _Call(NamedTuple):
    """What one call carries along: the copies of each frame that are averaged, its clock and its counter."""

    copies: tuple[Symmetry, ...]
    timings: Timings
    tiles: _Count


def _cut(frame: Array, affine: Affine | None, tile: Tile, slot: Array) -> None:
    tile.cut(frame, slot)
    if affine is not None:
        affine.apply(slot)


def _into(out: Array, tile: Tile, core: Array) -> None:
    tile.stitch(core, out)


def _array(image: ArrayLike) -> ArrayLike:
    """Return what has a shape as it is, unread, and all else as an array, which then says what is wrong with it."""
    return image if hasattr(image, "shape") else np.asarray(image)


def _labels(out: Labels | None, image: ArrayLike, shape: tuple[int, ...]) -> Labels:
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.writeable:
        raise FrameError(f"out is {out.dtype} {out.shape}: give uint8 {shape} that can be written to")
    if isinstance(image, np.ndarray) and np.may_share_memory(out, image):
        raise FrameError("out shares memory with the image, which is still read while labels are written: give another")
    return out
