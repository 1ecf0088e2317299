"""Sessions: models loaded on a device, and the ordered table of inference engines that load them.

Each lane of a session holds the arrays of one pass in flight; with two lanes, `TileLoop` cuts the next tiles while the
engine computes. `BACKENDS` is data: importing this package imports no engine. `open_session` loads a model with a named
backend, or with the first usable one of the table::

    with open_session("model.onnx", "openvino") as session:
        scores = session.run(tiles)  # (batch, C, h, w) -> output of the model's head
"""

import importlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.candidates import first_usable
from unetrt.runtime.closing import Closable
from unetrt.runtime.cuda import driver
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.errors import (
    BackendUnavailableError,
    CudaError,
    EngineError,
    FrameError,
    OptionError,
    printable,
    shown,
)
from unetrt.runtime.model.onnx_file import resolved
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.timings import Passed


class Lane(ABC):
    """One pass that can be in flight: host arrays, and the pass itself.

    The owner fills `input`, calls `launch`, does other work, calls `wait`, reads `output`. Between `launch` and `wait`
    both arrays belong to the engine. A lane is used by one thread at a time.

    Attributes
    ----------
    input
        (batch, C, h, w) in the spec's input dtype; always the same array.
    output
        The spec's output tensor; always the same array. Holds the result of the last pass.
    passed
        Times of the last pass that was waited for.
    """

    input: NDArray[Any]
    output: NDArray[Any]
    passed: Passed

    @abstractmethod
    def launch(self) -> None:
        """Start a pass and return at once.

        Raises
        ------
        SessionClosedError
            The lane or its session is closed.
        InferenceError
            The pass did not start; the lane can be launched again.
        """

    @abstractmethod
    def wait(self) -> None:
        """Block until the pass has ended; `output` is then complete.

        Raises
        ------
        InferenceError
            The pass failed. The lane can be launched again.
        SessionClosedError
            The lane or its session was closed in the meantime.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for the pass and free the lane's resources; idempotent."""

    def restart_clock(self) -> None:  # noqa: B027 - only clocks of limited precision restart
        """Reset the origin of `passed.begin` for all lanes made by the same call, none of which may be in flight."""

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Compute one batch and return `output`, which the next pass overwrites.

        Parameters
        ----------
        batch
            (batch, C, h, w), or (C, h, w) to put the same tile in every slot; values as `input` holds them.

        Raises
        ------
        FrameError
            The shape is not that of `input`.
        """
        if np.shape(batch) not in (self.input.shape, self.input.shape[1:]):
            raise FrameError(
                f"a batch of shape {np.shape(batch)} does not fit: the model takes {self.input.shape}, or one tile "
                f"{self.input.shape[1:]} for every slot"
            )
        self.input[...] = batch
        self.launch()
        self.wait()
        return self.output


class Session(Closable, ABC):
    """A model loaded on one device.

    Attributes
    ----------
    spec
        The model's spec.
    name
        Engine and device, for messages.
    device
        CUDA's index of the GPU; None on the CPU.
    """

    spec: ModelSpec
    name: str
    device: int | None

    @abstractmethod
    def lanes(self, count: int) -> list[Lane]:
        """Return `count` new lanes, which live until they or the session are closed.

        Raises
        ------
        OutOfMemoryError
            They do not fit on the device; the message states what they need.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for passes in flight and free everything; idempotent."""

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Compute one batch in a lane that is opened for it, and return a copy of the output.

        Parameters
        ----------
        batch
            See `Lane.run`. For many batches, call `Lane.run` on a lane that is kept.
        """
        (lane,) = self.lanes(1)
        with closing(lane):
            return lane.run(batch).copy()


__all__ = ["AUTO", "BACKENDS", "Backend", "Lane", "Session", "chosen_backend", "engines", "open_session", "unknown"]

log = logging.getLogger("unetrt")
# Largest CUDA device index that is looked for.
MAX_DEVICE = 1023

AUTO = "auto"


@dataclass(frozen=True)
class Backend:
    """One inference engine.

    Attributes
    ----------
    name
        Name in `backend=` and `--backend`.
    module
        Module in this package. It has `probe()` and `open_session(path)`; with `gpu`, `probe(device)` and
        `open_session(path, device)`; with `takes_options`, `open_session` takes options last, and there is
        `require_options(options)`.
    gpu
        Whether it computes on a GPU.
    automatic
        Whether `auto` may choose it.
    computes
        Whether it runs the model, so that users may choose it.
    runs_engines
        Whether it runs TensorRT engine files.
    takes_options
        Whether users may pass options to it.
    """

    name: str
    module: str
    gpu: bool = False
    automatic: bool = True
    computes: bool = True
    runs_engines: bool = False
    takes_options: bool = False

    def probe(self, device: int | None = None) -> str | None:
        """Return None if the backend is usable, else one sentence with the reason and a remedy.

        `device` is CUDA's index of the GPU, by default 0; backends on the CPU ignore it.
        """
        reason: str | None = self._implementation().probe(*self._place(device))
        return reason

    def open(self, path: Path, device: int | None = None, options: Mapping[str, Any] | None = None) -> Session:
        """Load a model; raises BackendUnavailableError where the backend is not usable."""
        if path.suffix.lower() in SUFFIXES and not self.runs_engines:
            raise OptionError(
                f"{path} is a TensorRT engine, which {self.name} does not run: use backend tensorrt, or open the ONNX "
                "file that it was built from"
            )
        if device is not None and not self.gpu:
            raise OptionError(f"{self.name} computes on the CPU and has no device {device}: omit the device")
        given = self._options(options or {})
        if reason := self.probe(device):
            raise BackendUnavailableError(reason)
        session: Session = self._implementation().open_session(path, *self._place(device), *given)
        return session

    def _place(self, device: int | None) -> tuple[int, ...]:
        return (device or 0,) if self.gpu else ()

    def _options(self, options: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
        """Return the module's options argument, strings by name; an empty tuple where it takes no options."""
        if not self.takes_options:
            if options:
                having = " or ".join(one.name for one in BACKENDS if one.takes_options)
                raise OptionError(f"{self.name} has no backend options: omit {', '.join(options)}, or use {having}")
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
    Backend("openvino", "openvino", takes_options=True),
    Backend("onnxruntime", "onnxruntime", takes_options=True),
    Backend("numpy", "cpu", automatic=False, computes=False),
)
# Backends of earlier development versions -> their replacement.
REPLACEMENTS = dict.fromkeys(("onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"), "tensorrt")


def open_session(
    path: str | Path,
    backend: str = AUTO,
    device: int | None = None,
    backend_options: Mapping[str, Any] | None = None,
) -> Session:
    """Load a model file or an engine; a model whose tiles are approximate logs a warning.

    Parameters
    ----------
    path
        An ONNX file that `unetrt export` wrote, a TensorRT engine that `unetrt build` wrote, or the name of a model
        that comes with unetrt (`unetrt models`), if no file has that name.
    backend
        A name from `BACKENDS`, or `auto` for the first usable backend; the choice is logged. If a usable backend
        refuses the file, `auto` logs a warning and tries the next one.
    device
        CUDA device index. None selects GPU 0 and allows `auto` to fall back to the CPU.
    backend_options
        Options of a named backend, such as `{"prefer_nhwc": "1"}` for `onnxruntime-cuda`. They replace the options that
        the backend chooses by trial.

    Raises
    ------
    BackendUnavailableError
        The backend, or for `auto` every backend, is not usable; the message says why.
    OptionError
        The backend is unknown, does not run such files, has no such device, or has no such options.
    ModelFileError
        The file is not a unetrt model.
    EngineError
        The engine does not fit this machine.
    OutOfMemoryError
        The weights do not fit on the GPU.
    """
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"path must be that of a model file (got {shown(path)})")
    path = Path(path)
    if not os.path.exists(path):  # noqa: PTH110 - also where the system refuses to look
        path = resolved(path)
    if device is not None and not (isinstance(device, int) and 0 <= device <= MAX_DEVICE):
        raise OptionError(
            f"invalid device {shown(device)}: use the index of a CUDA device, from 0, or omit it for the CPU"
        )
    _require_names(backend_options)
    automatic = isinstance(backend, str) and backend == AUTO
    if automatic and backend_options:
        raise OptionError(
            f"backend options ({', '.join(backend_options)}) need a named backend: name one, such as onnxruntime-cuda"
        )
    session = _opened_automatically(path, device) if automatic else _named(backend).open(path, device, backend_options)
    if session.spec.approximate is not None:
        log.warning("%s: %s", printable(str(path)), session.spec.approximate)
    return session


def chosen_backend(name: str = AUTO, device: int | None = None) -> Backend:
    """Return the backend of that name, or for `auto` the first that is usable here, on a GPU if `device` is given.

    Raises
    ------
    OptionError
        There is no such backend.
    BackendUnavailableError
        It is not usable here, or for `auto` none is; the message says why.
    """
    if name not in engines():
        raise unknown(name)
    if name == AUTO:
        return first_usable(_automatic(device), _automatic_probe(device))
    backend = _named(name)
    if reason := backend.probe(device):
        raise BackendUnavailableError(f"{name}: {reason}")
    return backend


def engines() -> list[str]:
    """Return the values accepted as `backend`: `auto` and the names of the backends that compute."""
    return [AUTO, *(candidate.name for candidate in BACKENDS if candidate.computes)]


def unknown(name: object) -> OptionError:
    """Return the error for a backend that does not exist, or that users may not choose."""
    if not isinstance(name, str):
        return OptionError(f"backend must be one of {', '.join(engines())} (got {shown(name)})")
    instead = f"; instead of {name}, use {REPLACEMENTS[name]}" if name in REPLACEMENTS else ""
    return OptionError(f"backend {shown(name)} is unknown: use one of {', '.join(engines())}{instead}")


def _opened_automatically(path: Path, device: int | None) -> Session:
    """Load a file with the first backend that is usable and does not refuse it."""
    engine = path.suffix.lower() in SUFFIXES
    sessions: list[Session] = []
    probe = _automatic_probe(device)

    def refusal(backend: Backend) -> str | None:
        if reason := probe(backend):
            log.info("auto passes over %s", reason)
            return reason
        try:
            sessions.append(backend.open(path, device))
        except (BackendUnavailableError, CudaError, EngineError) as error:
            if engine:
                raise  # no other backend runs engines
            log.warning("%s is usable but does not run %s: %s", backend.name, printable(str(path)), str(error))
            return f"{backend.name}: {error}"
        return None

    candidates = [one for one in _automatic(device) if one.runs_engines or not engine]
    place = "" if device is None else f" for GPU {device}"
    first_usable(candidates, refusal, f"no inference engine{place} is usable")
    log.info("auto chose %s", sessions[0].name)
    return sessions[0]


def _automatic(device: int | None) -> list[Backend]:
    """Return the backends that `auto` tries, in order; with `device`, those that compute on a GPU."""
    return [one for one in BACKENDS if one.automatic and (one.gpu or device is None)]


def _automatic_probe(device: int | None) -> Callable[[Backend], str | None]:
    """Return the probe of `auto`: None for a usable backend, else its name and the reason against it.

    Without CUDA no GPU backend is usable, so they are rejected without being imported.
    """
    no_gpu = driver.why_not()

    def probe(backend: Backend) -> str | None:
        reason = (backend.gpu and no_gpu) or backend.probe(device)
        return f"{backend.name}: {reason}" if reason else None

    return probe


def _require_names(options: object) -> None:
    """Raise OptionError unless options are None, or values by name."""
    if options is None or (isinstance(options, Mapping) and all(isinstance(name, str) and name for name in options)):
        return
    raise OptionError(f"backend options must be values by name, such as {{'prefer_nhwc': '1'}}, not {shown(options)}")


def _named(name: str) -> Backend:
    for candidate in BACKENDS:
        if isinstance(name, str) and candidate.name == name:
            return candidate
    raise unknown(name)
