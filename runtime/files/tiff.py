"""Images of TIFF files, and of sets of files that are one acquisition.

`opened` opens the images of one file: alone, it gives the planes that it holds; with the other files of its set, all
planes. A plane that is missing is never replaced by zeros. `acquisitions` finds the fields and their planes; tifffile
reads the planes, and the images of files without fields.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, few, one_line
from unetrt.runtime.files.acquisitions import Page, PlaneGrid, fields_of
from unetrt.runtime.files.atomic import require_regular
from unetrt.runtime.files.embedded import SIZES, require_sizes
from unetrt.runtime.files.formats import Images, Layout, OpenedImage, stored_bytes
from unetrt.runtime.files.pixel_size import PixelSize

Array = NDArray[Any]

# Strips or tiles that a TIFF may declare for each that it holds: a writer that was stopped leaves some out.
MISSING = 64
# Formats of whole slides, whose files hold one image besides overviews.
SLIDES = {"svs", "ndpi", "scn", "qpi", "bif", "avs", "philips"}
# Resolution in dots per inch up to which tags are those of screens and printers: 600 dpi are 42 µm.
PRINTED = 600


@contextmanager
def opened(path: Path, others: Collection[Path] = ()) -> Iterator[Images]:
    """Open a TIFF: its images with planes in it, with the planes in the `others`, the other files of its set."""
    with tifffile.TiffFile(path) as tiff:
        yield _images(tiff, path, others)


def _images(tiff: tifffile.TiffFile, path: Path, others: Collection[Path]) -> list[OpenedImage]:
    """Return the images of an open TIFF that have planes in it; without `others`, the planes in this file alone."""
    if not tiff.pages:
        raise FrameError("holds no image: save it again")
    fields = fields_of(tiff, path, others)
    if fields is None:
        return _plain(tiff, path)
    mine = [field for field in fields if path.name in field.used]
    if not mine:
        used = list(dict.fromkeys(name for field in fields for name in field.used))
        raise FrameError(f"describes planes of {few(used)} and none of this file: rename it back")
    if not others:
        mine = [field.within(path.name) if len(field.used) > 1 else field for field in mine]
    return [_field_image(tiff, path, field, others) for field in mine]


def _field_image(tiff: tifffile.TiffFile, path: Path, field: PlaneGrid, others: Iterable[Path]) -> OpenedImage:
    """Return an image of an acquisition; pages of other files are opened when it is read."""
    mine = field.files.index(path.name)
    first = np.flatnonzero(field.file == mine)[:1]
    try:
        key = field.find(tiff, int(field.place.ravel()[first[0]]), None)
    except IndexError:
        raise field.incomplete(first) from None
    _require_segments(key)
    if field.samples > 1 and field.samples > (held := key.keyframe.samplesperpixel):
        raise FrameError(f"describes {field.samples} samples per pixel, and its pages have {held}: save it again")
    shape, axes = _squeezed((*field.file.shape, *key.shape), field.axes + key.axes)
    files = {other.name: other for other in others if other.parent == path.parent and other.name in field.used}
    files.pop(path.name, None)

    def read() -> Array:
        present = {name: file for name, file in files.items() if file.is_symlink() or file.exists()}
        field.require_planes({path.name, *present})
        pixels: Array = _read_planes(tiff, path, field, key, present)
        return pixels

    layout = Layout(shape, axes, key.dtype, field.pixel_size or _pixel_size(tiff)).with_names(field.channels)
    return OpenedImage(layout, key.chunks, partial(stored_bytes, path, *files.values()), read, field.name)


def _read_planes(tiff: tifffile.TiffFile, path: Path, field: PlaneGrid, key: Page, files: Mapping[str, Path]) -> Array:
    """Read all planes of a field from its files."""
    pages: list[Page] = [None] * field.file.size
    file, place = field.file.ravel(), field.place.ravel()
    with ExitStack() as closing:
        for number in np.unique(file).tolist():
            name, where = field.files[number], np.flatnonzero(file == number)
            opened, first = (tiff, key) if name == path.name else (_opened_member(files[name]), None)
            closing.callback(opened.close)
            for at in where.tolist():
                try:
                    pages[at] = field.find(opened, int(place[at]), first)
                except IndexError:
                    raise field.incomplete(where[where >= at]) from None
                first = first or _same_kind(pages[at], key, name)
            if opened is not tiff:
                opened.close()  # opened again for its pixels: a set can have more files than may be open
        shape, axes = (*field.file.shape, *key.shape), field.axes + key.axes
        return _decoded(tifffile.TiffPageSeries(pages, shape, key.dtype, axes, parent=tiff, multifile=bool(files)))


def _opened_member(path: Path) -> tifffile.TiffFile:
    """Open another file of a set."""
    try:
        tiff = tifffile.TiffFile(require_regular(path))
    except FrameError as error:
        raise FrameError(f"refers to {path}, which {error}") from error
    except Exception as error:  # tifffile raises all kinds of exceptions for a damaged file
        raise FrameError(f"refers to {path}, which cannot be read: {one_line(error)}") from error
    if not tiff.pages:
        tiff.close()
        raise FrameError(f"refers to {path}, which holds no image: save it again")
    return tiff


def _same_kind(page: Page, key: Page, name: str) -> Page:
    """Return the first page of another file, whose pixels must be of the same kind as those of `key`."""
    if (page.shape, page.dtype, page.axes) != (key.shape, key.dtype, key.axes):
        raise FrameError(
            f"has planes of {key.shape} {key.dtype}, and {name} of {page.shape} {page.dtype}: an image has planes of "
            "one kind, save others apart"
        )
    _require_segments(page)
    return page


def _plain(tiff: tifffile.TiffFile, path: Path) -> list[OpenedImage]:
    """Return the images of a TIFF that describes no fields; reduced copies, masks and overviews are left out."""
    found = [series for series in tiff.series if prod(series.keyframe.shape)] or list(tiff.series)
    if found[0].kind in SLIDES:
        found = [max(found, key=lambda series: prod(series.keyframe.shape))]
    whole = [series for series in found if not (series.keyframe.is_reduced or series.keyframe.is_mask)]
    size, names = _pixel_size(tiff), _channel_names(tiff)
    images = []
    for series in whole or found:
        _require_segments(series.keyframe)
        layout = Layout(series.shape, series.axes, series.dtype, size).with_names(names)
        part = series.keyframe.chunks
        images.append(OpenedImage(layout, part, partial(stored_bytes, path), partial(_decoded, series)))
    return images


def _require_segments(page: Page) -> None:
    """Raise FrameError if a page lacks most of its strips or tiles."""
    needed, held = prod(page.chunked), len(page.dataoffsets)
    if needed > MISSING * held:
        raise FrameError(f"declares {needed} strips or tiles and holds {held}: save it again")


def _decoded(series: tifffile.TiffPageSeries) -> Array:
    """Return the pixels of a series."""
    if series.kind == "ome" and (lost := [str(index) for index, page in enumerate(series) if page is None]):
        raise FrameError(f"lacks {len(lost)} of its {len(series)} planes ({few(lost)}): save it again")
    if series.keyframe.compression in SIZES:
        require_sizes(series)
    pixels: Array = series.asarray()
    return pixels


def _squeezed(shape: Sequence[int], axes: str) -> tuple[tuple[int, ...], str]:
    """Return shape and axes without axes of length 1, as tifffile leaves them out; rows and columns stay."""
    kept = [(length, axis) for length, axis in zip(shape, axes, strict=True) if length != 1 or axis in "YX"]
    return tuple(length for length, _ in kept), "".join(axis for _, axis in kept)


def _channel_names(tiff: tifffile.TiffFile) -> tuple[str, ...]:
    """Return the names of channels in ImageJ's and Zeiss's metadata."""
    with suppress(Exception):  # metadata can hold anything
        if tiff.is_imagej:
            metadata = tiff.imagej_metadata or {}
            labels = metadata["Labels"][: metadata["channels"]]
            return tuple(map(str, labels)) if all(labels) and len(set(labels)) == len(labels) else ()
        if tiff.is_lsm:
            return tuple(map(str, (tiff.lsm_metadata or {})["ChannelColors"]["ColorNames"]))
    return ()


# Physical size of a pixel


def _pixel_size(tiff: tifffile.TiffFile) -> PixelSize | None:
    """Return the size of a pixel that the metadata of a program give, or else the resolution tags."""
    for is_of, size_of in PIXEL_SIZES.items():
        with suppress(Exception):  # metadata can hold anything
            if (is_of == "" or getattr(tiff, f"is_{is_of}")) and (size := size_of(tiff)):
                return size
    return None


def _lengths(metadata: Mapping[str, Any], *names: str) -> PixelSize | None:
    """Return the size from the values of Y, X and, if it is there, Z, in metres."""
    y, x, *z = (float(metadata.get(name) or 0) for name in names)
    size = PixelSize.found(y, x, z[0] if z else None, "m")
    return None if size is None else size.in_micrometres


def _imagej(tiff: tifffile.TiffFile) -> PixelSize | None:
    metadata = tiff.imagej_metadata or {}
    unit = str(metadata["unit"])
    if unit in ("inch", "cm"):
        return _resolution(tiff)
    y, x = (1 / _dots(tiff, name) for name in ("YResolution", "XResolution"))
    return PixelSize.found(y, x, metadata.get("spacing"), unit)


def _micromanager(tiff: tifffile.TiffFile) -> PixelSize | None:
    summary = (tiff.micromanager_metadata or {}).get("Summary") or {}
    plane = tiff.pages.first.tags.valueof(51123)
    sizes = [plane.get("PixelSizeUm") if isinstance(plane, dict) else None]
    sizes += [summary.get(name) for name in ("PixelSize_um", "PixelSizeUm")]
    size = next((float(size) for size in sizes if size), None)
    step = summary.get("z-step_um")
    return PixelSize.found(size, size, abs(float(step)) if step else None)


def _stk(tiff: tifffile.TiffFile) -> PixelSize | None:
    metadata = tiff.stk_metadata or {}
    distances = metadata.get("ZDistance", ())
    z = float(abs(distances[0])) if len(distances) else None
    unit = metadata["CalibrationUnits"]
    unit = unit.decode() if isinstance(unit, bytes) else unit
    return PixelSize.found(float(metadata["YCalibration"]), float(metadata["XCalibration"]), z, unit.strip(" \0"))


def _metaseries(tiff: tifffile.TiffFile) -> PixelSize | None:
    plane = (tiff.metaseries_metadata or {})["PlaneInfo"]
    if not plane.get("spatial-calibration-state"):
        return None
    return PixelSize.found(
        plane["spatial-calibration-y"], plane["spatial-calibration-x"], unit=plane["spatial-calibration-units"]
    )


def _fluoview(tiff: tifffile.TiffFile) -> PixelSize | None:
    dimensions = (tiff.fluoview_metadata or {})["Dimensions"]
    return PixelSize.of_axes({name: (float(size), unit) for name, _, _, size, unit in dimensions})


def _svs(tiff: tifffile.TiffFile) -> PixelSize | None:
    size = float(tifffile.tifffile.svs_description_metadata(tiff.pages.first.description)["MPP"])
    return PixelSize.found(size, size)


def _sem(tiff: tifffile.TiffFile) -> PixelSize | None:
    _, size, unit = (tiff.sem_metadata or {})["ap_image_pixel_size"]
    return PixelSize.found(size, size, unit=unit)


def _resolution(tiff: tifffile.TiffFile) -> PixelSize | None:
    """Return the size from resolution tags in inches or centimetres, unless they are those of a screen or a printer."""
    tags = tiff.pages.first.tags
    inch = {1: None, 2: 25400.0, 3: 10000.0}[int(tags.valueof("ResolutionUnit", 2))]
    if inch is None:
        return None
    y, x = (inch / _dots(tiff, name) for name in ("YResolution", "XResolution"))
    if min(y, x) >= 25400 / (PRINTED + 0.5):
        return None
    return PixelSize.found(*(float(f"{size:.9g}") for size in (y, x)))


def _dots(tiff: tifffile.TiffFile, name: str) -> float:
    """Return the value of a resolution tag in pixels per unit."""
    numerator, denominator = tiff.pages.first.tags[name].value
    return float(numerator) / float(denominator)


# Kind of metadata, the preferred first -> its pixel size; at last any TIFF.
PIXEL_SIZES: Mapping[str, Callable[[tifffile.TiffFile], PixelSize | None]] = {
    "micromanager": _micromanager,
    "imagej": _imagej,
    "lsm": lambda tiff: _lengths(tiff.lsm_metadata or {}, "VoxelSizeY", "VoxelSizeX", "VoxelSizeZ"),
    "stk": _stk,
    "metaseries": _metaseries,
    "fluoview": _fluoview,
    "svs": _svs,
    "sis": lambda tiff: _lengths(tiff.sis_metadata or {}, "pixelsizey", "pixelsizex"),
    "sem": _sem,
    "fei": lambda tiff: _lengths((tiff.fei_metadata or {})["Scan"], "PixelHeight", "PixelWidth"),
    "": _resolution,
}
