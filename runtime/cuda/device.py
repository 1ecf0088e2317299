"""A CUDA device and what is allocated on it: streams, events, memory, graphs, other libraries' objects.

Each object holds its device, so the device's primary context outlives all of them, in any order of closing. An object
is freed by `close`, or with its last reference; at interpreter exit the youngest are freed first. A process that was
forked from the one that opened the device frees nothing.
"""

import gc
import logging
import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unetrt.runtime.cuda.driver import Driver
from unetrt.runtime.errors import InferenceError

log = logging.getLogger("unetrt.cuda")


class CudaDevice:
    """One device. Its driver holds the primary context as long as this object lives.

    Attributes
    ----------
    driver
        The driver API, to be called within `current`.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver, self._process = driver, os.getpid()
        self._release = weakref.finalize(self, _release, driver, self._process)

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one that opened the device, and can neither use nor free it."""
        return os.getpid() != self._process

    def __str__(self) -> str:
        return f"{self.driver.name} (device {self.driver.index}, {self.driver.implementation})"

    @contextmanager
    def current(self) -> Iterator[Driver]:
        """Make the device's context current on this thread in the body, and the previous one afterwards."""
        self.driver.push()
        try:
            yield self.driver
        finally:
            self.driver.pop()

    def memory(self) -> tuple[int, int]:
        """Return free and total memory, in bytes."""
        with self.current() as driver:
            return driver.memory()

    def stream(self) -> "Stream":
        """Return a new stream."""
        return Stream(self, self.driver.create_stream, self.driver.destroy_stream)

    def event(self) -> "Event":
        """Return a new event."""
        return Event(self, self.driver.create_event, self.driver.destroy_event)

    def buffer(self, size: int) -> "Buffer":
        """Return `size` bytes of device memory; raises OutOfMemoryError."""
        return Buffer(self, lambda: self.driver.allocate(max(size, 1)), self.driver.free)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of zeros in page-locked host memory, which is freed with its last view."""
        array = np.asarray(Pinned(self, shape, np.dtype(dtype)))
        array[...] = 0
        return array


class Owned:
    """A resource of a device, freed by `close` or with its last reference.

    Attributes
    ----------
    handle
        CUDA's handle, or an address.
    """

    def __init__(self, device: CudaDevice, make: Callable[[], int], free: Callable[[int], None]) -> None:
        self.device = device
        with device.current():
            self.handle = make()
        self._finalizer = weakref.finalize(self, _free, device, free, self.handle)

    def close(self) -> None:
        """Free it; idempotent."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(Owned):
    """A CUDA stream; `handle` is the CUstream. Its methods need the device to be current."""

    def wait_for(self, event: "Event") -> None:
        """Make further work wait for an event."""
        self.device.driver.wait_for(self.handle, event.handle)

    def synchronize(self) -> None:
        """Block until the stream is idle."""
        self.device.driver.synchronize_stream(self.handle)


class Event(Owned):
    """A CUDA event. Its methods need the device to be current."""

    def record(self, stream: Stream) -> None:
        """Record the event after the work enqueued on a stream so far."""
        self.device.driver.record(self.handle, stream.handle)

    def synchronize(self) -> None:
        """Block until the event has completed."""
        self.device.driver.synchronize_event(self.handle)

    def since(self, earlier: "Event") -> float:
        """Return the seconds since another event; both have completed."""
        return self.device.driver.elapsed(earlier.handle, self.handle)


class Buffer(Owned):
    """Device memory; `handle` is its address."""


class Graph(Owned):
    """An executable CUDA graph. Its methods need the device to be current."""

    @classmethod
    def of(cls, stream: Stream, work: Callable[[], None]) -> "Graph":
        """Capture what `work` enqueues on a stream, without executing it; an exception ends the capture."""
        device = stream.device
        # Garbage collection during a capture would free objects on the capturing thread, which the driver refuses.
        with _no_collection():
            return cls(device, lambda: _captured(device.driver, stream.handle, work), device.driver.destroy_graph)

    def launch(self, stream: Stream) -> None:
        """Launch the graph on a stream."""
        self.device.driver.launch_graph(self.handle, stream.handle)


class LibraryObjects:
    """Objects of another library that must be freed while the device is current, the youngest first.

    They are freed by `close`, or with this object's last reference. Nothing else may hold them.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._things: list[Any] = []
        self._finalizer = weakref.finalize(self, _free_objects, device, self._things)

    def add(self, make: Callable[[], Any]) -> "LibraryObjects":
        """Append what `make` returns; it runs with the device current."""
        with self._device.current():
            self._things.append(make())
        return self

    def __getitem__(self, index: int) -> Any:
        return self._things[index]

    def close(self) -> None:
        """Free them; idempotent."""
        self._finalizer()


class Pinned(Owned):
    """Page-locked host memory; arrays over it hold it."""

    def __init__(self, device: CudaDevice, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        size = max(math.prod(shape) * dtype.itemsize, 1)
        super().__init__(device, lambda: device.driver.allocate_pinned(size), device.driver.free_pinned)
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (self.handle, False),
        }


@contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _captured(driver: Driver, stream: int, work: Callable[[], None]) -> int:
    driver.begin_capture(stream)
    try:
        work()
    except BaseException:
        _discard(driver, stream)
        raise
    return driver.end_capture(stream)


def _discard(driver: Driver, stream: int) -> None:
    """End a failed capture; the driver may have ended it already."""
    try:
        driver.destroy_graph(driver.end_capture(stream))
    except InferenceError as error:
        log.debug("a capture was abandoned: %s", str(error))


def _free(device: CudaDevice, free: Callable[[int], None], handle: int) -> None:
    """Free a handle; an error is logged, as no caller is left, and the rest must be freed too."""
    if device.is_inherited:
        return
    try:
        with device.current():
            free(handle)
    except InferenceError as error:
        log.warning("not freed: %s", str(error))


def _free_objects(device: CudaDevice, things: list[Any]) -> None:
    if device.is_inherited:
        return
    try:
        with device.current():
            while things:
                things.pop()
    except InferenceError as error:
        log.warning("not freed in their context: %s", str(error))


def _release(driver: Driver, process: int) -> None:
    if os.getpid() != process:
        return
    try:
        driver.release()
    except InferenceError as error:
        log.warning("not released: %s", str(error))
