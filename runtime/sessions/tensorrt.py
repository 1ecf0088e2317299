"""TensorRT 10 and 11, and TensorRT for RTX: one engine, shared by the lanes; each lane has an execution context.

A model file is built into an engine for the GPU at hand first, unless the engine cache has it. An engine is loaded once
for each device and shared by all sessions of the process (`LoadedEngine`); it is checked before its weights are
uploaded (free memory, and for TensorRT for RTX its header) and after (tensors against the spec), and freed with the
last session that holds it. TensorRT's passes are captured as CUDA graphs by `CapturedPass`; TensorRT for RTX captures
graphs itself, and keeps the kernels that it compiles in a runtime cache.
"""

import logging
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from unetrt.runtime.candidates import is_installed
from unetrt.runtime.cuda.device import Buffer, CudaDevice, LibraryObjects
from unetrt.runtime.cuda.driver import open_driver, why_not
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.engines.cache import RuntimeCache
from unetrt.runtime.engines.engine_file import Sidecar, engine_tensors, read_sidecar, rebuild_command, require_fit
from unetrt.runtime.engines.flavours import (
    AUTO,
    FLAVOURS,
    collected,
    first_error,
    logger_of,
    named_flavour,
    usable_flavour,
)
from unetrt.runtime.errors import (
    BackendUnavailableError,
    EngineError,
    InferenceError,
    OutOfMemoryError,
    UnetrtError,
    is_out_of_memory,
    printable,
)
from unetrt.runtime.machine import Machine, format_bytes, this_machine
from unetrt.runtime.model.spec import Tensor
from unetrt.runtime.sessions.cuda import CapturedPass, CudaSession, EnginePass, Place

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
            path = printable(str(self._path))
            log.warning("%s may be slow: %s is newer than %s; use a newer release", path, self.device, release)

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


def probe(device: int = 0) -> str | None:
    """Return None where an installed TensorRT runs on the GPU, else why not and what helps."""
    reason = why_not()
    machine = Machine() if reason else this_machine(device)
    if not any(is_installed(flavour.module) for flavour in FLAVOURS):
        extras = [f"'unetrt[{flavour.extra}]'" for flavour in FLAVOURS if flavour.why_not_on(machine) is None]
        return f"no TensorRT is installed: pip install {' or '.join(extras)}"
    if reason:
        return reason
    try:
        usable_flavour(AUTO, machine)
    except BackendUnavailableError as error:
        return str(error)
    return None


def open_session(path: Path, device: int) -> "TensorRtSession":
    """Load an engine, or the engine of a model file, which is built first where the cache does not have it.

    Raises
    ------
    EngineError
        It cannot be built, does not fit this machine, or TensorRT cannot load it.
    ModelFileError
        The file is not a unetrt model.
    OutOfMemoryError
        Its weights do not fit on the device.
    """
    cuda, machine = CudaDevice(open_driver(device, os.environ)), this_machine(device)
    engine = path if path.suffix.lower() in SUFFIXES else _obtained(path, machine, cuda)
    sidecar = read_sidecar(engine)
    require_fit(engine, sidecar, machine)
    return TensorRtSession(load(engine, sidecar, cuda), machine)


def _obtained(model: Path, machine: Machine, device: CudaDevice) -> Path:
    """Return the engine of a model file from the cache; builds it on the device where it is missing."""
    from unetrt.runtime.engines.cache import EngineCache
    from unetrt.runtime.engines.engine_file import BuildOptions, facts_of
    from unetrt.runtime.model.onnx_file import read_spec

    model, flavour = model.absolute(), usable_flavour(AUTO, machine)
    facts = facts_of(model, read_spec(model), flavour, machine, BuildOptions.for_gpu(flavour, machine))
    return EngineCache().obtain(model, facts, device_context=device.current)[0]


class TensorRtSession(CudaSession):
    """A session whose lanes have an execution context each.

    Parameters
    ----------
    loaded
        The engine; other sessions may share it.
    machine
        Where it runs.
    """

    def __init__(self, loaded: LoadedEngine, machine: Machine) -> None:
        title = f"{loaded.flavour.title} {loaded.flavour.version} on {loaded.device}"
        super().__init__(loaded.sidecar.spec, title, loaded.device)
        self._loaded: LoadedEngine | None = loaded
        self._contexts = _ContextsForRtx(loaded, machine) if loaded.flavour.portable else _Contexts(loaded)

    def scratch(self) -> int:
        """Return the engine's device memory size."""
        assert self._loaded is not None
        return self._loaded.scratch

    def new_pass(self, scratch: Buffer | None, place: Place) -> EnginePass:
        """Return a pass in a new context."""
        assert self._loaded is not None
        engine_pass = TensorRtPass(self._loaded, self._contexts.settings, scratch, place)
        return CapturedPass(engine_pass, place) if self._contexts.capturable else engine_pass

    def warmed(self) -> None:
        """Save compiled kernels."""
        self._contexts.keep()

    def unload(self) -> None:
        """Drop the reference to the engine, which is freed unless another session holds it."""
        self._contexts.keep()
        self._loaded = None
        del self._contexts


class TensorRtPass:
    """One execution context, at fixed addresses.

    Parameters
    ----------
    loaded
        The engine.
    settings
        Argument of `create_execution_context`.
    scratch
        Memory for activations; None where the engine needs none.
    place
        Where it works.
    """

    def __init__(self, loaded: LoadedEngine, settings: Any, scratch: Buffer | None, place: Place) -> None:
        self._loaded, self._scratch, self._stream = loaded, scratch, place.stream
        self._objects = LibraryObjects(loaded.device)
        tensors = loaded.sidecar.spec.tensors()
        with loaded.lock, collected() as errors:
            self._objects.add(lambda: loaded.engine.create_execution_context(settings))
            if self._context is None:
                raise loaded.failed("cannot create an execution context", errors)
            for tensor, address in ((tensors.input, place.input), (tensors.output, place.output)):
                if not self._context.set_tensor_address(tensor.name, address):
                    raise loaded.failed(f"rejects the address of tensor {tensor.name}", errors)
        if scratch is not None:
            self._context.set_device_memory(scratch.handle, loaded.scratch)

    @property
    def _context(self) -> Any:
        return self._objects[0]

    def enqueue(self) -> None:
        """Enqueue a pass on the stream."""
        with collected() as errors:
            if not self._context.execute_async_v3(self._stream.handle):
                raise self._loaded.failed("did not start a pass", errors)

    def close(self) -> None:
        """Free the context, then its memory."""
        self._objects.close()
        self._scratch = None


class _Contexts:
    """How TensorRT's execution contexts are made."""

    capturable = True

    def __init__(self, loaded: LoadedEngine) -> None:
        # We allocate the scratch memory, so that its size is known in advance.
        self._strategy = loaded.trt.ExecutionContextAllocationStrategy.USER_MANAGED

    @property
    def settings(self) -> Any:
        """Argument of `create_execution_context`."""
        return self._strategy

    def keep(self) -> None:
        """Do nothing: TensorRT compiles nothing at run time."""


class _ContextsForRtx(_Contexts):
    """How execution contexts of TensorRT for RTX are made, with its own CUDA graphs and a runtime cache."""

    capturable = False

    def __init__(self, loaded: LoadedEngine, machine: Machine) -> None:
        super().__init__(loaded)
        objects = self._objects = LibraryObjects(loaded.device).add(loaded.engine.create_runtime_config)
        objects[0].set_execution_context_allocation_strategy(self._strategy)
        objects[0].cuda_graph_strategy = loaded.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        objects.add(objects[0].create_runtime_cache)
        self._file = RuntimeCache(loaded.sidecar.facts, machine)
        with loaded.device.current():
            self._file.restore(objects[1])
        objects[0].set_runtime_cache(objects[1])

    @property
    def settings(self) -> Any:
        """TensorRT's IRuntimeConfig."""
        return self._objects[0]

    def keep(self) -> None:
        """Save the kernels that were compiled for this device."""
        self._file.keep(self._objects[1])
