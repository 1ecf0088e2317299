"""Exit codes of the commands, by class of error.

0 is success, 1 a failed gate or run, 2 bad input or an output that cannot be written. As in shells, a run that a signal
ends has 128 and its number: 130 for SIGINT (Ctrl-C), 143 for SIGTERM, 129 for SIGHUP.
"""

from unetrt.runtime.errors import (
    CameraError,
    GateError,
    InferenceError,
    TrainingError,
    TrainingStoppedError,
    UnetrtError,
)

# Added to the number of the signal that ended a run; the exit code of a run that the user stopped.
STOPPED_BY = 128
STOPPED = STOPPED_BY + 2

# A class that is not listed has the code of its nearest base class.
EXIT_CODES: dict[type, int] = {
    UnetrtError: 2,
    CameraError: 1,
    GateError: 1,
    InferenceError: 1,
    TrainingError: 1,
    TrainingStoppedError: STOPPED,
}


def exit_code(error: UnetrtError) -> int:
    """Return the exit code of an error: that of its class, or of the nearest base class in `EXIT_CODES`."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
