"""Labels stored beside raw data while they are acquired."""

import os
import shutil
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Literal

from unetrt.runtime.acquisition.label_file import LabelFile
from unetrt.runtime.artifacts import writable_folder
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import BackendUnavailableError, OptionError, OutputError
from unetrt.runtime.live.results import LiveResult, LiveSequence

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
