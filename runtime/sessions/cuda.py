"""Sessions on a GPU: an engine, and lanes that share its weights.

How much of a GPU's memory lanes need, said before any of it is taken.
"""

import atexit
import logging
import threading
import weakref
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from unetrt.runtime.closing import Closable
from unetrt.runtime.cuda.device import Buffer, CudaDevice
from unetrt.runtime.errors import InferenceError, OutOfMemoryError, SessionClosedError
from unetrt.runtime.machine import format_bytes
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions.cuda_lane import CudaLane, EnginePass, Place, Turn
from unetrt.runtime.sessions.protocol import Lane

log = logging.getLogger("unetrt")

# Bytes that are left alone, for what is not counted: the driver's streams and graphs, kernels that are loaded when they
# first run, sizes that are rounded up. An estimate, not measured.
RESERVE = 128 * 2**20


@dataclass(frozen=True)
class Need:
    """What so many lanes need on the device, in bytes.

    Attributes
    ----------
    lanes
        Their number.
    staging
        Input and output of one lane.
    scratch
        Activations of one pass, in memory that lanes can share.
    own
        What the engine allocates for each lane by itself: weights, activations and workspace. Nothing of it is shared.
    """

    lanes: int
    staging: int
    scratch: int
    own: int = 0

    @classmethod
    def of(cls, spec: ModelSpec, scratch: int, lanes: int, own: int = 0) -> "Need":
        """Return what lanes of a model need."""
        return cls(lanes, spec.new_input().nbytes + spec.new_output().nbytes, scratch, own)

    @property
    def apart(self) -> int:
        """With scratch memory for each lane."""
        return self.lanes * (self.staging + self.scratch + self.own)

    @property
    def shared(self) -> int:
        """With one scratch memory for all."""
        return self.lanes * (self.staging + self.own) + self.scratch

    def ways(self, device: CudaDevice, name: str) -> tuple[bool, ...]:
        """Return whether to share scratch memory, in the order to try it: not, where each lane can have its own.

        Raises
        ------
        OutOfMemoryError
            The lanes do not fit even if they share it; the message gives the numbers.
        """
        free, _ = device.memory()
        may_share = self.lanes > 1 and self.scratch > 0
        if self.apart + RESERVE <= free:
            return (False, True) if may_share else (False,)
        if may_share and self.shared + RESERVE <= free:
            log.info(
                "%s: %d lanes take turns, as scratch memory for each needs %s and %s are free",
                name, self.lanes, format_bytes(self.apart), format_bytes(free),
            )  # fmt: skip
            return (True,)
        raise self.refused(device, name)

    def refused(self, device: CudaDevice, name: str) -> OutOfMemoryError:
        """Return the error for lanes that do not fit, with numbers."""
        free, total = device.memory()
        need = "1 lane needs" if self.lanes == 1 else f"{self.lanes} lanes need"
        parts = [f"{self.lanes} x {format_bytes(self.staging)} for tiles"]
        parts += [f"{self.lanes} x {format_bytes(self.own)} for weights, activations and workspace"] if self.own else []
        parts += [f"{format_bytes(self.scratch)} for activations"] if self.scratch or not self.own else []
        return OutOfMemoryError(
            f"{name}: {need} {format_bytes(self.shared)} ({', '.join(parts)}) and {format_bytes(RESERVE)} beside "
            f"them, and {format_bytes(free)} of {format_bytes(total)} are free: {self._advice(free)}"
        )

    def _advice(self, free: int) -> str:
        fitting = min(self.lanes - 1, (free - RESERVE - self.scratch) // (self.staging + self.own))
        return f"use {_lanes(fitting)}" if fitting > 0 else "use a smaller tile or batch (`unetrt plan --memory`)"


def _lanes(count: int) -> str:
    return "1 lane" if count == 1 else f"{count} lanes"


# Passes of a new lane before it is handed out: engines prepare in the first, and a graph is captured in the second.
WARM_UP = 2


class CudaSession(Closable, ABC):
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
        _close_at_exit(self)

    @property
    def cuda(self) -> CudaDevice:
        """The device; raises SessionClosedError after `close`."""
        if self._cuda is None:
            raise SessionClosedError(f"the session ({self.name}) is closed: open the model again")
        return self._cuda

    @abstractmethod
    def scratch(self) -> int:
        """Return the bytes that a pass needs for activations, in memory of ours; 0 where the engine takes its own."""

    def own_memory(self) -> int:
        """Return the bytes that the engine allocates by itself for each lane; 0 where it is given all."""
        return 0

    @abstractmethod
    def new_pass(self, scratch: Buffer | None, place: Place) -> EnginePass:
        """Return the engine's part of a lane; the device is current, and `scratch` is to be held."""

    @abstractmethod
    def unload(self) -> None:
        """Free the engine; no lane is left, and the device is current."""

    @abstractmethod
    def warmed(self) -> None:
        """Keep what the engine has prepared in the first passes of new lanes, if anything; the device is current."""

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` lanes, warm.

        Each has scratch memory of its own, so that their passes overlap, where that fits on the device. Else they share
        it and take turns, and the log says so.
        """
        with self._lock:
            device = self.cuda  # first, as a closed session has no engine to ask
            need, failure = Need.of(self.spec, self.scratch(), count, self.own_memory()), ""
            for share in need.ways(device, self.name):
                try:
                    return self._made(need, share=share)
                except OutOfMemoryError as error:
                    how = "that take turns" if share else "with scratch memory for each"
                    log.info("%s: %d lanes %s: %s", self.name, count, how, str(error))
                    failure = str(error)  # the error itself would hold what was allocated
            raise OutOfMemoryError(f"{failure}; {need.refused(device, self.name)}")

    def close(self) -> None:
        """Wait for passes in flight, then free the lanes, the engine and the device's context; idempotent."""
        with self._lock:
            if self._cuda is None:
                return
            device, self._cuda = self._cuda, None
            with device.current(), ExitStack() as closing:
                closing.callback(self.unload)
                for lane in tuple(self._lanes):
                    closing.callback(lane.close)

    def _made(self, need: Need, *, share: bool) -> list[Lane]:
        """Return warm lanes; whatever fails leaves none."""
        device = self.cuda
        turn = Turn() if share else None
        shared = device.buffer(need.scratch) if share and need.scratch else None
        clock = device.event()
        with ExitStack() as owned:
            lanes: list[Lane] = []
            for _ in range(need.lanes):
                scratch = shared or (device.buffer(need.scratch) if need.scratch else None)
                lane = CudaLane(device, self.spec, clock, turn, partial(self.new_pass, scratch))
                owned.callback(lane.close)
                self._lanes.add(lane)
                lanes.append(lane)
            lanes[0].restart_clock()
            _warm(lanes)
            with device.current():
                self.warmed()
            owned.pop_all()
            return lanes


def _warm(lanes: list[Lane]) -> None:
    """Let each lane compute zeros, so that the first frame meets what all frames meet."""
    for _ in range(WARM_UP):
        for lane in lanes:
            lane.launch()
        for lane in lanes:
            lane.wait()


_open: "weakref.WeakSet[CudaSession]" = weakref.WeakSet()


def _close_at_exit(session: CudaSession) -> None:
    """Close a session at the end of the process, before what is left of its parts is freed one by one.

    Threads that still segment then are told that it is closed, instead of losing their memory.
    """
    if not _open:
        # Again where all were gone: the hook only has to come after that of `weakref.finalize`, to run before it.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(session)


def _close_all() -> None:
    for session in tuple(_open):
        with suppress(InferenceError, SessionClosedError):
            if not session.cuda.is_inherited:
                session.close()
