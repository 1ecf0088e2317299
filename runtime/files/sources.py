"""Where images are: files, files with several images, sets of files, and folders of them.

`list_images` returns the images of a place, each an `ImageSource`, with a name for what is made from it.

`images_below` walks a folder. It leaves out files of other formats, hidden ones, results of earlier runs, and
annotations that lie beside images, and says so in one line. Words in the names of folders tell images from annotations:
`holds_images` and `holds_labels`.

>>> holds_images("BBBC005_v1_images"), holds_labels("BBBC005_v1_ground_truth"), holds_labels("plate 3")
(True, True, False)
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from unetrt.runtime.errors import FrameError, OptionError, few, printable
from unetrt.runtime.files.acquisitions import COMPANION, INDEX
from unetrt.runtime.files.formats import (
    AS_STORED,
    SUFFIXES,
    ZARR,
    ZARR_FILES,
    Reading,
    index_of,
    is_zarr,
    named_images,
    opened,
)
from unetrt.runtime.files.names import has_room, safe_name, same_name
from unetrt.runtime.files.outputs import KINDS, OVERLAY, TABLES
from unetrt.runtime.files.selection import selected_images

AnyPath = str | os.PathLike[str]
log = logging.getLogger("unetrt")
# Images of a file that a message names.
SHOWN = 8
# Folders between a Zarr group and one inside it that has metadata: the row of a plate may have none.
NESTED = 3


@dataclass(frozen=True)
class ImageSource(os.PathLike[str]):
    """An image to read: a file, or one of the images of a file. It stands for its path wherever a path is read.

    Attributes
    ----------
    path
        The file, or the folder of a Zarr array or OME-Zarr image, also inside another, such as a plate.
    name
        Name of what is made from it: the path below the folder that was listed, without suffix, with `/` between
        folders; of a file with several images, their names are appended.
    series
        Index of the image in the file, from 0; None: the only one.
    files
        The other files that hold planes of the image, in the same folder; empty: the planes in `path` are the image.
    acquisition
        Name that all images of one acquisition share; empty: there is one image.
    """

    path: Path
    name: str
    series: int | None = None
    files: tuple[Path, ...] = ()
    acquisition: str = ""

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def file_name(self) -> str:
        """Name of the file below the folders of `name`; of a file with several images, that of the image."""
        above = self.name.rpartition("/")[0]
        return f"{above}/{self.path.name}".lstrip("/") if self.series is None else self.name

    def identity(self) -> list[Any]:
        """Return what tells the image from others, in types of JSON: its files with their sizes and times."""
        return [self.series, *map(state_of, (self.path, *self.files))]

    def __str__(self) -> str:
        more = f" (with {len(self.files)} more files)" if self.files else ""
        return f"{self.path}{more}" if self.series is None else f"{self.path}{more}, image {self.series} ({self.name})"


def state_of(path: Path) -> list[Any]:
    """Return what shows that a file, or the pixels of a Zarr folder, were written since, in types of JSON.

    It is the path, and size and time of a file or a digest of those of all files of a folder. Label images in a folder
    are others, and hidden files are no chunks.
    """
    if not path.is_dir():
        about = path.stat()
        return [str(path), about.st_size, about.st_mtime_ns]
    digest = sha256()
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name != "labels" and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") or name in ZARR_FILES:
                about = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - there may be a million chunks
                digest.update(repr((os.path.relpath(folder, path), name, about.st_size, about.st_mtime_ns)).encode())
    return [str(path), digest.hexdigest()]


def source_of(path: AnyPath) -> ImageSource:
    """Return the source of a path; a source is returned as it is."""
    return path if isinstance(path, ImageSource) else ImageSource(Path(path), stem_of(path))


def list_images(
    path: AnyPath, reading: Reading = AS_STORED, *, results: Path | None = None, annotations: bool = False
) -> list[ImageSource]:
    """Return the images of a folder and its subfolders, sorted by path, or those of a file (or Zarr folder).

    Left out are files of other formats, hidden ones, folders with results of earlier runs, and annotations beside
    images; a warning of the logger `unetrt` counts them (`images_below`).

    A file can hold several fields of an acquisition, each of which is an image. Files of a folder that are a set, such
    as an OME-TIFF in several files, give the images of the set; one of them alone gives the planes that it holds.

    Parameters
    ----------
    path
        Folder or file.
    reading
        How files are read; `series` picks one image of each file that holds several, the patterns in `select` those
        whose names match one.
    results
        Folder that results are written to, and which is not read.
    annotations
        Whether files that annotate others beside them, such as `a_mask.tif` beside `a.tif`, are listed too.

    Raises
    ------
    FrameError
        There is no such file or folder, or the folder holds no image.
    OptionError
        A file has no image of the index or name `series`, or no name matches a pattern.
    """
    path = Path(path)
    if path.is_file() or is_zarr(path):
        found = sources_of([path, *_described(path)], reading.series)
        return selected_images(found, reading.select) if reading.select else found
    if not path.is_dir():
        state = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise FrameError(f"{path} {state}: give a folder of {', '.join(SUFFIXES)} files, or one file")
    files, left_out = images_below(path, results)
    if not annotations:
        files = _without_annotations(files, left_out)
    if not files:
        what = f" ({left_out})" if str(left_out) else ""
        raise FrameError(f"{path} holds no image: {', '.join(SUFFIXES)} are read{what}")
    if str(left_out):
        log.warning("%s: %s", printable(str(path)), left_out)
    found = [_below(path, source) for source in sources_of(files, reading.series)]
    return selected_images(found, reading.select) if reading.select else found


def _without_annotations(files: Sequence[Path], left_out: "Omissions") -> list[Path]:
    """Return the files without annotations of others in their folder, which are counted."""
    images = {(file.parent, IMAGE_ENDINGS.sub("", stem_of(file))) for file in files}
    kept = [file for file in files if not any((file.parent, name) in images for name in _annotated(stem_of(file)))]
    if len(kept) < len(files):
        left_out.kinds["named as annotations"] += len(files) - len(kept)
    return kept


def _annotated(name: str) -> set[str]:
    """Return names of the image that a file of this name annotates, if it does."""
    return {ends.sub("", name) for ends in (LABEL_ENDINGS, BESIDE_MASKS)} - {name}


def _below(folder: Path, source: ImageSource) -> ImageSource:
    """Return an image of a folder with its subfolder, if any, at the beginning of its names."""
    inside = _folder_of(source)
    if inside == folder or not inside.is_relative_to(folder):
        return source
    above = inside.relative_to(folder).as_posix()
    acquisition = f"{above}/{source.acquisition}" if source.acquisition else ""
    return replace(source, name=f"{above}/{source.name}", acquisition=acquisition)


def _folder_of(source: ImageSource) -> Path:
    """Return the folder that a file, or the Zarr folder around an image, lies in."""
    return (_outermost(source.path) if is_zarr(source.path) else source.path).parent


def named_apart(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """Return the images of several places with different names, each image once.

    If images of different folders have the same name, as `a/x.tif` and `b/x.tif`, all names begin with their folders:
    `a/x` and `b/x`. Images of one folder keep theirs.
    """
    once: dict[tuple[str, int | None], ImageSource] = {}
    for source in sources:
        once.setdefault((os.path.realpath(source), source.series), source)
    kept = list(once.values())
    folders = [_parts_above(source) for source in kept]
    for depth in range(max(map(len, folders), default=0) + 1):
        names = [
            "/".join((*parts[len(parts) - depth :], source.name)) for source, parts in zip(kept, folders, strict=True)
        ]
        if len(set(names)) == len(names):
            return [replace(source, name=name) for source, name in zip(kept, names, strict=True)]
    return kept


def _parts_above(source: ImageSource) -> tuple[str, ...]:
    """Return the folders above those in an image's name."""
    parts = Path(os.path.normpath(_folder_of(source).absolute())).parts[1:]
    named = tuple(source.name.split("/")[:-1])
    shared = next((number for number in range(len(named), 0, -1) if parts[-number:] == named[:number]), 0)
    return parts[: len(parts) - shared]


def _images_of_zarr(path: Path, series: int | str | None) -> list[ImageSource]:
    """Return the images of a Zarr folder; the fields of a well, or the images of a converted file, are an acquisition.

    `series` is that of `sources_of`.
    """
    paths = [""]
    with suppress(Exception):  # `read_image` says what is wrong
        from unetrt.runtime.files.ome_zarr import image_paths

        paths = image_paths(path) or paths
    name = _name_of_zarr(path)
    images = [ImageSource(path / paths[0], name)]
    if len(paths) > 1:
        places = [f"{name}/{below}" for below in paths]
        images = [
            ImageSource(path / below, place, acquisition=place.rpartition("/")[0])
            for below, place in zip(paths, places, strict=True)
        ]
    return images if series is None else [images[_series_index(series, paths, path)]]


def _name_of_zarr(path: Path) -> str:
    """Return the name of an image in a Zarr folder: it begins with that of the outermost one, as in `plate/A/1/0`."""
    top = _outermost(path.absolute())
    return "/".join((stem_of(top), *path.absolute().relative_to(top).parts))


def _outermost(path: Path) -> Path:
    """Return the outermost Zarr folder around one, or the folder itself."""
    while above := next(filter(is_zarr, path.parents[:NESTED]), None):
        path = above
    return path


def stem_of(path: AnyPath) -> str:
    """Return a file's name without its suffix; `.ome.tif` and `.ome.zarr` are one suffix."""
    path = Path(path)
    return path.stem[: -len(".ome")] if path.stem.lower().endswith(".ome") else path.stem


def sources_of(files: Sequence[Path], series: int | str | None = None) -> list[ImageSource]:
    """Return the images of files, in their order; files that are a set give the images of the set.

    Parameters
    ----------
    files
        The files; one whose set is not among them gives the planes that it holds.
    series
        Image to pick of each acquisition, see `Reading`.
    """
    place = {file: index for index, file in enumerate(files)}
    found: list[tuple[int, ImageSource]] = []
    taken: set[Path] = set()
    for file in sorted(files, key=lambda file: file.suffix.lower() != COMPANION):  # these describe the others
        if file in taken:
            continue
        fields: list[tuple[str, tuple[Path, ...]]] = []
        with suppress(Exception):  # `read_image` says what is wrong
            fields = named_images(file, files)
        present = {path for _, paths in fields for path in paths if path in place and path not in taken}
        if file in present or (present and file.suffix.lower() == COMPANION):
            found += [(place[image.path], image) for image in _of_fields(fields, present, series)]
            taken |= present
        elif is_zarr(file):
            found += [(place[file], image) for image in _images_of_zarr(file, series)]
        elif series is not None:
            found.append((place[file], _in_series(source_of(file), series)))
        else:
            found.append((place[file], source_of(file)))
    return [image for _, image in sorted(found, key=lambda each: each[0])]


def _of_fields(
    fields: Sequence[tuple[str, tuple[Path, ...]]],
    present: Collection[Path],
    series: int | str | None,
) -> list[ImageSource]:
    """Return the images of an acquisition.

    Parameters
    ----------
    fields
        Name and files of each, as `named_images` returns them.
    present
        Those of its files that are listed. A single one gives the planes that it holds.
    series
        As in `sources_of`.
    """
    images, names = [], []
    for index, (name, paths) in enumerate(fields):
        first = next((path for path in paths if path in present), None)
        if first is None:
            continue
        beside = [number for number, (_, others) in enumerate(fields) if first in others]
        number, label = None, stem_of(first)
        if len(beside) > 1:
            number = beside.index(index)
            label = _name_in_file(label, [fields[other][0] for other in beside], number)
        others = tuple(path for path in paths if path != first) if len(present) > 1 else ()
        images.append(ImageSource(first, label, number, others))
        names.append(name)
    if len(images) > 1:
        acquisition = stem_of(min(present))
        images = [replace(image, acquisition=acquisition) for image in images]
    return images if series is None else [images[_series_index(series, names, min(present))]]


def _name_in_file(stem: str, names: Sequence[str], index: int) -> str:
    """Return the name of one of the images `names` of a file.

    Characters that paths do not allow or terminals do not show become _. An index takes the place of all names if one
    is empty or too long, or if two are the same to a disk that ignores case.
    """
    safe = [safe_name(name) for name in names]
    joined = [name if name.startswith(stem) and len(name) > len(stem) else f"{stem}_{name}" for name in safe]
    if not all(safe) or len(set(map(same_name, joined))) < len(joined) or not all(map(has_room, joined)):
        return f"{stem}_{index}"
    return joined[index]


def _series_index(series: int | str, names: Sequence[str], path: Path) -> int:
    """Return the index of the image that `series` names; raises OptionError if there is none."""
    if (index := index_of(series, names, len(names))) is not None:
        return index
    known = few([f"{index} {name}".strip() for index, name in enumerate(names)], most=SHOWN)
    raise OptionError(f"--series (series) {series!r:.60} is no image of {path}, which holds {known}")


def _in_series(source: ImageSource, series: int | str) -> ImageSource:
    """Return the source of the image `series` of a file that may hold several."""
    names = [""]
    with suppress(Exception), opened(source.path) as images:  # `read_image` says what is wrong
        names = [image.name for image in images]
    index = _series_index(series, names, source.path)
    return source if len(names) == 1 else replace(source, series=index)


def _described(path: Path) -> list[Path]:
    """Return the files that a companion file describes and that exist; none for any other file."""
    if path.suffix.lower() != COMPANION:
        return []
    try:
        files = dict.fromkeys(file for _, files in named_images(path) for file in files)
    except FrameError as error:
        raise FrameError(f"{path} {error}") from error
    there = [file for file in files if file.is_file()]
    if not there:
        raise FrameError(f"{path} describes images in other files, and none of those is in its folder: add them")
    return there


IMAGE_WORDS = frozenset({"images", "image", "imgs", "img", "raw", "imagestr"})
LABEL_WORDS = frozenset(
    {"labels", "label", "masks", "mask", "annotations", "annotation", "truth", "groundtruth", "gt", "labelstr"}
)
# Masks of unannotated pixels, beside images and labels.
IGNORE = "ignore"
# `01_GT` beside the images in `01` (https://celltrackingchallenge.net, "Naming and file content conventions").
CHALLENGE = re.compile(r"(\d+)_(GT|ST|RES|ERR_SEG)")
# Folders that `unetrt predict` and `unetrt convert` write beside labels.
WRITTEN = frozenset(
    place.partition("/")[0] for place in (OVERLAY, *(kind.place for kind in KINDS.values())) if "/" in place
)
# What marks a folder of results: pictures, tables, and checkpoints of `unetrt train`.
OVERLAYS = OVERLAY.partition("/")[0]
RESULTS = frozenset({OVERLAYS, *(KINDS[table].place for table in TABLES), "best.safetensors", "last.safetensors"})
# Objects and outlines of Cellpose, pickled.
CELLPOSE = "_seg.npy"
# Ends of the names of labels, and of images, which do not count when they are paired: `cell_cp_masks`, `cell_img`.
LABEL_ENDINGS = re.compile(r"[-_. ](cp_masks|masks?|label(s|l?ed)?|seg|segmentation|gt|annotations?)$", re.IGNORECASE)
IMAGE_ENDINGS = re.compile(r"[-_. ](img|image|raw)$", re.IGNORECASE)
# Ends of the names of what Cellpose writes beside masks: pictures and flows.
BESIDE_MASKS = re.compile(r"_(cp_output|flows|cp_flows|outlines|cp_outlines)$")
# Kinds of files and folders that are named in the line about what is left out.
MOST = 5


def holds_images(name: str) -> bool:
    """Return whether the name of a folder says that it holds images, and not labels."""
    return not holds_labels(name) and not IMAGE_WORDS.isdisjoint(_words(name))


def holds_labels(name: str) -> bool:
    """Return whether the name of a folder says that it holds annotations."""
    return not LABEL_WORDS.isdisjoint(_words(name))


def _words(name: str) -> list[str]:
    return re.split(r"[\W_]+", name.lower())


@dataclass
class Omissions:
    """What a walk through folders left out.

    Attributes
    ----------
    kinds
        Number of files of each suffix.
    folders
        Folder -> why.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    folders: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = []
        if number := sum(self.kinds.values()):
            most = [f"{count} {printable(kind, 20)}" for kind, count in self.kinds.most_common(MOST)]
            rest = number - sum(count for _, count in self.kinds.most_common(MOST))
            listed = ", ".join([*most, *([f"{rest} others"] if rest else [])])
            parts.append(f"{number} {'file' if number == 1 else 'files'} left out: {listed}")
        if self.folders:
            listed = few([f"{printable(name)} ({why})" for name, why in self.folders.items()], most=MOST)
            parts.append(f"{'folder' if len(self.folders) == 1 else 'folders'} left out: {listed}")
        return "; ".join(parts)


class Found(NamedTuple):
    """The images below a folder, in the order of their paths, and what is left out."""

    files: list[Path]
    left_out: Omissions


def images_below(folder: Path, results: Path | None = None) -> Found:
    """Return the image files of a folder and its subfolders; a Zarr folder is a file.

    Links are followed, and each real folder is read once.

    Parameters
    ----------
    folder
        The folder; read whatever its name.
    results
        Folder that results are written to, which may be inside.

    Raises
    ------
    OSError
        The folder cannot be read. A subfolder that cannot be read is left out.
    """
    found = Found([], Omissions())
    seen = {os.path.realpath(folder)}
    if results is not None and os.path.realpath(results) not in seen:
        seen.add(os.path.realpath(results))
    entered = [folder]
    while entered:
        here = entered.pop()
        try:
            entries = list(_entries(here))
        except OSError as error:
            if here == folder:
                raise
            found.left_out.folders[_shown(here, folder)] = error.strerror or "unreadable"
            continue
        names = {entry.name for entry in entries}
        if here != folder and not RESULTS.isdisjoint(names):
            found.left_out.folders[_shown(here, folder)] = "results of an earlier run"
            continue
        images = {entry.name for entry in entries if _is_image(entry, here / entry.name)}
        folders = [entry.name for entry in entries if entry.name not in images and _is_folder(entry)]
        for entry in entries:
            path = here / entry.name
            if entry.name in images:
                found.files.append(path)
            elif entry.name not in folders:
                kind = CELLPOSE if entry.name.endswith(CELLPOSE) else path.suffix.lower() or "without suffix"
                found.left_out.kinds[kind] += 1
            elif entry.name == OVERLAYS:
                continue
            elif entry.name in WRITTEN and (images or not RESULTS.isdisjoint(names)):
                found.left_out.folders[_shown(path, folder)] = "results of an earlier run"
            elif _annotates(entry.name, folders):
                found.left_out.folders[_shown(path, folder)] = "annotations"
            elif (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                entered.append(path)
    found.files.sort()
    return found


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Iterate by name over what a folder holds, except hidden entries and an index, which the files in it read."""
    with os.scandir(folder) as entries:
        shown = (entry for entry in entries if entry.name[0] != "." and entry.name != INDEX)
        yield from sorted(shown, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(entry: os.DirEntry[str], path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() != ZARR:
        return not entry.name.endswith(CELLPOSE)
    return _is_folder(entry) and is_zarr(path)


def _annotates(name: str, folders: list[str]) -> bool:
    """Return whether a folder holds annotations of the images in a folder beside it."""
    if sequence := CHALLENGE.fullmatch(name):
        return sequence[1] in folders
    return (holds_labels(name) or name == IGNORE) and any(holds_images(other) for other in folders)


def _shown(path: Path, root: Path) -> str:
    return f"{path.relative_to(root).as_posix()}/"
