"""ONNX Runtime on the CPU. Input and output are bound to the lane's arrays: nothing is copied."""

from pathlib import Path

from unetrt.runtime.errors import BackendUnavailableError
from unetrt.runtime.model_files.onnx_file import read_spec
from unetrt.runtime.sessions import onnxruntime_files as files
from unetrt.runtime.sessions.worker import Array, WorkerSession
from unetrt.runtime.spec import INPUT, OUTPUT


def probe() -> str | None:
    """Return None where ONNX Runtime can be imported, else why not and what to install."""
    return files.why_not_importable("onnxruntime", "cpu")


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
            self._engine = files.load(path, files.session_options(threads), ["CPUExecutionProvider"])
        except files.failures() as error:
            raise files.not_loadable(error, path) from error
        files.require_fit(self._engine, spec, path)
        super().__init__(spec, "onnxruntime on the CPU")

    def compute(self, frames: Array, scores: Array) -> None:
        """Run the graph on the arrays' own memory; raises InferenceError or OutOfMemoryError."""
        engine = self._engine
        binding = engine.io_binding()
        binding.bind_input(INPUT, "cpu", 0, frames.dtype, frames.shape, frames.ctypes.data)
        binding.bind_output(OUTPUT, "cpu", 0, scores.dtype, scores.shape, scores.ctypes.data)
        try:
            engine.run_with_iobinding(binding)
        except files.failures() as error:
            raise files.translated(error, "ONNX Runtime failed") from error

    def close(self) -> None:
        """Wait for passes in flight and free the engine; idempotent."""
        super().close()
        self._engine = None
