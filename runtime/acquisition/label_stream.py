"""Files of labels that are written frame by frame, OME-Zarr or OME-TIFF, by ome-writers.

`LabelStream` is one file: frames at ascending positions, skipped ones filled with background. `PositionStreams` is one
OME-TIFF for each stage position. The TIFF writer of ome-writers works on its own thread and does not report
errors; `TiffProgress` follows the size of its file, so that a full or stalled disk is an error of the frame.
"""

import shutil
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError
from unetrt.runtime.machine import format_bytes

if TYPE_CHECKING:
    from ome_writers import AcquisitionSettings


# Key of our metadata in a file.
NAMESPACE = "unetrt"
# Maximum number of open OME-TIFF files, each with a writer thread.
MAX_FILES = 64
# Bytes reserved for the end of a TIFF: the directories of a hundred thousand frames.
RESERVED = 16 * 2**20
# Seconds without progress after which the disk is considered stalled.
PATIENCE = 20.0
# Interval in seconds at which a file's size is polled, and seconds of constant size after which a frame is written.
LOOK, REST = 0.001, 0.005


class LabelStream(Closable):
    """A file of labels: frames at ascending positions; skipped positions hold background, 0.

    Parameters
    ----------
    settings
        Path, axes and dtype of the file; for a TIFF those of one stage position.
    metadata
        Stored in the file under the key `unetrt`.

    Raises
    ------
    OutputError
        The file cannot be created; from any method: it cannot be written.
    """

    def __init__(self, settings: "AcquisitionSettings", metadata: Mapping[str, Any]) -> None:
        from ome_writers import create_stream

        self._settings = settings
        self._next = 0  # position after the last frame
        is_tiff = settings.format.name == "ome-tiff"
        self._tiff = TiffProgress(Path(settings.output_path), self._empty().nbytes) if is_tiff else None
        self._closed = False
        with self._failures():
            Path(settings.root_path).parent.mkdir(parents=True, exist_ok=True)
            self._stream = create_stream(settings)
            self._stream.set_global_metadata(NAMESPACE, metadata)

    def put(self, place: int, labels: NDArray[Any]) -> None:
        """Store labels (H, W), in the dtype of the file, at a position after all earlier ones; not modified later."""
        with self._failures():
            self._skip(place - self._next)
            self._append(labels)

    def skip(self, place: int) -> None:
        """Fill all positions up to and including `place` with background."""
        with self._failures():
            self._skip(place + 1 - self._next)

    def close(self) -> None:
        """Finish the file, which is then complete; idempotent."""
        if self._closed:
            return
        self._closed = True
        with self._failures():
            try:
                self._fill()
            finally:
                self._stream.close()
            self._require_all()

    def _fill(self) -> None:
        """Complete the last step of a TIFF's first axis: its frames are contiguous."""
        if self._tiff is not None and not self._tiff.is_given_up:
            for _ in range(self._lacking(self._next)):
                self._append_to(self._tiff, self._empty())

    def _lacking(self, frames: int) -> int:
        """Return how many frames complete the last step of the first axis of a TIFF of `frames` frames."""
        steps = [axis.count or 1 for axis in self._settings.dimensions[:-2] if axis.type != "position"]
        return -frames % prod(steps[1:])

    def _skip(self, frames: int) -> None:
        if self._tiff is None and frames > 0:
            self._next += frames
            self._stream.skip(frames=frames)
            return
        # One by one: when it is closed, the TIFF writer waits five seconds at most for frames in its queue.
        for _ in range(frames):
            self._append(self._empty())

    def _append(self, labels: NDArray[Any]) -> None:
        if self._tiff is not None:
            self._tiff.require(further=self._lacking(self._next + 1))
            self._append_to(self._tiff, labels)
            return
        self._next += 1  # also if it raises: the position stays empty
        self._stream.append(labels)

    def _append_to(self, tiff: "TiffProgress", labels: NDArray[Any]) -> None:
        self._next += 1
        self._stream.append(tiff.follow(labels))
        tiff.wait()

    def _require_all(self) -> None:
        """Check the number of frames of a finished TIFF."""
        path = Path(self._settings.output_path)
        if self._tiff is not None and (count := _frame_count(path)) != self._next:
            raise OutputError(f"{path} holds {count} of {self._next} frames of labels: is the disk full?")

    def _empty(self) -> NDArray[Any]:
        return np.zeros(tuple(axis.count or 1 for axis in self._settings.dimensions[-2:]), self._settings.dtype)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Convert the exceptions of ome-writers and its backends to OutputError."""
        try:
            yield
        except OutputError:
            raise
        except (OSError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:
            raise OutputError(f"cannot write {self._settings.root_path}: {error}") from error


class PositionStreams(Closable):
    """OME-TIFF of several stage positions: a folder with a `LabelStream` each, created with its first labels.

    The multi-file output of ome-writers is not used: its files refer to each other, and after a cancelled acquisition
    they are unreadable, since each lists frames that no file holds.

    Parameters
    ----------
    settings
        Settings of the whole, with an axis of positions.
    metadata
        Stored in each file, with the name of its position.

    Raises
    ------
    OutputError
        There are more than 64 positions; from any method: a file cannot be created or written.
    """

    def __init__(self, settings: "AcquisitionSettings", metadata: Mapping[str, Any]) -> None:
        self._settings, self._metadata = settings, metadata
        self._axes = tuple(axis.count or 1 for axis in settings.dimensions[:-2])
        self._positions = next(at for at, axis in enumerate(settings.dimensions) if axis.type == "position")
        if (count := len(settings.positions)) > MAX_FILES:
            raise OutputError(
                f"{count} positions need {count} open OME-TIFF files, {MAX_FILES} at most: store labels as .ome.zarr"
            )
        self._streams: dict[int, LabelStream] = {}
        self._opened = ExitStack()

    def put(self, place: int, labels: NDArray[Any]) -> None:
        """Store labels (H, W), in the dtype of the file, at a position after all earlier ones; not modified later."""
        position, within = self._split(place)
        if position not in self._streams:
            self._streams[position] = self._opened.enter_context(self._open(position))
        self._streams[position].put(within, labels)

    def skip(self, place: int) -> None:
        """Fill a position with background; a stage position without any labels has no file."""
        position, within = self._split(place)
        if position in self._streams:
            self._streams[position].skip(within)

    def close(self) -> None:
        """Finish all files; idempotent."""
        self._opened.close()

    def _split(self, place: int) -> tuple[int, int]:
        """Return the stage position of a flat index, and the flat index among the frames of that position."""
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
        changed = {"root_path": str(path), "dimensions": axes, "plate": None}
        settings = AcquisitionSettings.model_validate({**self._settings.model_dump(), **changed})
        return LabelStream(settings, {**self._metadata, "position": self._settings.positions[position].name})


class TiffProgress:
    """Follows the frames of an uncompressed TIFF on their way to the disk, by the size of its file.

    Parameters
    ----------
    path
        The file.
    size
        Bytes of a frame; frames lie contiguously.

    Raises
    ------
    OutputError
        From any method: the disk is full or stalled.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._given = 0  # frames that the writer was given
        self._offset = 0  # of the first frame in the file
        # The writer keeps the first frame until it ends, so that a dead reference shows that it has ended.
        self._first: weakref.ref[NDArray[Any]] | None = None
        self._stuck_once = False

    def follow(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return the array to pass to the writer; for the first frame a copy that only the writer references."""
        self._given += 1
        if self._first is None:
            labels = labels.copy()
            self._first = weakref.ref(labels)
        return labels

    def require(self, further: int = 0) -> None:
        """Raise unless the disk has room for a frame and `further` ones; a TIFF that is not finished is unreadable.

        After a stall it raises until all earlier frames are written.
        """
        if self._has_ended():
            raise self._lost()
        if self.is_given_up:
            raise self._stuck()
        self._stuck_once = False
        folder = self._path.parent
        if (free := shutil.disk_usage(folder).free) < RESERVED + (1 + further) * self._size:
            raise OutputError(f"{folder} has no room for more labels: {format_bytes(free)} are free")

    def wait(self) -> None:
        """Wait until all frames that the writer was given are in the file."""
        until = time.monotonic() + PATIENCE
        while not self._is_written():
            if self._has_ended():
                raise self._lost()
            if time.monotonic() > until:
                self._stuck_once = True
                raise self._stuck()
            time.sleep(LOOK)
        if self._given == 1:
            self._offset = self._resting_size() - self._size

    @property
    def is_given_up(self) -> bool:
        """Whether the writer has ended, or has stalled and not caught up."""
        return self._has_ended() or (self._stuck_once and not self._is_written())

    def _has_ended(self) -> bool:
        """Return whether the writer ended by itself, after an error."""
        return self._first is not None and self._first() is None

    def _is_written(self) -> bool:
        return self._path.stat().st_size >= self._offset + self._given * self._size

    def _resting_size(self) -> int:
        size = -1
        while size != (size := self._path.stat().st_size):
            time.sleep(REST)
        return size

    def _lost(self) -> OutputError:
        return OutputError(f"{self._path} cannot be extended, its writer has stopped: is the disk full?")

    def _stuck(self) -> OutputError:
        return OutputError(f"{self._path} has not grown for {PATIENCE:.0f} s: is the disk still connected?")


def _frame_count(path: Path) -> int:
    """Return the number of frames in a TIFF; 0 for an empty file."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return len(tiff.pages)
    except tifffile.TiffFileError:
        return 0
