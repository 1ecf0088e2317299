"""How far a TIFF has come on its way to the disk, whose writer has a thread of its own and does not say."""

import shutil
import time
import weakref
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.errors import OutputError

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
