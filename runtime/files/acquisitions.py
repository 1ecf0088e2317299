"""Acquisitions in TIFFs: their fields, and where the planes of each field are.

An acquisition is one file or a set of files, in which each file describes all of them. Its fields (positions) are
described by OME-XML (in each file, in one of them, or in `NAME.companion.ome`), by the index at the end of
Micro-Manager's image stacks, or by `NDTiff.index`. `fields_of` reads these metadata; no pixels are read here.
"""

import html
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.atomic import require_regular
from unetrt.runtime.files.pixel_size import PixelSize

# A page of a TIFF, in whichever of tifffile's two classes.
Page = Any

# Largest description of a TIFF, or companion file, in bytes: it is parsed in some hundred times its size.
DESCRIPTION = 32 * 2**20
# Most planes that metadata may describe.
PLANES = 2**21
# Missing planes, or files, that a message names.
NAMED = 3
# Suffix of a file of OME-XML that describes a set of TIFFs.
COMPANION = ".ome"
INDEX = "NDTiff.index"
# Overviews that Bio-Formats keeps as images of an OME-TIFF.
OVERVIEW = re.compile(r"\s*(label|macro|thumbnail|overview)(\s+image)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class PlaneGrid:
    """An image of an acquisition, and where its planes are.

    Attributes
    ----------
    name
        Its name in the metadata; can be empty.
    axes
        Letters of the axes of the grid of planes, slowest first: of T, Z and C.
    files
        Names of files in the folder of the metadata.
    file
        Index into `files` of each plane, an array with those axes, -1 where no file holds the plane.
    place
        Where in its file each plane is, of the same shape.
    find
        Returns a page, given its file, its place and a page of the same kind.
    indices
        Index of each plane of the grid along each axis, which differs from its position in a part of a grid.
    pixel_size
        Physical size of a pixel; None: not known.
    channels
        Name of each channel, samples included; empty: not known.
    """

    name: str
    axes: str
    files: tuple[str, ...]
    file: NDArray[np.int64]
    place: NDArray[np.int64]
    find: "Finder"
    indices: tuple[NDArray[np.int64], ...]
    pixel_size: PixelSize | None = None
    channels: tuple[str, ...] = ()

    @property
    def used(self) -> list[str]:
        """Names of the files that hold planes, in the order of their first planes."""
        first: dict[int, None] = {}
        for index in self.file.ravel().tolist():
            first.setdefault(index, None)
        return [self.files[index] for index in first if index >= 0]

    def within(self, name: str) -> "PlaneGrid":
        """Return the smallest grid with all planes in one file; the planes in others are missing there."""
        mine = self.file == (self.files.index(name) if name in self.files else -2)
        along = tuple(np.flatnonzero(mine.any(tuple(set(range(mine.ndim)) - {axis}))) for axis in range(mine.ndim))
        grid = np.ix_(*along)
        file = np.where(mine, self.file, -1)[grid]
        indices = tuple(index[where] for index, where in zip(self.indices, along, strict=True))
        kept = along[self.axes.index("C")]
        channels = self.channels
        if len(channels) == self.file.shape[self.axes.index("C")]:
            channels = tuple(channels[index] for index in kept)
        return replace(self, file=file, place=self.place[grid], indices=indices, channels=channels)

    def require_planes(self, present: Collection[str]) -> None:
        """Raise FrameError, which names the planes, unless all are in files that are `present`."""
        there = np.array([name in present for name in self.files] + [False])
        missing = np.flatnonzero(~there[self.file])
        if not len(missing):
            return
        if absent := [name for name in self.used if name not in present]:
            raise FrameError(
                f"{self._lacking(missing)}, which are in {few(absent)}: put them beside it, or give each file alone "
                "for its own planes"
            )
        raise self.incomplete(missing)

    def incomplete(self, missing: NDArray[np.int64]) -> FrameError:
        """Return the error for planes, by their positions in the flat grid, that no file holds."""
        return FrameError(f"{self._lacking(missing)}: save it again with all planes, or with its true size")

    def _lacking(self, missing: NDArray[np.int64]) -> str:
        grid, shown = self.file.shape, []
        for place in zip(*np.unravel_index(missing[:NAMED], grid), strict=True):
            parts = [
                f"{axis}={index[at]}"
                for axis, index, at, length in zip(self.axes, self.indices, place, grid, strict=True)
                if length > 1
            ]
            shown.append(" ".join(parts))
        return f"lacks {len(missing)} of its {self.file.size} planes ({few(shown, len(missing))})"


# A file, the place of a plane in it, and a page of the same kind or None -> the page of the plane.
Finder = Callable[[tifffile.TiffFile, int, "Page | None"], Page]


def few(names: Sequence[str], number: int | None = None) -> str:
    """Return the first of `number` names as text."""
    more = (len(names) if number is None else number) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def described_images(path: Path, listed: Iterable[Path]) -> list[tuple[str, tuple[Path, ...]]]:
    """Return the fields of the acquisition that a TIFF or a companion file belongs to.

    Parameters
    ----------
    path
        The file; it is read as `require_regular` allows.
    listed
        Files that can belong to the set.

    Returns
    -------
    For each field its name and the files that its metadata names, those that do not exist too. Empty for a TIFF whose
    metadata describe no fields.
    """
    if path.suffix.lower() == COMPANION:
        fields = _ome_fields(_xml(path), "", 1, is_companion=True)
    else:
        with tifffile.TiffFile(require_regular(path)) as tiff:
            fields = (fields_of(tiff, path, listed) or []) if tiff.pages else []
    return [(field.name, tuple(path.parent / name for name in field.used)) for field in fields]


def fields_of(tiff: tifffile.TiffFile, path: Path, others: Iterable[Path]) -> list[PlaneGrid] | None:
    """Return the fields that the metadata of a TIFF describe; None where they describe none.

    Raises FrameError, before tifffile believes it, also for a description that is too long or names too many planes.
    """
    description = tiff.pages.first.description
    if len(description) > DESCRIPTION:
        raise FrameError(f"has a description of {len(description)} characters: at most {DESCRIPTION} are read")
    named = ""
    if tiff.is_ome and (root := _root(description)) is not None:
        binary = _child(root, "BinaryOnly")
        named = "" if binary is None else binary.get("MetadataFile", "")
        metadata = _companion(path, named, root.get("UUID")) if named else root
        page = tiff.pages.first
        if metadata is not None and (
            fields := _ome_fields(metadata, path.name, page.samplesperpixel, is_companion=bool(named))
        ):
            if _has_size(metadata, page):
                return fields
            if {name for field in fields for name in field.used} - {path.name}:
                raise FrameError(f"describes planes of another size than its pages of {page.shape}: save it again")
    if tiff.is_mmstack:
        return _mmstack_fields(tiff, path, others)
    if tiff.is_micromanager and (tiff.micromanager_metadata or {}).get("MajorVersion", 0) >= 2:
        if (path.parent / INDEX).exists():
            return _ndtiff_fields(path)
        named = INDEX
    if named and len(tiff.pages) > 1:
        raise FrameError(f"holds {len(tiff.pages)} planes that {named} describes, which is missing: put it beside")
    return None


# OME-TIFF (docs.openmicroscopy.org, "OME-TIFF specification")


def _root(text: str) -> ET.Element | None:
    """Return the root of OME-XML, None where it is damaged; raises FrameError for endless or huge content."""
    if "<!DOCTYPE" in text:
        raise FrameError("has OME metadata with a document type, which can expand endlessly: save it without")
    planes: dict[str, int] = {}
    numbers = re.findall(
        r"""\b(Size[CZT]|PlaneCount|NumPlanes|First[CZT]|IFD)\s*=\s*["']\s*(\d+)""", html.unescape(text)
    )
    for name, number in numbers:
        planes[name] = max(planes.get(name, 0), int(number[:20]))
    grid = prod(planes.get(f"Size{axis}", 1) for axis in "CZT")
    if grid > PLANES or max(planes.values(), default=0) > PLANES:
        raise FrameError(f"has OME metadata of more than {PLANES} planes: save it as several files")
    try:
        return ET.fromstring(text)  # noqa: S314 # without a document type nothing expands
    except ET.ParseError:
        return None


def _xml(path: Path) -> ET.Element:
    """Return the root of the OME-XML in a companion file or in the description of a TIFF."""
    require_regular(path)
    if path.suffix.lower() == COMPANION:
        if path.stat().st_size > DESCRIPTION:
            raise FrameError(f"has {path.stat().st_size} bytes of OME metadata: at most {DESCRIPTION} are read")
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    else:
        with tifffile.TiffFile(path) as tiff:
            text = tiff.pages.first.description
        if len(text) > DESCRIPTION:
            raise FrameError(f"has a description of {len(text)} characters: at most {DESCRIPTION} are read")
    root = _root(text)
    if root is None:
        raise FrameError("holds no OME-XML that can be read: save it again")
    return root


def _companion(path: Path, name: str, uuid: str | None) -> ET.Element | None:
    """Return the OME-XML that a file names in place of its own, with the file's UUID; None where it is missing."""
    companion = path.parent / name
    if Path(name).name != name or not (companion.exists() or companion.is_symlink()):
        return None
    try:
        root = _xml(require_regular(companion))
    except FrameError as error:
        raise FrameError(f"refers to {companion}, which {error}") from error
    root.set("UUID", uuid or "")
    return root


def _children(element: ET.Element, name: str) -> list[ET.Element]:
    """Return the children of a name, whatever their namespace."""
    return [child for child in element if _tag(child) == name]


def _tag(element: ET.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _child(element: ET.Element, name: str) -> ET.Element | None:
    return next(iter(_children(element, name)), None)


def _number(element: ET.Element, name: str, default: int) -> int:
    """Return an attribute that is a whole number from 0."""
    try:
        return max(0, int(element.get(name, default)))
    except ValueError:
        return default


def _ome_fields(root: ET.Element, own: str, samples: int, *, is_companion: bool) -> list[PlaneGrid]:
    """Return the images that OME-XML describes.

    Parameters
    ----------
    root
        The metadata; their UUID is that of the file `own`.
    own
        Name of the file that is read; empty: none.
    samples
        Samples of a pixel, where the metadata do not say.
    is_companion
        Whether the metadata are in another file.
    """
    described = [(image, pixels) for image in _children(root, "Image") for pixels in _children(image, "Pixels")]
    # Some programs copy metadata, with their UUID, to all files of a set: a file that is named is found by its name.
    is_named = own.lower() in {
        element.get("FileName", "").lower() for element in root.iter() if _tag(element) == "UUID"
    }
    uuid = "" if is_named else (root.get("UUID") or "").strip()
    file_of = partial(_file_of, uuid=uuid, own=own)
    named = {file_of(data) for _, pixels in described for data in _children(pixels, "TiffData")}
    # A single file that was renamed still describes itself.
    renamed = len(named) == 1 and not is_companion
    fields = []
    for number, (image, pixels) in enumerate(described):
        name = (image.get("Name") or "").strip() or str(number)
        sizes = _sizes(pixels, samples)
        if sizes and (field := _ome_field(name, pixels, sizes, (lambda _: own) if renamed else file_of)):
            fields.append(field)
    # Labels and overviews of slides.
    return [field for field in fields if not OVERVIEW.fullmatch(field.name)] or fields


def _sizes(pixels: ET.Element, samples: int) -> dict[str, int]:
    """Return the number of planes along the axes of an element `Pixels`, slowest first; empty if it has no order.

    Samples of a pixel, which the metadata count as channels, are in one plane.
    """
    order = pixels.get("DimensionOrder", "XYZCT")[2:][::-1]
    if sorted(order) != ["C", "T", "Z"]:
        return {}
    channel = _child(pixels, "Channel")
    sizes = {axis: max(1, _number(pixels, f"Size{axis}", 1)) for axis in order}
    if channel is not None and "SamplesPerPixel" in channel.attrib:
        samples = max(1, _number(channel, "SamplesPerPixel", 1))
    sizes["C"] = max(1, sizes["C"] // samples)
    return sizes


def _ome_field(
    name: str, pixels: ET.Element, axes: Mapping[str, int], file_of: Callable[[ET.Element], str]
) -> PlaneGrid | None:
    """Return the image of an element `Pixels`; None where its planes are not in TIFFs.

    Parameters
    ----------
    name, pixels
        Of the image.
    axes
        Number of planes along each axis, slowest first.
    file_of
        Returns the name of the file of an element `TiffData`.
    """
    order, sizes = "".join(axes), tuple(axes.values())
    number = prod(sizes)
    file, place = np.full(number, -1), np.zeros(number, int)
    files: dict[str, int] = {}
    described = _children(pixels, "TiffData")
    starts = []
    for data in described:
        at = [_number(data, f"First{axis}", 0) for axis in order]
        inside = all(index < size for index, size in zip(at, sizes, strict=True))
        starts.append(int(np.ravel_multi_index(at, sizes)) if inside else None)
    begins = sorted({start for start in starts if start is not None} | {number})
    total = 0
    for data, start in zip(described, starts, strict=True):
        if start is None:  # ImageJ leaves such elements behind when it crops
            continue
        count = _number(data, "PlaneCount", _number(data, "NumPlanes", 1 if "IFD" in data.attrib else 0))
        if count == 0:  # all planes of the file
            count = begins[begins.index(start) + 1] - start if len(described) > 1 else number
        count, first = min(count, number - start), _number(data, "IFD", 0)
        total += count
        if total > PLANES:
            raise FrameError(f"has OME metadata of more than {PLANES} planes: save it as several files")
        file[start : start + count] = files.setdefault(file_of(data), len(files))
        place[start : start + count] = np.arange(first, first + count)
    if not files:
        return None
    indices = tuple(np.arange(size) for size in sizes)
    grid = PlaneGrid(name, order, tuple(files), file.reshape(sizes), place.reshape(sizes), _page_at, indices)
    names = tuple((channel.get("Name") or "").strip() for channel in _children(pixels, "Channel"))
    return replace(grid, pixel_size=_ome_size(pixels), channels=names if any(names) else ())


def _ome_size(pixels: ET.Element) -> PixelSize | None:
    """Return the physical size of an element `Pixels`, in µm if its axes have different units."""
    sizes: dict[str, tuple[float, str]] = {}
    for axis in "YXZ":
        with suppress(ValueError):
            unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
            sizes[axis] = float(pixels.get(f"PhysicalSize{axis}", "")), unit
    if "Y" not in sizes or "X" not in sizes or "reference frame" in {unit for _, unit in sizes.values()}:
        return None
    if len({unit for _, unit in sizes.values()}) > 1:
        each = {axis: PixelSize.found(size, size, unit=unit) for axis, (size, unit) in sizes.items()}
        y, x, z = (size and size.in_micrometres for size in map(each.get, "YXZ"))
        return None if y is None or x is None else PixelSize.found(y.y, x.x, z and z.x)
    return PixelSize.found(sizes["Y"][0], sizes["X"][0], sizes["Z"][0] if "Z" in sizes else None, sizes["Y"][1])


def _file_of(data: ET.Element, uuid: str, own: str) -> str:
    """Return the name of the file that an element `TiffData` refers to; `uuid` is that of the file `own`, or empty."""
    element = _child(data, "UUID")
    if element is None:
        return own
    text, name = (element.text or "").strip(), element.get("FileName", "")
    if own and (name.lower() == own.lower() or (text and text == uuid)):
        return own
    return name or text


def _has_size(root: ET.Element, page: Page) -> bool:
    """Return whether one of the images that OME-XML describes has the size of a page."""
    sizes = {
        (_number(pixels, "SizeY", 0), _number(pixels, "SizeX", 0))
        for image in _children(root, "Image")
        for pixels in _children(image, "Pixels")
    }
    return (page.imagelength, page.imagewidth) in sizes


def _page_at(tiff: tifffile.TiffFile, index: int, key: Page | None) -> Page:
    """Return a page of a file by its index."""
    pages = tiff.pages
    pages.useframes = True
    pages.set_keyframe(index if key is None else key.index)
    return pages.keyframe if key is None or index == key.index else pages[index]


# Micro-Manager


def _mmstack_fields(tiff: tifffile.TiffFile, path: Path, others: Iterable[Path]) -> list[PlaneGrid]:
    """Return the positions in Micro-Manager's image stacks, by the index of each file."""
    prefix = path.name.split("_MMStack")[0] + "_MMStack"
    tables, names = [_index_map(tiff)], [path.name]
    for other in others:
        if other.name.startswith(prefix) and other.name != path.name and other.parent == path.parent:
            with tifffile.TiffFile(require_regular(other, f"refers to {other}, which ")) as opened:
                if opened.is_mmstack:
                    tables.append(_index_map(opened))
                    names.append(other.name)
    rows = np.concatenate(tables)
    file = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    summary = (tiff.micromanager_metadata or {}).get("Summary") or {}
    labels = _position_names(summary)
    fields = []
    for position in np.unique(rows[:, 3]).tolist():
        mine = rows[:, 3] == position
        name = labels[position] if position < len(labels) else f"Pos{position}"
        planes = Planes(rows[mine][:, [2, 1, 0]], file[mine], rows[mine][:, 4], is_whole=len(names) > 1)
        grid = planes.field(name, names, _page_from)
        fields.append(_with_channels(grid, summary.get("ChNames")))
    return fields


def _with_channels(grid: PlaneGrid, names: object) -> PlaneGrid:
    """Return the grid with the names of the channels that it has, out of those of its acquisition."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return grid
    known = dict(enumerate(names))
    return replace(grid, channels=tuple(known.get(index, "") for index in grid.indices[2].tolist()))


def _index_map(tiff: tifffile.TiffFile) -> NDArray[np.int64]:
    """Return channel, slice, frame, position and offset of each plane of an image stack, (planes, 5)."""
    found: NDArray[np.int64] = (tiff.micromanager_metadata or {})["IndexMap"].astype(np.int64)
    if not len(found):
        raise FrameError("has an index of Micro-Manager without planes: save it again")
    return found


def _position_names(summary: Mapping[str, Any]) -> list[str]:
    """Return the names of the positions of an acquisition, as far as its summary has some."""
    positions = summary.get("StagePositions") or summary.get("InitialPositionList") or []
    if not isinstance(positions, list):
        return []
    labels = [position.get("Label") if isinstance(position, dict) else None for position in positions]
    return [label if isinstance(label, str) and label else f"Pos{index}" for index, label in enumerate(labels)]


def _page_from(tiff: tifffile.TiffFile, offset: int, _key: Page | None) -> Page:
    """Return a page of a file by its offset."""
    first = tiff.pages.first
    if offset == first.offset:
        return first
    return tifffile.TiffFrame(tiff, 0, offset=offset, keyframe=first)


def _ndtiff_fields(path: Path) -> list[PlaneGrid]:
    """Return the positions in the files of an NDTiff folder, by its index."""
    index = require_regular(path.parent / INDEX, f"refers to {path.parent / INDEX}, which ")
    entries = list(islice(tifffile.read_ndtiff_index(index), PLANES))
    files = list(dict.fromkeys(entry[1] for entry in entries))
    positions: dict[Any, list[Any]] = {}
    for entry in entries:
        # Tiles of a mosaic have a row and a column in place of a position.
        place = tuple(entry[0][axis] for axis in ("position", "row", "column") if axis in entry[0])
        positions.setdefault(place, []).append(entry)
    numbers: dict[str, dict[Any, int]] = {}
    fields = []
    for place, planes in positions.items():
        name = "_".join(f"Pos{part}" if isinstance(part, int) and len(place) == 1 else str(part) for part in place)
        at = [
            [_numbered(numbers, axis, entry[0].get(axis, 0)) for axis in ("time", "z", "channel")] for entry in planes
        ]
        file = np.array([files.index(entry[1]) for entry in planes])
        offsets = np.array([entry[2] for entry in planes])
        grid = Planes(np.array(at), file, offsets, is_whole=True).field(name or "0", files, _page_of_data)
        fields.append(_with_channels(grid, list(numbers.get("channel", ()))))
    return fields


def _numbered(numbers: dict[str, dict[Any, int]], axis: str, value: Any) -> int:
    """Return the index along an axis, which names such as those of channels get in the order of appearance."""
    if isinstance(value, int):
        return value
    known = numbers.setdefault(axis, {})
    return known.setdefault(value, len(known))


def _page_of_data(tiff: tifffile.TiffFile, offset: int, _key: Page | None) -> Page:
    """Return a page of a file by the offset of its pixels."""
    first = tiff.pages.first
    if offset == first.dataoffsets[0]:
        return first
    return tifffile.TiffFrame(tiff, 0, keyframe=first, dataoffsets=(offset,), databytecounts=first.databytecounts)


class Planes(NamedTuple):
    """Planes of a field in the order of an index.

    Attributes
    ----------
    at
        Their indices along T, Z and C, (planes, 3).
    file, place
        Where they are, as in `PlaneGrid`.
    is_whole
        Whether they are all planes of the field, so that an index between two others is missing.
    """

    at: NDArray[np.int64]
    file: NDArray[np.int64]
    place: NDArray[np.int64]
    is_whole: bool

    def field(self, name: str, files: Sequence[str], find: Finder) -> PlaneGrid:
        """Return them as a grid."""
        indices = tuple(map(np.unique, self.at.T))
        if self.is_whole and prod(int(index[-1] - index[0]) + 1 for index in indices) <= PLANES:
            indices = tuple(np.arange(index[0], index[-1] + 1) for index in indices)
        shape = tuple(map(len, indices))
        if prod(shape) > PLANES:
            raise FrameError(f"has an index of more than {PLANES} planes: save it as several files")
        where = tuple(np.searchsorted(index, column) for index, column in zip(indices, self.at.T, strict=True))
        file, place = np.full(shape, -1), np.zeros(shape, int)
        file[where], place[where] = self.file, self.place
        return PlaneGrid(name, "TZC", tuple(files), file, place, find, indices)
