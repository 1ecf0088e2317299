"""ONNX Runtime on the CPU. Input and output are bound to the lane's arrays: nothing is copied.

Models in ONNX Runtime, on whatever device: loading a file, holding its graph against its spec, and naming errors.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unetrt.runtime.errors import BackendUnavailableError, InferenceError, ModelFileError, OutOfMemoryError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec
from unetrt.runtime.sessions.cpu import Array, WorkerSession

# A provider of ONNX Runtime and its options.
ProviderChoice = str | tuple[str, Mapping[str, str]]

# What ONNX Runtime says, in any of its exceptions, when an allocation failed: its bfc_arena.cc and allocator.cc, the
# CUDA runtime's error 2, and the status of cuBLAS and cuDNN.
OUT_OF_MEMORY = (
    "Failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "CUDA failure 2: out of memory",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
)
# What a call of NVIDIA's libraries said, without the host's name and the place in ONNX Runtime's source around it.
FAILED_CALL = re.compile(r"\w+ failure -?\d+: [^;\n]*[^;\s]")


def why_not_importable(package: str, extra: str) -> str | None:
    """Return None where ONNX Runtime can be imported, else why not and what to install.

    Parameters
    ----------
    package, extra
        The package that is wanted, and the extra of ours that installs it.
    """
    if find_spec("onnxruntime") is None:
        return f"ONNX Runtime is not installed: pip install 'unetrt[{extra}]'"
    try:
        import_module("onnxruntime")
    except (ImportError, OSError) as error:
        return f"ONNX Runtime does not load ({first_line(error)}): pip install --force-reinstall {package}"
    return None


def session_options(threads: int) -> Any:
    """Return the SessionOptions of every session; `threads` of one pass on the CPU, 0 for one a physical core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors: its warnings are about graph optimisations
    # With it the second pass allocates everything anew and takes as long as the first, twice a later one's time.
    options.enable_mem_pattern = False
    # What was checked is ONNX; without this a name that ends in .ort makes ONNX Runtime read its own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def load(path: Path, options: Any, providers: Sequence[ProviderChoice]) -> Any:
    """Return an InferenceSession; raises ModelFileError for files that point elsewhere, and what `failures` lists."""
    import onnxruntime

    require_safe(path)
    # Without its own fallback, which tells standard output and goes on with the CPU.
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)


def require_fit(engine: Any, spec: ModelSpec, path: Path) -> None:
    """Hold the graph against its spec: a file whose two halves disagree would be read or written out of bounds.

    Raises
    ------
    ModelFileError
        They disagree.
    """
    try:
        nodes = [(node.name, tuple(node.shape), node.type) for node in (*engine.get_inputs(), *engine.get_outputs())]
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: a name in its graph is no text ({error}); export it again") from error
    for wanted, given in zip(_expected(spec), nodes, strict=False):
        if given != wanted:
            raise ModelFileError(f"{path}: its graph has {given}, its spec says {wanted}; export it again")
    if len(engine.get_inputs()) != 1 or len(engine.get_outputs()) != 1:
        raise ModelFileError(f"{path}: its graph must have one input and one output; export it again")


def _expected(spec: ModelSpec) -> list[tuple[str, tuple[int, ...], str]]:
    """Return name, shape and type of input and output; without arrays, which a spec can make as large as it likes."""
    labels = spec.head == "labels"
    scores = (spec.batch, *(() if labels else (len(spec.classes),)), *spec.core)
    pixels = {"float32": "float"}.get(spec.input_dtype, spec.input_dtype)
    return [
        (INPUT, (spec.batch, spec.channels, *spec.tile), f"tensor({pixels})"),
        (OUTPUT, scores, "tensor(uint8)" if labels else "tensor(float)"),
    ]


def failures() -> tuple[type[Exception], ...]:
    """Return all that ONNX Runtime raises for a model, a device or a pass."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    own = [getattr(state, name) for name in (*names, "RuntimeException", "EPFail", "EngineError", "ModelLoaded")]
    # A pass with bound arrays fails with a plain RuntimeError; a message may quote a damaged file's bytes, not UTF-8.
    return (*own, RuntimeError, MemoryError, UnicodeDecodeError)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an allocation failed, on the host or on a device."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def is_about_the_device(error: Exception) -> bool:
    """Tell whether an error while a file is loaded is the device's or its libraries', and not the file's."""
    failed = type(error) is RuntimeError or type(error).__name__ in ("EPFail", "EngineError")
    return failed or FAILED_CALL.search(str(error)) is not None


def not_loadable(error: Exception, path: Path) -> ModelFileError | InferenceError:
    """Return our error for a model file that ONNX Runtime failed to load."""
    if is_out_of_memory(error):
        return translated(error, f"{path} could not be loaded")
    return ModelFileError(f"{path} is not a model that ONNX Runtime can load: {first_line(error)}")


def translated(error: Exception, what: str) -> InferenceError:
    """Return our error for one of ONNX Runtime's; `what` failed."""
    if is_out_of_memory(error):
        advice = "use a smaller tile (`unetrt plan --memory`), a smaller batch or fewer lanes"
        return OutOfMemoryError(f"{what}: out of memory ({first_line(error)}); {advice}")
    return InferenceError(f"{what}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    if found := FAILED_CALL.search(str(error)):
        return found[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def probe() -> str | None:
    """Return None where ONNX Runtime can be imported, else why not and what to install."""
    return why_not_importable("onnxruntime", "cpu")


def open_session(path: Path) -> "OnnxRuntimeSession":
    """Load an ONNX file; raises ModelFileError where it is not a whole model of ours."""
    return OnnxRuntimeSession(path)


class OnnxRuntimeSession(WorkerSession):
    """A model in ONNX Runtime's CPU provider.

    Parameters
    ----------
    path
        The ONNX file.
    threads
        Threads of one pass; 0 leaves the choice to ONNX Runtime: one a physical core.

    Raises
    ------
    ModelFileError
        The file is not a model of ours, or ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        spec = read_spec(path)
        if spec.precision == "bf16":
            raise BackendUnavailableError(
                f"{path} computes in bfloat16, and ONNX Runtime has no bfloat16 convolutions on the CPU: OpenVINO "
                "runs it (pip install openvino), or an engine of it by `unetrt build`, or export with --precision fp32"
            )
        try:
            self._engine = load(path, session_options(threads), ["CPUExecutionProvider"])
        except failures() as error:
            raise not_loadable(error, path) from error
        require_fit(self._engine, spec, path)
        super().__init__(spec, "onnxruntime on the CPU")

    def compute(self, frames: Array, scores: Array) -> None:
        """Run the graph on the arrays' own memory; raises InferenceError or OutOfMemoryError."""
        engine = self._engine
        binding = engine.io_binding()
        binding.bind_input(INPUT, "cpu", 0, frames.dtype, frames.shape, frames.ctypes.data)
        binding.bind_output(OUTPUT, "cpu", 0, scores.dtype, scores.shape, scores.ctypes.data)
        try:
            engine.run_with_iobinding(binding)
        except failures() as error:
            raise translated(error, "ONNX Runtime failed") from error

    def close(self) -> None:
        """Wait for passes in flight and free the engine; idempotent."""
        super().close()
        self._engine = None
