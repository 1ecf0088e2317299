"""`LabelWriter`: an output that stores labels alongside the raw data of an acquisition.

Each sequence has a `LabelFile`: an OME-Zarr of labels (`LabelStream`), created with the first of them, and tables of
the frames and of their objects. `LabelLayout` assigns each frame its place. After each frame everything is on the disk:
a process may be killed at any moment.

    live = LiveSegmenter(model, policy="drop_oldest", outputs=[LabelWriter("labels.ome.zarr")])
    core.mda.run(sequence, output=["raw.ome.zarr", live])
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.label_layout import LabelLayout
from unetrt.runtime.acquisition.label_stream import (
    LABELS_ONLY,
    LabelStream,
    StoreKind,
    remove_store,
    require_replaceable,
)
from unetrt.runtime.acquisition.label_tables import FrameTable, ObjectsTable, plain, remove_table, require_table
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import BackendUnavailableError, OptionError, OutputError
from unetrt.runtime.files.atomic import writable_folder
from unetrt.runtime.files.sources import stem_of
from unetrt.runtime.live.results import DroppedFrames, LiveResult, LiveSequence, Outcome

# Suffixes of a store of labels, of the table of its frames, and of that of their objects.
SUFFIX, FRAMES, OBJECTS = ".ome.zarr", ".csv", "_objects.csv"
# Suffixes of files that are made from a store: unlike it, a TIFF is unreadable until it is finished.
TIFF = (".tif", ".tiff")
# Imported by `LabelWriter(...)`: half a second that the first frame does not wait for.
PACKAGES = ("ome_writers", "useq", "zarr", "yaozarrs")
# Outcome, in the table, of planned frames that did not arrive.
MISSING = "missing"


class LabelWriter(Closable):
    """An output of `LiveSegmenter` that stores labels as OME-Zarr, with CSV tables of the frames and their objects.

    Labels have the axes of the raw data, as Micro-Manager stores them, and their pixel size; a frame's labels have the
    place of the frame, by the index of its event. Places of frames that were dropped, failed or missing hold
    background, 0; the table `labels.csv` tells them apart: see `FrameTable`. With `LiveSegmenter(channel=...)` the
    channel axis holds that channel only. Several cameras at once are an axis, `cam`.

    Without a plan, or with one that fits no regular array (an event queue), time is the only axis, and the table lists
    the index of each frame.

    Measurements of the objects (`LiveResult.table`) are rows of `labels_objects.csv`, see `ObjectsTable`, and of the
    array `tables/objects` in the store, see `LabelStream.add_objects`.

    Each sequence has its own files: `labels.ome.zarr`, then `labels_001.ome.zarr`, `labels_002.ome.zarr`, with the next
    free number. A sequence without any labels has a table only. Everything is on the disk when `result` returns: also
    if the process is killed, the store is valid, and has the labels of each frame that the table lists as `done`. All
    frames of a sequence have one size: frames of another size are refused, each as an error of the output, and the rest
    is stored.

    Names of stage positions are not paths: characters that no name of a file has become _ in the store, and the table
    has the names as they are.

    Parameters
    ----------
    path
        `*.ome.zarr`.
    overwrite
        Whether to replace existing files: a store of labels, and its tables. Anything else at these paths is refused.
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

    # What `overwrite` may replace.
    kind = StoreKind.LABELS

    def __init__(
        self, path: str | Path, overwrite: bool = False, dtype: Literal["uint16", "uint32"] = "uint16"
    ) -> None:
        if dtype not in ("uint16", "uint32"):
            raise OptionError(f"labels of dtype {dtype!r} cannot be stored: use uint16, or uint32")
        self._stem = store_stem(Path(path)).absolute()  # the host program may change its working folder
        _import(PACKAGES)
        writable_folder(self._stem.parent)
        self._overwrite, self._dtype = overwrite, dtype
        if overwrite:
            _require_replaceable(self._stem, self.kind)
        elif taken := _taken(self._stem):
            raise OutputError(f"{taken} exists: give another name, remove it, or ask to overwrite it")
        self._files = 0  # number that the next files may have
        self._file: SequenceFiles | None = None

    def sequence_started(self, sequence: LiveSequence) -> None:  # noqa: ARG002
        """Finish the current files; the next frame begins others."""
        self.close()

    def result(self, result: LiveResult) -> None:
        """Store the labels of a frame and its rows of the tables; raises OutputError if that fails."""
        self._current(result.sequence).add(replace(result, index=plain(result.index)))

    def dropped(self, frames: DroppedFrames) -> None:
        """Leave out the places of dropped frames; raises OutputError if the table cannot be created."""
        self._current(frames.sequence).skip(frames)

    def sequence_finished(self, sequence: LiveSequence) -> None:  # noqa: ARG002
        """Finish the current files."""
        self.close()

    def close(self) -> None:
        """Finish the current files, if any; raises OutputError if they could not be written completely."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def opened(self, stem: Path, sequence: LiveSequence | None, replace: bool) -> "SequenceFiles":
        """Create the files of a sequence, for its first result; `stem` is their path without suffixes."""
        return LabelFile(stem, sequence, self._dtype, replace)

    def _current(self, sequence: LiveSequence | None) -> "SequenceFiles":
        """Return the files of the current sequence, which are created with its first frame."""
        if self._file is None:
            number = next(number for number in count(self._files) if self._is_free(number))
            self._file = self.opened(self._stem_of(number), sequence, self._overwrite)
            self._files = number + 1
        return self._file

    def _is_free(self, number: int) -> bool:
        stem = self._stem_of(number)
        if not self._overwrite:
            return _taken(stem) is None
        try:
            _require_replaceable(stem, self.kind)
        except OutputError:
            return False
        return True

    def _stem_of(self, number: int) -> Path:
        return with_suffix(self._stem, f"_{number:03}") if number else self._stem


def store_stem(path: Path) -> Path:
    """Return the path of a store of labels without its suffix; raises OutputError for another suffix."""
    name = path.name
    if name.lower().endswith(SUFFIX) and len(name) > len(SUFFIX):
        return path.with_name(name[: -len(SUFFIX)])
    stem = stem_of(path) if path.suffix else name
    better = f"{stem.strip('.') or 'labels'}{SUFFIX}"
    after = f", and convert them afterwards: unetrt convert {better} -o DIR" if name.lower().endswith(TIFF) else ""
    raise OutputError(f"labels cannot be stored as {name!r}: name them {better}{after}")


def with_suffix(stem: Path, suffix: str) -> Path:
    """Return the path of a file of a sequence."""
    return stem.with_name(stem.name + suffix)


def _require_replaceable(stem: Path, kind: StoreKind) -> None:
    """Raise OutputError unless what is at the paths of a sequence is a store of a kind and its tables."""
    require_replaceable(with_suffix(stem, SUFFIX), kind)
    for suffix in (FRAMES, OBJECTS):
        require_table(with_suffix(stem, suffix))


def _taken(stem: Path) -> Path | None:
    """Return an existing path among those of a sequence."""
    return next(
        (file for suffix in (SUFFIX, FRAMES, OBJECTS) if os.path.lexists(file := with_suffix(stem, suffix))), None
    )


def _import(packages: Iterable[str]) -> None:
    for name in packages:
        try:
            import_module(name)
        except ImportError as error:
            raise BackendUnavailableError(
                f"storing labels needs {name}, which cannot be imported ({error}): pip install 'unetrt[acquire]'"
            ) from error


class SequenceFiles(Protocol):
    """The files of one sequence, complete after each call; each method raises OutputError."""

    def add(self, result: LiveResult) -> None:
        """Store a result and its rows of the tables."""

    def skip(self, frames: DroppedFrames) -> None:
        """Note frames that were dropped."""

    def close(self) -> None:
        """Finish the files; idempotent."""


def new_tables(stem: Path, replace: bool, kind: StoreKind) -> tuple[FrameTable, ObjectsTable]:
    """Return the tables of a sequence; the store and the tables that they replace are removed. Raises OutputError."""
    if replace:
        # Without labels in this sequence, they would stay beside the new table.
        _require_replaceable(stem, kind)
        remove_store(with_suffix(stem, SUFFIX), kind)
        for suffix in (FRAMES, OBJECTS):
            remove_table(with_suffix(stem, suffix))
    return FrameTable(with_suffix(stem, FRAMES)), ObjectsTable(with_suffix(stem, OBJECTS))


class LabelFile(Closable):
    """The labels of one sequence and its tables; the store of labels is created with the first of them.

    Parameters
    ----------
    stem
        Path of its files without their suffixes.
    sequence
        The sequence; None if none was announced.
    instances
        dtype of object numbers.
    replace
        Whether existing files are replaced.

    Raises
    ------
    OutputError
        Something is at a path that is not replaced, or the table cannot be written.
    """

    def __init__(self, stem: Path, sequence: LiveSequence | None, instances: str, replace: bool) -> None:
        self._path, self._instances = with_suffix(stem, SUFFIX), np.dtype(instances)
        self._layout = LabelLayout(sequence)
        self._table, self._objects = new_tables(stem, replace, StoreKind.LABELS)
        self._stream: LabelStream | None = None
        self._shape: tuple[int, ...] = ()
        # Submission index that is expected next; None before the first frame of a sequence that was not announced.
        self._number = None if sequence is None else sequence.first
        self._dropped = 0  # frames since the last result
        self._next = 0  # place after the last result

    def skip(self, frames: DroppedFrames) -> None:
        """Note frames that were dropped: they are one row of the table, before that of the next result."""
        self._dropped += frames.count
        self._number = frames.last + 1

    def add(self, result: LiveResult) -> None:
        """Store the labels of a frame, and its rows and those of skipped frames.

        Raises
        ------
        OutputError
            The labels cannot be stored: their place stays empty, and the table states the reason.
        """
        if self._number is not None:
            self._dropped += max(0, result.number - self._number)
        self._number = result.number + 1
        place = None
        try:
            place = self._place(result)
            if result.labels is not None:
                self._store(place, result.labels, result.table)
        except OutputError as error:
            if result.labels is not None:
                self._table.add(place, result, Outcome.FAILED, error)
                raise
        self._table.add(place, result, result.outcome, result.error)

    def close(self) -> None:
        """Finish the files; idempotent. Raises OutputError if they could not be written completely."""
        with self._table, self._objects:
            if self._dropped:
                count = self._layout.places.count()
                self._skip(self._dropped if count is None else min(self._dropped, count - self._next))
            if self._stream is not None and self._next:
                self._stream.reach(self._layout.slot(self._next - 1))

    def _place(self, result: LiveResult) -> int:
        """Return the place of a result, after the rows of the places skipped before it."""
        place = self._layout.places.place(result)
        if place < self._next:
            raise OutputError(
                f"the place of index {result.index} has passed: its labels are not stored; submit frames in the order "
                "of the plan, each once"
            )
        self._skip(place - self._next)
        self._next = place + 1
        return place

    def _skip(self, places: int) -> None:
        """Add rows for places without results, and for dropped frames without places."""
        dropped, self._dropped = self._dropped, 0
        outcomes = {Outcome.DROPPED: min(places, dropped), MISSING: max(0, places - dropped)}
        for outcome, frames in outcomes.items():
            if frames:
                self._table.add_skipped(self._next, frames, self._layout.places.index(self._next), outcome)
                self._next += frames
        if dropped > places:
            self._table.add_skipped(None, dropped - places, {}, Outcome.DROPPED)

    def _store(self, place: int, labels: NDArray[Any], table: Mapping[str, NDArray[Any]] | None) -> None:
        dtype = labels.dtype if labels.dtype == np.uint8 else self._instances
        if self._stream is None:
            self._stream, self._shape = self._open(labels.shape, dtype), labels.shape
        if labels.shape != self._shape:
            came, holds = (" x ".join(map(str, shape)) for shape in (labels.shape, self._shape))
            raise OutputError(
                f"labels of {came} pixels do not fit {self._path.name}, which holds {holds}: begin another sequence"
            )
        if (highest := int(labels.max(initial=0))) > np.iinfo(dtype).max:
            raise OutputError(
                f"{highest} objects are more than {dtype} can number: use LabelWriter(..., dtype='uint32')"
            )
        self._stream.put(self._layout.slot(place), labels.astype(dtype))
        if table is not None:
            self._stream.add_objects(place, table)
            self._objects.add(place, table)

    def _open(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> LabelStream:
        about: dict[str, Any] = {
            LABELS_ONLY: "classes" if dtype == np.uint8 else "instances",
            "frames": self._path.name[: -len(SUFFIX)] + FRAMES,
        }
        if self._layout.renamed:
            about["names"] = self._layout.renamed
        return LabelStream(self._path, self._layout.settings(shape, dtype.name), about)
