"""Labels stored beside raw data while they are acquired.

OME-TIFF of several stage positions: a file for each, whole on its own.

The labels of one acquisition beside its raw data, with a table of its frames.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.label_layout import FrameTable, LabelLayout
from unetrt.runtime.acquisition.label_stream import LabelStream
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import BackendUnavailableError, OptionError, OutputError
from unetrt.runtime.files.atomic import writable_folder
from unetrt.runtime.live.results import LiveResult, LiveSequence, Outcome

if TYPE_CHECKING:
    from ome_writers import AcquisitionSettings


# Files that are open at once, each with a thread of its writer.
MOST = 64


class PositionStreams(Closable):
    """A `LabelStream` for each position, in a folder named as the file would be; a file is made with its first labels.

    ome-writers can do that too, but its files then describe each other, and after an acquisition that was cancelled
    none of them can be read: each promises frames that no file has.

    Parameters
    ----------
    settings
        Of the whole, with an axis of positions.
    metadata
        What each file says of itself, beside its position.

    Raises
    ------
    OutputError
        Of all methods: a file cannot be made or written.
    """

    def __init__(self, settings: "AcquisitionSettings", metadata: Mapping[str, Any]) -> None:
        self._settings, self._metadata = settings, metadata
        self._axes = tuple(axis.count or 1 for axis in settings.dimensions[:-2])
        self._positions = next(at for at, axis in enumerate(settings.dimensions) if axis.type == "position")
        if (count := len(settings.positions)) > MOST:
            raise OutputError(
                f"{count} positions would be {count} OME-TIFF files that are open at once, {MOST} at most: "
                "store labels as .ome.zarr"
            )
        self._streams: dict[int, LabelStream] = {}
        self._opened = ExitStack()

    def put(self, place: int, labels: NDArray[Any]) -> None:
        """Store labels (H, W), in the dtype of the file, which nobody changes, at a place behind all before."""
        position, within = self._split(place)
        if position not in self._streams:
            self._streams[position] = self._opened.enter_context(self._open(position))
        self._streams[position].put(within, labels)

    def pass_over(self, place: int) -> None:
        """Leave a place behind all before empty; a position without any labels has no file."""
        position, within = self._split(place)
        if position in self._streams:
            self._streams[position].pass_over(within)

    def close(self) -> None:
        """Finish all files; idempotent."""
        self._opened.close()

    def _split(self, place: int) -> tuple[int, int]:
        """Return the position of a place, and the place among those of its position."""
        steps = list(map(int, np.unravel_index(place, self._axes)))
        position = steps.pop(self._positions)
        sizes = [size for at, size in enumerate(self._axes) if at != self._positions]
        return position, int(np.ravel_multi_index(steps, sizes)) if sizes else 0

    def _open(self, position: int) -> LabelStream:
        from ome_writers import AcquisitionSettings

        folder = Path(self._settings.output_path)
        suffix = self._settings.format.suffix
        axes = [axis for axis in self._settings.dimensions if axis.type != "position"]
        path = folder / f"{folder.name}_p{position:03}{suffix}"
        own = {"root_path": str(path), "dimensions": axes, "plate": None}
        settings = AcquisitionSettings.model_validate({**self._settings.model_dump(), **own})
        return LabelStream(settings, {**self._metadata, "position": self._settings.positions[position].name})


# Of a frame of the plan that never came.
MISSING = "missing"


class LabelFile(Closable):
    """A file of labels, made with the first of them, and its table of frames, filled in the order of the frames.

    Parameters
    ----------
    path
        Where the labels go, `*.ome.zarr`, `*.ome.tif` or `*.ome.tiff`; what is there is replaced.
    table
        Where the table of frames goes, `*.csv`; what is there is replaced.
    sequence
        The sequence that the frames belong to; None where none was announced.
    instances
        The dtype of labels that number objects.

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
        self._last = None if sequence is None else sequence.first - 1  # number of the last frame that was told
        self._stored = self._known = 0  # the place after the last labels, and after the last frame that was told

    def add(self, result: LiveResult) -> None:
        """Store labels where they belong, and tell what became of the frame and of those before it.

        Raises
        ------
        OutputError
            They cannot be stored; their place stays empty, and the table says why.
        """
        untold = 0 if self._last is None else result.number - self._last - 1
        self._last = result.number
        place = None
        try:
            place, skipped = self._layout.places.place(result)
            for at, passed in enumerate(skipped, place - len(skipped)):
                self._table.add_absent(at, passed, Outcome.DROPPED if untold >= len(skipped) else MISSING)
            self._known = place + 1
            if result.labels is not None:
                self._store(place, result.labels)
        except OutputError as error:
            if result.labels is not None:
                self._table.add(place, result, Outcome.FAILED, error)
                raise
        self._table.add(place, result, result.outcome, result.error)

    def close(self) -> None:
        """Finish the file and its table; idempotent. Raises OutputError where not all could be written."""
        with self._table, self._stream or nullcontext() as stream:
            while stream is not None and self._stored < self._known:
                stream.pass_over(self._stored)
                self._stored += 1

    def _store(self, number: int, labels: NDArray[Any]) -> None:
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
        self._stream.put(number, labels.astype(dtype))
        self._stored = number + 1

    def _open(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> LabelStream | PositionStreams:
        kind = "classes" if dtype == np.uint8 else "instances"
        settings = self._layout.settings(self._path, shape, dtype.name)
        several = settings.format.name == "ome-tiff" and len(settings.positions) > 1
        stream = PositionStreams if several else LabelStream
        return stream(settings, {"labels": kind, "frames": self._table_name})


SUFFIXES = (".ome.zarr", ".ome.tiff", ".ome.tif")
# What another ending probably stands for.
NEAREST = {".zarr": ".ome.zarr", ".tif": ".ome.tif", ".tiff": ".ome.tiff"}
# What labels are stored with: half a second of imports, which the first frame is not to wait for.
PACKAGES = ("ome_writers", "useq")
WRITERS = {".ome.zarr": ("zarr", "yaozarrs"), ".ome.tiff": ("ome_types",), ".ome.tif": ("ome_types",)}


class LabelWriter(Closable):
    """An output of `LiveSegmenter` that stores labels as OME-Zarr or OME-TIFF, with a table of the frames beside them.

    ::

        live = LiveSegmenter(model, policy="drop_oldest", outputs=[LabelWriter("labels.ome.zarr")])
        core.mda.run(sequence, output=["raw.ome.zarr", live])

    Labels have the axes of the raw data, as Micro-Manager stores them, and their pixel size: those of a frame lie where
    the frame lies, by the index of its event. Frames that were dropped or failed, or never came, leave their place
    empty: background, 0. Which ones they are says the table, `labels.csv`, with a row for each frame: see `FrameTable`.
    With `LiveSegmenter(channel=...)` the axis of channels holds that channel alone.

    Where no plan was announced, or one that fits no regular array (an event queue, several cameras at once), the file
    is a series with time as its only axis, and the table says which index each frame has.

    Each sequence has files of its own: `labels.ome.zarr`, then `labels_001.ome.zarr`, `labels_002.ome.zarr`, the next
    numbers that are free; one of which no frame has labels has its table alone. A file is whole when its sequence ends,
    however that ends. A sequence is one file: frames whose size changes on the way are refused, each as an error of the
    output, and the rest is stored.

    OME-TIFF is one file for each position of the stage, in a folder `labels`, where there are several.

    Parameters
    ----------
    path
        `*.ome.zarr`, `*.ome.tiff` or `*.ome.tif`.
    overwrite
        Whether to replace what is there.
    dtype
        What numbers objects: `uint16` holds 65535 in a frame and opens everywhere; more than it holds is an error of
        the output, never wrapped. Classes are always uint8.

    Raises
    ------
    OutputError
        `path` has another ending, exists, or cannot be written.
    OptionError
        There is no such dtype for labels.
    BackendUnavailableError
        Packages of the extra `acquire` are missing.
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
        self._stems = self._names()
        self._file: LabelFile | None = None

    def sequence_started(self, sequence: LiveSequence) -> None:  # noqa: ARG002
        """Finish the file of what came before; the next frame begins another."""
        self.close()

    def result(self, result: LiveResult) -> None:
        """Store the labels of a frame, or note that it has none; raises OutputError where that cannot be."""
        if self._file is None:
            stem = next(self._stems)
            if self._overwrite and (old := _with(stem, self._suffix)).exists():
                _remove(old)  # where no frame has labels, those of another run do not stay beside the new table
            self._file = LabelFile(_with(stem, self._suffix), _with(stem, ".csv"), result.sequence, self._dtype)
        self._file.add(result)

    def sequence_finished(self, sequence: LiveSequence) -> None:  # noqa: ARG002
        """Finish the file."""
        self.close()

    def close(self) -> None:
        """Finish the file that is open, if one is; raises OutputError where not all of it could be written."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _names(self) -> Iterator[Path]:
        """Yield the path of each file without its suffix."""
        for number in count():
            stem = _with(self._stem, f"_{number:03}") if number else self._stem
            if self._overwrite or not self._taken(stem):
                yield stem

    def _taken(self, stem: Path) -> Path | None:
        """Return what exists of the files of a sequence; where a TIFF has several positions it is a folder."""
        folder = [stem] if self._suffix != ".ome.zarr" else []
        files = [_with(stem, self._suffix), _with(stem, ".csv"), *folder]
        return next((file for file in files if os.path.lexists(file)), None)


def _parts(path: Path) -> tuple[Path, str]:
    """Return a path without its suffix, and the suffix; raises OutputError where it is none of a format for labels."""
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
                f"labels are stored with {name}, which is not there ({error}): pip install 'unetrt[acquire]'"
            ) from error
