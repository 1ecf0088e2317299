"""A table of what became of each frame of an acquisition, as CSV beside its labels."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from unetrt.runtime.acquisition.places import Index
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError

# Axes of an acquisition (useq, `Axis`): time, position, grid, channel, z; `image` is the camera's own number.
AXES = ("t", "p", "g", "c", "z", "image")
COLUMNS = ("frame", *AXES, "outcome", "objects", "error")


class FrameTable(Closable):
    """One row a frame, in their order; each is on its way to the disk as soon as it is known.

    Columns: `frame`, the number of the frame in its file, from 0, in the order of acquisition; `t`, `p`, `g`, `c`, `z`,
    `image`, its index; `outcome`: `done`, `failed`, `dropped`, or `missing` where some were dropped and some never
    came, and nobody knows which; `objects`, how many there are; `error`, why there are no labels. Frames behind the
    last row were not segmented.

    Parameters
    ----------
    path
        Where the table goes; a file there is replaced.

    Raises
    ------
    OutputError
        There can be no file there; of all methods, too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: TextIO = path.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error
        self._writer = csv.writer(self._file)
        self._write(COLUMNS)

    def add(self, frame: int, index: Index, outcome: str, objects: int | None = None, error: object = None) -> None:
        """Add a row; of an error, its text."""
        reason = "" if error is None else " ".join(str(error).split())
        self._write((frame, *(index.get(axis) for axis in AXES), outcome, objects, reason))

    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, row: Iterable[object]) -> None:
        try:
            self._writer.writerow(list(row))
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._path}: {error.strerror or error}")
