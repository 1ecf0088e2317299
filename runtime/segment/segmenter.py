"""The segmenter: frames of any size in, label maps without seams out.

`Segmenter.segment` makes a call (`HostCall`, or `DeviceCall` for arrays on a GPU) that yields the tiles of its frames,
and `TileLoop` runs them through the lanes of the session.

`Segmenter.objects` numbers the objects of each frame too, in a `PlaneDecoder`, while the next frame is computed.

>>> with Segmenter("model.onnx") as segmenter:  # doctest: +SKIP
...     cells = segmenter.objects(frame)
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.cuda.arrays import DeviceArray
from unetrt.runtime.errors import FrameError, OptionError, SessionClosedError, shown
from unetrt.runtime.model.confidence import confidence
from unetrt.runtime.model.objects import GROUP, instances, require_min_area
from unetrt.runtime.model.onnx_file import resolved
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import ArrayLike, array_of, labels_for, split_axes
from unetrt.runtime.pixels.normalisation import Measure
from unetrt.runtime.pixels.scores import ONCE, SQUARE
from unetrt.runtime.segment._host import HostCall, Scores, TileJob, Written, scores_jobs
from unetrt.runtime.sessions import AUTO, Lane, Session, open_session
from unetrt.runtime.sessions.retile import frame_size, model_for
from unetrt.runtime.timings import Occupancy, Timings, named_range

if TYPE_CHECKING:
    from unetrt.runtime.segment._device import DeviceCall, SideStream
    from unetrt.runtime.sessions.cuda import CudaLane, Step


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


class Segmenter(Closable):
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
        out: NDArray[np.uint8] | None = None,
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
            An array on the session's GPU (of torch, CuPy, JAX and others, by DLPack or `__cuda_array_interface__`) is
            read there, without a copy to the host.
        out
            uint8, (..., H, W): the array that labels are written to, on the host or on the session's GPU.
        probabilities
            Whether to return the probabilities of all classes as well.
        tta
            Test-time averaging: the probabilities are the mean over the 8 rotated and reflected copies of each frame,
            and labels follow from them. Takes 8 times as long.
        progress
            Called with the number of finished tiles and of all tiles, after each batch, on the calling thread.
        measure
            Called with each whole raw frame (C, H, W); returns the normalisation to use instead of the model's, such as
            `Running.measure` for a stream. Only for frames on the host and models that do not take raw pixels.

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
        _require_callable(progress=progress, measure=measure)
        timings = Timings()
        with timings.phase("total"):
            given, room = array_of(image), None if out is None else array_of(out)
            leading, size = split_axes(given.shape, self.spec.channels)
            labels = labels_for(given, room, (*leading, *size))
            if probabilities or tta:
                self._require_scores()
            if measure is not None:
                self._require_measurable(given, labels)
            scores = np.empty((*leading, len(self.spec.classes), *size), np.float32) if probabilities else None
            call: HostCall | DeviceCall = (
                self._on_device(given, labels, timings, probabilities or tta)
                if isinstance(given, DeviceArray) or isinstance(labels, DeviceArray)
                else HostCall(self.spec, given, labels, scores, SQUARE if tta else ONCE, timings, measure)
            )
            self._run(call.jobs(), _counter(len(call), progress), timings)
        result: Any = labels if out is None else out
        return Segmentation(result, scores, timings)

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
        _require_callable(progress=progress)
        timings = Timings()
        with timings.phase("total"):
            given = array_of(image)
            leading, size = split_axes(given.shape, self.spec.channels)
            if confidence or tta:
                self._require_scores()
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
        self._require_scores()
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

    def _require_scores(self) -> None:
        if self.spec.head == "labels":
            raise OptionError("this model's head outputs labels only: export it with --head logits or probabilities")


def _require_callable(**given: object) -> None:
    for name, function in given.items():
        if function is not None and not callable(function):
            raise OptionError(f"{name} must be a function (got {shown(function)})")


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a function that adds finished tiles and reports their sum to a progress callback."""
    done = 0

    def add(tiles: int) -> None:
        nonlocal done
        done += tiles
        if progress is not None:
            progress(done, total)

    return add


class PlaneDecoder(Closable):
    """Decodes the class maps of a stack, in order, on one thread, while the next frames are computed.

    Small planes are gathered, up to `GROUP` pixels, and decoded together. At most one plane or group waits while
    another is decoded, besides those whose tiles are still in flight. An exception of the decoding is raised by `paced`
    or `finish`. `close` ends the thread.

    Parameters
    ----------
    spec
        The model's spec.
    classes
        uint8, (..., H, W), of which a plane is complete when it is added.
    min_area
        As for `instances`.
    confident
        Whether the confidence of objects is measured.
    timings
        Timings of the call, of whose frames the phase `decode` is set.

    Attributes
    ----------
    labels, count
        int32 (..., H, W), and integers (...), to be written.
    """

    def __init__(
        self, spec: ModelSpec, classes: NDArray[np.uint8], min_area: int, confident: bool, timings: Timings
    ) -> None:
        self.labels: NDArray[np.int32] = np.empty(classes.shape, np.int32)
        self.count: NDArray[np.intp] = np.zeros(classes.shape[:-2], np.intp)
        self._spec, self._classes, self._min_area, self._timings = spec, classes, min_area, timings
        self._confidence: list[NDArray[np.float32]] | None = [] if confident else None
        self._group = max(1, GROUP // max(1, prod(classes.shape[-2:])))
        self._gathered: list[tuple[tuple[int, ...], Scores | None]] = []
        self._pending: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="unetrt-decode")

    @property
    def confidence(self) -> NDArray[np.float32] | None:
        """The confidence of the objects of all planes, one after another; None unless it was requested."""
        return None if self._confidence is None else np.concatenate(self._confidence)

    def add(self, index: tuple[int, ...], scores: Scores | None) -> None:
        """Queue a plane, with its probabilities (classes, H, W) if the confidence is measured; never waits."""
        self._gathered.append((index, scores))
        if len(self._gathered) == self._group:
            self._submit()

    def paced(self, jobs: Iterable[TileJob]) -> Iterator[TileJob]:
        """Yield the jobs; before those of another frame, wait until no plane waits."""
        frame = None
        for job in jobs:
            if job.frame is not frame:
                frame = job.frame
                self._wait(1)
            yield job

    def finish(self) -> None:
        """Decode the planes that are gathered, and wait for all."""
        if self._gathered:
            self._submit()
        self._wait(0)
        self._timings.decode = sum(frame.decode for frame in self._timings.frames)

    def close(self) -> None:
        """Drop the planes that wait, and end the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _wait(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()

    def _submit(self) -> None:
        planes, self._gathered = self._gathered, []
        self._pending.append(self._thread.submit(self._decode, planes))

    def _decode(self, planes: list[tuple[tuple[int, ...], Scores | None]]) -> None:
        """Decode planes that follow each other."""
        begin = time.perf_counter()
        first = int(np.ravel_multi_index(planes[0][0], self.count.shape)) if planes[0][0] else 0
        which, size = slice(first, first + len(planes)), self._classes.shape[-2:]
        with named_range("decode"):
            # An axis between frames and rows: frames may be narrow.
            classes = self._classes.reshape(-1, 1, *size)[which]
            found = instances(classes, self._spec.decoding, self._min_area)[:, 0]
            self.labels.reshape(-1, *size)[which] = found
            self.count.reshape(-1)[which] = found.max((1, 2), initial=0)
            for plane, (_, scores) in zip(found, planes, strict=True):
                if self._confidence is not None and scores is not None:
                    self._confidence.append(confidence(plane, scores, self._spec.decoding))
        share = (time.perf_counter() - begin) / len(planes)
        for frame in self._timings.frames[which]:
            frame.add("decode", share)


class TileLoop:
    """The double-buffered loop: while lanes compute, the next batch is cut and the last result is stitched.

    Tiles go through the lanes in order; a batch may hold tiles of several frames.

    Parameters
    ----------
    lanes
        At least one; nothing else uses them while `run` runs.

    Attributes
    ----------
    occupancy
        How long passes were in flight.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.occupancy = Occupancy()
        self._lanes = lanes
        self._flying: deque[tuple[Lane, list[TileJob]]] = deque()

    def run(self, jobs: Iterable[TileJob], finished: Callable[[int], None]) -> None:
        """Compute all tiles.

        Parameters
        ----------
        jobs
            Advanced one by one, while the lanes compute earlier jobs.
        finished
            Called with the number of tiles of each batch after it is written.

        Raises
        ------
        Exception
            Any exception raised by `jobs`, a frame or a pass; no pass is left in flight.
        """
        free, rest = deque(self._lanes), iter(jobs)
        self._lanes[0].restart_clock()
        try:
            while True:
                if not free:
                    free.append(self._finish(finished))
                if not self._start(free[0], rest):
                    break
                free.popleft()
            while self._flying:
                self._finish(finished)
        finally:
            self._drain()

    def _start(self, lane: Lane, jobs: Iterator[TileJob]) -> bool:
        """Fill a lane and launch it; return False where no jobs are left."""
        batch: list[TileJob] = []
        before: list[Step | None] = []
        for slot, job in enumerate(islice(jobs, len(lane.input))):
            with job.frame.timings.phase("cut"):
                before.append(job.frame.source.cut(job.tile, lane, slot))
            batch.append(job)
        if batch:
            after = [job.frame.sink.place(job.tile, lane, slot) for slot, job in enumerate(batch)]
            self._flying.append((lane, batch))  # before the launch: an interrupt may follow it at once
            steps = list(filter(None, before)), list(filter(None, after))
            if any(steps):  # only frames and labels on the device have them, and their lanes are on it
                cast("CudaLane", lane).launch_with(*steps)
            else:
                lane.launch()
        return bool(batch)

    def _finish(self, finished: Callable[[int], None]) -> Lane:
        lane, batch = self._flying[0]
        begin = time.perf_counter()
        lane.wait()
        waited = time.perf_counter() - begin
        self._flying.popleft()
        self.occupancy.add(lane.passed)
        for slot, (tile, frame) in enumerate(batch):
            frame.timings.add("wait", waited / len(batch))
            frame.timings.passed(lane.passed, 1 / len(batch))
            frame.timings.tiles += 1
            with frame.timings.phase("stitch"):
                frame.stitch(tile, lane, slot)
        finished(len(batch))
        return lane

    def _drain(self) -> None:
        """Wait for all passes in flight, which read arrays that the next call fills."""
        try:
            while self._flying:
                with suppress(Exception):  # an earlier error is being raised
                    self._flying[0][0].wait()
                self._flying.popleft()
        except BaseException:  # another interrupt
            self._drain()
            raise
