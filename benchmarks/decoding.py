"""From class maps to objects in `unetrt bench`: unetrt's decoding, and the usual way with scikit-image.

`with_objects` adds decoding to a contender. An untrained network finds no objects, so all decode the class map of the
drawn cells instead of the network's, after they have segmented the frame.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.benchmarks.contenders import BenchJob
from unetrt.benchmarks.result import OBJECTS, SEGMENT
from unetrt.runtime.model.objects import instances
from unetrt.runtime.model.spec import CORE_CLASSES, Decoding
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.targets import Target

Array = NDArray[Any]
Labels = NDArray[np.int32]
Way = Callable[[], Any]

# What training on nuclei chose: width of the rim in pixels, and the decoding; and the border of the paper's classes.
RIM, CORES, BORDER = 4.6, Decoding("cores", reach=11, bridge=1, smallest=8), 3
# Least distance between two markers of the watershed in pixels: less than half of a drawn cell's diameter.
BETWEEN_MARKERS = 7


def class_maps(labels: Labels) -> dict[str, tuple[NDArray[np.uint8], Decoding]]:
    """Return the class map, uint8 (H, W), of objects (H, W) for each method of decoding, and that decoding."""
    targets = {
        "components": Target.border(("background", "foreground"), BORDER),
        "cores": Target(CORE_CLASSES, CORES, RIM),
    }
    return {name: (one.classes(labels).astype(np.uint8), one.decoding) for name, one in targets.items()}


def drawn_classes(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the class map, uint8 (H, W), of the cells in the first channel of the drawn frame of a size."""
    return class_maps(draw(size, seed=1).labels)["cores"][0]


def with_objects(job: BenchJob, segment: Way, decode: Callable[[Array], Any] | None) -> dict[str, Way]:
    """Return a contender's ways to labels and to objects; the latter if it decodes, and the job has a class map."""
    classes = job.read_classes()
    if classes is None or decode is None:
        return {SEGMENT: segment}

    def objects() -> None:
        segment()
        decode(classes)

    return {SEGMENT: segment, OBJECTS: objects}


def by_cores(classes: Array) -> Labels:
    """Return the objects of the drawn class map (H, W) as unetrt decodes them."""
    return instances(classes, CORES)


def usual_decoding() -> Callable[[Array], Any] | None:
    """Return `watershed`, or None where scikit-image is not installed."""
    return watershed if find_spec("skimage") else None


def watershed(classes: Array) -> Labels:
    """Return the objects of a class map (H, W) in the usual way: a watershed of the distance to the background.

    As in scikit-image's gallery ("Watershed segmentation"); maxima of the distance are the markers.
    """
    # Not typed.
    peak_local_max: Any = import_module("skimage.feature").peak_local_max
    flood: Any = import_module("skimage.segmentation").watershed

    foreground = classes > 0
    distance = ndimage.distance_transform_edt(foreground)
    peaks = np.zeros(foreground.shape, bool)
    peaks[tuple(peak_local_max(distance, min_distance=BETWEEN_MARKERS, labels=foreground.view(np.uint8)).T)] = True
    found: Labels = flood(-distance, ndimage.label(peaks)[0], mask=foreground)
    return found
