"""Engines in GPU memory: loaded once for each device and shared by all sessions of the process.

An engine is checked before its weights are uploaded (free memory, and for TensorRT for RTX its header) and after
(tensors against the spec). It is freed when the last session that holds it is closed.
"""

import logging
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from unetrt.runtime.cuda.device import CudaDevice, LibraryObjects
from unetrt.runtime.engines.build import collected, first_error, is_out_of_memory, logger_of
from unetrt.runtime.engines.engine_file import Sidecar, engine_tensors, rebuild_command
from unetrt.runtime.engines.flavours import named_flavour
from unetrt.runtime.errors import EngineError, InferenceError, OutOfMemoryError, UnetrtError
from unetrt.runtime.machine import format_bytes
from unetrt.runtime.model.spec import Tensor

log = logging.getLogger("unetrt")

# Why TensorRT for RTX refuses an engine's header: EngineInvalidityDiagnostics except CUDA_ERROR, which it logs.
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
    """Return an engine on a device, shared with other sessions that loaded it there.

    Raises
    ------
    EngineError
        TensorRT cannot load it; the message quotes TensorRT and names the command that rebuilds the engine.
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
    """An engine with its weights on a device.

    Parameters
    ----------
    path, sidecar
        The engine file and its sidecar.
    device
        Where it is loaded.

    Attributes
    ----------
    lock
        Must be held while execution contexts are created.
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
            raise self._refused(first_error(errors))
        self._require_tensors()

    @property
    def engine(self) -> Any:
        """TensorRT's ICudaEngine."""
        return self._objects[1]

    @property
    def scratch(self) -> int:
        """Bytes of scratch memory that a pass needs for activations."""
        return int(self.engine.device_memory_size_v2)

    def failed(self, what: str, errors: list[str]) -> InferenceError:
        """Return the error for a failed call of TensorRT, which logged these errors."""
        first = first_error(errors)
        if is_out_of_memory(first):
            return OutOfMemoryError(f"{self.flavour.title} {what}: {first}; use fewer lanes or a smaller tile")
        return InferenceError(f"{self.flavour.title} {what}: {first}")

    def _refused(self, reason: str) -> UnetrtError:
        what = f"{self.flavour.title} cannot load {self._path}: {reason}"
        if is_out_of_memory(reason):
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
        """Let TensorRT for RTX check the engine's header before its weights are read; TensorRT has no such check."""
        runtime = self._objects[0]
        if not hasattr(runtime, "get_engine_validity"):
            return
        with self._path.open("rb") as file:
            header = file.read(runtime.engine_header_size)
        with self.device.current(), collected() as errors:
            validity, causes = runtime.get_engine_validity(header)
        if validity == self.trt.EngineValidity.INVALID:
            kinds = self.trt.EngineInvalidityDiagnostics
            reasons = [text for name, text in CAUSES.items() if causes & int(getattr(kinds, name))]
            raise self._refused("; ".join(reasons) or first_error(errors))
        if validity == self.trt.EngineValidity.SUBOPTIMAL:
            release = f"{self.flavour.title} {self.flavour.version}"
            log.warning("%s may be slow: %s is newer than %s; use a newer release", self._path, self.device, release)

    def _require_tensors(self) -> None:
        """Compare the engine's tensors with its spec: lanes allocate memory by the spec."""
        engine, expected = self.engine, engine_tensors(self.sidecar.spec)
        given = []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            dtype = np.dtype(self.trt.nptype(engine.get_tensor_dtype(name)))
            given.append(Tensor(name, tuple(engine.get_tensor_shape(name)), dtype))
        given.sort(key=lambda tensor: tensor.name != expected.input.name)  # the input first
        if mismatch := expected.mismatch(map(str, given)):
            raise EngineError(
                f"{self._path}: {mismatch}; rebuild it with `{rebuild_command(self._path, self.sidecar)}`"
            )
