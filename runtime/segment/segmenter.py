"""The segmenter: frames of any size in, label maps without a seam out."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.cuda.arrays import DeviceArray
from unetrt.runtime.errors import FrameError, OptionError, SessionClosedError
from unetrt.runtime.pixels.frames import ArrayLike, array_of, labels_for, split_axes
from unetrt.runtime.pixels.normalisation import Measure
from unetrt.runtime.pixels.scores import ONCE, SQUARE
from unetrt.runtime.segment.host import HostCall, scores_jobs
from unetrt.runtime.segment.loop import Job, TileLoop
from unetrt.runtime.segment.timings import Timings
from unetrt.runtime.sessions import AUTO, Session, open_session

if TYPE_CHECKING:
    from unetrt.runtime.segment.device import DeviceCall, SideStream


Progress = Callable[[int, int], None]


# Enough to cut the next tile and stitch the last one while one is computed.
LANES = 2


@dataclass(frozen=True)
class Segmentation:
    """The result for an image.

    Attributes
    ----------
    labels
        uint8, (..., H, W): the index of the best class of each pixel; 0 is the background. `out`, where that was given.
    probabilities
        float32, (..., classes, H, W), or None where they were not asked for.
    timings
        Where the time went.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    timings: Timings


class Segmenter(Closable):
    """A model, ready for frames of any size.

    Thread-safe: calls from several threads run one after another. Use it in a `with`, or call `close`. After a fork it
    belongs to the parent.

    Parameters
    ----------
    model
        An ONNX file that `unetrt export` wrote, a TensorRT engine that `unetrt build` did, or an open session, which
        `close` then leaves open.
    backend
        Which engine loads the file; `auto` takes the first that is usable.
    lanes
        How many passes may be in flight; on a GPU each has a CUDA stream and memory of its own.
    device
        The number of the GPU, as CUDA counts; None takes the first, or the CPU where no engine for a GPU is usable.
    backend_options
        Options of the backend's own, by name, in the place of what it chooses itself; as for `open_session`.

    Attributes
    ----------
    spec
        What the model says of itself.
    session
        The loaded model; other segmenters can be opened on it.

    Raises
    ------
    ModelFileError
        The file is not a model of ours.
    EngineError
        The engine does not fit this machine.
    OptionError
        There is no such backend, device or number of lanes.
    BackendUnavailableError
        The engine is not usable here; the message says why.
    OutOfMemoryError
        The lanes do not fit on the GPU; the message says what they need.
    """

    def __init__(
        self,
        model: str | Path | Session,
        *,
        backend: str = AUTO,
        lanes: int = LANES,
        device: int | None = None,
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(lanes, int) or lanes < 1:
            raise OptionError(f"{lanes} lanes compute nothing: use 1 or more")
        if not isinstance(model, str | Path) and not hasattr(model, "lanes"):
            raise OptionError(f"a {type(model).__name__} is no model: give the path of a file, or an open session")
        if backend_options and not isinstance(model, str | Path):
            raise OptionError("options of a backend are for a model that is opened here: give them to open_session")
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
        self._caller: int | None = None  # the thread whose call has the lanes
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

        While the engine computes, the next tiles are cut and the last ones stitched, across the frames of a stack too.

        Parameters
        ----------
        image
            Integers or finite floats. For a model of one channel the last two axes are (H, W), for one of C channels
            the last three are (C, H, W); all axes before these are a stack, read frame by frame.
            For one channel a last axis of 3 or 4 is refused where it can only be colours.
            An array on the session's GPU (of torch, CuPy, JAX and others, by DLPack or `__cuda_array_interface__`) is
            read there, without passing the host.
        out
            uint8, (..., H, W): where the labels are written. On the session's GPU they stay there.
        probabilities
            Whether to return the probabilities of all classes too.
        tta
            Test-time averaging: the probabilities are the mean over the 8 rotated and reflected copies of each frame,
            and labels follow from them. Takes 8 times as long.
        progress
            Called with the number of tiles in place and of all tiles, after each batch, on the calling thread.
        measure
            Called with each whole raw frame (C, H, W), returns how to normalise it, in the place of what the model
            says: `Running.measure`, over a stream. For frames on the host, and models that do not take raw pixels.

        Raises
        ------
        FrameError
            Shape, dtype or pixels do not fit the model.
        OptionError
            Probabilities, or an average over them, were asked of a model whose head gives labels only, or of arrays on
            a GPU; or `measure` was given where it has no effect.
        InferenceError
            The engine failed; the segmenter can be used again.
        SessionClosedError
            The segmenter was closed, before or meanwhile.

        Where it raises, `out` may be written in part. A progress callback that raises ends the call.
        """
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
            self._run(call.jobs(), _Count(len(call), progress), timings)
        return Segmentation(labels if out is None else out, scores, timings)  # type: ignore[arg-type]

    def scores(self, frame: ArrayLike) -> NDArray[np.float32]:
        """Return what the network itself says of one frame, stitched: logits or probabilities, (classes, H, W) float32.

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
        self._run(scores_jobs(self.spec, frame[()], scores), _Count(0, None), Timings())
        return scores

    def close(self) -> None:
        """Free the lanes, and the session if it was opened here; idempotent.

        Never waits for other threads: a call that is running there ends at its next tile, with SessionClosedError, as
        do those that wait for it, and the last of them frees everything.
        """
        self._closing = True
        self._free_if_idle()

    def _run(self, jobs: Iterator[Job], count: "_Count", timings: Timings) -> None:
        """Take jobs through the lanes, once they are free."""
        self._require_callable_here()
        begin = time.perf_counter()
        # Nothing may come between taking the lock and what gives it back: an interrupt there would keep it for ever.
        try:
            with self._lock:
                timings.add("queue", time.perf_counter() - begin)
                self._require_open()
                self._caller = threading.get_ident()
                try:
                    loop = TileLoop(self._lanes)
                    loop.run(self._while_open(jobs), count)
                finally:
                    self._caller = None
        finally:
            self._free_if_idle()
        timings.sum_frames(loop.occupancy)

    def _while_open(self, jobs: Iterator[Job]) -> Iterator[Job]:
        for job in jobs:
            self._require_open()
            yield job

    def _free_if_idle(self) -> None:
        """Free everything once `close` was called and no call runs; whoever is last comes here."""
        if self._closing and self._lock.acquire(blocking=False):
            try:
                self._lanes = []
                if os.getpid() == self._process:
                    with self._preparing:  # nothing is added to what is freed
                        self._opened.close()
            finally:
                self._lock.release()

    def _require_open(self) -> None:
        if self._closing:
            raise SessionClosedError("the segmenter is closed: open the model again")

    def _require_callable_here(self) -> None:
        if self._caller == threading.get_ident():
            raise OptionError("a progress callback cannot use the segmenter that calls it: do so afterwards")
        if os.getpid() != self._process:
            raise SessionClosedError("the segmenter was opened before this process was forked: open the model here")

    def _on_device(self, image: Any, labels: Any, timings: Timings, averaged: bool) -> "DeviceCall":
        """Return a call that reads or writes on the GPU; raises FrameError where the session cannot."""
        from unetrt.runtime.segment.device import DeviceCall, SideStream, require_same_device

        if averaged:
            raise OptionError("probabilities and averages are for arrays on the host: give tensor.cpu()")
        arrays = [array for array in (image, labels) if isinstance(array, DeviceArray)]
        with self._preparing:
            self._require_open()
            device = require_same_device(self.session, arrays)
            if self._side is None:
                self._side = SideStream(device, self.spec.channels)
                self._opened.callback(self._side.close)
            return DeviceCall(self.spec, self._side, image, labels, timings)

    def _require_measurable(self, *arrays: Any) -> None:
        if self.spec.takes_raw:
            raise OptionError("this model normalises raw pixels itself: export it with --input float32 to measure them")
        if any(isinstance(array, DeviceArray) for array in arrays):
            raise OptionError("only frames on the host can be measured in another way: give tensor.cpu()")

    def _require_scores(self) -> None:
        if self.spec.head == "labels":
            raise OptionError("this model's head gives labels only: export it with --head logits or probabilities")


class _Count:
    """Adds up finished tiles, of so many in all, for a progress callback."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, tiles: int) -> None:
        self.done += tiles
        if self.progress is not None:
            self.progress(self.done, self.total)
