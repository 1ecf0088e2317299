"""Label files of replayed images, named and made as `unetrt predict` does."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetrt.live_view.replay import FILE, FileFrame
from unetrt.runtime.images import stem_of, write_labels
from unetrt.runtime.live.results import LiveResult, LiveSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LabelFiles:
    """An output of a live segmenter that writes NAME.tif for each replayed file, whole or not at all.

    A file without any labels is not written. A stack is written when the last of its results is there; frames that were
    dropped or failed are empty in it.

    Parameters
    ----------
    folder
        Where files go; made with the first.

    Attributes
    ----------
    written
        How many files were written.
    partial
        For each stack that has empty frames: its name and how many of how many they are.
    """

    def __init__(self, folder: Path) -> None:
        self.written = 0
        self.partial: list[str] = []
        self._folder = folder
        self._path: Path | None = None  # of the stack whose results are coming
        self._planes: dict[int, NDArray[Any]] = {}
        self._frames = 0

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def result(self, result: LiveResult) -> None:
        """Take the labels of a frame."""
        place: FileFrame = result.meta[FILE]
        if place.path != self._path:
            self.close()
            self._path, self._frames = place.path, place.frames
        if result.labels is not None:
            self._planes[place.frame] = result.labels
        if place.frame + 1 == place.frames:
            self.close()

    def close(self) -> None:
        """Write what there is of the file whose results were coming."""
        path, planes, self._path, self._planes = self._path, self._planes, None, {}
        if path is None or not planes:
            return
        labels = next(iter(planes.values()))
        if self._frames > 1:
            empty = np.zeros_like(labels)
            labels = np.stack([planes.get(frame, empty) for frame in range(self._frames)])
        write_labels(self._folder / f"{stem_of(path)}.tif", labels)
        self.written += 1
        if missing := self._frames - len(planes):
            self.partial.append(f"{path.name}: {missing} of {self._frames} frames are empty")
