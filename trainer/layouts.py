"""Layouts of annotated images: which files of a folder are an image and its labels.

`find_files` knows these, and folders whose subfolders have one of them:

- `images/` beside `labels/` (or `masks/`, or `x_images/` beside `x_ground_truth/`), paired by name. Subfolders of both
  pair too, and a folder `masks/cell/` holds the objects of `images/cell.png`, one a file.
- One folder with `cell.tif` beside `cell_mask.tif`, or beside `cell.png`, as QuPath exports tiles.
- A folder for each image with `images/` and `masks/`, one file for each object, as of the Data Science Bowl 2018.
- The Cell Tracking Challenge's, `01/t000.tif` with `01_GT/SEG/man_seg000.tif`, or `01_ST` where there is no `01_GT`.

Labels may have a name that ends in one of `LABEL_ENDINGS`. Nothing is unpickled.
"""

import difflib
import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import DatasetError, FrameError
from unetrt.runtime.files.formats import AS_STORED, SUFFIXES, Reading, is_zarr
from unetrt.runtime.files.sources import (
    BESIDE_MASKS,
    CELLPOSE,
    IGNORE,
    IMAGE_ENDINGS,
    LABEL_ENDINGS,
    ImageSource,
    holds_images,
    holds_labels,
    list_images,
    source_of,
    stem_of,
)
from unetrt.trainer.label_values import UNSTATED, LabelRule, and_more

Array = NDArray[Any]

IMAGES, LABELS = "images", "labels"
# Folders of labels, the preferred first, where there are several.
PREFERRED = (LABELS, "masks", "label", "mask")
# `01_GT/SEG/man_seg000.tif` belongs to `01/t000.tif`; `man_seg_000_012.tif` is plane 12 of its stack
# (https://celltrackingchallenge.net, "Naming and file content conventions").
CHALLENGE_LABELS = re.compile(r"man_seg_?(\d+)(?:_(\d+))?")
GOLD, SILVER = "_GT", "_ST"
# Suffix of labels that have the name of their image.
LABEL_SUFFIX = ".png"
# Subfolders that are data sets to keep apart, in the order in which a message names them.
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")

# The label file of an image, or a file for each of its objects.
LabelSource = ImageSource | tuple[ImageSource, ...]


@dataclass(frozen=True)
class AnnotatedFiles:
    """The files of an image.

    Attributes
    ----------
    name
        Unique in the dataset.
    image
        The image.
    labels
        Labels with the same frames, or a mask for each object.
    source
        The sequence of the image, or its own name.
    ignored
        Mask file, not 0 where nothing is annotated, or None.
    plane
        Index of the one frame of `image` that `labels` annotates; None: all frames.
    """

    name: str
    image: ImageSource
    labels: LabelSource
    source: str
    ignored: ImageSource | None = None
    plane: int | None = None


def annotation_of(labels: LabelSource) -> ImageSource | Path:
    """Return the label file, or the folder of the masks, for messages."""
    return labels if isinstance(labels, ImageSource) else labels[0].path.parent


def find_files(folder: Path, reading: Reading = AS_STORED) -> tuple[list[AnnotatedFiles], list[str]]:
    """Return the files of each annotated image of a folder, sorted by name, and sentences about what was chosen.

    Of files with several images in a folder of images, the one that `reading` picks is taken, and the labels of the
    others are left out.

    Raises
    ------
    DatasetError
        The folder has no layout that is known, or a file has no partner.
    """
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {state}: give a folder with images/ and labels/ in it")
    notes: list[str] = []
    files = _files_in(folder, reading, notes)
    if not files:
        raise _no_layout(folder)
    return files, notes


def has_layout(folder: Path) -> bool:
    """Return whether a folder itself holds images with their labels, in some layout."""
    below = _subfolders(folder)
    beside = any(map(holds_images, below)) and any(map(holds_labels, below))
    return beside or bool(_sequences(folder)) or bool(_labelled_names(folder)) or bool(_same_names(folder))


def _files_in(folder: Path, reading: Reading, notes: list[str]) -> list[AnnotatedFiles]:
    """Return the files of each annotated image of a folder; empty: it has no layout."""
    if sequences := _sequences(folder):
        return [files for sequence in sequences for files in _challenge_files(sequence, notes)]
    below = _subfolders(folder)
    images, labels = [name for name in below if holds_images(name)], [name for name in below if holds_labels(name)]
    if images and labels:
        images_folder, labels_folder = (
            folder / _preferred(folder, names, preferred, notes)
            for names, preferred in ((images, (IMAGES,)), (labels, PREFERRED))
        )
        return _beside(images_folder, labels_folder, reading)
    if images or labels:
        raise _no_layout(folder)
    if nested := [name for name in below if _has_inner_layout(folder / name)]:
        return _nested(folder, nested, reading, notes)
    if _labelled_names(folder):
        return _in_one_folder(folder, notes)
    pairs = _same_names(folder)
    if pairs:
        notes.append(f"{folder}: the PNG files are the labels of the images with the same names")
    return [AnnotatedFiles(name, source_of(image), source_of(png), name) for name, image, png in pairs]


def _has_inner_layout(folder: Path) -> bool:
    """Return whether a folder has `images/` or `labels/`, sequences of the challenge, or a subfolder that does."""
    below = _subfolders(folder)
    if any(holds_images(name) or holds_labels(name) for name in below) or _sequences(folder):
        return True
    return any(_has_inner_layout(folder / name) for name in below if not (folder / name).is_symlink())


def _subfolders(folder: Path) -> list[str]:
    folders = (path for path in folder.iterdir() if path.name[0] != "." and path.is_dir() and not is_zarr(path))
    return sorted(path.name for path in folders)


def _preferred(folder: Path, names: Sequence[str], preferred: Sequence[str], notes: list[str]) -> str:
    """Return the folder to read of several whose names say the same; raises DatasetError if none is preferred."""
    chosen = next((name for wanted in preferred for name in names if name.lower() == wanted), None)
    if len(names) == 1 or chosen is None:
        if len(names) > 1:
            raise DatasetError(
                f"{folder} holds {', '.join(names)}: which belong together is not known, rename the folder to read "
                f"{preferred[0]}"
            )
        return names[0]
    others = ", ".join(name for name in names if name != chosen)
    notes.append(f"{folder / chosen} is read, and not {others} beside it")
    return chosen


def images_by_name(path: Path, reading: Reading = AS_STORED) -> dict[str, ImageSource]:
    """Return the images of a folder and its subfolders, or of a single file, by name; `reading` as in `list_images`.

    Raises
    ------
    DatasetError
        There is no image, or two differ in the suffix alone.
    """
    try:
        sources = list_images(path, reading, annotations=True)
    except FrameError as error:
        raise DatasetError(str(error)) from error
    named = {source.name: source for source in sources}
    if len(named) < len(sources):
        twice = next(source for source in sources if named[source.name] != source)
        first = named[twice.name]
        raise DatasetError(f"{path} holds {twice.path.name} and {first.path.name}: names must differ in the stem")
    return named


def labels_by_name(path: Path) -> dict[str, LabelSource]:
    """Return the labels of a folder of annotated images, by name; empty for a folder of labels and for a file."""
    if path.is_dir() and (has_layout(path) or any(_has_inner_layout(path / name) for name in _subfolders(path))):
        return {files.name: files.labels for files in find_files(path)[0]}
    return {}


def _beside(images_folder: Path, labels_folder: Path, reading: Reading) -> list[AnnotatedFiles]:
    """Return the files of images in one folder and labels in another, and of masks in `ignore/` beside them."""
    folder, places = images_folder.parent, (images_folder, labels_folder)
    images, labels = (images_by_name(place) for place in places)
    images = _labelled_alone(images, labels)
    ignored = images_by_name(folder / IGNORE) if (folder / IGNORE).is_dir() else {}
    paired: dict[str, LabelSource]
    if list(images) == [folder.name] and folder.name not in labels:
        paired = {folder.name: tuple(labels.values())}
    else:
        paired = _paired(images, labels, places)
    masks = _paired(images, ignored, (images_folder, folder / IGNORE), "mask", every=False)
    if reading.picks_images:
        images = images_by_name(images_folder, reading)
    found = []
    for name, image in sorted(images.items()):
        mask = masks.get(name)
        one = mask if isinstance(mask, ImageSource) else None
        found.append(AnnotatedFiles(name, image, paired[name], image.acquisition or name, one))
    return found


def _labelled_alone(images: Mapping[str, ImageSource], labels: Mapping[str, ImageSource]) -> dict[str, ImageSource]:
    """Return the images; the files of a set are an image each where each of them has labels."""
    found: dict[str, ImageSource] = {}
    for name, image in images.items():
        alone = {Path(name).with_name(stem_of(file)).as_posix(): file for file in (image.path, *image.files)}
        if image.files and image.series is None and alone.keys() <= labels.keys() and not labels[name].files:
            group = image.acquisition or name
            found |= {stem: ImageSource(file, stem, acquisition=group) for stem, file in alone.items()}
        else:
            found[name] = image
    return found


def _paired(
    images: Mapping[str, ImageSource],
    labels: Mapping[str, ImageSource],
    places: tuple[Path, Path],
    what: str = "label",
    *,
    every: bool = True,
) -> dict[str, LabelSource]:
    """Return the labels of each image, by its name.

    Pairs have equal names, names that are equal without their ends, or, for a file of each object, masks in a folder
    with the name of the image.

    Parameters
    ----------
    images, labels
        Files by name.
    places
        Their folders.
    what
        What the labels are, for messages.
    every
        Whether each image needs a partner.

    Raises
    ------
    DatasetError
        An image has no labels or several, or labels have no image; the message names the nearest file.
    """
    found: dict[str, LabelSource] = {name: labels[name] for name in images.keys() & labels.keys()}
    bare = {IMAGE_ENDINGS.sub("", name): name for name in images if name not in found}
    objects: dict[str, list[ImageSource]] = {}
    alone: list[str] = []
    for name in sorted(labels.keys() - found.keys()):
        image = bare.get(LABEL_ENDINGS.sub("", name)) or bare.get(name)
        above = name.rpartition("/")[0]
        if image is not None:
            if image in found:
                raise DatasetError(f"{found[image]} and {labels[name]} are both labels of {images[image]}: keep one")
            found[image] = labels[name]
        elif above in bare:
            objects.setdefault(bare[above], []).append(labels[name])
        else:
            alone.append(name)
    found |= {name: tuple(masks) for name, masks in objects.items() if name not in found}
    if every and (without := sorted(images.keys() - found.keys())):
        raise _unpaired(images, without, "image", labels, places[1])
    if alone:
        raise _unpaired(labels, alone, what, images, places[0])
    return found


def _unpaired(
    files: Mapping[str, ImageSource], alone: Sequence[str], what: str, others: Iterable[str], folder: Path
) -> DatasetError:
    """Return the error for files without a partner in `folder`, whose images are named `others`."""
    file, name = files[alone[0]], alone[0]
    hint = ""
    beside = [path for place in (folder, file.path.parent) for path in place.glob(f"{glob.escape(Path(name).name)}*")]
    if pickled := [path for path in beside if path.name.endswith(CELLPOSE)]:
        return _cellpose(pickled[0])
    unread = [path.name for path in sorted(folder.glob(f"{glob.escape(name)}.*"))]
    if unread:
        hint = f": {unread[0]} is there, but not read, use {', '.join(SUFFIXES)}"
    elif close := difflib.get_close_matches(name, sorted(others), 1):
        hint = f": did you mean {close[0]}? Labels have the name of their image, or NAME_mask, NAME_masks, NAME_labels"
    return DatasetError(f"{what} {file.path.name}{and_more(alone)} has no partner of that name in {folder}{hint}")


def _cellpose(path: Path) -> DatasetError:
    stem = path.name.removesuffix(CELLPOSE)
    return DatasetError(
        f"{path} holds Python objects of Cellpose, which are never loaded: save the masks as files, in its window with "
        f"File > Save masks as PNG/TIF, or with cellpose --save_tif or --save_png, as {stem}_cp_masks.tif"
    )


def _labelled_names(folder: Path) -> list[str]:
    """Return the names of files in a folder that look like labels of other files in it, without their ends."""
    files = [path for path in folder.iterdir() if path.name[0] != "." and path.is_file()]
    names = {path.stem for path in files if path.suffix.lower() in SUFFIXES}
    names |= {path.stem.removesuffix(".ome") for path in files}
    images = names | {IMAGE_ENDINGS.sub("", name) for name in names}
    return sorted({short for name in names if (short := LABEL_ENDINGS.sub("", name)) != name and short in images})


def _same_names(folder: Path) -> list[tuple[str, Path, Path]]:
    """Return name, image and labels of images in a folder that all have a PNG file of the same name beside them.

    QuPath's TileExporter writes such pairs, if tiles and labels have different extensions
    (https://qupath.readthedocs.io, "Exporting images").
    """
    pairs: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix.lower() == LABEL_SUFFIX):
        if path.name[0] != "." and path.suffix.lower() in SUFFIXES and path.is_file():
            pairs.setdefault(stem_of(path), []).append(path)
    suffixes = {tuple(path.suffix.lower() for path in files) for files in pairs.values()}
    if len(suffixes) != 1 or [suffix == LABEL_SUFFIX for suffix in suffixes.pop()] != [False, True]:
        return []
    return [(name, image, labels) for name, (image, labels) in sorted(pairs.items())]


def _in_one_folder(folder: Path, notes: list[str]) -> list[AnnotatedFiles]:
    """Return the files of images with labels beside them, whose names are longer."""
    named = images_by_name(folder)
    pictures = [name for name in named if BESIDE_MASKS.search(name)]
    if pictures:
        notes.append(f"{len(pictures)} pictures and flows of Cellpose are left out, such as {pictures[0]}")
    kept = {name: source for name, source in named.items() if name not in pictures}
    labels = {name: source for name, source in kept.items() if LABEL_ENDINGS.search(name)}
    images = {name: source for name, source in kept.items() if name not in labels}
    paired = _paired(images, labels, (folder, folder))
    return [
        AnnotatedFiles(name, image, paired[name], image.acquisition or name) for name, image in sorted(images.items())
    ]


def _nested(folder: Path, names: Sequence[str], reading: Reading, notes: list[str]) -> list[AnnotatedFiles]:
    """Return the files of subfolders that have a layout; their names precede those of the images."""
    kept = sorted((name for name in names if name.lower() in SPLITS), key=lambda name: SPLITS.index(name.lower()))
    if len(kept) > 1:
        raise DatasetError(
            f"{folder} holds the data sets {', '.join(kept)}: give one of them, such as {folder / kept[0]}, and --val "
            f"{folder / kept[1]}"
        )
    found = []
    for above in names:
        for files in _files_in(folder / above, reading, notes):
            name, source = (above if part == above else f"{above}/{part}" for part in (files.name, files.source))
            found.append(AnnotatedFiles(name, files.image, files.labels, source, files.ignored, files.plane))
    return found


def _sequences(folder: Path) -> list[Path]:
    """Return the folders of the images of a Cell Tracking Challenge data set that have a gold or silver truth."""
    truths = [path.parent for kind in (GOLD, SILVER) for path in folder.glob(f"*{kind}/SEG")]
    return sorted({truth.with_name(truth.name[: -len(GOLD)]) for truth in truths})


def _challenge_files(sequence: Path, notes: list[str]) -> list[AnnotatedFiles]:
    """Return the annotated frames of a sequence: the gold truth and, for frames without it, the silver truth."""
    found: dict[str, list[AnnotatedFiles]] = {}
    counts = {}
    for kind in (GOLD, SILVER):
        truth = sequence.with_name(sequence.name + kind) / "SEG"
        if truth.is_dir():
            frames = _frames_of(truth, sequence)
            counts[truth.parent.name] = len(frames.keys() - found.keys())
            found = frames | found
    if counts.get(silver := sequence.name + SILVER):
        gold = counts.get(sequence.name + GOLD, 0)
        notes.append(
            f"{sequence}: labels of {counts[silver]} frames are the silver truth ({silver}), made by programs; of "
            f"{gold} the gold truth, made by hand"
        )
    return [files for time in sorted(found) for files in found[time]]


def _frames_of(truth: Path, sequence: Path) -> dict[str, list[AnnotatedFiles]]:
    """Return the annotated frames, or planes, of a folder `NN_GT/SEG` or `NN_ST/SEG`, by time."""
    found: dict[str, list[AnnotatedFiles]] = {}
    for labels in sorted(truth.glob("man_seg*.tif")):
        match = CHALLENGE_LABELS.fullmatch(labels.stem)
        if match is None:
            raise DatasetError(f"{labels} is not named as the challenge names its files, such as man_seg000.tif")
        time, plane = match.groups()
        image = sequence / f"t{time}.tif"
        if not image.is_file():
            raise DatasetError(
                f"{labels} annotates {image}, which does not exist: add that frame, or remove the labels"
            )
        name, number = f"{sequence.name}/t{time}", int(plane) if plane else None
        name += "" if number is None else f"[{number}]"
        files = AnnotatedFiles(name, source_of(image), source_of(labels), sequence.name, plane=number)
        found.setdefault(time, []).append(files)
    if not found:
        raise DatasetError(f"{truth} holds no man_seg*.tif: it should hold labels such as man_seg000.tif")
    return found


def _no_layout(folder: Path) -> DatasetError:
    """Return the error for a folder without a layout, which says what is there and what would be read."""
    if pickled := sorted(folder.glob(f"*{CELLPOSE}")):
        return _cellpose(pickled[0])
    below = _subfolders(folder)
    missing = LABELS if any(map(holds_images, below)) else IMAGES
    close = difflib.get_close_matches(missing, [name for name in below if not holds_images(name)], 1)
    hint = f" (did you mean {close[0]}/?)" if close else ""
    return DatasetError(
        f"{folder / missing} does not exist{hint}: images belong into images/, labels of the same name into labels/ or "
        "masks/, or beside the images as NAME_mask; a Cell Tracking Challenge data set has 01/ and 01_GT/SEG/"
    )


def read_annotation(labels: LabelSource, reading: Reading = AS_STORED, rule: LabelRule = UNSTATED) -> tuple[Array, int]:
    """Read the labels of an image.

    Masks of single objects are numbered in the order of their names. A pixel of several masks belongs to the smallest
    object, so that none vanishes below another.

    Returns
    -------
    Values that `rule` takes as objects, (N, H, W) in the file's dtype, of several masks int32; and the number of pixels
    that several masks share.

    Raises
    ------
    DatasetError
        Masks of single objects differ in size, or hold several values.
    FrameError
        A file holds no labels.
    """
    if isinstance(labels, ImageSource):
        return rule.planes(labels, reading), 0
    objects: list[NDArray[np.intp]] = []
    size: tuple[int, ...] = (0, 0)
    for file in labels:
        mask = _single_plane(file, reading, rule)
        if objects and mask.shape != size:
            raise DatasetError(
                f"{file} is {mask.shape[0]} x {mask.shape[1]} px, {labels[0]} is {size[0]} x {size[1]} px: masks of "
                "one image must have the same size"
            )
        size = mask.shape
        objects.append(_pixels_of_object(mask, file))
    plane, often = np.zeros(prod(size), np.int32), np.zeros(prod(size), np.int32)
    for index in sorted(range(len(objects)), key=lambda index: -len(objects[index])):
        plane[objects[index]] = index + 1
        often[objects[index]] += 1
    return plane.reshape(1, *size), int((often > 1).sum())


def _single_plane(file: ImageSource, reading: Reading, rule: LabelRule) -> Array:
    """Read the mask (H, W) of a single object, of 0 and 1 if the rule has a threshold."""
    planes = rule.planes(file, reading)
    if len(planes) > 1:
        raise FrameError(f"{file} holds {len(planes)} frames: save the mask of an object as one grey plane")
    plane: Array = planes[0]
    return plane if rule.threshold is None else (plane >= rule.threshold).astype(np.uint8)


def _pixels_of_object(mask: Array, file: ImageSource) -> NDArray[np.intp]:
    """Return the flat indices of the pixels of a single object in its mask (H, W), read from `file`."""
    inside = np.flatnonzero(mask)
    if len(inside) and (mask.flat[inside] != mask.flat[inside[0]]).any():
        raise DatasetError(
            f"{file} holds several values: in a folder of masks for one image, a file holds one object (labels of all "
            "objects have the name of the image; grey values become a mask with --threshold VALUE)"
        )
    return inside
