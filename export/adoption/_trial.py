"""The first opening of a foreign network, in a separate process if its graph may hold anything.

ONNX Runtime and onnx end the process on some files, never return from others, and allocate what a file asks for. A
network whose shapes can be derived from its file (`unetrt.runtime.model.safety`) is opened at once. Another one, such
as a graph that computes with its own shapes, is first opened by a child with limits of memory and time.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unetrt.export.adoption._foreign import Size, read_foreign, sizes_of
from unetrt.runtime.errors import ModelFileError, OptionError, OutOfMemoryError, UnetrtError, is_out_of_memory
from unetrt.runtime.machine import format_bytes, free_memory
from unetrt.runtime.model.onnx_file import Node, opened, parts
from unetrt.runtime.model.safety import RULES, Network

# How a trial ends: the network opened, was refused with an error, or ran out of memory.
OPENED, REFUSED, OUT_OF_MEMORY = 0, 11, 12
# Seconds of a trial. A pass of a large network over a large tile takes a minute on a few cores.
PATIENCE = 600.0
# Operators that an error names, at most.
NAMED = 6


@dataclass(frozen=True)
class TrialLimits:
    """TrialLimits of the first opening of a foreign network.

    Attributes
    ----------
    memory
        In bytes; None for the memory that is free.
    seconds
        How long it may take.

    Raises
    ------
    OptionError
        A limit is not above 0.
    """

    memory: int | None = None
    seconds: float = PATIENCE

    def __post_init__(self) -> None:
        if not self.seconds > 0 or (self.memory is not None and self.memory < 1):
            raise OptionError(f"memory {self.memory} and time limit {self.seconds} s must be above 0")


def require_survivable(
    path: Path, output: str | None, tile: Size | None, grid: int | None, limits: TrialLimits
) -> None:
    """Return if a file can be opened in this process, be it to find an error.

    Parameters
    ----------
    path
        The ONNX file.
    output
        Name of the output that counts; None for the only one.
    tile
        Height and width that the network will run on, in pixels; None for the size that the file fixes.
    grid
        The period of its lattice in pixels, if known.
    limits
        TrialLimits of memory and time.

    Raises
    ------
    ModelFileError
        The network ends the process that opens it, or is not open in time.
    OutOfMemoryError
        It needs more memory.
    """
    memory = limits.memory or free_memory()
    if not path.is_file() or (tile is not None and _is_derivable(path, tile, memory)):
        return
    code = _exit_code_of_trial(path, output, tile, grid, memory, limits.seconds)
    if code == OUT_OF_MEMORY:
        size = "the limit" if memory is None else format_bytes(memory)
        raise OutOfMemoryError(
            f"{path} needs more memory than {size} to be opened: raise --memory, or use a smaller tile"
        )
    if code is None:
        raise ModelFileError(
            f"{path} is not open after {limits.seconds:g} s{_beyond(path)}: raise --time-limit, or export the network "
            "without control flow, in evaluation mode"
        )
    if code not in (OPENED, REFUSED):
        raise ModelFileError(
            f"{path} ends the process that opens it ({_ending(code)}){_beyond(path)}: export the network without "
            "operators that take places or lengths from values"
        )


def _is_derivable(path: Path, tile: Size, memory: int | None) -> bool:
    """Return whether each value's shape follows from the file, and a pass over one tile fits into the memory."""
    with suppress(ModelFileError, ValueError), opened(path) as model:
        network = Network(model, path.parent)
        _, channels, *_ = network.inputs[0].axes if network.inputs else ()
        if channels:
            network.derive((1, channels, *tile))
            return memory is None or network.peak <= memory
    return False


def _exit_code_of_trial(
    path: Path, output: str | None, tile: Size | None, grid: int | None, memory: int | None, seconds: float
) -> int | None:
    """Open a file in a child; return its exit code, None if it was stopped."""
    height, width = tile or (0, 0)
    arguments = [str(path.absolute()), output or "", *map(str, (height, width, grid or 0, memory or 0))]
    # The child finds modules where this process does, but not in the working folder.
    command = [sys.executable, "-P", "-c", f"from {__name__} import open_in_trial; open_in_trial()", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    quiet = subprocess.DEVNULL
    # Leaving the block, by any error too, closes the child's input, which ends the child.
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet) as child:
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return None


def open_in_trial() -> None:
    """Open the network that the arguments of this process name, and exit with the code of what happened."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path, output, *numbers = sys.argv[1:]
    height, width, grid, memory = map(int, numbers)
    _limit(memory)
    code = OPENED
    try:
        foreign = read_foreign(path, output or None)
        size = (height, width) if height else foreign.size
        if size is not None:
            sizes_of(foreign, size, grid or None)
    except (UnetrtError, MemoryError) as error:
        causes = (error, error.__cause__, error.__context__)
        code = OUT_OF_MEMORY if any(cause and is_out_of_memory(cause) for cause in causes) else REFUSED
    # Without the clean-up of the interpreter, in which engines may crash too.
    os._exit(code)


def _end_with_parent() -> None:
    """End this process when its standard input ends: the one that started it has ended."""
    sys.stdin.buffer.read()
    os._exit(1)


def _limit(memory: int) -> None:
    """Limit what this process may allocate from now on, in bytes; 0 is no limit, and Windows has none."""
    if memory and sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        # No dump of its memory when it crashes.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _ending(code: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _beyond(path: Path) -> str:
    """Return, for an error, which operators of a file are not those of a network that is adopted."""
    found: dict[str, None] = {}
    with suppress(ModelFileError), opened(path) as model:
        nodes = (Node.read(message) for kind, message in parts(model) if kind == "node")
        found = dict.fromkeys(node.operator for node in nodes if node.operator not in RULES)
    names = [name for name in found if name.isidentifier() and name != "Constant"]
    return f", perhaps by {', '.join(names[:NAMED])}" if names else ""
