"""How annotated images lie in a folder: `images/` beside `labels/`, or a Cell Tracking Challenge data set."""

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unetrt.runtime.errors import DatasetError, FrameError
from unetrt.runtime.files.images import SUFFIXES, list_images, stem_of

IMAGES, LABELS, IGNORE = "images", "labels", "ignore"
# `01_GT/SEG/man_seg000.tif` belongs to `01/t000.tif`; `man_seg_000_012.tif` is plane 12 of its stack
# (https://celltrackingchallenge.net, "Naming and file content conventions").
MANUAL = re.compile(r"man_seg_?(\d+)(?:_(\d+))?")


@dataclass(frozen=True)
class Pair:
    """The files of an image.

    Attributes
    ----------
    name
        Unique in the folder.
    image, labels
        Files with the same frames.
    ignored
        A file that is not 0 where nothing is annotated, or None.
    source
        The sequence that the image belongs to, or its own name.
    plane
        The one frame of the image that `labels` annotates; None: all of them.
    """

    name: str
    image: Path
    labels: Path
    source: str
    ignored: Path | None = None
    plane: int | None = None


def find_pairs(folder: Path) -> list[Pair]:
    """Return the pairs of a folder in either layout, sorted by name.

    Raises
    ------
    DatasetError
        The folder has neither layout, or a file has no partner.
    """
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {state}: give a folder with images/ and labels/ in it")
    if sequences := sorted(folder.glob("*_GT/SEG")):
        return [pair for truth in sequences for pair in _sequence(truth)]
    return _by_name(folder)


def _by_name(folder: Path) -> list[Pair]:
    for part in (IMAGES, LABELS):
        if not (folder / part).is_dir():
            raise DatasetError(
                f"{folder / part} does not exist: images belong into images/, labels of the same name into labels/; a "
                "Cell Tracking Challenge data set has 01/ and 01_GT/SEG/"
            )
    images, labels = (by_stem(folder / part) for part in (IMAGES, LABELS))
    ignored = by_stem(folder / IGNORE) if (folder / IGNORE).is_dir() else {}
    _require_partners(images, "image", labels, folder / LABELS)
    _require_partners(labels, "label", images, folder / IMAGES)
    _require_partners(ignored, "mask", images, folder / IMAGES)
    return [Pair(stem, images[stem], labels[stem], stem, ignored.get(stem)) for stem in sorted(images)]


def _require_partners(files: Mapping[str, Path], what: str, others: Mapping[str, Path], folder: Path) -> None:
    if alone := sorted(files.keys() - others.keys()):
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        unread = [path.name for path in sorted(folder.glob(f"{glob.escape(alone[0])}.*"))]
        hint = f": {unread[0]} is there, but not read, use {', '.join(SUFFIXES)}" if unread else ""
        raise DatasetError(f"{what} {files[alone[0]].name}{more} has no partner of that name in {folder}{hint}")


def by_stem(folder: Path) -> dict[str, Path]:
    """Return the images of a folder, or one file, by name without suffix.

    Raises
    ------
    DatasetError
        There is none, or two have the same name but for the suffix.
    """
    try:
        files = list_images(folder)
    except FrameError as error:
        raise DatasetError(str(error)) from error
    stems = {stem_of(file): file for file in files}
    if len(stems) < len(files):
        twice = next(file for file in files if stems[stem_of(file)] != file)
        first = stems[stem_of(twice)]
        raise DatasetError(f"{folder} holds {twice.name} and {first.name}: names must differ in the stem")
    return stems


def _sequence(truth: Path) -> list[Pair]:
    """Return the annotated frames of a sequence, from its `NN_GT/SEG` folder."""
    frames = truth.parent.with_name(truth.parent.name.removesuffix("_GT"))
    pairs = []
    for labels in sorted(truth.glob("man_seg*.tif")):
        match = MANUAL.fullmatch(labels.stem)
        if match is None:
            raise DatasetError(f"{labels} is not named as the challenge names its files, such as man_seg000.tif")
        time, plane = match.groups()
        image = frames / f"t{time}.tif"
        if not image.is_file():
            raise DatasetError(f"{labels} annotates {image}, which does not exist")
        name = f"{frames.name}/t{time}" + (f"[{int(plane)}]" if plane else "")
        pairs.append(Pair(name, image, labels, frames.name, plane=int(plane) if plane else None))
    if not pairs:
        raise DatasetError(f"{truth} holds no man_seg*.tif")
    return pairs
