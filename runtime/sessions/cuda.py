"""Sessions on a GPU: what TensorRT and ONNX Runtime have in common there.

`CudaSession` makes lanes that share one engine. Before anything is allocated, `LaneMemory` compares what the lanes need
with what is free: each lane has its own scratch memory where that fits, else they share one and take turns, else the
session refuses with the numbers. New lanes are warm: each has run `WARM_UP` passes. Sessions that are still open when
the process ends are closed then, before interpreter shutdown frees their parts one by one.
"""

import atexit
import logging
import threading
import weakref
from abc import abstractmethod
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from unetrt.runtime.cuda.device import Buffer, CudaDevice
from unetrt.runtime.errors import InferenceError, OutOfMemoryError, SessionClosedError
from unetrt.runtime.machine import format_bytes
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions.cuda_lane import CudaLane, EnginePass, Place, Turn
from unetrt.runtime.sessions.protocol import Lane, Session

log = logging.getLogger("unetrt")

# Bytes that stay free for what is not counted: the driver's streams and graphs, kernels that are loaded when they first
# run, sizes that are rounded up. An estimate, not measured.
RESERVE = 128 * 2**20
# Passes of a new lane before it is returned: engines prepare in the first, and a graph is captured in the second.
WARM_UP = 2


class CudaSession(Session):
    """Base class of sessions on a GPU; an engine implements its memory needs and its passes.

    Parameters
    ----------
    spec
        The model's spec.
    name
        Engine and device, for messages.
    device
        Where the model is loaded; nothing is allocated on another device.
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
        """Return the bytes of scratch memory that a pass needs for activations; 0 where the engine allocates them."""

    def own_memory(self) -> int:
        """Return the bytes that the engine itself allocates for each lane; 0 by default."""
        return 0

    @abstractmethod
    def new_pass(self, scratch: Buffer | None, place: Place) -> EnginePass:
        """Return the engine's part of a lane, which must hold `scratch`; the device is current."""

    @abstractmethod
    def unload(self) -> None:
        """Free the engine; all lanes are closed, and the device is current."""

    def warmed(self) -> None:
        """Save what the engine compiled in the first passes of new lanes; the device is current."""

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` lanes, warm; that they share scratch memory is logged."""
        with self._lock:
            device = self.cuda  # first: a closed session has no engine to ask
            memory = LaneMemory(count, self.spec.tensors().nbytes, self.scratch(), self.own_memory())
            failure = ""
            for share in memory.sharing(device, self.name):
                try:
                    return self._new_lanes(memory, share=share)
                except OutOfMemoryError as error:
                    how = "that take turns" if share else "with scratch memory for each"
                    log.info("%s: %d lanes %s: %s", self.name, count, how, str(error))
                    failure = str(error)  # the error itself would hold what was allocated
            raise OutOfMemoryError(f"{failure}; {memory.refusal(device, self.name)}")

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

    def _new_lanes(self, memory: "LaneMemory", *, share: bool) -> list[Lane]:
        """Return warm lanes; an error leaves none."""
        device = self.cuda
        turn = Turn() if share else None
        shared = device.buffer(memory.scratch) if share and memory.scratch else None
        clock = device.event()
        with ExitStack() as owned:
            lanes: list[Lane] = []
            for _ in range(memory.lanes):
                scratch = shared or (device.buffer(memory.scratch) if memory.scratch else None)
                lane = CudaLane(device, self.spec, clock, turn, partial(self.new_pass, scratch))
                owned.callback(lane.close)
                self._lanes.add(lane)
                lanes.append(lane)
            lanes[0].restart_clock()
            for _ in range(WARM_UP):
                for one in lanes:
                    one.launch()
                for one in lanes:
                    one.wait()
            with device.current():
                self.warmed()
            owned.pop_all()
            return lanes


@dataclass(frozen=True)
class LaneMemory:
    """Device memory that a number of lanes needs, in bytes.

    Attributes
    ----------
    lanes
        Number of lanes.
    staging
        Input and output of one lane.
    scratch
        Activations of one pass, in memory that lanes can share.
    own
        What the engine itself allocates for each lane (weights, activations, workspace); not shared.
    """

    lanes: int
    staging: int
    scratch: int
    own: int = 0

    @property
    def apart(self) -> int:
        """Total with scratch memory for each lane."""
        return self.lanes * (self.staging + self.scratch + self.own)

    @property
    def shared(self) -> int:
        """Total with one scratch memory for all lanes."""
        return self.lanes * (self.staging + self.own) + self.scratch

    def sharing(self, device: CudaDevice, name: str) -> tuple[bool, ...]:
        """Return whether to share scratch memory: the possible answers, in the order to try them.

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
        raise self.refusal(device, name)

    def refusal(self, device: CudaDevice, name: str) -> OutOfMemoryError:
        """Return the error for lanes that do not fit, with numbers and advice."""
        free, total = device.memory()
        need = "1 lane needs" if self.lanes == 1 else f"{self.lanes} lanes need"
        parts = [f"{self.lanes} x {format_bytes(self.staging)} for tiles"]
        parts += [f"{self.lanes} x {format_bytes(self.own)} for weights, activations and workspace"] if self.own else []
        parts += [f"{format_bytes(self.scratch)} for activations"] if self.scratch or not self.own else []
        return OutOfMemoryError(
            f"{name}: {need} {format_bytes(self.shared)} ({', '.join(parts)}) and a reserve of "
            f"{format_bytes(RESERVE)}, and {format_bytes(free)} of {format_bytes(total)} are free: {self._advice(free)}"
        )

    def _advice(self, free: int) -> str:
        fitting = min(self.lanes - 1, (free - RESERVE - self.scratch) // (self.staging + self.own))
        if fitting < 1:
            return "use a smaller tile or batch (`unetrt plan --memory`)"
        return "use 1 lane" if fitting == 1 else f"use {fitting} lanes"


_open: "weakref.WeakSet[CudaSession]" = weakref.WeakSet()


def _close_at_exit(session: CudaSession) -> None:
    """Close a session when the process ends; threads that still segment then get SessionClosedError."""
    if not _open:
        # atexit runs hooks in reverse order: registered after the hook of `weakref.finalize`, this one runs before it.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(session)


def _close_all() -> None:
    for session in tuple(_open):
        with suppress(InferenceError, SessionClosedError):
            if not session.cuda.is_inherited:
                session.close()
