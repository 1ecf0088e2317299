"""OpenVINO on the CPU: float32, and bfloat16 for files that were exported and verified in it.

The process loads OpenVINO's CPU plugin once and keeps it. OpenVINO is imported without its telemetry. Input and output
are tensors over the lane's arrays: nothing is copied.
"""

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from unetrt.runtime.candidates import why_not_importable
from unetrt.runtime.errors import InferenceError, ModelFileError, OutOfMemoryError, is_out_of_memory
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions.cpu import DEFAULTS, Array, WorkerSession, require_fitting, require_options, threads_of

__all__ = ["OpenVinoSession", "has_bfloat16", "open_session", "probe", "require_options"]

# What OpenVINO raises for a model; a name in a damaged file is not always UTF-8.
FAILURES = (RuntimeError, TypeError, UnicodeDecodeError)
# bfloat16 in `OPTIMIZATION_CAPABILITIES`: the processor multiplies it (AVX512_BF16, AMX).
BFLOAT16 = "BF16"
# Values of INFERENCE_PRECISION_HINT -> their names.
HINTS = {"bf16": "bfloat16", "f32": "float32"}
# The package with which OpenVINO sends usage data.
TELEMETRY = "openvino_telemetry"
# Only one thread imports OpenVINO, or loads its core; others wait for it.
IMPORTING, LOADING = Lock(), Lock()
# The process that loaded the core. In one forked from it, OpenVINO 2026.4 may wait for ever when it compiles a model.
LOADED_IN: set[int] = set()
# OpenVINO's element types -> numpy's dtypes.
DTYPES = {"f32": "float32", "u8": "uint8", "u16": "uint16"}


def probe() -> str | None:
    """Return None where OpenVINO can be imported and used, else why not and what helps."""
    if LOADED_IN - {os.getpid()}:
        return (
            "OpenVINO was used before this process was forked, and would wait for threads of its parent: start the "
            "process with multiprocessing's method spawn or forkserver, or use backend onnxruntime"
        )
    return why_not_importable("openvino", "OpenVINO", "cpu", "openvino", lambda _: _imported())


def open_session(path: Path, options: Mapping[str, str] = DEFAULTS) -> "OpenVinoSession":
    """Load an ONNX file; raises ModelFileError where it is damaged or not a unetrt model."""
    return OpenVinoSession(path, threads_of(options))


class OpenVinoSession(WorkerSession):
    """A model in OpenVINO's CPU plugin.

    A float32 file is computed in float32, overriding OpenVINO's default, because it was not verified in a lower
    precision. A bfloat16 file is computed in bfloat16 if processor and oneDNN support it, else in float32.

    Parameters
    ----------
    path
        The ONNX file.
    threads
        Threads of one pass; 0 is OpenVINO's default: one for each physical core of one socket.
    memory
        Limit in bytes of what a pass holds at once; None for the memory that is free.

    Raises
    ------
    ModelFileError
        The file is not a unetrt model, is not safe to open, or OpenVINO cannot load it.
    OutOfMemoryError
        A pass holds more than the limit.
    """

    def __init__(self, path: Path, threads: int = 0, memory: int | None = None) -> None:
        spec = read_spec(path)
        require_fitting(path, memory)
        core, _ = _loaded()
        hints = ["bf16", "f32"] if spec.precision == "bf16" and has_bfloat16() else ["f32"]
        options = {
            # One pass at a time, on all cores.
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            # INT8 as in the file: OpenVINO's own low-precision transformations changed 3.5 % of the pixels, this 0.5 %.
            **({"LP_TRANSFORMS_MODE": "NO"} if spec.precision == "int8" else {}),
            **({"INFERENCE_NUM_THREADS": str(threads)} if threads else {}),
        }
        try:
            model = core.read_model(os.fspath(path))
            _require_fit(model, spec, path)
            hint, self._request = _first_request(core, model, options, hints)
        except FAILURES as error:
            raise _translated(error) or ModelFileError(
                f"{path} is not a model that OpenVINO can load: {_first_line(error)}"
            ) from error
        super().__init__(spec, f"openvino on the CPU, {HINTS[hint]}")

    def compute(self, frames: Array, scores: Array) -> None:
        """Run the graph on the arrays' own memory; raises InferenceError or OutOfMemoryError."""
        openvino = _imported()
        try:
            self._request.set_input_tensor(openvino.Tensor(frames, shared_memory=True))
            self._request.set_output_tensor(openvino.Tensor(scores, shared_memory=True))
            self._request.infer()
        except RuntimeError as error:
            raise _translated(error) or InferenceError(f"OpenVINO failed: {_first_line(error)}") from error

    def close(self) -> None:
        """Wait for passes in flight and free the engine; idempotent."""
        super().close()
        self._request = None


def has_bfloat16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    return BFLOAT16 in _loaded()[1]


def _loaded() -> tuple[Any, frozenset[str]]:
    with LOADING:
        return _loaded_once()


@cache
def _loaded_once() -> tuple[Any, frozenset[str]]:
    """Return OpenVINO's core with its CPU plugin, and the plugin's capabilities; both live as long as the process.

    The plugin of OpenVINO 2026.4 replaces the alternate signal stack of the thread that loads it, and restores the
    previous one when it is unloaded: perhaps that of a plugin that was unloaded before. The next signal, such as
    Ctrl-C, then kills the process. So one plugin is loaded and never unloaded, by a thread that ends.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="unetrt-openvino") as loader:
        return loader.submit(_load).result()


def _imported() -> Any:
    """Import OpenVINO without its telemetry, and return it.

    Where `openvino_telemetry` is installed, as it is with OpenVINO, importing OpenVINO 2026.4 starts a thread and forks
    this process to report to Google Analytics. A program that imported OpenVINO before has made its own choice.
    """
    if "openvino" in sys.modules:
        return import_module("openvino")
    modules: dict[str, Any] = sys.modules
    with IMPORTING:
        before = {TELEMETRY: modules[TELEMETRY]} if TELEMETRY in modules else {}
        modules[TELEMETRY] = None  # makes its import fail
        try:
            return import_module("openvino")
        finally:
            del modules[TELEMETRY]
            modules.update(before)


def _load() -> tuple[Any, frozenset[str]]:
    LOADED_IN.add(os.getpid())
    core = _imported().Core()
    return core, frozenset(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _first_request(core: Any, model: Any, options: dict[str, str], hints: list[str]) -> tuple[str, Any]:
    """Compile a model in the first precision that oneDNN has kernels for; return that precision and an infer request.

    The plugin's capabilities are the processor's; oneDNN has fewer where ONEDNN_MAX_CPU_ISA restricts it.
    """
    *preferred, last = hints
    for hint in preferred:
        with suppress(RuntimeError):
            return hint, _request(core, model, options, hint)
    return last, _request(core, model, options, last)


def _request(core: Any, model: Any, options: dict[str, str], hint: str) -> Any:
    return core.compile_model(model, "CPU", {**options, "INFERENCE_PRECISION_HINT": hint}).create_infer_request()


def _require_fit(model: Any, spec: ModelSpec, path: Path) -> None:
    """Compare the graph with its spec: where they disagree, a pass would access memory out of bounds."""
    mismatch = spec.tensors().mismatch(_tensor(node) for node in (*model.inputs, *model.outputs))
    if mismatch:
        raise ModelFileError(f"{path}: {mismatch}; export it again")


def _tensor(node: Any) -> str:
    """Return an input or output as `str(Tensor)` writes it; a dimension that is not fixed is `?`."""
    dtype = node.get_element_type().get_type_name()
    shape = ", ".join(str(length) for length in node.get_partial_shape())
    return f"{node.get_any_name()} ({shape}) {DTYPES.get(dtype, dtype)}"


def _translated(error: Exception) -> Exception | None:
    """Return OutOfMemoryError where an allocation failed, else None."""
    if is_out_of_memory(error):
        return OutOfMemoryError(f"OpenVINO ran out of memory: {_first_line(error)}; use a smaller --tile")
    return None


def _first_line(error: Exception) -> str:
    """Return the first line of a message that is not a location in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check "))]
    return (telling or lines or [type(error).__name__])[0]
