"""Decoding on another thread: the class maps of a stack become objects while the next frames are computed."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.model.confidence import confidence
from unetrt.runtime.model.objects import GROUP, instances
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.segment._host import Scores, TileJob
from unetrt.runtime.timings import Timings, named_range


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
