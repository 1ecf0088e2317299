"""Training targets: the classes and weights of annotated pixels, and the cache of separation weights.

`Target` turns instances into one of two class maps, and knows how these become objects again. Target `border` is that
of Ronneberger et al. 2015: foreground with a border of background cut between touching objects. Target `cores` has
three classes, background, rim and core; a rim that is thinner in small objects keeps their cores.

Section 3 and equation 2 of Ronneberger et al. 2015: w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)). Class
weights w_c balance the classes; separation weights, the second term, are large between neighbouring objects. They need
a distance transform per object, so they are cached on disk: one .npy file for each set of labels and options.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, log, pi, prod, sqrt
from pathlib import Path
from typing import Any, Literal, get_args

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.runtime.errors import OutputError
from unetrt.runtime.files.atomic import cache_folder, cached_file
from unetrt.runtime.model.spec import BACKGROUND, CORE, CORE_CLASSES, RIM, Decoding
from unetrt.runtime.records import open_regular

Array = NDArray[Any]
Labels = NDArray[np.int32]

TargetName = Literal["cores", "border"]
TARGETS: tuple[TargetName, ...] = get_args(TargetName)
# Share of an object's largest distance to its border that its rim takes at most; chosen over 0.6 on validation images,
# see docs/training.md.
LARGEST_RIM = 0.5
# Percentile of the areas of annotated objects below which an object is taken for a speck.
SPECK = 2.0
# Area of the smallest core that is an object of its own, as a share of a core in an object of median size, and the
# width in pixels of gaps that are closed: chosen on validation images, see docs/training.md.
SMALLEST_CORE, BRIDGE = 0.05, 1

# Separation weights below this are left out: far below what a float32 loss resolves.
NEGLIGIBLE = 5e-5
# Version of the computation, a part of every cache key.
METHOD = 1
# Size limit of the cache in bytes; the least recently used files go first.
CACHE_LIMIT = 2 * 2**30
# Limit of the header of a .npy file in bytes; one has 128.
HEADER = 4096


@dataclass(frozen=True)
class Target:
    """The class map that a network learns from instances.

    Attributes
    ----------
    class_names
        Background first.
    decoding
        How the classes become objects.
    rim
        Width of the rim in pixels at most; 0 for target `border`.
    """

    class_names: tuple[str, ...]
    decoding: Decoding
    rim: float = 0.0

    @classmethod
    def cores(cls, instances: Sequence[Labels], rim: float, zoom: float = 1.0) -> "Target":
        """Return a target of background, rim and core.

        Parameters
        ----------
        instances
            (H, W) each, the objects of a training set.
        rim
            Width of the rim at most, as a share of the objects' median equivalent diameter.
        zoom
            Factor by which objects may be larger or smaller than those of the training set.
        """
        areas = np.concatenate([np.bincount(labels.reshape(-1))[1:] for labels in instances])
        areas = areas[areas > 0]
        diameter = sqrt(4 * float(np.median(areas)) / pi) if len(areas) else 0.0
        width = max(1.0, rim * diameter)
        core = pi / 4 * max(diameter - 2 * width, diameter * (1 - LARGEST_RIM)) ** 2
        # Twice the rim: predicted rims vary, and an object's corners are farther from its core than its sides.
        reach = ceil(2 * width * zoom) + 1
        # The smallest objects are `zoom` times smaller than those annotated.
        bridge, smallest = round(BRIDGE / zoom), ceil(SMALLEST_CORE * core / zoom**2)
        area = int(np.percentile(areas, SPECK, method="lower") / zoom**2) if len(areas) else 0
        return cls(CORE_CLASSES, Decoding("cores", reach, bridge, smallest, area), width)

    @classmethod
    def border(cls, class_names: tuple[str, ...], width: int) -> "Target":
        """Return a target of background and foreground with a separation border, `width` px wide."""
        return cls(class_names, Decoding("components", width))

    def classes(self, objects: Labels) -> NDArray[np.int32]:
        """Return the class, (H, W), of each pixel of instances (H, W)."""
        if self.decoding.method == "components":
            return (cut_between(objects, self.decoding.reach) > 0).astype(np.int32)
        # The distance to the nearest pixel of another number, 0 or an object: touching objects have rims between them.
        distance = edt.edt(objects.astype(np.uint32))
        numbers = np.arange(int(objects.max()) + 1)
        largest = np.asarray(ndimage.maximum(distance, objects, numbers), np.float32)
        core = distance > np.minimum(self.rim, LARGEST_RIM * largest)[objects]
        return np.where(objects > 0, np.where(core, CORE, RIM), BACKGROUND).astype(np.int32)


def cut_between(objects: Labels, width: int) -> Labels:
    """Make background between touching objects (section 3: "separation border ... using morphological operations").

    Parameters
    ----------
    objects
        (H, W), 0 is the background; objects touch along an edge or a corner.
    width
        Width of the border, in pixels. Each object loses half of it; if the width is odd, the object with the lower
        number loses the extra pixel. 0 cuts nothing.

    Returns
    -------
    A copy, (H, W), in which the cut pixels are 0.
    """
    nothing = np.iinfo(objects.dtype).max
    above = ndimage.maximum_filter(objects, 2 * ceil(width / 2) + 1)
    below = ndimage.minimum_filter(np.where(objects > 0, objects, nothing), 2 * (width // 2) + 1)
    cut = (above > objects) | (below < objects)
    return np.where(cut, 0, objects)


def separation_weights(objects: Labels, w0: float = 10.0, sigma: float = 5.0) -> NDArray[np.float32]:
    """Return w0 exp(-(d1 + d2)^2 / (2 sigma^2)), d1 and d2 the distances to the borders of the two nearest objects.

    Outside an object the distance to its border is the distance to its nearest pixel; inside, the distance to the
    nearest pixel that does not belong to it. The weight therefore falls off equally on both sides of a border.

    Parameters
    ----------
    objects
        (H, W), one number for each object, 0 is the background.
    w0
        Weight where two objects touch (10 in the paper).
    sigma
        Standard deviation of the Gaussian, in pixels (5 in the paper).

    Returns
    -------
    (H, W) float32, within 1e-4 of the formula with a Euclidean distance transform (EDT) of the whole image for each
    object: here each transform covers an object's surroundings as far as its weight is not negligible.
    """
    weights = np.zeros(objects.shape, np.float32)
    if w0 <= 0:
        return weights
    reach = ceil(sigma * sqrt(2 * max(log(w0 / NEGLIGIBLE), 0)))
    nearest, second = np.full((2, *objects.shape), np.inf, np.float32)
    for number, box in enumerate(ndimage.find_objects(objects), 1):
        if box is None:
            continue
        around = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
        # For two labels, this EDT returns at each pixel the distance to the nearest pixel of the other label.
        squared = edt.edtsq((objects[around] == number).view(np.uint8) + np.uint8(1))
        second[around] = np.minimum(second[around], np.maximum(nearest[around], squared))
        nearest[around] = np.minimum(nearest[around], squared)
    near = np.isfinite(second)
    weights[near] = w0 * np.exp(-((np.sqrt(nearest[near]) + np.sqrt(second[near])) ** 2) / (2 * sigma**2))
    return weights


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return w_c, (classes,): all classes get the same total weight, and the mean weight of all pixels is 1.

    Parameters
    ----------
    counts
        Pixels of each class in the training set, (classes,). A class without pixels gets weight 0.
    """
    present = counts > 0
    weights = np.zeros(len(counts), np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def cached_separation_weights(
    objects: Labels, w0: float, sigma: float, folder: Path | None = None
) -> NDArray[np.float32]:
    """Return `separation_weights`, from the cache if it holds them for these labels and options.

    If the cache cannot be written to, or a file in it is damaged, the weights are computed again; no error is raised.

    Parameters
    ----------
    objects, w0, sigma
        As for `separation_weights`.
    folder
        Folder of the cache; default: `unetrt/weight-maps` in the user's cache folder.
    """
    folder = folder or cache_folder("weight-maps")
    path = folder / f"{_key(objects, w0, sigma)}.npy"
    weights = _cached(path, objects.shape)
    if weights is None:
        weights = separation_weights(objects, w0, sigma)
        with suppress(OutputError), cached_file(path) as temporary:
            np.save(temporary, weights)
    return weights


def prune_cache(folder: Path | None = None, limit: int = CACHE_LIMIT) -> None:
    """Delete the least recently used separation weights until the cache holds at most `limit` bytes."""
    folder = folder or cache_folder("weight-maps")
    kept = 0
    with suppress(OSError):
        for path in sorted(folder.glob("*.npy"), key=lambda path: path.lstat().st_mtime, reverse=True):
            kept += path.lstat().st_size
            if kept > limit:
                path.unlink()


def _key(objects: Labels, w0: float, sigma: float) -> str:
    digest = hashlib.sha256(f"{METHOD} {objects.shape} {objects.dtype.str} {w0!r} {sigma!r}".encode())
    digest.update(np.ascontiguousarray(objects).data)
    return digest.hexdigest()


def _cached(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Return a file's weights and mark it as used; None where it is missing or damaged."""
    try:
        with open_regular(path, 4 * prod(shape) + HEADER, own=True) as file:
            weights: NDArray[np.float32] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    with suppress(OSError):
        os.utime(path)
    return weights if weights.shape == shape and weights.dtype == np.float32 else None
