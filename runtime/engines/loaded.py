"""Engines in a GPU's memory, shared by all sessions of this process that run them."""

import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any

from unetrt.runtime.cuda.device import CudaDevice, Guests
from unetrt.runtime.engines.bindings import bindings
from unetrt.runtime.engines.engine_file import Sidecar
from unetrt.runtime.engines.fit import rebuild_command
from unetrt.runtime.engines.flavours import named_flavour
from unetrt.runtime.engines.messages import logger_of
from unetrt.runtime.errors import EngineError, OutOfMemoryError
from unetrt.runtime.memory import shown

# Of TensorRT's messages, as many as an error may have to be told from.
MESSAGES = 16

_loaded: "weakref.WeakValueDictionary[tuple[str, int], LoadedEngine]" = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load(path: Path, sidecar: Sidecar, device: CudaDevice) -> "LoadedEngine":
    """Return an engine on a device: the one that another session has loaded there, or loaded now.

    Raises
    ------
    EngineError
        TensorRT cannot load it; the message is its own.
    OutOfMemoryError
        Its weights do not fit.
    """
    key = (sidecar.sha256, device.driver.index)
    with _loading:
        engine = _loaded.get(key)
        if engine is None:
            engine = _loaded[key] = LoadedEngine(path, sidecar, device)
        return engine


class LoadedEngine:
    """An engine with its weights on a device; freed when no session holds it any more.

    Parameters
    ----------
    path, sidecar
        The engine.
    device
        Where it goes.

    Attributes
    ----------
    lock
        To be held while contexts are made of it.
    """

    def __init__(self, path: Path, sidecar: Sidecar, device: CudaDevice) -> None:
        self.sidecar, self.device = sidecar, device
        self.flavour = named_flavour(sidecar.facts.flavour)
        self.trt = self.flavour.load()
        self.lock = threading.Lock()
        self._path, self._messages = path, deque[str](maxlen=MESSAGES)
        self._require_room()
        # TensorRT's runtime, then its engine.
        self._guests = Guests(device).add(lambda: self.trt.Runtime(logger_of(self.trt, self._messages)))
        self._guests.add(lambda: self._guests[0].deserialize_cuda_engine(path.read_bytes()))
        if self.engine is None:
            raise EngineError(
                f"{self.flavour.title} cannot load {path}: {self.last_message()}; rebuild it with "
                f"`{rebuild_command(path, sidecar)}`"
            )
        self._require_ends()

    @property
    def engine(self) -> Any:
        """TensorRT's ICudaEngine."""
        return self._guests[1]

    @property
    def scratch(self) -> int:
        """Bytes that a pass needs for activations."""
        return int(self.engine.device_memory_size_v2)

    def last_message(self) -> str:
        """Return TensorRT's first error of late, and forget it and those that followed from it."""
        first = self._messages[0] if self._messages else "it gives no reason"
        self._messages.clear()
        return first

    def _require_room(self) -> None:
        free, total = self.device.memory()
        if self.sidecar.size > free:
            raise OutOfMemoryError(
                f"{self._path} holds {shown(self.sidecar.size)} of weights, and {shown(free)} of {shown(total)} are "
                f"free on {self.device}: free some, or choose another device"
            )

    def _require_ends(self) -> None:
        """Hold the engine against its spec: lanes allocate by the spec."""
        engine, trt = self.engine, self.trt
        given = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            given[name] = (tuple(engine.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
        expected = {name: tuple(end) for name, end in bindings(self.sidecar.spec).items()}
        if given != expected:
            raise EngineError(
                f"{self._path} has {given}, its spec says {expected}; rebuild it with "
                f"`{rebuild_command(self._path, self.sidecar)}`"
            )
