"""Files that are written from the labels of images, for other programs.

`KINDS` is the table of kinds, as `--save` names them: where the file of an image goes, what writes it, and what has to
be installed. `Outputs` writes all kinds that a run asks for, of one image after the other; `opened_outputs` opens those
that span images, the tables and the sheet.

>>> with opened_outputs(Path("out"), ["labels", "geojson"], channels=1) as outputs:  # doctest: +SKIP
...     outputs.write(LabelledImage("a", labels, frames=frames, pixel_size=PixelSize(0.65, 0.65)))
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unetrt.runtime.errors import OptionError, shown

if TYPE_CHECKING:
    from unetrt.runtime.files.outputs.labelled_image import LabelledImage
    from unetrt.runtime.files.outputs.object_table import ObjectTable
    from unetrt.runtime.files.outputs.pictures import OverlaySheet
    from unetrt.runtime.model.spec import Annotation


class FileKind(NamedTuple):
    """A kind of file.

    Attributes
    ----------
    what
        In a few words, for the help.
    place
        Path in the output folder; `{}` is the name of the image. Without it, the file spans all images.
    writer
        Module of this package and function that writes an image; empty if the file spans all images.
    package, extra
        What has to be installed, and the extra that installs it; empty if nothing.
    by_windows
        Whether it is written of images that are larger than the memory.
    """

    what: str
    place: str
    writer: str
    package: str = ""
    extra: str = ""
    by_windows: bool = True


KINDS = {
    "labels": FileKind("label TIFF", "{}.tif", "labelled_image.write_label_tiff"),
    "ome-zarr": FileKind("OME-Zarr", "ome-zarr/{}.ome.zarr", "label_zarr.write_zarr", "zarr", "zarr"),
    "rois": FileKind("ROIs for ImageJ", "rois/{}.zip", "imagej_rois.write_rois", "roifile", "rois"),
    "geojson": FileKind("GeoJSON for QuPath", "geojson/{}.geojson", "geojson.write_geojson"),
    "outlines": FileKind("PNG of outlines", "outlines/{}.png", "pictures.write_outlines", by_windows=False),
    "table": FileKind("objects.csv", "objects.csv", ""),
    "parquet": FileKind("objects.parquet", "objects.parquet", "", "pyarrow", "parquet"),
}
TABLES = ("table", "parquet")
OVERLAY = "overlays/{}.png"
SHEET = "overlays/montage.png"


@dataclass(frozen=True)
class Outputs:
    """Writes the files of a run.

    Attributes
    ----------
    folder
        Where they go.
    kinds
        Names of `KINDS`.
    overlays
        Whether overlays/NAME.png is written too.
    tables
        Tables that the objects of each image are added to.
    sheet
        The sheet that each image is added to, if any.
    """

    folder: Path
    kinds: Sequence[str] = ("labels",)
    overlays: bool = True
    tables: Sequence["ObjectTable"] = ()
    sheet: "OverlaySheet | None" = None

    @property
    def shows_confidence(self) -> bool:
        """Whether a file shows the confidence of objects."""
        return bool({*TABLES, "geojson"} & set(self.kinds))

    def write(self, image: "LabelledImage") -> None:
        """Write the files of an image.

        Raises
        ------
        FrameError
            The image does not fit its labels or the tables; files of other kinds may be written.
        OutputError
            A file cannot be written.
        """
        if image.rows is not None:
            require_by_windows(self.kinds, image.name)
        for table in self.tables:
            table.add(image)
        for kind in map(KINDS.__getitem__, self.kinds):
            if kind.writer:
                module, function = kind.writer.split(".")
                writer = getattr(import_module(f"{__name__}.{module}"), function)
                writer(self.folder / kind.place.format(image.name), image)
        if self.overlays:
            from unetrt.runtime.files.outputs.pictures import write_overlay

            write_overlay(self.folder / OVERLAY.format(image.name), image)
        if self.sheet is not None:
            self.sheet.add(image)


@contextmanager
def opened_outputs(
    folder: Path,
    kinds: Sequence[str],
    *,
    channels: int,
    confident: bool = False,
    overlays: bool = False,
    sheet: int = 0,
) -> Iterator[Outputs]:
    """Yield what writes the files of a run; tables and the sheet are complete at the end.

    Parameters
    ----------
    folder
        Where they go.
    kinds
        Names of `KINDS`.
    channels
        Channels of the images; 0 if there are labels alone.
    confident
        Whether the objects have a confidence.
    overlays
        Whether overlays/NAME.png is written too.
    sheet
        Number of images on a sheet of all overlays; 0 for no sheet.

    Raises
    ------
    OptionError
        There is no such kind, or it needs a package that is not installed.
    OutputError
        A file cannot be written.
    """
    from unetrt.runtime.files.outputs.object_table import object_table
    from unetrt.runtime.files.outputs.pictures import OverlaySheet

    kinds = require_kinds(kinds)
    with ExitStack() as opened:
        names = [KINDS[kind].place for kind in kinds if kind in TABLES]
        tables = [opened.enter_context(object_table(folder / name, channels, confident)) for name in names]
        overlay_sheet = OverlaySheet(sheet) if sheet else None
        yield Outputs(folder, kinds, overlays, tables, overlay_sheet)
        if overlay_sheet is not None:
            overlay_sheet.write(folder / SHEET)


def require_kinds(kinds: Sequence[str]) -> list[str]:
    """Return kinds without repetitions; raises OptionError for one that is unknown or whose package is missing."""
    kinds = list(dict.fromkeys(kinds))
    for name in kinds:
        if name not in KINDS:
            raise OptionError(f"{shown(name)} is no kind of file: use {', '.join(KINDS)}")
        kind = KINDS[name]
        if kind.package and find_spec(kind.package) is None:
            raise OptionError(f"{name} needs {kind.package}: pip install 'unetrt[{kind.extra}]'")
    return kinds


def require_by_windows(kinds: Sequence[str], name: str) -> None:
    """Raise OptionError for kinds that are not written of an image larger than the memory, which has this name."""
    for kind in kinds:
        if not KINDS[kind].by_windows:
            raise OptionError(
                f"{KINDS[kind].what} needs all of {shown(name)} in memory, and it is too large: use --save geojson, "
                f"rois or ome-zarr instead of {kind}"
            )


def require_instances(kinds: Sequence[str], kind: "Annotation") -> None:
    """Raise OptionError for tables of class maps."""
    if kind != "instances" and {*TABLES} & {*kinds}:
        raise OptionError("--table lists instances, and class maps have none: add --as instances, or leave out --table")


def labels_of(name: str) -> list[str]:
    """Return the path in the output folder of the label TIFF of an image."""
    return places(["labels"], name)


def places(kinds: Sequence[str], name: str, *, overlays: bool = False, sheet: bool = False) -> list[str]:
    """Return the paths in the output folder that the files of an image have, and those of files that span images."""
    found = [KINDS[kind].place for kind in kinds] + [OVERLAY] * overlays + [SHEET] * sheet
    return [place.format(name) for place in found]
