"""Files of microscopes' programs: CZI of ZEISS ZEN, ND2 of Nikon NIS-Elements, LIF of Leica LAS X.

Each is read with one package, all of which the extra `formats` installs: pylibCZIrw, by ZEISS; nd2; liffile. Each
scene of a CZI file, position of an ND2 file and image of a LIF file is an image, with its name, its pixel size and the
names of its channels.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from unetrt.runtime.errors import FrameError, few
from unetrt.runtime.files.formats import Images, Layout, OpenedImage, stored_bytes
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.files.selection import Index, LockedParts, ranges_at

if TYPE_CHECKING:
    from liffile import LifImageABC
    from nd2 import ND2File
    from pylibCZIrw.czi import CziReader

Array = NDArray[Any]

# Planes that a message names.
NAMED = 4


@contextmanager
def opened(path: Path) -> Iterator[Images]:
    """Open a file of a microscope's program, by its suffix."""
    signature, images_of = READERS[path.suffix.lower()]
    with path.open("rb") as file:
        if file.read(len(signature)) != signature:
            raise UnidentifiedImageError
    with images_of(path) as images:
        yield images


def _without_only_name(images: Sequence[OpenedImage]) -> list[OpenedImage]:
    """Return the images of a file, without the name of an only one."""
    return list(images) if len(images) > 1 else [image._replace(name="") for image in images]


# Dimensions of a CZI file besides S (scene), M (mosaic), Y and X: view, phase, illumination, rotation, block, time,
# plane and channel (libCZI, "DimensionIndex").
CZI_PLANES = "VHIRBTZC"
# Usual side of a tile in pixels, that of a camera; the package does not say what the tiles of a file are.
CZI_TILE = 2048
# Pixel type of a CZI file -> dtype, and whether there are three colours, stored as BGR.
CZI_PIXELS: Mapping[str, tuple[str, bool]] = {
    "Gray8": ("u1", False),
    "Gray16": ("u2", False),
    "Gray32Float": ("f4", False),
    "Bgr24": ("u1", True),
    "Bgr48": ("u2", True),
    "Bgr96Float": ("f4", True),
}


@contextmanager
def _czi(path: Path) -> Iterator[Images]:
    from pylibCZIrw import czi

    with czi.open_czi(str(path)) as file:
        scenes = file.scenes_bounding_rectangle_no_pyramid or {None: file.total_bounding_rectangle_no_pyramid}
        planes, about = _czi_planes(file), _czi_metadata(file.raw_metadata)
        found = (_Scene(number, place, planes[number]) for number, place in scenes.items())
        yield _without_only_name([_czi_scene(path, file, scene, about) for scene in found])


class _Scene(NamedTuple):
    """A scene of a CZI file.

    Attributes
    ----------
    number
        Its index; None: the file has no scenes.
    place
        Its rectangle (x, y, w, h) in pixels.
    planes
        Coordinates of the planes that it holds, by dimension.
    """

    number: int | None
    place: Any
    planes: set[tuple[int, ...]]


def _czi_planes(file: "CziReader") -> dict[int | None, set[tuple[int, ...]]]:
    """Return the coordinates of the planes of each scene, one for each of `CZI_PLANES`."""
    found: dict[int | None, set[tuple[int, ...]]] = defaultdict(set)

    def note(_index: int, block: Any) -> bool:
        at = {str(getattr(name, "name", name)): value for name, value in block.coordinate.to_dict().items()}
        found[at.get("S")].add(tuple(at.get(name, 0) for name in CZI_PLANES))
        return True

    file.enumerate_subblocks_subset(note, only_layer0=True)
    return found


class _CziMetadata(NamedTuple):
    """Pixel size, and names of channels and scenes by index."""

    pixel_size: PixelSize | None
    channels: Mapping[int, str]
    scenes: Mapping[int, str]


def _czi_metadata(text: str) -> _CziMetadata:
    """Parse the metadata of a CZI file: sizes in metres, names of channels and of scenes."""
    if not text or "<!DOCTYPE" in text:
        return _CziMetadata(None, {}, {})
    root = ET.fromstring(text)  # noqa: S314 # has no document type
    sizes = {one.get("Id"): one.findtext("Value") for one in root.iterfind(".//Scaling/Items/Distance")}
    y, x, z = (_scaled(sizes.get(axis), 1e6) for axis in "YXZ")
    dimensions = root.find(".//Information/Image/Dimensions")
    if dimensions is None:
        return _CziMetadata(PixelSize.found(y, x, z), {}, {})
    named = {
        one.get("Id", "").removeprefix("Channel:"): one.get("Name", "") for one in dimensions.iterfind("Channels/*")
    }
    channels = {int(index): name for index, name in named.items() if index.isdecimal()}
    scenes = {int(one.get("Index", -1)): one.get("Name", "") for one in dimensions.iterfind("S/Scenes/Scene")}
    return _CziMetadata(PixelSize.found(y, x, z), channels, scenes)


def _czi_scene(path: Path, file: "CziReader", scene: _Scene, about: _CziMetadata) -> OpenedImage:
    """Return a scene: the planes that it has, each with its tiles in place."""
    used = [sorted(set(values)) for values in zip(*scene.planes, strict=True)]
    named = {name: values for name, values in zip(CZI_PLANES, used, strict=True) if values != [0]} if used else {}
    kinds = {file.get_channel_pixel_type(channel) for channel in named.get("C", [0])}
    if len(kinds) > 1 or not kinds <= CZI_PIXELS.keys():
        raise FrameError(f"has pixels of the type {' and '.join(sorted(kinds))}: export it from ZEN as OME-TIFF")
    pixel_type = kinds.pop()
    kind, has_colours = CZI_PIXELS[pixel_type]
    rows = (scene.place.h, scene.place.w, *((3,) if has_colours else ()))
    frames = "".join(name if name in "TZC" else "N" for name in named)
    shape, axes = (*map(len, named.values()), *rows), frames + ("YXS" if has_colours else "YX")
    names = tuple(about.channels.get(channel, "") for channel in named.get("C", [0]))
    layout = Layout(shape, axes, np.dtype(kind), about.pixel_size).with_names(names if all(names) else ())

    def read_part(index: Index) -> Array:
        _require_planes(scene.planes, used)
        found = ranges_at(shape, index)
        before, (rows, columns) = found[: len(named)], found[len(named) : len(named) + 2]
        place = (scene.place.x + columns.start, scene.place.y + rows.start, len(columns), len(rows))
        pixels = np.empty((*map(len, before), len(rows), len(columns), *shape[len(named) + 2 :]), kind)
        for at in np.ndindex(*map(len, before)):
            places = zip(named.items(), before, at, strict=True)
            plane = {name: values[indices[number]] for (name, values), indices, number in places}
            part = file.read(place, plane, scene.number, pixel_type=pixel_type)
            pixels[at] = part[..., ::-1] if has_colours else part[..., 0]
        whole: Array = pixels[tuple(slice(None) if isinstance(one, slice) else 0 for one in index)]
        return whole

    array = LockedParts(read_part)
    name = about.scenes.get(scene.number or 0) or f"scene{scene.number or 0}"
    part = (*(1 for _ in shape[: len(named)]), *(min(CZI_TILE, side) for side in rows[:2]), *rows[2:])
    return OpenedImage(
        layout, part, lambda: stored_bytes(path), lambda: array[(slice(None),) * len(shape)], name, array=array
    )


def _require_planes(planes: set[tuple[int, ...]], used: Sequence[Sequence[int]]) -> None:
    """Raise FrameError if a scene lacks planes, which would be read as zeros."""
    missing = [at for at in product(*used) if at not in planes] if prod(map(len, used)) > len(planes) else []
    if missing:
        shown = [
            " ".join(f"{name}{value}" for name, value in zip(CZI_PLANES, at, strict=True) if name in "TZC")
            for at in missing[:NAMED]
        ]
        raise FrameError(f"lacks the planes {few(shown, len(missing), NAMED)}: export the complete part of it")


@contextmanager
def _nd2(path: Path) -> Iterator[Images]:
    import nd2

    with nd2.ND2File(path) as file:
        loops = [loop for loop in file.experiment if loop.type == "XYPosLoop"]
        points = [point.name or "" for loop in loops for point in loop.parameters.points]
        number = file.sizes.get("P", 1)
        names = points if len(points) == number and all(points) else [f"position{index}" for index in range(number)]
        sizes = {axis: length for axis, length in file.sizes.items() if axis != "P"}
        size, channels = _nd2_metadata(file)
        layout = Layout(tuple(sizes.values()), "".join(sizes), np.dtype(file.dtype), size).with_names(channels)
        yield _without_only_name([
            OpenedImage(layout, (), lambda: stored_bytes(path), _nd2_reader(file, index), name)
            for index, name in enumerate(names)
        ])  # fmt: skip


def _nd2_reader(file: "ND2File", position: int) -> Callable[[], Array]:
    """Return a function that reads a position of an ND2 file."""

    def read() -> Array:
        declared, held = prod(loop.count for loop in file.experiment), file.attributes.sequenceCount
        if held < declared:
            raise FrameError(f"declares {declared} frames and holds {held}: export the complete part of it")
        pixels = file.asarray(position if "P" in file.sizes else None)
        if "P" in file.sizes:
            pixels = pixels.squeeze(list(file.sizes).index("P"))
        return pixels

    return read


def _nd2_metadata(file: "ND2File") -> tuple[PixelSize | None, tuple[str, ...]]:
    """Return pixel size and channel names of an ND2 file."""
    channels = getattr(file.metadata, "channels", None) or []
    names = tuple(channel.channel.name for channel in channels)
    size = None
    if channels:
        volume = channels[0].volume
        x, y, z = (
            size if known else None
            for size, known in zip(volume.axesCalibration, volume.axesCalibrated, strict=True)
        )  # fmt: skip
        size = PixelSize.found(y, x, z)
    return size, names if all(names) else ()


# Dimensions of a LIF file with a meaning; others are frames (N). Its channels can lie in two dimensions, C and C1.
LIF_AXES = "TZCSYX"


@contextmanager
def _lif(path: Path) -> Iterator[Images]:
    import liffile

    with liffile.LifFile(path) as file:
        images = [image for image in file.images if not image.is_flim]
        if not images:
            raise FrameError("holds no image but FLIM, which is not read: export its intensity as TIFF")
        yield _without_only_name([_lif_image(path, image) for image in images])


def _lif_image(path: Path, image: "LifImageABC") -> OpenedImage:
    """Return an image of a LIF file."""
    axes = "".join(name[0] if name[0] in LIF_AXES else "N" for name in image.dims)
    described = "./Data/Image/ImageDescription/"
    steps = {
        one.get("DimID", ""): _step(one.attrib)
        for one in image.xml_element.iterfind(f"{described}Dimensions/DimensionDescription")
        if one.get("Unit") == "m"
    }
    x, y, z = (steps.get(axis) for axis in "123")  # DimID
    names = tuple(
        one.get("LUTName", "") for one in image.xml_element.iterfind(f"{described}Channels/ChannelDescription")
    )
    layout = Layout(image.shape, axes, image.dtype, PixelSize.found(y, x, z)).with_names(names if all(names) else ())
    return OpenedImage(layout, (), lambda: stored_bytes(path), image.asarray, image.path)


def _step(dimension: Mapping[str, str]) -> float | None:
    """Return the distance of the elements of a dimension in micrometres; files state that of the first and the last."""
    length, number = _scaled(dimension.get("Length"), 1e6), _scaled(dimension.get("NumberOfElements"))
    return abs(length) / (number - 1) if length and number and number > 1 else None


def _scaled(text: str | None, factor: float = 1) -> float | None:
    """Return a number in metadata times `factor`; None where it is missing or no number."""
    try:
        return float(f"{float(text or '') * factor:.12g}")
    except ValueError:
        return None


# Suffix -> the bytes that its files begin with, and what opens them.
READERS: Mapping[str, tuple[bytes, Any]] = {
    ".czi": (b"ZISRAWFILE", _czi),
    ".nd2": (b"\xda\xce\xbe\x0a", _nd2),
    ".lif": (b"\x70\0\0\0", _lif),
}
