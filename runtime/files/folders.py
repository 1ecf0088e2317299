"""Folders of image files: which files in a folder and its subfolders are images, and what is left out.

`images_below` walks a folder. It leaves out files of other formats, hidden ones, results of earlier runs, and
annotations that lie beside images, and says so in one line. Words in the names of folders tell images from annotations:
`holds_images` and `holds_labels`.

>>> holds_images("BBBC005_v1_images"), holds_labels("BBBC005_v1_ground_truth"), holds_labels("plate 3")
(True, True, False)
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from unetrt.runtime.errors import printable
from unetrt.runtime.files.formats import SUFFIXES, ZARR, is_zarr
from unetrt.runtime.files.outputs import KINDS, OVERLAY, TABLES

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
            listed = ", ".join(f"{printable(name)} ({why})" for name, why in list(self.folders.items())[:MOST])
            more = f" and {len(self.folders) - MOST} more" if len(self.folders) > MOST else ""
            parts.append(f"{'folder' if len(self.folders) == 1 else 'folders'} left out: {listed}{more}")
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
    """Iterate over what a folder holds, but hidden files and folders, by name."""
    with os.scandir(folder) as entries:
        yield from sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


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
