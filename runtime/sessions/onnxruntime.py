"""ONNX Runtime on the CPU. Input and output are bound to the lane's arrays: nothing is copied."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unetrt.runtime.errors import BackendUnavailableError, InferenceError, ModelFileError, OutOfMemoryError
from unetrt.runtime.model_files.external_data import require_safe
from unetrt.runtime.model_files.onnx_file import read_spec
from unetrt.runtime.sessions.worker import Array, WorkerSession
from unetrt.runtime.spec import INPUT, OUTPUT, ModelSpec

# What ONNX Runtime says, in any of its exceptions, when an allocation failed (its bfc_arena.cc, allocator.cc).
OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


def probe() -> str | None:
    """Return None where ONNX Runtime can be imported, else why not and what to install."""
    if find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install 'unetrt[cpu]'"
    try:
        import_module("onnxruntime")
    except ImportError as error:
        return f"ONNX Runtime does not load ({_first_line(error)}): pip install --force-reinstall onnxruntime"
    return None


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
                f"{path} computes in bfloat16, and ONNX Runtime has no bfloat16 convolutions on the CPU: build a "
                "TensorRT engine of it with `unetrt build`, or export with --precision fp32"
            )
        self._engine = _load(path, threads)
        _check(self._engine, spec, path)
        super().__init__(spec, "onnxruntime on the CPU")

    def compute(self, frames: Array, scores: Array) -> None:
        """Run the graph on the arrays' own memory; raises InferenceError or OutOfMemoryError."""
        engine = self._engine
        binding = engine.io_binding()
        binding.bind_input(INPUT, "cpu", 0, frames.dtype, frames.shape, frames.ctypes.data)
        binding.bind_output(OUTPUT, "cpu", 0, scores.dtype, scores.shape, scores.ctypes.data)
        try:
            engine.run_with_iobinding(binding)
        except _failures() as error:
            raise _translated(error, "ONNX Runtime failed") from error

    def close(self) -> None:
        """Wait for passes in flight and free the engine; idempotent."""
        super().close()
        self._engine = None


def _load(path: Path, threads: int) -> Any:
    import onnxruntime

    require_safe(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors: its warnings are about graph optimisations
    # With it the second pass allocates everything anew and takes as long as the first, twice a later one's time.
    options.enable_mem_pattern = False
    # What was checked is ONNX; without this a name that ends in .ort makes ONNX Runtime read its own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _failures() as error:
        if _is_out_of_memory(error):
            raise _translated(error, f"{path} could not be loaded") from error
        raise ModelFileError(f"{path} is not a model that ONNX Runtime can load: {_first_line(error)}") from error


def _check(engine: Any, spec: ModelSpec, path: Path) -> None:
    """Hold the graph against its spec: a file whose two halves disagree would be read or written out of bounds."""
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


def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    own = [getattr(state, name) for name in (*names, "RuntimeException", "EPFail", "EngineError", "ModelLoaded")]
    # A pass with bound arrays fails with a plain RuntimeError; a message may quote a damaged file's bytes, not UTF-8.
    return (*own, RuntimeError, MemoryError, UnicodeDecodeError)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def _translated(error: Exception, what: str) -> InferenceError:
    if _is_out_of_memory(error):
        advice = "use a smaller tile (`unetrt plan --memory`) or a smaller batch"
        return OutOfMemoryError(f"{what}: out of memory ({_first_line(error)}); {advice}")
    return InferenceError(f"{what}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
