"""A CUDA device, and its primary context.

What is made on a CUDA device: streams, events, memory and graphs that are freed by themselves.

Each holds its device, so the device's context outlives all of them, whatever is closed first. At interpreter exit the
youngest go first.
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


class Owned:
    """Something of a device: freed by `close`, or when nothing refers to it any more.

    Attributes
    ----------
    handle
        Its number, or its address.
    """

    def __init__(self, device: "CudaDevice", make: Callable[[], int], free: Callable[[int], None]) -> None:
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
    """Work in order; `handle` is the CUstream. Its methods need the device to be current."""

    def wait_for(self, event: "Event") -> None:
        """Let further work wait for an event."""
        self.device.driver.wait_for(self.handle, event.handle)

    def synchronize(self) -> None:
        """Block until all work is done."""
        self.device.driver.synchronize_stream(self.handle)


class Event(Owned):
    """A point in a stream's work. Its methods need the device to be current."""

    def record(self, stream: Stream) -> None:
        """Come to pass once the stream's present work is done."""
        self.device.driver.record(self.handle, stream.handle)

    def synchronize(self) -> None:
        """Block until it has come to pass."""
        self.device.driver.synchronize_event(self.handle)

    def since(self, earlier: "Event") -> float:
        """Return the seconds since another event; both have come to pass."""
        return self.device.driver.elapsed(earlier.handle, self.handle)


class Buffer(Owned):
    """Memory on the device; `handle` is its address."""


class Graph(Owned):
    """Work that was captured, to be launched at once. Its methods need the device to be current."""

    @classmethod
    def of(cls, stream: Stream, work: Callable[[], None]) -> "Graph":
        """Capture what `work` gives to a stream; nothing of it is done yet. Whatever it raises ends the capture."""
        device = stream.device
        # Garbage that is collected while a thread captures would be freed on that thread, which the driver refuses.
        with _no_collection():
            return cls(device, lambda: _captured(device.driver, stream.handle, work), device.driver.destroy_graph)

    def launch(self, stream: Stream) -> None:
        """Give the work to a stream."""
        self.device.driver.launch_graph(self.handle, stream.handle)


class LibraryObjects:
    """Objects of another library that must be freed while the device is current, the youngest first.

    They are freed by `close`, or when nothing refers to this any more. Hold them nowhere else.
    """

    def __init__(self, device: "CudaDevice") -> None:
        self._device = device
        self._things: list[Any] = []
        self._finalizer = weakref.finalize(self, _free_objects, device, self._things)

    def add(self, make: Callable[[], Any]) -> "LibraryObjects":
        """Add what `make` returns; it runs with the device current, and what it raises is passed on."""
        with self._device.current():
            self._things.append(make())
        return self

    def __getitem__(self, index: int) -> Any:
        return self._things[index]

    def close(self) -> None:
        """Free them; idempotent."""
        self._finalizer()


class Pinned(Owned):
    """Pinned memory; arrays made of it hold it."""

    def __init__(self, device: "CudaDevice", shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
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
    """End a capture whose work failed; the driver may have ended it already."""
    try:
        driver.destroy_graph(driver.end_capture(stream))
    except InferenceError as error:
        log.debug("a capture was given up: %s", str(error))


def _free(device: "CudaDevice", free: Callable[[int], None], handle: int) -> None:
    """Free a handle. What fails here has nobody left to tell, and must not keep the rest from being freed."""
    if device.is_inherited:
        return
    try:
        with device.current():
            free(handle)
    except InferenceError as error:
        log.warning("not freed: %s", str(error))


def _free_objects(device: "CudaDevice", things: list[Any]) -> None:
    if device.is_inherited:
        return
    try:
        with device.current():
            while things:
                things.pop()
    except InferenceError as error:
        log.warning("not freed in their context: %s", str(error))


class CudaDevice:
    """One device, through a driver that holds its primary context for as long as this lives.

    Attributes
    ----------
    driver
        The calls; made within `current`.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver, self._process = driver, os.getpid()
        self._release = weakref.finalize(self, _release, driver, self._process)

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one that opened the device: nothing of it can be used or freed."""
        return os.getpid() != self._process

    def __str__(self) -> str:
        return f"{self.driver.name} (device {self.driver.index}, {self.driver.implementation})"

    @contextmanager
    def current(self) -> Iterator[Driver]:
        """Make the device's context current on this thread inside, and what was current again after."""
        self.driver.push()
        try:
            yield self.driver
        finally:
            self.driver.pop()

    def memory(self) -> tuple[int, int]:
        """Return the free memory and all of it, in bytes."""
        with self.current() as driver:
            return driver.memory()

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self, self.driver.create_stream, self.driver.destroy_stream)

    def event(self) -> Event:
        """Return a new event."""
        return Event(self, self.driver.create_event, self.driver.destroy_event)

    def buffer(self, size: int) -> Buffer:
        """Return `size` bytes of device memory; raises OutOfMemoryError."""
        return Buffer(self, lambda: self.driver.allocate(max(size, 1)), self.driver.free)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of zeros on the host that the device copies by itself; freed with its last view."""
        array = np.asarray(Pinned(self, shape, np.dtype(dtype)))
        array[...] = 0
        return array


def _release(driver: Driver, process: int) -> None:
    if os.getpid() != process:
        return
    try:
        driver.release()
    except InferenceError as error:
        log.warning("not released: %s", str(error))
