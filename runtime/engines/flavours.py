"""The two flavours of TensorRT, which share an API: TensorRT, and TensorRT for RTX.

TensorRT builds on the GPU that an engine is for, as it measures kernels there. TensorRT for RTX builds without a GPU,
for several GPUs, and compiles the rest at run time. `FLAVOURS` is the order of automatic choice.

Their log messages go to the logger `unetrt.tensorrt`, and their errors to `collected`, so that exceptions can quote
them.
"""

import importlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from unetrt.runtime.candidates import first_usable, why_not_importable
from unetrt.runtime.errors import BackendUnavailableError, OptionError, printable
from unetrt.runtime.machine import Machine, why_no_gpu

log = logging.getLogger("unetrt.tensorrt")

AUTO = "auto"
# TensorRT's severities: internal error, error, warning, info, verbose.
LEVELS = (logging.CRITICAL, logging.ERROR, logging.INFO, logging.DEBUG, logging.DEBUG)
# Characters of one message that an error shows.
SHOWN = 240

# Compute capabilities that an engine of TensorRT for RTX supports by default, and those that can be named
# (ComputeCapability in its Python module). Its library (1.7.1) has no entry for those between, such as 8.7, 9.0
# (Hopper), 10.0, 10.3 and 11.0; GPUs newer than all entries run engines that were built for the default.
DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
CAPABILITIES = ("7.5", *DEFAULT_CAPABILITIES)


def rtx_serves(capability: str, named: tuple[str, ...] = ()) -> bool:
    """Return whether an engine of TensorRT for RTX runs on GPUs of a compute capability.

    Parameters
    ----------
    capability
        Compute capability of the GPU, such as `8.9`.
    named
        Capabilities that the engine was built for; empty: the default.
    """
    if named:
        return capability in named
    return capability in DEFAULT_CAPABILITIES or version_numbers(capability) > version_numbers(CAPABILITIES[-1])


def version_numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, for comparison: 8.9 < 12.0."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@dataclass(frozen=True)
class Flavour:
    """One TensorRT.

    Attributes
    ----------
    name
        Name in `--flavour`.
    title
        The vendor's name.
    module
        Its Python module.
    extra
        The extra of unetrt that installs it.
    portable
        Whether it builds without a GPU, for other GPUs and systems than those at hand, and compiles on the target.
    """

    name: str
    title: str
    module: str
    extra: str
    portable: bool

    def probe(self, machine: Machine) -> str | None:
        """Return None where it can build, else one sentence that says why not and what helps."""
        if reason := why_not_importable(self.module, self.title, self.extra):
            return reason
        if not (self.portable or machine.gpu):
            return f"{self.title} builds on the GPU that the engine is for, and {why_no_gpu()}"
        return None

    def why_not_on(self, machine: Machine) -> str | None:
        """Return None where its engines can run on the GPU of `machine`, else one sentence that says what can."""
        capability = machine.capability
        if not (self.portable and machine.gpu) or capability in CAPABILITIES or rtx_serves(capability):
            return None
        return (
            f"{self.title} does not run on compute capability {capability} ({machine.gpu}), only on "
            f"{', '.join(CAPABILITIES)} and newer: use backend tensorrt with TensorRT (pip install 'unetrt[tensorrt]') "
            "or backend onnxruntime-cuda (pip install 'unetrt[gpu]')"
        )

    def load(self) -> Any:
        """Return the Python module; raises BackendUnavailableError where it is not installed."""
        if reason := why_not_importable(self.module, self.title, self.extra):
            raise BackendUnavailableError(reason)
        return importlib.import_module(self.module)

    @property
    def version(self) -> str:
        """Its version, such as `1.7.1.116`."""
        return str(self.load().__version__)


# In the order in which `auto` tries them: where there is a GPU, TensorRT measures kernels on it.
FLAVOURS = (
    Flavour("tensorrt", "TensorRT", "tensorrt", "tensorrt", portable=False),
    Flavour("tensorrt-rtx", "TensorRT for RTX", "tensorrt_rtx", "rtx", portable=True),
)
NAMES = tuple(flavour.name for flavour in FLAVOURS)


def usable_flavour(name: str, machine: Machine, capabilities: tuple[str, ...] = ()) -> Flavour:
    """Return the flavour of that name, or for `auto` the first, that can build an engine here for the GPU at hand.

    Parameters
    ----------
    name
        A flavour's name, or `auto`.
    machine
        Where it builds, with the GPU at hand; without a GPU, only a portable flavour can build.
    capabilities
        Compute capabilities of the GPUs that the engine is for, instead of the GPU at hand.

    Raises
    ------
    OptionError
        There is no flavour of that name.
    BackendUnavailableError
        It, or for `auto` each, cannot build here or does not run on that GPU; the message says why.
    """

    def probe(flavour: Flavour) -> str | None:
        return (None if capabilities else flavour.why_not_on(machine)) or flavour.probe(machine)

    return first_usable(FLAVOURS if name == AUTO else (named_flavour(name),), probe)


def named_flavour(name: str) -> Flavour:
    """Return the flavour of that name; raises OptionError for an unknown one."""
    for flavour in FLAVOURS:
        if flavour.name == name:
            return flavour
    raise OptionError(f"TensorRT flavour {name!r} is unknown: use one of {', '.join((AUTO, *NAMES))}")


# One logger for each TensorRT module. TensorRT expects a single logger, and warns about a second one while it holds a
# lock; a thread that frees a TensorRT object in the meantime waits for that lock while it holds the GIL: a deadlock.
_loggers: dict[str, Any] = {}
_loggers_lock = threading.Lock()
# Lists that receive errors: those of each thread, innermost last, and those of all threads, for TensorRT's own threads.
_of_thread = threading.local()
_of_all_threads: list[list[str]] = []


def logger_of(trt: Any) -> Any:
    """Return the ILogger of a TensorRT module; it passes messages to the log, and errors to `collected`."""
    with _loggers_lock:
        if trt.__name__ not in _loggers:
            _loggers[trt.__name__] = _new_logger(trt)
        return _loggers[trt.__name__]


@contextmanager
def collected(errors: list[str] | None = None) -> Iterator[list[str]]:
    """Collect the errors that TensorRT logs on this thread, and on its own threads, while the body runs.

    Errors on a thread that itself collects go to its innermost `collected` alone.
    """
    errors = [] if errors is None else errors
    stack: list[list[str]] = _of_thread.__dict__.setdefault("stack", [])
    stack.append(errors)
    _of_all_threads.append(errors)
    try:
        yield errors
    finally:
        stack.pop()
        _of_all_threads[:] = [other for other in _of_all_threads if other is not errors]


def first_error(errors: list[str]) -> str:
    """Return the first of TensorRT's errors, shortened; the others are usually its consequences."""
    return shorten(errors[0], SHOWN) if errors else "it states no reason"


def _new_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            level = LEVELS[min(int(severity), len(LEVELS) - 1)]
            if level >= logging.ERROR:
                for errors in _of_thread.__dict__.get("stack", [])[-1:] or list(_of_all_threads):
                    errors.append(msg)
                level = logging.INFO  # the caller raises it
            if log.isEnabledFor(level):
                log.log(level, "%s", printable(msg, keep="\n"))  # it may name a node of a model file

    return Logger()
