"""The tables beside a store of labels, CSV: one of the frames, and one of their objects.

Rows are appended with one write for each frame, and nothing is buffered, so that the files of a killed process are
readable up to the last whole frame. A frame's objects are written before its row: a frame whose row says `done` has
them all. A process that is killed in the middle of a write leaves a last row without an end of line.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.label_layout import Index, stored_text
from unetrt.runtime.acquisition.label_stream import require_columns
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError, one_line
from unetrt.runtime.files.outputs.object_table import texts_of
from unetrt.runtime.live.frame_metadata import CAMERAS, position_of
from unetrt.runtime.live.results import LiveResult

# First column of all tables.
FIRST = "frame"
# Axes of an acquisition (useq, `Axis`): time, position, grid, channel, z; `cam` is the camera of several
# (pymmcore-plus), `image` the camera's image number.
AXES = ("t", "p", "g", "c", "z", CAMERAS, "image")
# From the metadata of Micro-Manager's frames: time, names of stage position, camera and channel, stage coordinates.
SETTING = ("seconds", "position", "camera", "channel", "x_um", "y_um", "z_um")
COLUMNS = (FIRST, "frames", *AXES, "index", *SETTING, "outcome", "objects", "latency_ms", "error")
# Levels of containers in an index that are stored as such; what is deeper is stored as text.
LEVELS = 4


class CsvFile(Closable):
    """A CSV file to which rows are appended.

    Parameters
    ----------
    path
        The file, which must not exist.
    columns
        Names of its columns, the first row.

    Raises
    ------
    OutputError
        The file exists or cannot be created; from any method: it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise self._failure(error) from error
        try:
            self.write([columns])
        except OutputError:
            self._file.close()
            path.unlink()
            raise

    def write(self, rows: Iterable[Iterable[object]]) -> None:
        """Append rows with one write; after an error the file ends where it ended before."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        content, end = text.getvalue().encode("utf-8", "backslashreplace"), self._file.tell()
        try:
            while content:  # on a full disk the first write takes a part, and the next one fails
                content = content[self._file.write(content) :]
        except OSError as error:
            with suppress(OSError):
                self._file.seek(end)
                self._file.truncate()
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._path}: {error.strerror or error}")


class FrameTable(Closable):
    """A table with a row for each frame, and one for each run of frames that were dropped or are missing.

    Columns: `frame`, place of the frame in the order of acquisition, from 0; `frames`, the number of frames of the row,
    of which `frame` is the first; `t`, `p`, `g`, `c`, `z`, `cam`, `image`, the frame's index, and `index`, its other
    keys as JSON; `seconds` since the acquisition began, names of `position`, `camera` and `channel`, and stage
    coordinates `x_um`, `y_um`, `z_um`, if the frame's metadata have them; `outcome`: `done`, `failed`, `dropped`, or
    `missing` for planned frames that did not arrive; `objects`, their number; `latency_ms`, from `submit` to the
    labels; `error`, why there are no labels.

    A frame without a place in the store has a row without `frame`. Planned frames after the last one that was submitted
    have no row. Where frames of one gap were dropped and others are missing, it is not known which: their numbers are
    right, and the dropped ones are listed first.

    Parameters
    ----------
    path
        The file, which must not exist.

    Raises
    ------
    OutputError
        The file exists or cannot be created; from any method: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = CsvFile(path, COLUMNS)

    def add(self, frame: int | None, result: LiveResult, outcome: str, error: BaseException | None) -> None:
        """Add the row of a result; `outcome` and `error` may be those of storing its labels."""
        cells = {"objects": result.objects, "latency_ms": f"{1e3 * result.latency:.1f}" if result.latency else None}
        reason = None if error is None else one_line(error)
        setting = setting_of(result)
        self._add(frame, 1, result.index, {**setting, **cells, "outcome": outcome, "error": reason})

    def add_skipped(self, frame: int | None, frames: int, index: Index, outcome: str) -> None:
        """Add the row of a run of frames without results, with the index of the first."""
        self._add(frame, frames, index, {"outcome": outcome})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, frame: int | None, frames: int, index: Any, cells: Mapping[str, Any]) -> None:
        keys = index if isinstance(index, Mapping) else {}
        others = {str(key): at for key, at in keys.items() if key not in AXES} if keys else index
        more = json.dumps(others) if others not in ({}, None) else None
        row = {"frame": frame, "frames": frames, **{axis: keys.get(axis) for axis in AXES}, "index": more, **cells}
        self._file.write([[row.get(column) for column in COLUMNS]])


def plain(value: Any, levels: int = LEVELS) -> Any:
    """Return a value from outside as JSON has it: numpy's scalars and arrays as Python's, other types as text.

    Numbers that are not finite become None, and so does what has no text.
    """
    with suppress(Exception):  # types of a host program raise anything
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if isfinite(value) else None
        if levels and isinstance(value, Mapping):
            return {stored_text(str(key)): plain(one, levels - 1) for key, one in value.items()}
        if levels and isinstance(value, list | tuple):
            return [plain(one, levels - 1) for one in value]
        return stored_text(str(value))
    return None


def setting_of(result: LiveResult) -> dict[str, Any]:
    """Return the `SETTING` columns of a frame: of its stream, and of its metadata (pymmcore-plus, `FrameMetaV1`).

    The frames of a hardware sequence have no stage coordinates but those of their events.
    """
    meta: Mapping[str, Any] = result.meta if isinstance(result.meta, Mapping) else {}
    event, time, stage = meta.get("mda_event"), meta.get("runner_time_ms"), meta.get("position")
    at: Mapping[str, Any] = stage if isinstance(stage, Mapping) else {}
    found: dict[str, Any] = {
        "seconds": f"{time / 1e3:.3f}" if isinstance(time, int | float) else None,
        "position": position_of(meta),
        "camera": result.stream.camera or meta.get("camera_device"),
        "channel": result.stream.channel or getattr(getattr(event, "channel", None), "config", None),
    }
    for axis in "xyz":
        own = at.get(axis)
        found[f"{axis}_um"] = getattr(event, f"{axis}_pos", None) if own is None else own
    return {name: plain(value) for name, value in found.items()}


class ObjectsTable(Closable):
    """A table with a row for each object: `frame`, its place as in the table of frames, and the measurements.

    Parameters
    ----------
    path
        The file, created with the first objects.

    Raises
    ------
    OutputError
        From any method: the file cannot be created or written, or the measurements are others than those of the first
        frame.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: CsvFile | None = None
        self._names: tuple[str, ...] = ()

    def add(self, frame: int, measured: Mapping[str, NDArray[Any]]) -> None:
        """Add the objects of a frame: columns by name, of the same length."""
        if self._file is None:
            self._names = tuple(measured)
            self._file = CsvFile(self._path, (FIRST, *self._names))
        require_columns(self._names, measured)
        texts = [texts_of(name, values) for name, values in measured.items()]
        if rows := [(frame, *row) for row in zip(*texts, strict=True)]:
            self._file.write(rows)

    def close(self) -> None:
        """Close the file, if any."""
        if self._file is not None:
            self._file.close()


def require_table(path: Path) -> None:
    """Raise OutputError if something is at `path` that is neither a table of labels nor a link."""
    if path.is_symlink() or not path.exists():
        return
    try:
        with path.open("rb") as file:
            if file.read(len(FIRST) + 1) in (b"", f"{FIRST},".encode()):
                return
    except OSError:  # a folder, or a file that cannot be read
        pass
    raise OutputError(f"{path} is not a table of labels, and is not replaced: give another name, or remove it")


def remove_table(path: Path) -> None:
    """Remove a table of labels, or a link; raises OutputError if it is something else or cannot be removed."""
    require_table(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot replace {path}: {error.strerror or error}") from error
