"""`LabelWriter`: an output that stores labels alongside the raw data of an acquisition.

Each sequence has a `LabelFile`: a stream of labels, created with the first of them, and a `FrameTable`, a CSV file with
one row for each frame. `LabelLayout` assigns each frame its position in the file.

    live = LiveSegmenter(model, policy="drop_oldest", outputs=[LabelWriter("labels.ome.zarr")])
    core.mda.run(sequence, output=["raw.ome.zarr", live])
"""

import csv
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.label_layout import Index, LabelLayout
from unetrt.runtime.acquisition.label_stream import LabelStream, PositionStreams
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import BackendUnavailableError, OptionError, OutputError, one_line
from unetrt.runtime.files.atomic import writable_folder
from unetrt.runtime.live.results import DroppedFrames, LiveResult, LiveSequence, Outcome

SUFFIXES = (".ome.zarr", ".ome.tiff", ".ome.tif")
# Suffixes that are refused -> the suffix probably meant.
NEAREST = {".zarr": ".ome.zarr", ".tif": ".ome.tif", ".tiff": ".ome.tiff"}
# Imported by `LabelWriter(...)`: half a second that the first frame does not wait for.
PACKAGES = ("ome_writers", "useq")
WRITERS = {".ome.zarr": ("zarr", "yaozarrs"), ".ome.tiff": ("ome_types",), ".ome.tif": ("ome_types",)}
# Outcome, in the table, of a planned frame that did not arrive.
MISSING = "missing"


class LabelWriter(Closable):
    """An output of `LiveSegmenter` that stores labels as OME-Zarr or OME-TIFF, with a CSV table of the frames.

    Labels have the axes of the raw data, as Micro-Manager stores them, and their pixel size; a frame's labels have the
    position of the frame, by the index of its event. Positions of frames that were dropped, failed or missing hold
    background, 0; the table, `labels.csv`, has a row for each frame: see `FrameTable`. With
    `LiveSegmenter(channel=...)` the channel axis holds that channel only.

    Without a plan, or with one that fits no regular array (an event queue, several cameras at once), time is the only
    axis, and the table lists the index of each frame.

    Each sequence has its own files: `labels.ome.zarr`, then `labels_001.ome.zarr`, `labels_002.ome.zarr`, with the next
    free number. A sequence without any labels has a table only. A file is complete when its sequence ends, also when
    the acquisition is cancelled. All frames of a sequence have one size: frames of another size are refused, each as an
    error of the output, and the rest is stored.

    OME-TIFF of several stage positions is one file for each position, in a folder `labels`.

    Parameters
    ----------
    path
        `*.ome.zarr`, `*.ome.tiff` or `*.ome.tif`.
    overwrite
        Whether to replace existing files.
    dtype
        dtype of object numbers. `uint16` holds 65535 objects a frame and opens everywhere; more objects are an error of
        the output, never wrapped. Class indices are always uint8.

    Raises
    ------
    OutputError
        `path` has another suffix, exists, or cannot be written.
    OptionError
        The dtype is not supported.
    BackendUnavailableError
        A package of the extra `acquire` is missing.
    """

    def __init__(
        self, path: str | Path, overwrite: bool = False, dtype: Literal["uint16", "uint32"] = "uint16"
    ) -> None:
        if dtype not in ("uint16", "uint32"):
            raise OptionError(f"labels of dtype {dtype!r} cannot be stored: use uint16, or uint32")
        self._stem, self._suffix = _parts(Path(path))
        _import((*PACKAGES, *WRITERS[self._suffix]))
        writable_folder(self._stem.parent)
        if not overwrite and (taken := self._taken(self._stem)):
            raise OutputError(f"{taken} exists: give another name, remove it, or ask to overwrite it")
        self._overwrite, self._dtype = overwrite, dtype
        self._stems = self._free_stems()
        self._file: LabelFile | None = None

    def sequence_started(self, sequence: LiveSequence) -> None:  # noqa: ARG002
        """Finish the current file; the next frame begins another."""
        self.close()

    def result(self, result: LiveResult) -> None:
        """Store the labels of a frame and its row of the table; raises OutputError if that fails."""
        if self._file is None:
            stem = next(self._stems)
            if self._overwrite and (old := _with(stem, self._suffix)).exists():
                _remove(old)  # else, without labels in this sequence, it would stay beside the new table
            self._file = LabelFile(_with(stem, self._suffix), _with(stem, ".csv"), result.sequence, self._dtype)
        self._file.add(result)

    def dropped(self, frames: DroppedFrames) -> None:
        """Do nothing: positions without labels hold background."""

    def sequence_finished(self, sequence: LiveSequence) -> None:  # noqa: ARG002
        """Finish the current file."""
        self.close()

    def close(self) -> None:
        """Finish the current file, if any; raises OutputError if it could not be written completely."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _free_stems(self) -> Iterator[Path]:
        """Yield the path of each file without its suffix."""
        for number in count():
            stem = _with(self._stem, f"_{number:03}") if number else self._stem
            if self._overwrite or not self._taken(stem):
                yield stem

    def _taken(self, stem: Path) -> Path | None:
        """Return an existing path among those of a sequence; a TIFF of several positions is a folder."""
        folder = [stem] if self._suffix != ".ome.zarr" else []
        files = [_with(stem, self._suffix), _with(stem, ".csv"), *folder]
        return next((file for file in files if os.path.lexists(file)), None)


def _parts(path: Path) -> tuple[Path, str]:
    """Return a path without its suffix, and the suffix; raises OutputError for an unsupported one."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.with_name(path.name[: -len(suffix)]), suffix
    stem = path.name[: -len(path.suffix)] if path.suffix else path.name
    better = f"{stem or 'labels'}{NEAREST.get(path.suffix.lower(), '.ome.zarr')}"
    raise OutputError(f"labels cannot be stored as {path.name!r}: name them {better}, as OME-Zarr or OME-TIFF")


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise OutputError(f"cannot replace {path}: {error.strerror or error}") from error


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _import(packages: Iterable[str]) -> None:
    for name in packages:
        try:
            import_module(name)
        except ImportError as error:
            raise BackendUnavailableError(
                f"storing labels needs {name}, which cannot be imported ({error}): pip install 'unetrt[acquire]'"
            ) from error


class LabelFile(Closable):
    """The labels of one sequence and its table of frames; the file of labels is created with the first of them.

    Parameters
    ----------
    path
        File of labels, `*.ome.zarr`, `*.ome.tif` or `*.ome.tiff`; replaced if it exists.
    table
        Table of frames, `*.csv`; replaced if it exists.
    sequence
        The sequence; None if none was announced.
    instances
        dtype of object numbers.

    Raises
    ------
    OutputError
        The table cannot be written.
    """

    def __init__(self, path: Path, table: Path, sequence: LiveSequence | None, instances: str) -> None:
        self._path, self._instances = path, np.dtype(instances)
        self._layout = LabelLayout(sequence)
        self._table, self._table_name = FrameTable(table), table.name
        self._stream: LabelStream | PositionStreams | None = None
        self._shape: tuple[int, ...] = ()
        self._last = None if sequence is None else sequence.first - 1  # submission index of the last result
        self._stored = self._known = 0  # positions after the last labels, and after the last result

    def add(self, result: LiveResult) -> None:
        """Store the labels of a frame, and its row and those of skipped frames.

        Raises
        ------
        OutputError
            The labels cannot be stored: their position stays empty, and the table states the reason.
        """
        unreported = 0 if self._last is None else result.number - self._last - 1
        self._last = result.number
        place = None
        try:
            place, skipped = self._layout.places.place(result)
            for at, index in enumerate(skipped, place - len(skipped)):
                self._table.add_skipped(at, index, Outcome.DROPPED if unreported >= len(skipped) else MISSING)
            self._known = place + 1
            if result.labels is not None:
                self._store(place, result.labels)
        except OutputError as error:
            if result.labels is not None:
                self._table.add(place, result, Outcome.FAILED, error)
                raise
        self._table.add(place, result, result.outcome, result.error)

    def close(self) -> None:
        """Finish the file and its table; idempotent. Raises OutputError if they could not be written completely."""
        with self._table, self._stream or nullcontext() as stream:
            while stream is not None and self._stored < self._known:
                stream.skip(self._stored)
                self._stored += 1

    def _store(self, place: int, labels: NDArray[Any]) -> None:
        dtype = labels.dtype if labels.dtype == np.uint8 else self._instances
        if self._stream is None:
            self._stream = self._open(labels.shape, dtype)
            self._shape = labels.shape
        if labels.shape != self._shape:
            came, holds = (" x ".join(map(str, shape)) for shape in (labels.shape, self._shape))
            raise OutputError(
                f"labels of {came} pixels do not fit {self._path.name}, which holds {holds}: begin another sequence"
            )
        if (highest := int(labels.max(initial=0))) > np.iinfo(dtype).max:
            raise OutputError(
                f"{highest} objects are more than {dtype} can number: use LabelWriter(..., dtype='uint32')"
            )
        self._stream.put(place, labels.astype(dtype))
        self._stored = place + 1

    def _open(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> LabelStream | PositionStreams:
        kind = "classes" if dtype == np.uint8 else "instances"
        settings = self._layout.settings(self._path, shape, dtype.name)
        several = settings.format.name == "ome-tiff" and len(settings.positions) > 1
        stream = PositionStreams if several else LabelStream
        return stream(settings, {"labels": kind, "frames": self._table_name})


# Axes of an acquisition (useq, `Axis`): time, position, grid, channel, z; `image` is the camera's image number.
AXES = ("t", "p", "g", "c", "z", "image")
# From the metadata of Micro-Manager's frames: time, names of stage position and channel, stage coordinates.
SETTING = ("seconds", "position", "channel", "x_um", "y_um", "z_um")
COLUMNS = ("frame", *AXES, *SETTING, "outcome", "objects", "latency_ms", "error")


class FrameTable(Closable):
    """A CSV table with one row for each frame, in acquisition order; each row is flushed at once.

    Columns: `frame`, position in the file, from 0; `t`, `p`, `g`, `c`, `z`, `image`, the frame's index; `seconds` since
    the acquisition began, names of `position` and `channel`, and stage coordinates `x_um`, `y_um`, `z_um`, if the
    frame's metadata have them; `outcome`: `done`, `failed`, `dropped`, or `missing` for a planned frame that did
    not arrive; `objects`, their number; `latency_ms`, from `submit` to the labels; `error`, why there are no labels.

    A frame without a position in the file has a row without `frame`. Planned frames after the last one that arrived
    have no row. If more than 1000 frames in a row are dropped, the first of them have no index, or are `missing`.

    Parameters
    ----------
    path
        The file; replaced if it exists.

    Raises
    ------
    OutputError
        The file cannot be created; from any method: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: TextIO = path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise self._failure(error) from error
        self._writer = csv.writer(self._file)
        self._write(COLUMNS)

    def add(self, frame: int | None, result: LiveResult, outcome: str, error: BaseException | None) -> None:
        """Add the row of a result; `outcome` and `error` may be those of storing its labels."""
        index: Index = result.index if isinstance(result.index, Mapping) else {}
        cells = {"objects": result.objects, "latency_ms": f"{1e3 * result.latency:.1f}" if result.latency else None}
        reason = None if error is None else one_line(error)
        self._add(frame, index, {**_setting(result.meta), **cells, "outcome": outcome, "error": reason})

    def add_skipped(self, frame: int, index: Index, outcome: str) -> None:
        """Add the row of a frame without a result."""
        self._add(frame, index, {"outcome": outcome})

    def close(self) -> None:
        """Close the file."""
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
    """Return the `SETTING` columns that a frame's metadata (pymmcore-plus, `FrameMetaV1`) have."""
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
