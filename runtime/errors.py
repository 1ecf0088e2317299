"""Every error that unetrt raises on purpose.

One root, so that a host program can catch them all; each subclass also derives from the built-in that fits. A
message says what was given, what the rule is, and the nearest thing that would work.
"""


class UnetrtError(Exception):
    """Root of all errors of unetrt; `exit_code` is what the command line returns for it."""

    exit_code = 2


class TileError(UnetrtError, ValueError):
    """A tile side that the network's geometry does not allow, or no tile that fits the budget."""


class FrameError(UnetrtError, ValueError):
    """A frame the model cannot take: wrong shape, channel count, dtype, or pixels that are not finite."""


class ModelFileError(UnetrtError, ValueError):
    """A file that is not a model of ours: no ONNX, cut short, without a spec, or no safetensors checkpoint."""


class DatasetError(UnetrtError, ValueError):
    """Training or validation data that do not fit together."""


class OptionError(UnetrtError, ValueError):
    """An option, or a combination of options, with no meaning."""


class OutputError(UnetrtError, OSError):
    """A place that cannot be written to, or that would overwrite the input."""


class BackendUnavailableError(UnetrtError, RuntimeError):
    """An inference engine that is not installed or does not run here; the message says why."""


class InferenceError(UnetrtError, RuntimeError):
    """An inference engine failed while it loaded or ran a model."""

    exit_code = 1


class OutOfMemoryError(InferenceError, MemoryError):
    """An inference engine reported that memory ran out."""


class CudaError(InferenceError):
    """A call of CUDA's driver failed; the message names it."""


class EngineError(UnetrtError, RuntimeError):
    """A TensorRT engine that cannot be built, is not whole, or does not fit this machine."""


class SessionClosedError(UnetrtError, RuntimeError):
    """A session, lane or segmenter was used after `close()`."""


class TrainingError(UnetrtError, ArithmeticError):
    """Training cannot go on: the loss is not finite."""

    exit_code = 1


class TrainingStopped(UnetrtError):  # noqa: N818 - no error, but what the user asked for
    """Training ended early because it was asked to; everything is saved."""

    exit_code = 130


class ParityError(UnetrtError, RuntimeError):
    """The parity gate refused an export: its answer differs from the network it was made from."""

    exit_code = 1


# Messages of a failed allocation, in lower case: C++, OpenVINO and oneDNN, TensorRT, ONNX Runtime (its bfc_arena.cc),
# cuBLAS and cuDNN, and torch's CPU allocator.
OUT_OF_MEMORY = (
    "out of memory",
    "out_of_memory",
    "bad_alloc",
    "bad allocation",
    "outofmemory",
    "could not be allocated",
    "failed to allocate",
    "_alloc_failed",
    "_allocation_failed",
    "can't allocate memory",
)


def is_out_of_memory(error: BaseException | str) -> bool:
    """Return whether an engine's error, or its message, reports a failed allocation on the host or on a device."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in OUT_OF_MEMORY)


def one_line(error: BaseException | str, limit: int | None = None, *, kind: bool = False, first: bool = False) -> str:
    """Return an error, or its message, as one line of text; never raises.

    Parameters
    ----------
    error
        An exception without a message gives the name of its class.
    limit
        Maximum length in characters; a longer text ends in "...".
    kind
        Whether the name of the exception's class precedes the message.
    first
        Whether only the first line of the message is used; else all lines are joined.
    """
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception class may fail to format itself
        text = ""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    text = " ".join(lines[:1] if first else lines)
    if isinstance(error, BaseException) and (kind or not text):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if limit is None or len(text) <= limit else f"{text[: limit - 3].rstrip()}..."
