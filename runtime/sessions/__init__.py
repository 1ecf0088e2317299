"""Sessions: a loaded model on one device, and the table of engines that can load one.

Importing this package imports no engine.
"""

import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.errors import BackendUnavailableError, CudaError, EngineError, OptionError
from unetrt.runtime.sessions.protocol import Lane, Session

__all__ = ["AUTO", "BACKENDS", "Backend", "Lane", "Session", "engines", "open_session", "unknown"]

log = logging.getLogger("unetrt")

AUTO = "auto"


@dataclass(frozen=True)
class Backend:
    """One inference engine.

    Attributes
    ----------
    name
        What the user writes.
    module
        The module in this package, with `probe()` and `open_session(path)`, or for a GPU `probe(device)` and
        `open_session(path, device)`. Where it takes options, it has `require_options(options)`, and `open_session`
        takes them last.
    gpu
        Whether it computes on a GPU.
    automatic
        Whether `auto` may choose it.
    computes
        Whether it is for users.
    runs_engines
        Whether it runs TensorRT's engine files.
    takes_options
        Whether it has options of its own that a user may give.
    """

    name: str
    module: str
    gpu: bool = False
    automatic: bool = True
    computes: bool = True
    runs_engines: bool = False
    takes_options: bool = False

    def probe(self, device: int | None = None) -> str | None:
        """Return None where the engine is usable on a GPU, the first unless its number is given, or on the CPU.

        Else one sentence that says why not and what helps.
        """
        return self._implementation().probe(*self._place(device))  # type: ignore[no-any-return]

    def open(self, path: Path, device: int | None = None, options: Mapping[str, Any] | None = None) -> Session:
        """Load a model; raises BackendUnavailableError where the engine is not usable."""
        if path.suffix.lower() in SUFFIXES and not self.runs_engines:
            raise OptionError(
                f"{path} is a TensorRT engine, which {self.name} does not run: use backend tensorrt, or give the ONNX "
                "file that it was built from"
            )
        if device is not None and not self.gpu:
            raise OptionError(f"{self.name} computes on the CPU and has no device {device}: leave the device out")
        given = self._options(options or {})
        if reason := self.probe(device):
            raise BackendUnavailableError(reason)
        return self._implementation().open_session(path, *self._place(device), *given)  # type: ignore[no-any-return]

    def _place(self, device: int | None) -> tuple[int, ...]:
        return (device or 0,) if self.gpu else ()

    def _options(self, options: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
        """Return options as the module takes them, texts by name; nothing for one that takes none."""
        if not self.takes_options:
            if options:
                having = " or ".join(one.name for one in BACKENDS if one.takes_options)
                raise OptionError(
                    f"{self.name} has no backend options: leave out {', '.join(options)}, or use {having}"
                )
            return ()
        given = {name: str(int(value) if isinstance(value, bool) else value) for name, value in options.items()}
        self._implementation().require_options(given)
        return (given,)

    def _implementation(self) -> Any:
        return importlib.import_module(f"unetrt.runtime.sessions.{self.module}")


# In the order in which `auto` tries them.
BACKENDS = (
    Backend("tensorrt", "tensorrt", gpu=True, runs_engines=True),
    Backend("onnxruntime-cuda", "onnxruntime_gpu", gpu=True, takes_options=True),
    Backend("openvino", "openvino"),
    Backend("onnxruntime", "onnxruntime"),
    Backend("numpy", "cpu", automatic=False, computes=False),
)
# Backends of earlier development versions -> what does the same.
INSTEAD = dict.fromkeys(("onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"), "tensorrt")


def open_session(
    path: str | Path,
    backend: str = AUTO,
    device: int | None = None,
    backend_options: Mapping[str, Any] | None = None,
) -> Session:
    """Load a model file or an engine.

    Parameters
    ----------
    path
        An ONNX file that `unetrt export` wrote, or a TensorRT engine that `unetrt build` did.
    backend
        A name from `BACKENDS`, or `auto`: the first that is usable, which is logged. One that is usable but refuses the
        file is logged as a warning, and the next is tried.
    device
        The number of the GPU, as CUDA counts; None takes the first, and lets `auto` fall back to a CPU.
    backend_options
        Options of the backend's own, by name, such as `{"prefer_nhwc": "1"}` for `onnxruntime-cuda`, where they take
        the place of those that it chooses by trial. Only with a named backend.

    Raises
    ------
    BackendUnavailableError
        The backend, or for `auto` every backend, is not usable; the message says why.
    OptionError
        There is no such backend, or it does not run such files or on such a device, or has no such options.
    ModelFileError
        The file is not a model of ours.
    EngineError
        The engine does not fit this machine.
    OutOfMemoryError
        The weights do not fit on the GPU.
    """
    path = Path(path)
    if device is not None and (not isinstance(device, int) or device < 0):
        raise OptionError(
            f"there is no device {device!r}: GPUs are counted 0, 1, 2 as CUDA does; leave it out for the CPU"
        )
    _require_names(backend_options)
    if backend != AUTO:
        return _named(backend).open(path, device, backend_options)
    if backend_options:
        raise OptionError(
            f"options of a backend ({', '.join(backend_options)}) are for one that is named: give its name too, "
            "such as onnxruntime-cuda"
        )
    reasons = []
    for candidate in _automatic(path, device):
        if reason := candidate.probe(device):
            log.info("auto passes over %s: %s", candidate.name, reason)
            reasons.append(f"{candidate.name}: {reason}")
            continue
        try:
            session = candidate.open(path, device)
        except (BackendUnavailableError, CudaError, EngineError) as error:
            if path.suffix.lower() in SUFFIXES:
                raise  # no other could run it
            log.warning("%s is usable but does not run %s: %s", candidate.name, path, str(error))
            reasons.append(f"{candidate.name}: {error}")
            continue
        log.info("auto chose %s", session.name)
        return session
    what = "no inference engine" if device is None else f"no inference engine for GPU {device}"
    raise BackendUnavailableError(f"{what} is usable; {'; '.join(reasons)}")


def _require_names(options: object) -> None:
    """Raise OptionError unless options are None, or values by name."""
    if options is None or (isinstance(options, Mapping) and all(isinstance(name, str) and name for name in options)):
        return
    raise OptionError(
        f"options of a backend are values by name, such as {{'prefer_nhwc': '1'}}, not {repr(options)[:60]}"
    )


def _automatic(path: Path, device: int | None) -> Iterator[Backend]:
    """Yield what `auto` may take for a file and a device."""
    engine = path.suffix.lower() in SUFFIXES
    for candidate in BACKENDS:
        if candidate.automatic and (candidate.runs_engines or not engine) and (candidate.gpu or device is None):
            yield candidate


def _named(name: str) -> Backend:
    for candidate in BACKENDS:
        if candidate.name == name:
            return candidate
    raise unknown(name)


def unknown(name: str) -> OptionError:
    """Return the error for a backend that does not exist, or is not for users."""
    instead = f"; in the place of {name} use {INSTEAD[name]}" if name in INSTEAD else ""
    return OptionError(f"backend {name!r} is unknown: use one of {', '.join(engines())}{instead}")


def engines() -> list[str]:
    """Return what a user may ask for: `auto` and the names of the backends that compute."""
    return [AUTO, *(candidate.name for candidate in BACKENDS if candidate.computes)]
