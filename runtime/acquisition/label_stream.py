"""A file of labels that is being written, OME-Zarr or OME-TIFF, by ome-writers."""

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

# What our part of a file's metadata is called.
NAMESPACE = "unetrt"
# Bytes that the end of a TIFF may need: its directory of a hundred thousand frames.
ROOM = 16 * 2**20
# Seconds without progress after which the disk is given up.
PATIENCE = 20.0


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
        self._first: weakref.ref[NDArray[Any]] | None = None  # of a TIFF: its writer keeps it until it has ended
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
        steps = [axis.count or 1 for axis in self._settings.dimensions[:-2] if axis.type != "position"]
        if self._is_tiff() and not self._has_ended():
            self._pass_over(-self._next % prod(steps[1:]))

    def _pass_over(self, frames: int) -> None:
        if not self._is_tiff() and frames:
            self._stream.skip(frames=frames)
            self._next += frames
            return
        # One by one: at its end the writer of TIFF gives what it still has to write five seconds.
        for _ in range(frames):
            self._append(np.zeros(self._shape(), self._settings.dtype))

    def _append(self, labels: NDArray[Any]) -> None:
        if not self._is_tiff():
            self._next += 1  # also where it raises: the place stays empty
            self._stream.append(labels)
            return
        if self._has_ended():
            raise self._lost()
        self._require_room(labels.nbytes)
        if self._first is None:
            labels = labels.copy()  # nobody but the writer keeps it
            self._first = weakref.ref(labels)
        self._stream.append(labels)
        del labels
        self._wait_for_disk()
        self._next += 1

    def _require_room(self, size: int) -> None:
        """Refuse a frame of so many bytes before it fills the disk: a TIFF that then cannot be ended cannot be read."""
        folder = Path(self._settings.output_path).parent
        if (free := shutil.disk_usage(folder).free) < size + ROOM:
            raise OutputError(f"{folder} has no room for more labels: {free / 2**20:.1f} MiB are free")

    def _wait_for_disk(self) -> None:
        """Wait until the frame that a TIFF's writer was given is in the file: its thread does not say when it failed.

        Frames lie one behind the other there, as they are, so that the size of the file tells.
        """
        path = Path(self._settings.output_path)
        size = (self._next + 1) * prod(self._shape()) * np.dtype(self._settings.dtype).itemsize
        until = time.monotonic() + PATIENCE
        while path.stat().st_size < size:
            if self._has_ended():
                raise self._lost()
            if time.monotonic() > until:
                raise OutputError(f"{path} took no labels for {PATIENCE:.0f} s: is the disk there?")
            time.sleep(0.001)

    def _require_all(self) -> None:
        """Count the frames of a TIFF that was finished: the last one may lack its end."""
        path = Path(self._settings.output_path)
        if self._is_tiff() and (there := _frames(path)) != self._next:
            raise OutputError(f"{path} holds {there} of {self._next} frames of labels: is the disk full?")

    def _has_ended(self) -> bool:
        """Tell whether the writer of a TIFF has ended by itself: it could not write."""
        return self._first is not None and self._first() is None

    def _lost(self) -> OutputError:
        path = self._settings.output_path
        return OutputError(f"{path} holds {self._next} frames of labels and takes no more: is the disk full?")

    def _shape(self) -> tuple[int, ...]:
        return tuple(axis.count or 1 for axis in self._settings.dimensions[-2:])

    def _is_tiff(self) -> bool:
        return self._settings.format.name == "ome-tiff"

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what ome-writers and those below it raise into an OutputError."""
        try:
            yield
        except OutputError:
            raise
        except (OSError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:
            raise OutputError(f"cannot write {self._settings.root_path}: {error}") from error


def _frames(path: Path) -> int:
    """Return how many frames a TIFF holds; 0 for one that nothing was written to."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return len(tiff.pages)
    except tifffile.TiffFileError:
        return 0
