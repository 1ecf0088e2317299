"""Engines in a GPU's memory, shared by all sessions of this process that run them."""

import logging
import threading
import weakref
from pathlib import Path
from typing import Any

from unetrt.runtime.cuda.device import CudaDevice, LibraryObjects
from unetrt.runtime.engines.build import collected, first_of, logger_of, tells_of_memory
from unetrt.runtime.engines.engine_file import Sidecar, bindings, rebuild_command
from unetrt.runtime.engines.flavours import named_flavour
from unetrt.runtime.errors import EngineError, InferenceError, OutOfMemoryError, UnetrtError
from unetrt.runtime.machine import format_bytes

log = logging.getLogger("unetrt")

# Why TensorRT for RTX refuses an engine by its header: EngineInvalidityDiagnostics, but for CUDA_ERROR, which it logs.
CAUSES = {
    "VERSION_MISMATCH": "another version of TensorRT for RTX built it",
    "UNSUPPORTED_CC": "it was built for other compute capabilities",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it (update the driver)",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it (update CUDA)",
    "INSUFFICIENT_GPU_MEMORY": "out of memory on the GPU",
    "MALFORMED_ENGINE": "its header is not that of an engine",
}

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
        self._path = path
        self._require_room()
        # TensorRT's runtime, then its engine.
        self._objects = LibraryObjects(device).add(lambda: self.trt.Runtime(logger_of(self.trt)))
        self._require_valid_header()
        with collected() as errors:
            self._objects.add(lambda: self._objects[0].deserialize_cuda_engine(path.read_bytes()))
        if self.engine is None:
            raise self._refused(first_of(errors))
        self._require_ends()

    @property
    def engine(self) -> Any:
        """TensorRT's ICudaEngine."""
        return self._objects[1]

    @property
    def scratch(self) -> int:
        """Bytes that a pass needs for activations."""
        return int(self.engine.device_memory_size_v2)

    def failed(self, what: str, errors: list[str]) -> InferenceError:
        """Return the error for something that TensorRT failed to do, with these messages."""
        first = first_of(errors)
        if tells_of_memory(first):
            return OutOfMemoryError(f"{self.flavour.title} {what}: {first}; use fewer lanes or a smaller tile")
        return InferenceError(f"{self.flavour.title} {what}: {first}")

    def _refused(self, reason: str) -> UnetrtError:
        what = f"{self.flavour.title} cannot load {self._path}: {reason}"
        if tells_of_memory(reason):
            return OutOfMemoryError(f"{what}; free some memory on {self.device}, or choose another device")
        return EngineError(f"{what}; rebuild it with `{rebuild_command(self._path, self.sidecar)}`")

    def _require_room(self) -> None:
        free, total = self.device.memory()
        if self.sidecar.size > free:
            raise OutOfMemoryError(
                f"{self._path} holds {format_bytes(self.sidecar.size)} of weights, and {format_bytes(free)} of "
                f"{format_bytes(total)} are free on {self.device}: free some, or choose another device"
            )

    def _require_valid_header(self) -> None:
        """Let TensorRT for RTX judge the engine by its header, before its weights are read; TensorRT cannot."""
        runtime = self._objects[0]
        if not hasattr(runtime, "get_engine_validity"):
            return
        with self._path.open("rb") as file:
            header = file.read(runtime.engine_header_size)
        with self.device.current(), collected() as errors:
            validity, causes = runtime.get_engine_validity(header)
        if validity == self.trt.EngineValidity.INVALID:
            kinds = self.trt.EngineInvalidityDiagnostics
            said = [text for name, text in CAUSES.items() if causes & int(getattr(kinds, name))]
            raise self._refused("; ".join(said) or first_of(errors))
        if validity == self.trt.EngineValidity.SUBOPTIMAL:
            release = f"{self.flavour.title} {self.flavour.version}"
            log.warning("%s may be slow: %s is newer than %s; use a newer release", self._path, self.device, release)

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
