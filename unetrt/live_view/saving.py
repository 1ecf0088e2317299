"""Where the labels of a live segmentation may go, asked before anything is loaded.

Label files of replayed images, named and made as `unetrt predict` does.
"""

import operator
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from PIL import Image

from unetrt.live_view.sources import FILE, FileFrame
from unetrt.runtime.acquisition import LabelWriter
from unetrt.runtime.errors import FrameError, OptionError, OutputError
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.files.images import SUFFIXES, read_stack, require_distinct, stem_of, write_labels
from unetrt.runtime.live.results import LiveResult, LiveSequence, ResultOutput

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


# Files that hold all labels of a run.
SERIES = (".ome.zarr", ".ome.tiff", ".ome.tif")


def output_for(
    place: Path,
    files: Sequence[Path] | None,
    *,
    loop: bool = False,
    most: int | None = None,
    overwrite: bool = False,
) -> ResultOutput:
    """Return what stores labels in `place`: one file for all, by its name, or a folder with one for each replayed file.

    Parameters
    ----------
    place
        A name that ends in .ome.zarr, .ome.tiff or .ome.tif, or a folder.
    files
        The files that are replayed; None for a camera.
    loop
        Whether they come again and again.
    most
        How many frames there are to be; None: all.
    overwrite
        Whether to replace a file that holds all labels.

    Raises
    ------
    OutputError
        Nothing can be written there, it would overwrite what is replayed, or there is such a file.
    OptionError
        A folder of files has no meaning here, or a file cannot hold labels of several sizes.
    """
    if place.name.lower().endswith(SERIES):
        _require_elsewhere(files or (), place)
        _require_one_size((files or ())[:most], place)  # each file is a frame or more
        return LabelWriter(place, overwrite=overwrite)
    if files is None:
        raise OptionError(f"{place} cannot hold a camera's labels: name a file that ends in {', '.join(SERIES)}")
    if place.suffix.lower() in SUFFIXES:
        raise OutputError(f"{place} would be a folder: name it {place.stem}, or one file {place.stem}.ome.zarr")
    if loop:
        raise OptionError("with --loop each label file would be written again and again: leave out --loop or --save")
    require_writable(place)
    require_distinct(list(files), place, overlays=False)
    return LabelFiles(place)


def size_of(file: Path) -> tuple[int, int]:
    """Return height and width of a file's frames, from its head alone where it may be a long stack.

    Raises
    ------
    FrameError
        It is no image that can be read.
    """
    kind = file.suffix.lower()
    if kind in (".npy", ".zarr") or kind not in SUFFIXES:
        height, width = read_stack(file).shape[-2:]
        return height, width
    try:
        if kind == ".png":
            with Image.open(file) as image:
                return image.height, image.width
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            return operator.index(page.imagelength), operator.index(page.imagewidth)
    except Exception as error:  # damage makes the readers of formats raise nearly anything
        raise FrameError(f"{file} cannot be read: {error}") from error


def _require_elsewhere(files: Sequence[Path], place: Path) -> None:
    """Raise OutputError where labels would replace what is replayed, or lie in it."""
    inputs = {file.resolve() for file in files}
    for taken in (place.resolve(), *place.resolve().parents):
        if taken in inputs:
            raise OutputError(f"{taken} is an input and would be overwritten: name another place for the labels")


def _require_one_size(files: Sequence[Path], place: Path) -> None:
    """Raise OptionError where files have frames of several sizes; those that cannot be read are told elsewhere."""
    first: tuple[Path, tuple[int, ...]] | None = None
    for file in files:
        with suppress(FrameError):
            size = size_of(file)
            if first is not None and size != first[1]:
                sizes = " and ".join(" x ".join(map(str, one)) for one in (first[1], size))
                raise OptionError(
                    f"{first[0].name} and {file.name} have {sizes} pixels, and {place.name} holds one size: "
                    f"name a folder, {stem_of(place)}, or replay those of one size"
                )
            first = first or (file, size)
