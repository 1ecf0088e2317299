"""TensorRT's messages: to the log, and its errors to whoever has to explain them."""

import logging
from collections.abc import MutableSequence
from typing import Any

log = logging.getLogger("unetrt.tensorrt")

# TensorRT's severities: internal error, error, warning, info, verbose.
LEVELS = (logging.CRITICAL, logging.ERROR, logging.INFO, logging.DEBUG, logging.DEBUG)


def logger_of(trt: Any, errors: MutableSequence[str]) -> Any:
    """Return a TensorRT ILogger that passes messages on to the log and adds the texts of errors to `errors`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            level = LEVELS[min(int(severity), len(LEVELS) - 1)]
            if level >= logging.ERROR:
                errors.append(msg)
                level = logging.INFO  # whoever called raises it
            log.log(level, "%s", msg)

    return Logger()
