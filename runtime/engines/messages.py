"""TensorRT's messages: to the log, and its errors to whoever has to explain them.

There is one logger for each TensorRT in a process. TensorRT wants that, and says so of another one while it holds a
lock of its own; a thread that frees something of TensorRT's meanwhile waits for that lock, with Python's in its hand.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

log = logging.getLogger("unetrt.tensorrt")

# TensorRT's severities: internal error, error, warning, info, verbose.
LEVELS = (logging.CRITICAL, logging.ERROR, logging.INFO, logging.DEBUG, logging.DEBUG)
# Characters of one message that an error shows.
SHOWN = 240

_loggers: dict[str, Any] = {}
_one = threading.Lock()
# Where errors go: of each thread, and of all, for TensorRT's own threads.
_mine = threading.local()
_all: list[list[str]] = []


def logger_of(trt: Any) -> Any:
    """Return the ILogger of a TensorRT: it passes messages on to the log, and errors to whoever collects them."""
    with _one:
        if trt.__name__ not in _loggers:
            _loggers[trt.__name__] = _new_logger(trt)
        return _loggers[trt.__name__]


@contextmanager
def collected(errors: list[str] | None = None) -> Iterator[list[str]]:
    """Collect the errors that TensorRT tells this thread inside, or threads of its own, which nobody else collects."""
    errors = [] if errors is None else errors
    stack: list[list[str]] = _mine.__dict__.setdefault("stack", [])
    stack.append(errors)
    _all.append(errors)
    try:
        yield errors
    finally:
        stack.pop()
        _all[:] = [other for other in _all if other is not errors]


def first_of(errors: list[str]) -> str:
    """Return the first of TensorRT's errors, of which the others mostly follow, short enough for a line."""
    return shorten(errors[0], SHOWN) if errors else "it gives no reason"


def tells_of_memory(message: str) -> bool:
    """Tell whether a message says that memory ran out."""
    lower = message.lower()
    return "memory" in lower and ("out of" in lower or "alloc" in lower)


def _new_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            level = LEVELS[min(int(severity), len(LEVELS) - 1)]
            if level >= logging.ERROR:
                for errors in _mine.__dict__.get("stack", [])[-1:] or list(_all):
                    errors.append(msg)
                level = logging.INFO  # whoever called raises it
            log.log(level, "%s", msg)

    return Logger()
