"""The program `unetrt` and `python -m unetrt`: the command line with a process's standard streams and signals.

Importing this module imports nothing that takes time, so that Ctrl-C ends the program in silence from its first moment.
"""

import io
import os
import sys
from contextlib import suppress

TYPE_CHECKING = False  # the type checkers' own; importing typing takes several milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

__all__ = ["main", "program"]

# Exit code of a program whose output nobody reads any more (128 + SIGPIPE), and of one that could not write it.
NOBODY_READS, NOT_WRITTEN = 141, 2


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run the command line in this process and return the exit code, see `unetrt.cli.main`."""
    from unetrt.cli import main as run

    return run(arguments)


def program() -> "NoReturn":
    """Run the command line of this process, and exit.

    Before a command begins and after it has ended there is nothing to clean up, and signals end the process at once. In
    between, SIGINT, SIGTERM and SIGHUP end the command as an error does.
    A standard output that cannot be written to, as that of `unetrt info MODEL > /dev/full` or `>&-`, does not end a
    command; it is reported in one line, and makes a success a failure (exit code 2). Where nobody reads it any more
    (`unetrt models | head -1`), the command ends in silence. Standard error may be full or closed.
    """
    _end_at_interrupts()
    output = _standard_streams()
    from unetrt.cli import stoppable_main

    try:
        status = stoppable_main()
    except SystemExit as end:  # raised for a broken pipe by click and rich
        status = end.code if isinstance(end.code, int) else 1
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    if output.error is not None:
        status = NOBODY_READS if isinstance(output.error, BrokenPipeError) else status or NOT_WRITTEN
    if sys.argv[1:2] == ["train"] and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        # Under torchrun, DistributedDataParallel's threads outlive destroy_process_group(), and the C++ runtime may
        # abort ("terminate called") while the interpreter shuts down around them: leave without a shutdown.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _end_at_interrupts() -> None:
    """Let SIGINT end the process, unless it is ignored; Python's own handler raises KeyboardInterrupt anywhere."""
    try:
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        os._exit(130)


class _Output(io.RawIOBase):
    """A standard stream that records errors instead of raising them; only a broken pipe is raised too, once.

    Parameters
    ----------
    raw
        The stream.
    report
        Whether the first error is raised or printed.

    Attributes
    ----------
    error
        The first error; None for none. What is written after it is dropped.
    """

    def __init__(self, raw: "Any", *, report: bool) -> None:
        self._raw, self._report = raw, report
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        """Return whether this is a terminal."""
        return bool(self._raw.isatty())

    def write(self, data: "Any", /) -> "int | None":
        """Write bytes, and return their number; None if the stream would block."""
        if self.error is None:
            try:
                written: int | None = self._raw.write(data)
                return written
            except OSError as error:
                self.error = error
                if self._report and isinstance(error, BrokenPipeError):
                    raise
                if self._report:
                    sys.stderr.write(f"Error: cannot write to standard output: {error.strerror or error}\n")
        return len(data)


def _standard_streams() -> _Output:
    """Replace standard output and error by streams that record errors; return the output.

    Closed streams are opened on the null device: else the next file that is opened becomes the standard output of every
    library in the process. As in GNU's programs, that of the output cannot be written to, so that an output is missed.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    output = _Output(_raw(sys.stdout, 1), report=True)
    sys.stdout = _text(output, sys.stdout)
    sys.stderr = _text(_Output(_raw(sys.stderr, 2), report=False), sys.stderr)
    return output


def _raw(stream: "Any", number: int) -> "Any":
    """Return the bytes below a text stream; None, which stands for a closed one, has none."""
    if stream is None:
        return io.FileIO(number, "w", closefd=False)
    return getattr(stream.buffer, "raw", stream.buffer)


def _text(raw: io.RawIOBase, like: "Any") -> io.TextIOWrapper:
    """Return a text stream with the encoding and the buffering of another one."""
    names = ("encoding", "errors", "line_buffering", "write_through")
    return io.TextIOWrapper(io.BufferedWriter(raw), **{name: getattr(like, name) for name in names if like is not None})


if __name__ == "__main__":
    program()
