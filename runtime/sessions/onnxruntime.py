"""ONNX Runtime: its session on the CPU, and what its CUDA provider (`onnxruntime_gpu`) shares with it.

Shared are loading a file, comparing its graph with its spec, and translating errors: `load`, `require_fit`,
`translated`. On the CPU, input and output are bound to the lane's arrays: nothing is copied.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unetrt.runtime.candidates import why_not_importable
from unetrt.runtime.errors import (
    BackendUnavailableError,
    InferenceError,
    ModelFileError,
    OutOfMemoryError,
    is_out_of_memory,
    one_line,
)
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec
from unetrt.runtime.sessions.cpu import DEFAULTS, Array, WorkerSession, require_fitting, require_options, threads_of

__all__ = ["OnnxRuntimeSession", "open_session", "probe", "require_options"]

# An execution provider of ONNX Runtime, with its options.
ProviderChoice = str | tuple[str, Mapping[str, str]]

# The error of a call to NVIDIA's libraries, without host name and location in ONNX Runtime's source.
FAILED_CALL = re.compile(r"\w+ failure -?\d+: [^;\n]*[^;\s]")


def session_options(threads: int) -> Any:
    """Return SessionOptions; `threads` computes a pass on the CPU, 0 means one for each physical core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors: its warnings are about graph optimisations
    # With memory patterns the second pass allocates everything again, and takes twice the time of a later pass.
    options.enable_mem_pattern = False
    # We checked an ONNX file; without this, ONNX Runtime reads a name that ends in .ort as its own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def load(path: Path, options: Any, providers: Sequence[ProviderChoice]) -> Any:
    """Return an InferenceSession of a file that is safe to open; raises what `failures` lists."""
    import onnxruntime

    # Without ONNX Runtime's fallback, which prints to standard output and computes on the CPU.
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)


def require_fit(engine: Any, spec: ModelSpec, path: Path) -> None:
    """Compare an InferenceSession with its spec: where they disagree, a pass would access memory out of bounds.

    Raises
    ------
    ModelFileError
        They disagree.
    """
    try:
        given = [_tensor(node) for node in (*engine.get_inputs(), *engine.get_outputs())]
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: a name in its graph is not UTF-8 ({error}); export it again") from error
    if mismatch := spec.tensors().mismatch(given):
        raise ModelFileError(f"{path}: {mismatch}; export it again")


def _tensor(node: Any) -> str:
    """Return an input or output as `str(Tensor)` writes it."""
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    return f"{node.name} {tuple(node.shape)} {'float32' if dtype == 'float' else dtype}"


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that ONNX Runtime raises for a model, a device or a pass."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    own = [getattr(state, name) for name in (*names, "RuntimeException", "EPFail", "EngineError", "ModelLoaded")]
    # A pass with bound arrays fails with a plain RuntimeError; a message may quote a damaged file's bytes, not UTF-8.
    return (*own, RuntimeError, MemoryError, UnicodeDecodeError)


def is_about_the_device(error: Exception) -> bool:
    """Return whether an error at loading comes from the device or its libraries, and not from the file."""
    failed = type(error) is RuntimeError or type(error).__name__ in ("EPFail", "EngineError")
    return failed or FAILED_CALL.search(str(error)) is not None


def not_loadable(error: Exception, path: Path) -> ModelFileError | InferenceError:
    """Return the error for a model file that ONNX Runtime failed to load."""
    if is_out_of_memory(error):
        return translated(error, f"{path} could not be loaded")
    return ModelFileError(f"{path} is not a model that ONNX Runtime can load: {first_line(error)}")


def translated(error: Exception, what: str) -> InferenceError:
    """Return the error for an exception of ONNX Runtime; the message begins with `what` failed."""
    if is_out_of_memory(error):
        advice = "use a smaller tile (`unetrt plan --memory`), a smaller batch or fewer lanes"
        return OutOfMemoryError(f"{what}: out of memory ({first_line(error)}); {advice}")
    return InferenceError(f"{what}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Return the telling line of an error message."""
    if found := FAILED_CALL.search(str(error)):
        return found[0]
    return one_line(error, first=True)


def probe() -> str | None:
    """Return None where ONNX Runtime can be imported, else why not and what to install."""
    return why_not_importable("onnxruntime", "ONNX Runtime", "cpu", "onnxruntime")


def open_session(path: Path, options: Mapping[str, str] = DEFAULTS) -> "OnnxRuntimeSession":
    """Load an ONNX file; raises ModelFileError where it is damaged or not a unetrt model."""
    return OnnxRuntimeSession(path, threads_of(options))


class OnnxRuntimeSession(WorkerSession):
    """A model in ONNX Runtime's CPU execution provider.

    Parameters
    ----------
    path
        The ONNX file.
    threads
        Threads of one pass; 0 is ONNX Runtime's default: one for each physical core.
    memory
        Limit in bytes of what a pass holds at once; None for the memory that is free.

    Raises
    ------
    ModelFileError
        The file is not a unetrt model, is not safe to open, or ONNX Runtime cannot load it.
    OutOfMemoryError
        A pass holds more than the limit.
    BackendUnavailableError
        The file computes in bfloat16.
    """

    def __init__(self, path: Path, threads: int = 0, memory: int | None = None) -> None:
        spec = read_spec(path)
        if spec.precision == "bf16":
            raise BackendUnavailableError(
                f"{path} computes in bfloat16, and ONNX Runtime has no bfloat16 convolutions on the CPU: use "
                "OpenVINO (pip install openvino), build an engine (`unetrt build`), or export with --precision fp32"
            )
        require_fitting(path, memory)
        try:
            self._engine = load(path, session_options(threads), ["CPUExecutionProvider"])
        except failures() as error:
            raise not_loadable(error, path) from error
        require_fit(self._engine, spec, path)
        super().__init__(spec, "onnxruntime on the CPU")

    def compute(self, frames: Array, scores: Array) -> None:
        """Run the graph on the arrays' own memory; raises InferenceError or OutOfMemoryError."""
        binding = self._engine.io_binding()
        binding.bind_input(INPUT, "cpu", 0, frames.dtype, frames.shape, frames.ctypes.data)
        binding.bind_output(OUTPUT, "cpu", 0, scores.dtype, scores.shape, scores.ctypes.data)
        try:
            self._engine.run_with_iobinding(binding)
        except failures() as error:
            raise translated(error, "ONNX Runtime failed") from error

    def close(self) -> None:
        """Wait for passes in flight and free the engine; idempotent."""
        super().close()
        self._engine = None
