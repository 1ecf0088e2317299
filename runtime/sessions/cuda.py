"""Sessions on a GPU: an engine, and lanes that share its weights."""

import logging
import threading
import weakref
from abc import ABC, abstractmethod
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

from unetrt.runtime.cuda.device import Buffer, CudaDevice
from unetrt.runtime.errors import SessionClosedError
from unetrt.runtime.sessions.cuda_lane import CudaLane, EnginePass, Place, Turn
from unetrt.runtime.sessions.cuda_memory import Need
from unetrt.runtime.sessions.protocol import Lane
from unetrt.runtime.spec import ModelSpec

log = logging.getLogger("unetrt")

# Passes of a new lane before it is handed out: engines prepare in the first, and a graph is captured in the second.
WARM_UP = 2


class CudaSession(ABC):
    """What sessions on a GPU have in common; an engine says what it needs and what a pass is.

    Parameters
    ----------
    spec
        The model's.
    name
        Engine and device, for people.
    device
        Where it is loaded; nothing is allocated on another.
    """

    def __init__(self, spec: ModelSpec, name: str, device: CudaDevice) -> None:
        self.spec, self.name, self.device = spec, name, device.driver.index
        self._cuda: CudaDevice | None = device
        self._lock = threading.Lock()
        self._lanes: weakref.WeakSet[CudaLane] = weakref.WeakSet()

    @property
    def cuda(self) -> CudaDevice:
        """The device; raises SessionClosedError after `close`."""
        if self._cuda is None:
            raise SessionClosedError(f"the session ({self.name}) is closed: open the model again")
        return self._cuda

    @abstractmethod
    def scratch(self) -> int:
        """Return the bytes that a pass needs for activations; 0 where the engine takes them by itself."""

    @abstractmethod
    def new_pass(self, scratch: Buffer | None, place: Place) -> EnginePass:
        """Return the engine's part of a lane; the device is current, and `scratch` is to be held."""

    @abstractmethod
    def unload(self) -> None:
        """Free the engine; no lane is left, and the device is current."""

    @abstractmethod
    def warmed(self) -> None:
        """Keep what the engine has prepared in the first passes of new lanes, if anything."""

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` lanes, warm.

        Each has scratch memory of its own, so that their passes overlap, where that fits on the device. Else they share
        it and take turns, and the log says so.
        """
        with self._lock, ExitStack() as owned:
            device = self.cuda
            need = Need.of(self.spec, self.scratch(), count)
            turn = Turn() if need.must_share(device, self.name) else None
            shared = device.buffer(need.scratch) if turn else None
            clock = device.event()
            lanes: list[Lane] = []
            for _ in range(count):
                scratch = shared or (device.buffer(need.scratch) if need.scratch else None)
                lane = CudaLane(device, self.spec, clock, turn, partial(self.new_pass, scratch))
                owned.callback(lane.close)
                if not lanes:
                    with device.current():
                        clock.record(lane.place.stream)
                lanes.append(lane)
                self._lanes.add(lane)
            _warm(lanes)
            self.warmed()
            owned.pop_all()
            return lanes

    def close(self) -> None:
        """Wait for passes in flight, then free the lanes, the engine and the device's context; idempotent."""
        with self._lock:
            if self._cuda is None:
                return
            for lane in tuple(self._lanes):
                lane.close()
            with self._cuda.current():
                self.unload()
            self._cuda = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _warm(lanes: list[Lane]) -> None:
    """Let each lane compute zeros, so that the first frame meets what all frames meet."""
    for _ in range(WARM_UP):
        for lane in lanes:
            lane.launch()
        for lane in lanes:
            lane.wait()
