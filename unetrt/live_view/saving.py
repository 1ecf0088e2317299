"""Where the labels of a live segmentation may go, asked before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path

from unetrt.live_view.label_files import LabelFiles
from unetrt.runtime.acquisition import LabelWriter
from unetrt.runtime.artifacts import require_writable
from unetrt.runtime.errors import OptionError, OutputError
from unetrt.runtime.images import SUFFIXES, require_distinct
from unetrt.runtime.live.results import ResultOutput

# Files that hold all labels of a run.
SERIES = (".ome.zarr", ".ome.tiff", ".ome.tif")


def output_for(place: Path, files: Sequence[Path] | None, *, loop: bool = False) -> ResultOutput:
    """Return what stores labels in `place`: one file for all, by its name, or a folder with one for each replayed file.

    Parameters
    ----------
    place
        A name that ends in .ome.zarr, .ome.tiff or .ome.tif, or a folder.
    files
        The files that are replayed; None for a camera.
    loop
        Whether they come again and again.

    Raises
    ------
    OutputError
        Nothing can be written there, it would overwrite what is replayed, or there is such a file.
    OptionError
        A folder of files has no meaning here.
    """
    if place.name.lower().endswith(SERIES):
        return LabelWriter(place)
    if files is None:
        raise OptionError(f"{place} cannot hold a camera's labels: name a file that ends in {', '.join(SERIES)}")
    if place.suffix.lower() in SUFFIXES:
        raise OutputError(f"{place} would be a folder: name it {place.stem}, or one file {place.stem}.ome.zarr")
    if loop:
        raise OptionError("with --loop each label file would be written again and again: leave out --loop or --save")
    require_writable(place)
    require_distinct(list(files), place, overlays=False)
    return LabelFiles(place)
