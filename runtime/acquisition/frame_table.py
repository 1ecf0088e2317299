"""A table of what became of each frame of an acquisition, as CSV beside its labels."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from unetrt.runtime.acquisition.places import Index
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import LiveResult

# Axes of an acquisition (useq, `Axis`): time, position, grid, channel, z; `image` is the camera's own number.
AXES = ("t", "p", "g", "c", "z", "image")
# Where things were, from the metadata of Micro-Manager's frames: when, which position of the stage, which channel.
SETTING = ("seconds", "position", "channel", "x_um", "y_um", "z_um")
COLUMNS = ("frame", *AXES, *SETTING, "outcome", "objects", "latency_ms", "error")


class FrameTable(Closable):
    """One row a frame, in their order; each is on its way to the disk as soon as it is known.

    Columns: `frame`, the number of the frame in its file, from 0, in the order of acquisition; `t`, `p`, `g`, `c`, `z`,
    `image`, its index; `seconds` since the acquisition began, the names of its `position` and `channel`, and `x_um`,
    `y_um`, `z_um` of the stage, where the frame's metadata tell; `outcome`: `done`, `failed`, `dropped`, or `missing`
    for a frame of the plan that never came; `objects`, how many there are; `latency_ms`, from the frame to its labels;
    `error`, why there are none. A frame that has no place in the file has a row without `frame`; frames of the plan
    behind the last that came have none. Where more than 1000 were dropped while one was segmented, the first of them
    have no index, or are `missing`.

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

    def add(self, frame: int | None, result: LiveResult, outcome: str, error: BaseException | None) -> None:
        """Add the row of a frame that came; `outcome` and `error` may be those of storing it."""
        index: Index = result.index if isinstance(result.index, Mapping) else {}
        cells = {"objects": result.objects, "latency_ms": f"{1e3 * result.latency:.1f}" if result.latency else None}
        reason = None if error is None else " ".join(str(error).split())
        self._add(frame, index, {**_setting(result.meta), **cells, "outcome": outcome, "error": reason})

    def add_absent(self, frame: int, index: Index, outcome: str) -> None:
        """Add the row of a frame of which nobody told."""
        self._add(frame, index, {"outcome": outcome})

    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _add(self, frame: int | None, index: Index, cells: Mapping[str, Any]) -> None:
        row = {"frame": frame, **{axis: index.get(axis) for axis in AXES}, **cells}
        self._write(row.get(column) for column in COLUMNS)

    def _write(self, row: Iterable[object]) -> None:
        try:
            self._writer.writerow(list(row))
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._path}: {error.strerror or error}")


def _setting(meta: Any) -> dict[str, Any]:
    """Return when, where and how a frame was taken, as far as its metadata (pymmcore-plus, `FrameMetaV1`) tell."""
    if not isinstance(meta, Mapping):
        return {}
    event, stage = meta.get("mda_event"), meta.get("position")
    time = meta.get("runner_time_ms")
    found: dict[str, Any] = {
        "seconds": f"{time / 1e3:.3f}" if isinstance(time, int | float) else None,
        "position": getattr(event, "pos_name", None),
        "channel": getattr(getattr(event, "channel", None), "config", None),
    }
    if isinstance(stage, Mapping):
        found |= {f"{axis}_um": stage.get(axis) for axis in "xyz"}
    return found
