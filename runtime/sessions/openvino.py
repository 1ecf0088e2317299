"""OpenVINO on the CPU: float32, and bfloat16 for files that were exported and verified in it."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from unetrt.runtime.errors import InferenceError, ModelFileError, OutOfMemoryError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec
from unetrt.runtime.sessions.cpu import Array, WorkerSession

# What it says where an allocation failed: the C++ library's, and oneDNN's status.
OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "out_of_memory", "out of memory")
# What it raises for a model; a name in a damaged file is not always UTF-8.
FAILURES = (RuntimeError, TypeError, UnicodeDecodeError)
# What `OPTIMIZATION_CAPABILITIES` calls bfloat16, where the processor multiplies it: AVX512_BF16, AMX and such.
BFLOAT16 = "BF16"
# What it calls the precisions that it is asked for.
HINTS = {"bf16": "bfloat16", "f32": "float32"}
# The package that OpenVINO tells its maker with.
TELEMETRY = "openvino_telemetry"
# Threads that import OpenVINO, or ask for its core, at once wait for one of them.
IMPORTING, LOADING = Lock(), Lock()
# OpenVINO's names of our dtypes.
DTYPES = {"float32": "f32", "uint8": "u8", "uint16": "u16"}


def probe() -> str | None:
    """Return None where OpenVINO can be imported, else why not and what to install."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'unetrt[cpu]'"
    try:
        _imported()
    except (ImportError, OSError) as error:
        return f"OpenVINO does not load ({_first_line(error)}): pip install --force-reinstall openvino"
    return None


def open_session(path: Path) -> "OpenVinoSession":
    """Load an ONNX file; raises ModelFileError where it is not a whole model of ours."""
    return OpenVinoSession(path)


class OpenVinoSession(WorkerSession):
    """A model in OpenVINO's CPU plugin.

    It computes in float32, whatever it prefers by itself: a float32 file was not verified in anything less. A bfloat16
    file was, and is computed in that where the processor multiplies it and oneDNN may, else in float32.

    Parameters
    ----------
    path
        The ONNX file.
    threads
        Threads of one pass; 0 leaves the choice to OpenVINO: one a physical core of one socket.

    Raises
    ------
    ModelFileError
        The file is not a model of ours, or OpenVINO cannot load it.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        spec = read_spec(path)
        require_safe(path)
        core, _ = _loaded()
        hints = ["bf16", "f32"] if spec.precision == "bf16" and has_bfloat16() else ["f32"]
        options = {
            # One pass at a time, on all cores: its latency is a frame's.
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            # INT8 as the file has it: what OpenVINO would make of it by itself moved 3.5 % of the pixels, this 0.5 %.
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
    """Tell whether OpenVINO computes in bfloat16 on this processor."""
    return BFLOAT16 in _loaded()[1]


def _loaded() -> tuple[Any, frozenset[str]]:
    with LOADING:
        return _loaded_once()


@cache
def _loaded_once() -> tuple[Any, frozenset[str]]:
    """Return OpenVINO's core with its CPU plugin, and what that can do: one for the process, which stays.

    The plugin of 2026.4 gives the thread that loads it another stack for signals, and where it ends puts back what it
    found: perhaps that of a plugin which has ended before. The next signal, Ctrl-C for one, then kills the process. So
    there is one that does not end, loaded by a thread that does.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="unetrt-openvino") as elsewhere:
        return elsewhere.submit(_load).result()


def _imported() -> Any:
    """Import OpenVINO without its telemetry, and return it.

    Where `openvino_telemetry` is installed, as it is beside OpenVINO, importing OpenVINO 2026.4 starts a thread and a
    fork of this process, which tell Google Analytics. Without it nobody is told. A program that has imported OpenVINO
    before us has made its own choice.
    """
    if "openvino" in sys.modules:
        return import_module("openvino")
    with IMPORTING:
        before = {TELEMETRY: sys.modules[TELEMETRY]} if TELEMETRY in sys.modules else {}
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # what an import takes for not installed
        try:
            return import_module("openvino")
        finally:
            del sys.modules[TELEMETRY]
            sys.modules.update(before)


def _load() -> tuple[Any, frozenset[str]]:
    core = _imported().Core()
    return core, frozenset(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _first_request(core: Any, model: Any, options: dict[str, str], hints: list[str]) -> tuple[str, Any]:
    """Compile a model in the first precision that oneDNN has kernels for; return that precision and a request.

    The capabilities are the processor's. oneDNN's are fewer where ONEDNN_MAX_CPU_ISA says so.
    """
    *preferred, last = hints
    for hint in preferred:
        with suppress(RuntimeError):
            return hint, _request(core, model, options, hint)
    return last, _request(core, model, options, last)


def _request(core: Any, model: Any, options: dict[str, str], hint: str) -> Any:
    return core.compile_model(model, "CPU", {**options, "INFERENCE_PRECISION_HINT": hint}).create_infer_request()


def _require_fit(model: Any, spec: ModelSpec, path: Path) -> None:
    """Hold the graph against its spec: a file whose two halves disagree would be read or written out of bounds."""
    given = [
        (node.get_any_name(), str(node.get_partial_shape()), node.get_element_type().get_type_name())
        for node in (*model.inputs, *model.outputs)
    ]
    expected = [
        (INPUT, _text((spec.batch, spec.channels, *spec.tile)), DTYPES[spec.input_dtype]),
        (OUTPUT, *_answer(spec)),
    ]
    if given != expected:
        raise ModelFileError(f"{path}: its graph has {given}, its spec says {expected}; export it again")


def _answer(spec: ModelSpec) -> tuple[str, str]:
    if spec.head == "labels":
        return _text((spec.batch, *spec.core)), DTYPES["uint8"]
    return _text((spec.batch, len(spec.classes), *spec.core)), DTYPES["float32"]


def _text(shape: tuple[int, ...]) -> str:
    """Return a shape as OpenVINO writes it."""
    return f"[{','.join(map(str, shape))}]"


def _translated(error: Exception) -> Exception | None:
    """Return the error that an allocation failed, if that is what it was."""
    if any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
        return OutOfMemoryError(f"OpenVINO ran out of memory: {_first_line(error)}; use a smaller --tile")
    return None


def _first_line(error: Exception) -> str:
    """Return what OpenVINO says, without the places in its source that it went through."""
    said = [line.strip() for line in str(error).splitlines()]
    told = [line for line in said if line and not line.startswith(("Exception from", "Check "))]
    return (told or said or [type(error).__name__])[0]
