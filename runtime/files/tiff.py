"""Images of TIFF files, and of sets of files that are one acquisition.

`opened` opens the images of one file: alone, it gives the planes that it holds; with the other files of its set, all
planes. A plane that is missing is never replaced by zeros. `acquisitions` finds the fields and their planes; tifffile
reads the planes, and the images of files without fields.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, few, one_line
from unetrt.runtime.files.acquisitions import Page, PlaneGrid, fields_of
from unetrt.runtime.files.atomic import require_regular
from unetrt.runtime.files.embedded import SIZES, require_size, require_sizes
from unetrt.runtime.files.formats import Images, Layout, MappedPixels, OpenedImage, stored_bytes
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.files.selection import Index, as_slice, ranges_at

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

    def series() -> tifffile.TiffPageSeries:
        present = {name: file for name, file in files.items() if file.is_symlink() or file.exists()}
        field.require_planes({path.name, *present})
        return _planes(tiff, path, field, key, present)

    layout = Layout(shape, axes, key.dtype, field.pixel_size or _pixel_size(tiff)).with_names(field.channels)
    return _opened_pages(layout, series, key, partial(stored_bytes, path, *files.values()), field.name)


def _opened_pages(
    layout: Layout,
    series: Callable[[], tifffile.TiffPageSeries],
    key: Page,
    stored: Callable[[], int],
    name: str = "",
    *,
    fill: bool = False,
) -> OpenedImage:
    """Return an image of pages, which are read as a whole or by parts.

    Parameters
    ----------
    layout, stored, name
        As in `OpenedImage`.
    series
        Returns the pages.
    key
        One of them, whose kind all have.
    fill
        Whether strips and tiles that are missing have the fill value.
    """
    keyframe, shape = key.keyframe, layout.shape
    samples = keyframe.shaped[-1:] if keyframe.shaped[-1] > 1 else ()
    by_parts = shape[len(shape) - 2 - len(samples) :] == (*keyframe.shaped[2:4], *samples)
    array = PagedPixels(series, shape, len(samples), fill=fill) if by_parts else None
    part = (1, *keyframe.shape[-1 - len(samples) :]) if keyframe.is_final else keyframe.chunks
    part = (1,) * (len(shape) - len(part)) + part if by_parts else part
    filled = partial(_opened_pages, layout, series, key, stored, name, fill=True)
    return OpenedImage(
        layout, part, stored, lambda: _decoded(series(), fill), name, array=array, filled=None if fill else filled
    )


def _planes(
    tiff: tifffile.TiffFile, path: Path, field: PlaneGrid, key: Page, files: Mapping[str, Path]
) -> tifffile.TiffPageSeries:
    """Return the pages of all planes of a field in its files; all files but `tiff` are closed."""
    pages: list[Page] = [None] * field.file.size
    file, place = field.file.ravel(), field.place.ravel()
    with ExitStack() as closing:
        for number in np.unique(file).tolist():
            name, where = field.files[number], np.flatnonzero(file == number)
            opened, first = (tiff, key) if name == path.name else (_opened_member(files[name]), None)
            if opened is not tiff:
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
        return tifffile.TiffPageSeries(pages, shape, key.dtype, axes, parent=tiff, multifile=bool(files))


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
        images.append(_opened_pages(layout, partial(_itself, series), series.keyframe, partial(stored_bytes, path)))
    return images


def _itself(series: tifffile.TiffPageSeries) -> tifffile.TiffPageSeries:
    return series


def _require_segments(page: Page) -> None:
    """Raise FrameError if a page lacks most of its strips or tiles."""
    needed, held = prod(page.chunked), len(page.dataoffsets)
    if needed > MISSING * held:
        raise FrameError(f"declares {needed} strips or tiles and holds {held}: save it again")


class PagedPixels:
    """The pixels of pages, read by strips or tiles, or by rows where they are not compressed.

    tifffile's Zarr store would fill strips and tiles that are missing, and the ends of those that are cut off, with
    zeros; `asarray` decodes whole pages.

    Parameters
    ----------
    series
        Returns the pages; called once, at the first read.
    shape
        Length of each axis; the last ones are rows, columns and, if `samples` is 1, samples.
    samples
        Number of axes of samples after the columns, 0 or 1.
    fill
        Whether strips and tiles that are missing have the fill value.
    """

    def __init__(
        self, series: Callable[[], tifffile.TiffPageSeries], shape: tuple[int, ...], samples: int, *, fill: bool
    ) -> None:
        self._series, self._shape, self._samples, self._fill = series, shape, samples, fill
        self._lock = threading.Lock()

    @cached_property
    def _pages(self) -> tifffile.TiffPageSeries:
        series = self._series()
        _require_all_planes(series)
        _ = series.keyframe.decode  # the function is made at the first use
        return series

    @cached_property
    def _mapped(self) -> MappedPixels | None:
        """All pixels, if they are one after the other in one file, where pages other than the first may be missing."""
        series = self._pages
        if series.is_multifile or not series.dataoffset:
            return None
        file = series.keyframe.parent
        dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
        return MappedPixels(Path(file.filehandle.path), dtype, self._shape, series.dataoffset)

    def __getitem__(self, index: Index, /) -> Array:
        """Return a part of the pixels; raises FrameError for a strip or tile that is missing or cut off."""
        with self._lock:
            mapped, series = self._mapped, self._pages
        if mapped is not None:
            return mapped[index].astype(series.dtype, copy=False)
        found = ranges_at(self._shape, index)
        split = len(found) - 2 - self._samples
        before, (rows, columns, *samples) = found[:split], found[split:]
        planes = np.arange(prod(self._shape[:split])).reshape(self._shape[:split])[np.ix_(*before)]
        parts = [self._plane(int(plane), rows, columns) for plane in planes.ravel()]
        pixels = np.stack(parts).reshape(*planes.shape, len(rows), len(columns), -1)
        pixels = pixels[..., as_slice(samples[0])] if samples else pixels[..., 0]
        whole: Array = pixels[tuple(slice(None) if isinstance(one, slice) else 0 for one in index)]
        return whole

    def _plane(self, plane: int, rows: range, columns: range) -> Array:
        """Return a part (h, w, samples) of a plane, by its index along the axes before the rows."""
        keyframe = self._pages.keyframe
        separate, depth = keyframe.shaped[:2]
        number, within = divmod(plane, separate * depth)
        with self._lock:
            page: Page = self._pages[number]
        place = divmod(within, depth)
        if keyframe.is_final:
            _require_segment(page, 0, number)
            dtype = np.dtype(keyframe.dtype).newbyteorder(keyframe.parent.byteorder)
            mapped = MappedPixels(Path(page.parent.filehandle.path), dtype, keyframe.shaped, page.dataoffsets[0])
            return mapped[(*place, as_slice(rows), as_slice(columns), slice(None))].astype(keyframe.dtype, copy=False)
        return self._from_segments(
            page, number, place, slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        )[:: rows.step, :: columns.step]

    def _from_segments(self, page: Page, number: int, place: tuple[int, int], rows: slice, columns: slice) -> Array:
        """Return a part (h, w, samples) of a page, whose separate sample and depth are `place`."""
        keyframe = page.keyframe
        size = rows.stop - rows.start, columns.stop - columns.start
        pixels: Array = np.full((*size, keyframe.shaped[-1]), keyframe.nodata, keyframe.dtype)
        for index in _segments(keyframe, place, rows, columns):
            content = self._content(page, index, number)
            if content is None:
                continue
            data, (_, depth, top, left, _), _ = keyframe.decode(
                content, index, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader
            )
            tile = data[place[1] - depth, : keyframe.imagelength - top, : keyframe.imagewidth - left]
            first, last = max(top, rows.start), min(top + tile.shape[0], rows.stop)
            begin, end = max(left, columns.start), min(left + tile.shape[1], columns.stop)
            there = slice(first - rows.start, last - rows.start), slice(begin - columns.start, end - columns.start)
            pixels[there] = tile[first - top : last - top, begin - left : end - left]
        return pixels

    def _content(self, page: Page, index: int, number: int) -> bytes | None:
        """Return the bytes of a strip or tile of a page; None for one that is missing where those are filled."""
        if not _require_segment(page, index, number, fill=self._fill):
            return None
        file = page.parent.filehandle
        with self._lock:
            is_closed = file.closed
            if is_closed:  # another file of the set
                file.open()
            try:
                file.seek(page.dataoffsets[index])
                content: bytes = file.read(page.databytecounts[index])
            finally:
                if is_closed:
                    file.close()
        if page.keyframe.compression in SIZES:
            require_size(page.keyframe, content)
        return content


def _segments(keyframe: Page, place: tuple[int, int], rows: slice, columns: slice) -> Iterator[int]:
    """Iterate over the indices of the strips or tiles that overlap a part of a page.

    Parameters
    ----------
    keyframe
        The page, or one of its kind.
    place
        Index of its separate sample, and of its depth.
    rows, columns
        The part.
    """
    thick, height, width = _segment_size(keyframe)
    _, depth, length, across = keyframe.shaped[:4]
    layers, down, beside = (-(-whole // part) for whole, part in ((depth, thick), (length, height), (across, width)))
    first = place[0] * layers + place[1] // thick
    for row in range(rows.start // height, -(-rows.stop // height)):
        for column in range(columns.start // width, -(-columns.stop // width)):
            yield (first * down + row) * beside + column


def _segment_size(keyframe: Page) -> tuple[int, int, int]:
    """Return depth, height and width of a strip or tile."""
    if keyframe.is_tiled:
        return keyframe.tiledepth, keyframe.tilelength, keyframe.tilewidth
    return 1, min(keyframe.rowsperstrip, keyframe.imagelength), keyframe.imagewidth


def _require_segment(page: Page, index: int, number: int, *, fill: bool = False) -> bool:
    """Return whether a page has a strip or tile; raises FrameError for one that is cut off, or missing unless `fill`.

    Parameters
    ----------
    page, number
        The page, and its index in the image.
    index
        Index of the strip or tile; 0 for all pixels of a page that are one after the other.
    """
    is_final = page.keyframe.is_final
    offset, count = (values[index] if index < len(values) else 0 for values in (page.dataoffsets, page.databytecounts))
    count = page.nbytes if is_final else count
    size = page.parent.filehandle.size
    if offset and count and offset + count <= size:
        return True
    what = "tile" if page.keyframe.is_tiled else "strip"
    where = (
        f"the pixels of page {number}"
        if is_final
        else f"the {what} at {_segment_place(page.keyframe, index)} of page {number}"
    )
    if offset and count:
        raise FrameError(
            f"is cut off: {where} end at byte {offset + count}, and {page.parent.filehandle.name} has {size}"
        )
    if not fill:
        raise FrameError(
            f"lacks {where}: save it again, or give --missing-chunks fill (missing_chunks) to read it as "
            f"{page.keyframe.nodata}"
        )
    return False


def _segment_place(keyframe: Page, index: int) -> str:
    """Return the rows and columns of a strip or tile."""
    _, height, width = _segment_size(keyframe)
    length, across = keyframe.shaped[2:4]
    row, column = divmod(index % (-(-length // height) * -(-across // width)), -(-across // width))
    top, left = row * height, column * width
    return f"rows {top}:{min(top + height, length)}, columns {left}:{min(left + width, across)}"


def _require_all_planes(series: tifffile.TiffPageSeries) -> None:
    if series.kind == "ome" and (lost := [str(index) for index, page in enumerate(series) if page is None]):
        raise FrameError(f"lacks {len(lost)} of its {len(series)} planes ({few(lost)}): save it again")


def _require_all_segments(series: tifffile.TiffPageSeries, fill: bool) -> None:
    """Raise FrameError for the first strip or tile that is cut off, or missing unless `fill`."""
    if series.dataoffset:
        return
    for number, page in enumerate(series.pages):
        if page is None:
            continue
        keyframe: Page = page.keyframe
        needed = 1 if keyframe.is_final else prod(keyframe.chunked)
        offsets, counts = (
            np.array([*values[:needed], *[0] * (needed - len(values))], np.int64)
            for values in (page.dataoffsets, page.databytecounts)
        )
        is_stored = (offsets > 0) & (counts > 0) & (offsets + counts <= page.parent.filehandle.size)
        for index in np.flatnonzero(~is_stored).tolist():
            _require_segment(page, index, number, fill=fill)


def _decoded(series: tifffile.TiffPageSeries, fill: bool) -> Array:
    """Return the pixels of a series; strips and tiles that are missing have the fill value if `fill`."""
    _require_all_planes(series)
    _require_all_segments(series, fill)
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
