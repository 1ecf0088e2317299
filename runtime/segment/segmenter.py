"""The segmenter: frames of any size in, label maps without seams out.

`Segmenter.segment` makes a call that yields the tiles of its frames, and `TileLoop` runs them through the lanes of the
session: a `HostCall`, a `StoredCall` for images and labels that are not in memory, a `DeviceCall` for arrays on a GPU.

`Segmenter.objects` numbers the objects of each frame too, in a `PlaneDecoder`, while the next frame is computed.

>>> with Segmenter("model.onnx") as segmenter:  # doctest: +SKIP
...     cells = segmenter.objects(frame)
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.closing import ProcessBound
from unetrt.runtime.cuda.arrays import DeviceArray
from unetrt.runtime.errors import FrameError, OptionError, SessionClosedError, shown
from unetrt.runtime.geometry.blocks import Block, Part
from unetrt.runtime.model.objects import require_min_area
from unetrt.runtime.model.onnx_file import resolved
from unetrt.runtime.pixels.frames import ArrayLike, LabelStore, array_of, labels_for, split_axes
from unetrt.runtime.pixels.normalisation import Affine, Measure
from unetrt.runtime.pixels.scores import ONCE, SQUARE
from unetrt.runtime.segment._blocks import LARGE, StoredCall, block_pass, is_stored, require_block
from unetrt.runtime.segment._decoder import PlaneDecoder
from unetrt.runtime.segment._host import HostCall, TileJob, Written, scores_jobs, window_of
from unetrt.runtime.segment._loop import TileLoop
from unetrt.runtime.sessions import AUTO, Session, open_session
from unetrt.runtime.sessions.retile import frame_size, model_for
from unetrt.runtime.timings import Timings

if TYPE_CHECKING:
    from unetrt.runtime.segment._device import DeviceCall, SideStream

# Called with the number of finished tiles and of all tiles.
Progress = Callable[[int, int], None]
# Lanes by default: enough to cut the next tile and stitch the last one while one is computed.
LANES = 2
# More lanes than these only take memory: one pass is computed at a time on a CPU, and a few fill a GPU.
MAX_LANES = 64


@dataclass(frozen=True)
class Segmentation:
    """The result of `Segmenter.segment`.

    Attributes
    ----------
    labels
        uint8, (..., H, W): the index of the best class of each pixel; 0 is the background. The object given as `out`,
        if any.
    probabilities
        float32, (..., classes, H, W); None unless requested.
    timings
        Time spent in each phase.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    timings: Timings


@dataclass(frozen=True)
class Objects:
    """The result of `Segmenter.objects`.

    Attributes
    ----------
    labels
        int32, (..., H, W): the number of each pixel's object, 1 ... n in each frame; 0 is the background.
    count
        Integers, (...): the number of objects of each frame, n.
    confidence
        float32, from 0 to 1: how certain the network is of each object, in the order of frames and numbers. For one
        frame (n,): element i belongs to object i + 1. For a stack, the frames follow one another. None unless
        requested.
    timings
        Time spent in each phase.
    """

    labels: NDArray[np.int32]
    count: NDArray[np.intp]
    confidence: NDArray[np.float32] | None
    timings: Timings

    @property
    def confidence_of_frames(self) -> list[NDArray[np.float32]] | None:
        """The confidence of the objects of each frame, (n,) each; None unless requested."""
        if self.confidence is None:
            return None
        return np.split(self.confidence, np.cumsum(self.count.reshape(-1))[:-1])


class Segmenter(ProcessBound):
    """A loaded model that segments frames of any size.

    Thread-safe: calls from several threads run one after another. Use it in a `with` statement, or call `close`. A
    forked process cannot use it.

    Parameters
    ----------
    model
        An ONNX file written by `unetrt export`, a TensorRT engine written by `unetrt build`, the name of a model that
        comes with unetrt, or an open session, which `close` leaves open.
    frame
        Height and width of your frames, in pixels: the model gets the tile that is planned for them. It is verified the
        first time, which takes a pass with the file's own tile on the CPU, and kept in the user's cache. Frames of
        other sizes are segmented too. None keeps the file's tile.
    backend
        Name of the inference engine; `auto` selects the first usable one.
    lanes
        Number of passes that may be in flight, 1 to `MAX_LANES`; on a GPU, each has a CUDA stream and memory.
    device
        CUDA device index; None selects GPU 0, or the CPU if no engine for a GPU is usable.
    backend_options
        Options of the backend by name, which replace those that it selects; see `open_session`.

    Attributes
    ----------
    spec
        The model's spec.
    session
        The loaded model; other segmenters can be opened on it.

    Raises
    ------
    ModelFileError
        The file is not a valid model file, or `frame` is given and the tile of this file cannot be changed.
    EngineError
        The engine does not fit this machine.
    OptionError
        The backend, device or number of lanes does not exist, or `frame` is given with an engine or an open session.
    GateError
        With the tile for `frame`, the result differs from that with the file's tile.
    BackendUnavailableError
        The backend is not usable on this machine; the message says why.
    OutOfMemoryError
        The lanes do not fit on the GPU; the message states the memory they need.
    """

    def __init__(
        self,
        model: str | Path | Session,
        *,
        frame: tuple[int, int] | None = None,
        backend: str = AUTO,
        lanes: int = LANES,
        device: int | None = None,
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(lanes, int) or not 1 <= lanes <= MAX_LANES:
            raise OptionError(f"lanes must be an integer from 1 to {MAX_LANES} (got {shown(lanes)})")
        if not isinstance(model, str | Path) and not hasattr(model, "lanes"):
            raise OptionError(f"model must be the path of a file or an open session (got {type(model).__name__})")
        if not isinstance(model, str | Path) and backend_options:
            raise OptionError(
                "backend_options cannot apply to a session that is already open: pass them to open_session"
            )
        if frame is not None:
            size = frame_size(frame)
            if not isinstance(model, str | Path):
                raise OptionError("frame cannot apply to a session that is already open: open the model's file with it")
            model = model_for(resolved(model), [size], backend, device, lanes)
        with ExitStack() as opened:
            self.session = (
                opened.enter_context(open_session(model, backend, device, backend_options))
                if isinstance(model, str | Path)
                else model
            )
            self.spec = self.session.spec
            self._lanes = self.session.lanes(lanes)
            self._side: SideStream | None = None
            for lane in self._lanes:
                opened.callback(lane.close)
            self._opened = opened.pop_all()
        self._lock, self._preparing = threading.Lock(), threading.Lock()
        self._caller: int | None = None  # the thread whose call uses the lanes
        self._closing, self._process = False, os.getpid()

    def segment(
        self,
        image: ArrayLike,
        *,
        out: NDArray[np.uint8] | LabelStore | None = None,
        probabilities: bool = False,
        tta: bool = False,
        progress: Progress | None = None,
        measure: Measure | None = None,
    ) -> Segmentation:
        """Segment one frame or a stack.

        While the engine computes, the next tiles are cut and the last ones stitched, also across the frames of a stack.

        Parameters
        ----------
        image
            Integers or finite floats. For a model of one channel the last two axes are (H, W), for one of C channels
            the last three are (C, H, W); all axes before these form a stack, which is read frame by frame.
            A model of one channel refuses an image whose last axis is much shorter than the two before it, as in
            (512, 512, 5): it may be channels. Frames of that shape are segmented as (N, 1, H, W).
            Frames of more than 2^25 pixels that are not numpy arrays in memory (Zarr, HDF5, dask, memory maps) are read
            block by block: first to measure them, once or, for 32-bit and 64-bit pixels, up to four times, and then to
            segment them. Memory does not grow with their size.
            An array on the session's GPU (of torch, CuPy, JAX and others, by DLPack or `__cuda_array_interface__`) is
            read there, without a copy to the host.
        out
            uint8, (..., H, W): the array that labels are written to, on the host or on the session's GPU; or an array
            on disk that is written by slices (Zarr, HDF5), block by block.
        probabilities
            Whether to return the probabilities of all classes as well.
        tta
            Test-time averaging: the probabilities are the mean over the 8 rotated and reflected copies of each frame,
            and labels follow from them. Takes 8 times as long.
        progress
            Called with the number of finished tiles and of all tiles, after each batch, on the calling thread.
        measure
            Called with each whole raw frame (C, H, W), which is read into memory; returns the normalisation to use
            instead of the model's, such as `Running.measure` for a stream. Only for frames on the host and models that
            do not take raw pixels.

        Raises
        ------
        FrameError
            Shape, dtype or pixels do not fit the model.
        OptionError
            `probabilities` or `tta` with a model whose head is `labels`, or with arrays on a GPU; or `measure` where it
            has no effect.
        InferenceError
            The engine failed; the segmenter can be used again.
        SessionClosedError
            The segmenter was closed before or during the call.

        After an exception, `out` may be partly written. An exception in the progress callback ends the call and is
        raised.
        """
        require_callable(progress=progress, measure=measure)
        timings = Timings()
        with timings.phase("total"):
            given, room = array_of(image), None if out is None else array_of(out)
            leading, size = split_axes(given.shape, self.spec.channels)
            labels = labels_for(given, room, (*leading, *size))
            if probabilities or tta:
                self.require_scores()
            if measure is not None:
                self._require_measurable(given, labels)
            scores = np.empty((*leading, len(self.spec.classes), *size), np.float32) if probabilities else None
            copies = SQUARE if tta else ONCE
            call: HostCall | DeviceCall | StoredCall
            if isinstance(given, DeviceArray) or isinstance(labels, DeviceArray):
                call = self._on_device(given, labels, timings, probabilities or tta)
            elif not isinstance(labels, np.ndarray) or (prod(size) > LARGE and is_stored(given)):
                call = StoredCall(self.spec, given, labels, scores, copies, timings, measure)
            else:
                call = HostCall(self.spec, given, labels, scores, copies, timings, measure)
            self._run(call.jobs(), _counter(len(call), progress), timings)
        result: Any = labels if out is None else out
        return Segmentation(result, scores, timings)

    def window_of(self, block: Block, *, tta: bool = False) -> Part:
        """Return the rows and columns of a frame that `classify_block` needs for a block."""
        require_block(self.spec, block)
        return window_of(self.spec, block, SQUARE if tta else ONCE)

    def classify_block(
        self,
        pixels: Any,
        block: Block,
        affine: Affine | None,
        *,
        probabilities: bool = False,
        tta: bool = False,
    ) -> Segmentation:
        """Compute the class map of one block of a frame: the part of the frame's class map, bit for bit.

        For frames that are larger than the memory, in any order and on any number of workers.

        >>> from unetrt.runtime.geometry.blocks import BlockPlan
        >>> blocks = BlockPlan(segmenter.spec.plan((height, width)), (2048, 2048))  # doctest: +SKIP
        >>> rows, columns = segmenter.window_of(blocks[0])  # doctest: +SKIP
        >>> segmenter.classify_block(image[rows, columns], blocks[0], affine).labels  # doctest: +SKIP

        Parameters
        ----------
        pixels
            Raw grey values of the window of the block (`window_of`), (C, h, w), or (h, w) for one channel: integers or
            finite floats.
        block
            A block of a `BlockPlan` of the model's tile plan for the frame, ``spec.plan((H, W))``.
        affine
            The normalisation of the whole frame (`Normalisation.measure`, `FrameStatistics.affine`); None for a model
            that takes raw pixels.
        probabilities, tta
            As for `segment`.

        Raises
        ------
        FrameError
            Shape, dtype or pixels do not fit the block; places are those of the frame.
        OptionError
            The block belongs to another plan, or `affine` does not fit the model; or as for `segment`.
        UnetrtError
            What `segment` raises.
        """
        timings = Timings(frames=[Timings()])
        with timings.phase("total"):
            copies = SQUARE if tta else ONCE
            if probabilities or tta:
                self.require_scores()
            part = block_pass(self.spec, block, pixels, affine, copies, timings.frames[0])
            labels: NDArray[np.uint8] = np.empty(block.size, np.uint8)
            if probabilities or tta:
                scores = np.empty((len(self.spec.classes), *block.size), np.float32)
                jobs = part.averaged(copies, scores, labels, _nothing)
            else:
                scores, jobs = None, part.classes(labels, _nothing)
            self._run(jobs, _counter(0, None), timings)
        return Segmentation(labels, scores if probabilities else None, timings)

    def objects(
        self,
        image: ArrayLike,
        *,
        min_area: int = 0,
        confidence: bool = False,
        tta: bool = False,
        progress: Progress | None = None,
    ) -> Objects:
        """Segment one frame or a stack, and number the objects of each frame.

        The class map of a frame is decoded (`unetrt.runtime.model.objects`) on another thread, while the next frame of
        a stack is computed. The labels equal ``instances(segment(image).labels, spec.decoding, min_area)``.

        Parameters
        ----------
        image, tta, progress
            As for `segment`.
        min_area
            Minimum area in pixels; smaller objects become background.
        confidence
            Whether to return the confidence of each object as well; see `unetrt.runtime.model.confidence.confidence`.

        Raises
        ------
        OptionError
            `min_area` is negative; or `confidence` or `tta` with a model whose head is `labels`, or with an image on a
            GPU.
        UnetrtError
            What `segment` raises.
        """
        require_min_area(min_area)
        require_callable(progress=progress)
        timings = Timings()
        with timings.phase("total"):
            given = array_of(image)
            leading, size = split_axes(given.shape, self.spec.channels)
            if confidence or tta:
                self.require_scores()
            classes = np.empty((*leading, *size), np.uint8)
            decoder = PlaneDecoder(self.spec, classes, min_area, confidence, timings)
            call: HostCall | DeviceCall
            if isinstance(given, DeviceArray):
                call = self._on_device(given, classes, timings, confidence or tta, decoder.add)
            else:
                copies = SQUARE if tta else ONCE
                call = HostCall(self.spec, given, classes, None, copies, timings, None, decoder.add, confidence)
            with decoder:
                self._run(decoder.paced(call.jobs()), _counter(len(call), progress), timings)
                decoder.finish()
        return Objects(decoder.labels, decoder.count, decoder.confidence, timings)

    def scores(self, frame: ArrayLike) -> NDArray[np.float32]:
        """Return the network's output for one frame, stitched: logits or probabilities, (classes, H, W) float32.

        Raises as `segment` does.
        """
        frame = array_of(frame)
        leading, size = split_axes(frame.shape, self.spec.channels)
        if isinstance(frame, DeviceArray):
            raise OptionError("scores are for frames on the host: give tensor.cpu()")
        if leading:
            raise FrameError(f"the image has shape {tuple(frame.shape)}: scores takes one frame, segment takes stacks")
        self.require_scores()
        scores = np.empty((len(self.spec.classes), *size), np.float32)
        self._run(scores_jobs(self.spec, frame[()], scores), _counter(0, None), Timings())
        return scores

    def close(self) -> None:
        """Free the lanes, and the session if this segmenter opened it; idempotent.

        Does not wait for other threads: their running and waiting calls raise SessionClosedError at the next tile, and
        the last of them to end frees everything.
        """
        self._closing = True
        self._free_if_idle()

    def _run(self, jobs: Iterator[TileJob], finished: Callable[[int], None], timings: Timings) -> None:
        """Run jobs through the lanes once no other call uses them."""
        self._require_callable_here()
        begin = time.perf_counter()
        # Acquired by `with`: an interrupt between acquire() and a `try` would leave it locked.
        try:
            with self._lock:
                timings.add("queue", time.perf_counter() - begin)
                self._require_open()
                self._caller = threading.get_ident()
                try:
                    loop = TileLoop(self._lanes)
                    loop.run(self._while_open(jobs), finished)
                finally:
                    self._caller = None
        finally:
            self._free_if_idle()
        timings.sum_frames(loop.occupancy)

    def _while_open(self, jobs: Iterator[TileJob]) -> Iterator[TileJob]:
        for job in jobs:
            self._require_open()
            yield job

    def _free_if_idle(self) -> None:
        """Free everything if `close` was called and no call runs."""
        if self._closing and self._lock.acquire(blocking=False):
            try:
                self._lanes = []
                if os.getpid() == self._process:
                    with self._preparing:  # no side stream is added meanwhile
                        self._opened.close()
            finally:
                self._lock.release()

    def _require_open(self) -> None:
        if self._closing:
            raise SessionClosedError("the segmenter is closed: open the model again")

    def _require_callable_here(self) -> None:
        if self._caller == threading.get_ident():
            raise OptionError("a progress callback cannot use the segmenter that calls it: use it after the call")
        if os.getpid() != self._process:
            raise SessionClosedError(
                "the segmenter was opened before this process was forked: start the process with multiprocessing's "
                "method spawn, and open the model there"
            )

    def _on_device(
        self, image: Any, labels: Any, timings: Timings, averaged: bool, written: Written | None = None
    ) -> "DeviceCall":
        """Return a call that reads or writes on the GPU; raises FrameError where the session is not on that GPU."""
        from unetrt.runtime.segment._device import DeviceCall, SideStream, require_same_device

        if averaged:
            raise OptionError("probabilities and averages are for arrays on the host: give tensor.cpu()")
        arrays = [array for array in (image, labels) if isinstance(array, DeviceArray)]
        with self._preparing:
            self._require_open()
            device = require_same_device(self.session, arrays)
            if self._side is None:
                self._side = SideStream(device, self.spec.channels)
                self._opened.callback(self._side.close)
            return DeviceCall(self.spec, self._side, image, labels, timings, written)

    def _require_measurable(self, *arrays: Any) -> None:
        if self.spec.takes_raw:
            raise OptionError("this model normalises raw pixels itself: export it with --input float32 to measure them")
        if any(isinstance(array, DeviceArray) for array in arrays):
            raise OptionError("measure is for frames on the host: give tensor.cpu()")

    def require_scores(self) -> None:
        """Raise OptionError for a model that outputs labels only."""
        if self.spec.head == "labels":
            raise OptionError("this model's head outputs labels only: export it with --head logits or probabilities")


def require_callable(**given: object) -> None:
    """Raise OptionError unless arguments, by their names, are functions or None."""
    for name, function in given.items():
        if function is not None and not callable(function):
            raise OptionError(f"{name} must be a function (got {shown(function)})")


def _nothing() -> None:
    pass


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a function that adds finished tiles and reports their sum to a progress callback."""
    done = 0

    def add(tiles: int) -> None:
        nonlocal done
        done += tiles
        if progress is not None:
            progress(done, total)

    return add
