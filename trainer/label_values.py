"""What the values of label files are: ids of objects, masks, or grey values of which a threshold makes masks.

An id is one object, in however many pieces. The objects of a mask are the connected components of its foreground. One
`LabelRule` serves training and evaluation, annotation and prediction. Values are checked first:
`require_ids` and `require_background` refuse interpolated values and a background that is labelled as an object;
`LabelDoubts` collects what may be a mistake.

>>> rule = LabelRule(threshold=128)
>>> rule.objects(rule.planes(Path("soft_mask.png"))[0]).max()
37
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from unetrt.runtime.errors import DatasetError, FrameError, OptionError
from unetrt.runtime.files.formats import AS_STORED, Reading
from unetrt.runtime.files.images import read_grey_stack, whole_numbers
from unetrt.runtime.files.sources import AnyPath
from unetrt.runtime.pixels.drawing import outlines
from unetrt.runtime.pixels.frames import require_finite

Array = NDArray[Any]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]

# Least share of the pixels along outlines whose value is theirs alone and lies between those of their neighbours, and
# least number of them, in interpolated labels. In 311 annotated images of nuclei the share is 0.007 at most, in a
# tessellation of cells of 8 px it is 0.11; in interpolated, blurred and JPEG-compressed labels it is 0.32 to 0.98.
RIMS, FEWEST_RIMS = 0.25, 12
# In an interpolated mask, half of the labelled pixels away from outlines have at least this share of the highest value.
FULL = 0.9
# Share of an image above which an object may be its background; number of holes from which it is, and their least area
# in pixels.
LARGE, HOLES, HOLE = 0.5, 3, 9
# Number of holes from which an object of any size that reaches all sides may be the background.
NETWORK = 10
# More connected components per id than this, and values are likely classes, masks or interpolated.
PIECES = 1.5
# Number of objects, and their largest median area in pixels, that may be noise.
MANY, SPECK_AREA = 1000, 4


@dataclass(frozen=True)
class LabelRule:
    """How the values of label files become objects.

    Attributes
    ----------
    masks
        True: a plane with a single value besides 0 is a mask, other planes hold ids. False: all planes hold ids, and
        are not checked. None: all planes hold ids, but for a training set in which no plane holds more than one value
        besides 0: these are masks.
    threshold
        Values from this on are the foreground of a mask; None: no threshold.

    Raises
    ------
    OptionError
        The threshold is not above 0, or is given for ids.
    """

    masks: bool | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is None:
            return
        if self.masks is False:
            raise OptionError("--threshold makes masks of label files, --ids takes their values as ids: give one")
        if not self.threshold > 0:
            raise OptionError(f"a threshold of {self.threshold:g} makes the background, 0, foreground: use one above 0")

    def require_objects(self, classes: int | None) -> None:
        """Raise OptionError if the rule says how objects are read, and labels are class indices."""
        if classes is not None and self != UNSTATED:
            raise OptionError("--masks, --ids and --threshold are for objects, --classes for class indices: give one")

    def planes(self, path: AnyPath, reading: Reading = AS_STORED) -> Array:
        """Read the values of a label file, (N, H, W): integers, or any numbers if there is a threshold.

        Raises
        ------
        FrameError
            The file cannot be read, has several channels, NaN or, without a threshold, values that are not integers
            from 0.
        """
        planes = read_grey_stack(path, reading)
        if self.threshold is None:
            try:
                return whole_numbers(planes)
            except FrameError as error:
                remedy = "or make a mask of grey values with --threshold VALUE"
                raise FrameError(f"{path} {error}, {remedy}") from error
        if planes.dtype.kind not in "uif":
            raise FrameError(f"{path} holds {planes.dtype} values: a threshold is for integers and floats")
        if planes.dtype.kind == "f":
            try:
                require_finite(planes)
            except FrameError as error:
                raise FrameError(f"{path}: {error}") from error
        return planes

    def objects(self, plane: Array) -> Labels:
        """Return the objects in the values (H, W) of a plane, numbered from 1: int32 (H, W).

        With `masks` None, values are ids.
        """
        if self.threshold is not None:
            return components(plane >= self.threshold)
        numbered = as_instances(plane)
        return components(numbered) if self.masks and numbered.max(initial=0) == 1 else numbered


# The user states nothing about labels.
UNSTATED = LabelRule()


def as_instances(labels: Array) -> Labels:
    """Return the ids in labels (H, W) of any integer dtype, numbered from 1 in their order: int32 (H, W)."""
    values, numbers = np.unique(labels, return_inverse=True)
    numbered: Labels = (numbers.reshape(labels.shape) + bool(len(values) and values[0] > 0)).astype(np.int32)
    return numbered


def components(mask: Array) -> Labels:
    """Return the connected components, along edges, of what is above 0 in a mask (H, W): int32 (H, W)."""
    found: Labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask > 0, output=found)
    return found


def count_pieces(labels: Array) -> int:
    """Return the number of connected components, along edges, of pixels (H, W) of equal value, without the background.

    A component consists of runs: pixels of equal value along a row.
    """
    width = labels.shape[1] + 1
    flat = np.pad(labels, ((0, 0), (1, 0))).reshape(-1)
    starts = np.flatnonzero(np.append(flat[1:] != flat[:-1], False)) + 1
    stops = np.append(starts[1:], flat.size)
    starts, stops = starts[flat[starts] > 0], stops[flat[starts] > 0]
    # Runs of the next row that begin before a run ends and end after it begins.
    first = np.searchsorted(stops, starts + width, side="right")
    touching = np.maximum(np.searchsorted(starts, stops + width, side="left") - first, 0)
    above = np.repeat(np.arange(len(starts)), touching)
    below = np.arange(len(above)) + np.repeat(first - np.cumsum(touching) + touching, touching)
    equal = flat[starts[above]] == flat[starts[below]]
    graph = csr_array((np.ones(equal.sum(), np.int8), (above[equal], below[equal])), shape=(len(starts),) * 2)
    return int(connected_components(graph, directed=False)[0]) if len(starts) else 0


def require_ids(values: Array, name: str) -> None:
    """Raise DatasetError if values (H, W) are interpolated: grey values, of which each would be an object.

    Interpolation, anti-aliasing, blur and lossy compression leave rims, often one pixel wide, whose values lie between
    those on both sides and that contain no square of 2 x 2 equal pixels. Objects do not look like that.

    Parameters
    ----------
    values
        (H, W) integers, one for each object, 0 is the background.
    name
        What is named in the message.
    """
    solid = _solid(values)
    labelled = values > 0
    thin = labelled & ~solid
    if np.count_nonzero(thin) < max(FEWEST_RIMS, RIMS * np.count_nonzero(outlines(values))):
        return  # most labels, in a fifth of the time
    highest, lowest = ndimage.maximum_filter(values, 3), ndimage.minimum_filter(values, 3)
    rims = np.count_nonzero(thin & (lowest < values) & (values < highest))
    along = np.count_nonzero(labelled & (lowest < highest))
    if rims < max(FEWEST_RIMS, RIMS * along):
        return
    inside, top = values[solid & labelled], int(values.max())
    if inside.size and np.mean(inside >= FULL * top) >= 0.5:
        what, remedy = "an anti-aliased or resized mask", f"--threshold {(top + 1) // 2} makes a mask of it"
    else:
        what = "grey values, or labels resized with interpolation"
        remedy = "save one value for each object, and resize labels to the nearest pixel"
    raise DatasetError(
        f"{name} holds {what}: {rims / along:.0%} of the pixels along outlines have values between those of their "
        f"neighbours, which would be objects; {remedy} (--ids takes them as they are)"
    )


def _solid(values: Array) -> Mask:
    """Return the pixels (H, W) in a square of 2 x 2 pixels with the same value."""
    height, width = values.shape
    square = np.zeros((height + 1, width + 1), bool)
    first = values[:-1, :-1]
    square[1:-1, 1:-1] = (first == values[1:, :-1]) & (first == values[:-1, 1:]) & (first == values[1:, 1:])
    solid: Mask = square[:-1, :-1] | square[:-1, 1:] | square[1:, :-1] | square[1:, 1:]
    return solid


def require_background(objects: Labels, name: str) -> None:
    """Raise DatasetError if the largest object is the background.

    An object that covers more than half of the image, reaches all four sides and has several holes is the background
    of an inverted mask, or of labels whose background has a number. Without these, it may be a large cell; and in masks
    of cells without background, such as in electron microscopy, it may be many cells whose borders have gaps.

    Parameters
    ----------
    objects
        (H, W), numbered from 1, 0 is the background.
    name
        What is named in the message.
    """
    share, holes = _largest(objects)
    if share > LARGE and holes >= HOLES:
        raise DatasetError(
            f"{name} holds an object that covers {share:.0%} of the image, reaches all sides and encloses {holes} "
            "regions, as the background of an inverted mask does: make the background 0, for example with "
            "labels.max() - labels (--masks or --ids takes the labels as they are)"
        )


def _largest(objects: Labels) -> tuple[float, int]:
    """Return the share of the image (H, W) that the largest object covers, and the holes that it has.

    Holes are not counted, 0, unless the object reaches all four sides.
    """
    areas = np.bincount(objects.reshape(-1))[1:]
    largest = objects == (areas.argmax() + 1 if len(areas) else -1)
    reaches = all(side.any() for side in (largest[:1], largest[-1:], largest[:, :1], largest[:, -1:]))
    return float(areas.max(initial=0) / max(1, objects.size)), _holes(largest) if reaches else 0


def _holes(mask: Mask) -> int:
    """Return the number of holes of at least `HOLE` pixels in a mask (H, W)."""
    outside, count = ndimage.label(~mask, np.ones((3, 3)))
    areas = np.bincount(outside.reshape(-1), minlength=count + 1)
    for side in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        areas[side] = 0
    areas[0] = 0
    return int(np.count_nonzero(areas >= HOLE))


@dataclass
class LabelDoubts:
    """What may be a mistake in the labels of several images, collected image by image.

    Attributes
    ----------
    large
        Name, and share of the image that one object covers, where it may be the background.
    pieces
        Name, number of values, and number of pieces, where these are many, or those of a single value.
    noisy
        Name, number of objects and their median area in pixels, where it looks like noise.
    """

    large: list[tuple[str, float]] = field(default_factory=list)
    pieces: list[tuple[str, int, int]] = field(default_factory=list)
    noisy: list[tuple[str, int, float]] = field(default_factory=list)

    def add(self, name: str, objects: Labels) -> None:
        """Look at the objects (H, W) of an image."""
        self.add_pieces(name, objects)
        share, holes = _largest(objects)
        if share > LARGE or holes >= NETWORK:
            self.large.append((name, share))
        areas = np.bincount(objects.reshape(-1))[1:]
        if len(areas) >= MANY and np.median(areas) <= SPECK_AREA:
            self.noisy.append((name, len(areas), float(np.median(areas))))

    def add_pieces(self, name: str, objects: Labels) -> None:
        """Look at the pieces of the objects (H, W) of an image."""
        values, count = int(objects.max(initial=0)), count_pieces(objects)
        if count > PIECES * values:
            self.pieces.append((name, values, count))

    def sentences(self) -> list[str]:
        """Return a sentence for each kind of doubt."""
        found = []
        if self.large:
            name, share = max(self.large, key=lambda one: one[1])
            found.append(
                f"one object covers {share:.0%} of {name}{and_more(self.large)}: if it is the background, make that 0"
            )
        if self.pieces:
            name, values, count = max(self.pieces, key=lambda one: one[2])
            found.append(
                f"{name}{and_more(self.pieces)} holds {values} values in {count} pieces, and each value is one object: "
                "give --masks for masks, --classes for class maps, and do not interpolate labels"
            )
        if self.noisy:
            name, count, area = max(self.noisy, key=lambda one: one[1])
            found.append(
                f"{name}{and_more(self.noisy)} holds {count} objects of {area:g} px (median): if that is "
                "noise, remove it, or give another --threshold for grey values"
            )
        return found


def and_more(names: Sequence[Any]) -> str:
    """Return how many others a message leaves out that names the first."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
