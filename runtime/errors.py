"""The errors that unetrt raises on purpose.

They have one root, so that a host program can catch all of them; each subclass also derives from the built-in exception
that fits. A message states what was given, the rule, and the nearest thing that works: "tile 512 is not legal at depth
4: use 508 or 524". Text from a file, an option or another library is shown as `printable` text: a crafted file cannot
send control sequences to a terminal.
"""

from collections.abc import Sequence
from unicodedata import category

# Longest message in characters: a path has up to 4096, of which both ends are shown.
LONGEST = 2000


class UnetrtError(Exception):
    """Root of all errors of unetrt."""

    def __str__(self) -> str:
        """Return the message as one line of printable text, of limited length: it may quote a file or an option."""
        return printable(" ".join(_lines(super().__str__())), LONGEST)


class TileError(UnetrtError, ValueError):
    """A tile side that the network's geometry does not allow, or no tile that fits the budget."""


class FrameError(UnetrtError, ValueError):
    """A frame that the model cannot process: wrong shape, channel count or dtype, or pixels that are not finite."""


class ModelFileError(UnetrtError, ValueError):
    """A file that is not a model file: not ONNX, truncated, without a spec, or not a safetensors checkpoint."""


class DatasetError(UnetrtError, ValueError):
    """Training or validation data that are inconsistent or incomplete."""


class OptionError(UnetrtError, ValueError):
    """An invalid option, or an invalid combination of options."""


class OutputError(UnetrtError, OSError):
    """A path that cannot be written, or whose writing would overwrite an input."""


class BackendUnavailableError(UnetrtError, RuntimeError):
    """An inference engine that is not installed or does not run on this machine; the message says why."""


class InferenceError(UnetrtError, RuntimeError):
    """An inference engine failed while it loaded or ran a model."""


class OutOfMemoryError(InferenceError, MemoryError):
    """An inference engine ran out of memory."""


class CudaError(InferenceError):
    """A call of the CUDA driver failed; the message names the call."""


class EngineError(UnetrtError, RuntimeError):
    """A TensorRT engine that cannot be built, is damaged, or does not fit this machine."""


class SessionClosedError(UnetrtError, RuntimeError):
    """A session, lane or segmenter was used after `close()`."""


class CameraError(UnetrtError, RuntimeError):
    """A camera stopped or failed during a run."""


class TrainingError(UnetrtError, ArithmeticError):
    """Training cannot continue: the loss is not finite."""


class TrainingStoppedError(UnetrtError):
    """Training stopped early on request; everything is saved."""


class GateError(UnetrtError, RuntimeError):
    """A result missed a limit that it has to meet."""


class ParityError(GateError):
    """The parity gate refused an export: its output differs from that of the network it was made from."""


# Messages of a failed allocation, in lower case: C++, OpenVINO and oneDNN, TensorRT, ONNX Runtime (its bfc_arena.cc),
# cuBLAS and cuDNN, and torch's CPU allocator. The last are the system's (ENOMEM), the loader's of libraries, and those
# of a thread without room for its stack: Python's and pthread_create's (EAGAIN).
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
    "can't alloc",
    "cannot allocate memory",
    "failed to map segment",
    "can't start new thread",
    "resource temporarily unavailable",
)


def is_out_of_memory(error: BaseException | str) -> bool:
    """Return whether an engine's error, or its message, reports a failed allocation on the host or on a device."""
    if isinstance(error, MemoryError | BlockingIOError):
        return isinstance(error, MemoryError)
    text = one_line(error).lower()
    return any(sign in text for sign in OUT_OF_MEMORY)


def printable(text: str, limit: int | None = None, *, keep: str = "") -> str:
    r"""Return text with its control characters, line breaks and other unprintable characters escaped.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'

    Parameters
    ----------
    text
        Text of any origin.
    limit
        Maximum length in characters, at least 3, before anything is escaped; the middle of a longer text becomes "...".
    keep
        Characters that are not escaped, such as a line break.
    """
    if limit is not None and len(text) > limit:
        end = (limit - 3) // 3
        text = f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"
    if text.isprintable():
        return text
    return "".join(one if one in keep or _is_printable(one) else _escaped(one) for one in text)


def _is_printable(character: str) -> bool:
    # Spaces other than U+0020 occur in file names of macOS and in Japanese ones.
    return character.isprintable() or category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _lines(text: str) -> list[str]:
    """Return the lines that are not blank, without the space around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def shown(given: object) -> str:
    """Return what an argument is, as one short line for an error message; never raises.

    Numbers, text and short sequences are shown as Python writes them, other objects by the name of their class.
    """
    text = ""
    if isinstance(given, str | bytes | bool | int | float | tuple | list | type(None)):
        try:
            text = " ".join(repr(given).split())
        except Exception:  # noqa: BLE001 - an integer of thousands of digits, or an element that fails to format itself
            text = ""
    text = text or f"a {type(given).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def few(names: Sequence[str], number: int | None = None, most: int = 3) -> str:
    """Return the first `most` of `number` names (None: of all that are given), and how many more there are.

    >>> few(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    more = (len(names) if number is None else number) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def one_line(error: BaseException | str, limit: int | None = None, *, kind: bool = False, first: bool = False) -> str:
    """Return an error, or its message, as one line of `printable` text; never raises.

    Parameters
    ----------
    error
        An exception; one without a message is shown as the name of its class.
    limit
        Maximum length in characters; a longer text ends in "...". By default, the middle of a text longer than
        `LONGEST` is left out.
    kind
        Whether the name of the exception's class precedes the message.
    first
        Whether only the first line of the message is used; else all lines are joined.
    """
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception class may fail to format itself
        text = ""
    lines = [" ".join(line.split()) for line in _lines(text)]
    text = " ".join(lines[:1] if first else lines)
    if isinstance(error, BaseException) and (kind or not text):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    if limit is None:
        return printable(text, LONGEST)
    text = printable(text)
    return text if len(text) <= limit else f"{text[: limit - 3].rstrip()}..."
