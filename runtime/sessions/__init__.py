"""Sessions: a loaded model on one device, and the table of engines that can load one.

Importing this package imports no engine.
"""

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetrt.runtime.errors import BackendUnavailableError, OptionError
from unetrt.runtime.sessions.protocol import Lane, Session

__all__ = ["AUTO", "BACKENDS", "Backend", "Lane", "Session", "engines", "open_session"]

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
        Where it is implemented: a module with `probe()` and `open_session(path)`.
    automatic
        Whether `auto` may choose it.
    """

    name: str
    module: str
    automatic: bool = True

    def probe(self) -> str | None:
        """Return None where the engine is usable, else one sentence that says why not and what helps."""
        return self._implementation().probe()  # type: ignore[no-any-return]

    def open(self, path: Path) -> Session:
        """Load a model; raises BackendUnavailableError where the engine is not usable."""
        if reason := self.probe():
            raise BackendUnavailableError(reason)
        return self._implementation().open_session(path)  # type: ignore[no-any-return]

    def _implementation(self) -> Any:
        return importlib.import_module(self.module)


# In the order in which `auto` tries them.
BACKENDS = (
    Backend("onnxruntime", "unetrt.runtime.sessions.onnxruntime"),
    Backend("numpy", "unetrt.runtime.sessions.numpy", automatic=False),
)


def open_session(path: str | Path, backend: str = AUTO) -> Session:
    """Load a model file.

    Parameters
    ----------
    path
        An ONNX file that `unetrt export` wrote.
    backend
        A name from `BACKENDS`, or `auto`: the first that is usable, which is logged.

    Raises
    ------
    BackendUnavailableError
        The backend, or for `auto` every backend, is not usable; the message says why.
    OptionError
        There is no such backend.
    ModelFileError
        The file is not a model of ours.
    """
    if backend != AUTO:
        return _named(backend).open(Path(path))
    reasons = []
    for candidate in BACKENDS:
        if not candidate.automatic:
            continue
        if reason := candidate.probe():
            reasons.append(f"{candidate.name}: {reason}")
            continue
        session = candidate.open(Path(path))
        log.info("auto chose %s", session.name)
        return session
    raise BackendUnavailableError("no inference engine is usable; " + "; ".join(reasons))


def _named(name: str) -> Backend:
    for candidate in BACKENDS:
        if candidate.name == name:
            return candidate
    raise OptionError(f"backend {name!r} is unknown: use one of {', '.join(engines())}")


def engines() -> list[str]:
    """Return what a user may ask for: `auto` and the names of the backends that compute."""
    return [AUTO, *(candidate.name for candidate in BACKENDS if candidate.automatic)]
