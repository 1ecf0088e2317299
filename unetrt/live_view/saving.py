"""Outputs of `unetrt live --save`: one store for all labels, or a folder with a label file for each replayed image.

`output_for` checks everything that can be checked before a model is loaded, and returns a `LabelWriter` (OME-Zarr) or
`LabelFiles` (the files that `unetrt predict` writes).
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetrt.live_view.sources import FILE, FileFrame
from unetrt.runtime.acquisition.label_writer import SUFFIX, LabelWriter, store_stem
from unetrt.runtime.errors import FrameError, OptionError, OutputError
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.files.formats import AS_STORED, SUFFIXES, Reading
from unetrt.runtime.files.images import layout_of, read_stack, require_distinct, stack_shape, stacked_axes_of
from unetrt.runtime.files.outputs.label_tiff import write_labels
from unetrt.runtime.files.sources import ImageSource, stem_of
from unetrt.runtime.live.results import DroppedFrames, LiveResult, LiveSequence, ResultOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LabelFiles:
    """An output of a live segmenter that writes NAME.tif for each replayed file, atomically.

    A stack is written after its last frame, or before the next stack if its last frame was dropped; frames that were
    dropped or failed hold background. A file without any labels is not written.

    Parameters
    ----------
    folder
        Folder of the files; created with the first.
    reading
        How the replayed files are read.

    Attributes
    ----------
    written
        Number of files written.
    partial
        A line for each stack with empty frames: its name and their number.
    """

    def __init__(self, folder: Path, reading: Reading = AS_STORED) -> None:
        self.written = 0
        self.partial: list[str] = []
        self._folder, self._reading = folder, reading
        self._source: ImageSource | None = None  # of the current file
        self._planes: dict[int, NDArray[Any]] = {}
        self._frames = 0

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def dropped(self, frames: DroppedFrames) -> None:
        """Do nothing: a frame without labels holds background, and an image without any labels has no file."""

    def result(self, result: LiveResult) -> None:
        """Keep the labels of a frame, and write its file after the last one."""
        place: FileFrame = result.meta[FILE]
        if place.source != self._source:
            self.close()
            self._source, self._frames = place.source, place.frames
        if result.labels is not None:
            self._planes[place.frame] = result.labels
        if place.frame + 1 == place.frames:
            self.close()

    def close(self) -> None:
        """Write the current file, even if results are missing. Idempotent."""
        source, planes, self._source, self._planes = self._source, self._planes, None, {}
        if source is None or not planes:
            return
        labels = next(iter(planes.values()))
        if self._frames > 1:
            empty = np.zeros_like(labels)
            labels = np.stack([planes.get(frame, empty) for frame in range(self._frames)])
        layout = layout_of(source, self._reading)
        axes, lengths = ("TYX"[-labels.ndim :], labels.shape[:-2]) if layout is None else stacked_axes_of(layout)
        pixel_size = None if layout is None else layout.pixel_size
        labels = labels.reshape(*lengths, *labels.shape[-2:])
        write_labels(self._folder / f"{source.name}.tif", labels, axes=axes, pixel_size=pixel_size)
        self.written += 1
        if missing := self._frames - len(planes):
            self.partial.append(f"{source.path.name}: {missing} of {self._frames} frames are empty")


def output_for(
    place: Path,
    files: Sequence[ImageSource] | None,
    *,
    loop: bool = False,
    most: int | None = None,
    overwrite: bool = False,
    reading: Reading = AS_STORED,
) -> ResultOutput:
    """Return the output that stores labels in `place`: one store, by its suffix, or a folder of files.

    Parameters
    ----------
    place
        A store that ends in .ome.zarr, or a folder.
    files
        The replayed files; None for a camera.
    loop
        Whether they are repeated endlessly.
    most
        Maximum number of frames; None: no limit.
    overwrite
        Whether to replace an existing store.
    reading
        How files are read.

    Raises
    ------
    OutputError
        `place` cannot be written, exists, or contains a replayed file.
    OptionError
        A folder cannot hold labels of a camera or of a loop, or one store cannot hold labels of several sizes.
    """
    if place.name.lower().endswith((SUFFIX, ".ome.tif", ".ome.tiff")):
        store_stem(place)  # says what works instead of a TIFF
        _require_elsewhere(files or (), place)
        _require_one_size((files or ())[:most], place, reading)  # each file holds at least one frame
        return LabelWriter(place, overwrite=overwrite)
    if files is None:
        raise OptionError(f"{place} cannot hold a camera's labels: name a store that ends in {SUFFIX}")
    if place.suffix.lower() in SUFFIXES:
        raise OutputError(f"{place} would be a folder: name it {stem_of(place)}, or one store {stem_of(place)}{SUFFIX}")
    if loop:
        raise OptionError("with --loop each label file would be written again and again: leave out --loop or --save")
    require_writable(place)
    require_distinct(list(files), place)
    return LabelFiles(place, reading)


def size_of(file: ImageSource, reading: Reading = AS_STORED) -> tuple[int, int]:
    """Return (H, W) of a file's frames, from its header.

    Raises
    ------
    FrameError
        The file cannot be read as an image.
    """
    height, width = (stack_shape(file, reading) or read_stack(file, reading).shape)[-2:]
    return height, width


def _require_elsewhere(files: Sequence[ImageSource], place: Path) -> None:
    """Raise OutputError if `place` is a replayed file, or lies inside one, such as a Zarr folder."""
    inputs = {Path(os.path.realpath(file)) for file in files}
    real = Path(os.path.realpath(place))
    for taken in (real, *real.parents):
        if taken in inputs:
            raise OutputError(f"{taken} is an input and would be overwritten: name another place for the labels")


def _require_one_size(files: Sequence[ImageSource], place: Path, reading: Reading) -> None:
    """Raise OptionError if files have frames of several sizes; unreadable ones are reported by the replay."""
    first: tuple[ImageSource, tuple[int, ...]] | None = None
    for file in files:
        with suppress(FrameError):
            size = size_of(file, reading)
            if first is not None and size != first[1]:
                sizes = " and ".join(" x ".join(map(str, one)) for one in (first[1], size))
                raise OptionError(
                    f"{first[0].path.name} and {file.path.name} have {sizes} pixels, and {place.name} holds one size: "
                    f"name a folder, {stem_of(place)}, or replay files of one size"
                )
            first = first or (file, size)
