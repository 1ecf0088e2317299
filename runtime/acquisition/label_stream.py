"""A file of labels that is being written, OME-Zarr or OME-TIFF, by ome-writers.

How far a TIFF has come on its way to the disk, whose writer has a thread of its own and does not say.
"""

import shutil
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError

if TYPE_CHECKING:
    from ome_writers import AcquisitionSettings


# Bytes that the end of a TIFF may need: its directory of a hundred thousand frames.
ROOM = 16 * 2**20
# Seconds without progress after which the disk is given up.
PATIENCE = 20.0
# Seconds between two looks, and for which the size of a file rests when a frame is written.
LOOK, REST = 0.001, 0.005


class TiffProgress:
    """Follows the frames of an uncompressed TIFF, each of `size` bytes, which lie one behind the other in its file.

    Parameters
    ----------
    path
        The file.
    size
        Bytes of a frame.

    Raises
    ------
    OutputError
        Of all methods: the disk is full, or takes nothing.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._given = 0  # frames that the writer was given
        self._offset = 0  # of the first one in the file
        self._first: weakref.ref[NDArray[Any]] | None = None  # the writer keeps it until it has ended
        self._stuck_once = False

    def give(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return what the writer is to be given in the place of a frame: the first is nobody else's."""
        self._given += 1
        if self._first is None:
            labels = labels.copy()
            self._first = weakref.ref(labels)
        return labels

    def require(self, further: int = 0) -> None:
        """Refuse a frame, behind which so many more are needed, before it fills the disk.

        A TIFF that cannot be ended cannot be read. Where the disk was given up, it has to show that it is there again.
        """
        if self._has_ended():
            raise self._lost()
        if self.is_given_up:
            raise self._stuck()
        self._stuck_once = False
        folder = self._path.parent
        if (free := shutil.disk_usage(folder).free) < ROOM + (1 + further) * self._size:
            raise OutputError(f"{folder} has no room for more labels: {free / 2**20:.1f} MiB are free")

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
        """Whether nothing is to be expected of the writer, as things are."""
        return self._has_ended() or (self._stuck_once and not self._is_written())

    def _has_ended(self) -> bool:
        """Tell whether the writer has ended by itself: it could not write."""
        return self._first is not None and self._first() is None

    def _is_written(self) -> bool:
        return self._path.stat().st_size >= self._offset + self._given * self._size

    def _resting_size(self) -> int:
        size = -1
        while size != (size := self._path.stat().st_size):
            time.sleep(REST)
        return size

    def _lost(self) -> OutputError:
        return OutputError(f"{self._path} takes no more labels: is the disk full?")

    def _stuck(self) -> OutputError:
        return OutputError(f"{self._path} took no labels for {PATIENCE:.0f} s: is the disk there?")


# What our part of a file's metadata is called.
NAMESPACE = "unetrt"


class LabelStream(Closable):
    """Frames of labels, put at rising places of a file; places that are passed over hold background, 0.

    Parameters
    ----------
    settings
        Where the file is, its axes and dtype; a TIFF's are those of one position.
    metadata
        What the file says of itself under `unetrt`.

    Raises
    ------
    OutputError
        The file cannot be made; of all methods: it cannot be written.
    """

    def __init__(self, settings: "AcquisitionSettings", metadata: Mapping[str, Any]) -> None:
        from ome_writers import create_stream

        self._settings = settings
        self._next = 0  # the place after the last frame
        self._tiff = TiffProgress(Path(settings.output_path), self._empty().nbytes) if _is_tiff(settings) else None
        self._closed = False
        with self._failures():
            Path(settings.root_path).parent.mkdir(parents=True, exist_ok=True)
            self._stream = create_stream(settings)
            self._stream.set_global_metadata(NAMESPACE, metadata)

    def put(self, place: int, labels: NDArray[Any]) -> None:
        """Store labels (H, W), in the dtype of the file, which nobody changes, at a place behind all before."""
        with self._failures():
            self._pass_over(place - self._next)
            self._append(labels)

    def pass_over(self, place: int) -> None:
        """Leave a place behind all before empty: the file holds it, without labels."""
        with self._failures():
            self._pass_over(place + 1 - self._next)

    def close(self) -> None:
        """Write what is still to be written; the file is then whole. Idempotent."""
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
        """End a TIFF, whose frames lie in a row without gaps, with a whole step of its first axis."""
        if self._tiff is not None and not self._tiff.is_given_up:
            for _ in range(self._left(self._next)):
                self._append_to(self._tiff, self._empty())

    def _left(self, frames: int) -> int:
        """Return how many a TIFF of so many frames lacks to a whole step of its first axis."""
        steps = [axis.count or 1 for axis in self._settings.dimensions[:-2] if axis.type != "position"]
        return -frames % prod(steps[1:])

    def _pass_over(self, frames: int) -> None:
        if self._tiff is None and frames > 0:
            self._next += frames
            self._stream.skip(frames=frames)
            return
        # One by one: at its end the writer of TIFF gives what it still has to write five seconds.
        for _ in range(frames):
            self._append(self._empty())

    def _append(self, labels: NDArray[Any]) -> None:
        if self._tiff is not None:
            self._tiff.require(further=self._left(self._next + 1))
            self._append_to(self._tiff, labels)
            return
        self._next += 1  # also where it raises: the place stays empty
        self._stream.append(labels)

    def _append_to(self, tiff: TiffProgress, labels: NDArray[Any]) -> None:
        self._next += 1
        self._stream.append(tiff.give(labels))
        tiff.wait()

    def _require_all(self) -> None:
        """Count the frames of a TIFF that was finished."""
        path = Path(self._settings.output_path)
        if self._tiff is not None and (there := _frames(path)) != self._next:
            raise OutputError(f"{path} holds {there} of {self._next} frames of labels: is the disk full?")

    def _empty(self) -> NDArray[Any]:
        return np.zeros(tuple(axis.count or 1 for axis in self._settings.dimensions[-2:]), self._settings.dtype)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what ome-writers and those below it raise into an OutputError."""
        try:
            yield
        except OutputError:
            raise
        except (OSError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:
            raise OutputError(f"cannot write {self._settings.root_path}: {error}") from error


def _is_tiff(settings: "AcquisitionSettings") -> bool:
    return bool(settings.format.name == "ome-tiff")


def _frames(path: Path) -> int:
    """Return how many frames a TIFF holds; 0 for one that nothing was written to."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return len(tiff.pages)
    except tifffile.TiffFileError:
        return 0
