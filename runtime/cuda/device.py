"""A CUDA device, and its primary context."""

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unetrt.runtime.cuda.contract import Driver
from unetrt.runtime.cuda.resources import Buffer, Event, Pinned, Stream
from unetrt.runtime.errors import InferenceError

log = logging.getLogger("unetrt.cuda")


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
