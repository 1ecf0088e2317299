"""Where the labels of a live segmentation may go, asked before anything is loaded."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import tifffile

from unetrt.live_view.label_files import LabelFiles
from unetrt.runtime.acquisition import LabelWriter
from unetrt.runtime.artifacts import require_writable
from unetrt.runtime.errors import FrameError, OptionError, OutputError
from unetrt.runtime.images import SUFFIXES, read_stack, require_distinct, stem_of
from unetrt.runtime.live.results import ResultOutput

# Files that hold all labels of a run.
SERIES = (".ome.zarr", ".ome.tiff", ".ome.tif")


def output_for(
    place: Path, files: Sequence[Path] | None, *, loop: bool = False, overwrite: bool = False
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
        _require_one_size(files or (), place)
        try:
            return LabelWriter(place, overwrite=overwrite)
        except OutputError as error:
            hint = "overwrite=True does"  # as a program says it
            raise OutputError(str(error).replace(hint, "--overwrite does")) from error
    if files is None:
        raise OptionError(f"{place} cannot hold a camera's labels: name a file that ends in {', '.join(SERIES)}")
    if place.suffix.lower() in SUFFIXES:
        raise OutputError(f"{place} would be a folder: name it {place.stem}, or one file {place.stem}.ome.zarr")
    if loop:
        raise OptionError("with --loop each label file would be written again and again: leave out --loop or --save")
    require_writable(place)
    require_distinct(list(files), place, overlays=False)
    return LabelFiles(place)


def _require_one_size(files: Sequence[Path], place: Path) -> None:
    """Raise OptionError where files have frames of several sizes; those that cannot be read are told elsewhere."""
    first: tuple[Path, tuple[int, ...]] | None = None
    for file in files:
        with suppress(FrameError):
            size = _size(file)
            if first is not None and size != first[1]:
                sizes = " and ".join(" x ".join(map(str, one)) for one in (first[1], size))
                raise OptionError(
                    f"{first[0].name} and {file.name} have {sizes} pixels, and {place.name} holds one size: "
                    f"name a folder, {stem_of(place)}, or replay those of one size"
                )
            first = first or (file, size)


def _size(file: Path) -> tuple[int, ...]:
    """Return height and width of a file's frames; a TIFF, which may be a long stack, is not read for that."""
    if file.suffix.lower() not in (".tif", ".tiff"):
        return read_stack(file).shape[-2:]
    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            return page.imagelength, page.imagewidth
    except (OSError, ValueError, IndexError) as error:
        raise FrameError(f"{file} cannot be read: {error}") from error
