"""What the benchmarks of images in blocks run, in processes without torch, whose memory is measured.

The images are plain Zarr arrays of real nuclei: the pictures that come with the bundled model, repeated.
"""

from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from unetrt.benchmarks.processes import COUNTED, in_turn, peak_memory
from unetrt.runtime.blockwise.run import predict_blocks
from unetrt.runtime.errors import ParityError
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.files.images import Output
from unetrt.runtime.files.outputs import KINDS, opened_outputs
from unetrt.runtime.files.outputs.zarr_pyramid import OBJECTS
from unetrt.runtime.files.windows import open_windows
from unetrt.runtime.geometry.blocks import BlockPlan
from unetrt.runtime.machine import return_freed_memory
from unetrt.runtime.model.objects import instances
from unetrt.runtime.model.onnx_file import resolved
from unetrt.runtime.pixels.statistics import FrameStatistics
from unetrt.runtime.segment.segmenter import Segmenter

Array = NDArray[Any]

MEBIBYTE = 2.0**20
# Side of a chunk of the images in pixels, and the factor that makes their 8 bits 14.
CHUNK, BRIGHTER = 512, 64
# The model whose pictures are repeated, and the kind of file that is written.
BUNDLED, KIND = "nuclei", "ome-zarr"
AS_ZEROS = Reading(missing_chunks="fill")


def mosaic(path: Path, size: tuple[int, int], every: int = 1) -> None:
    """Write an image (H, W), uint16, as a Zarr array: each chunk repeats a picture of nuclei.

    Parameters
    ----------
    path
        The array.
    size
        Height and width, in pixels.
    every
        One chunk in `every` is stored; the others are zeros.
    """
    places = sorted((resolved(Path(BUNDLED)).parent / "examples" / "images").glob("*.tif"))
    pictures = [np.tile(tifffile.imread(place).astype(np.uint16) * BRIGHTER, (2, 2)) for place in places]
    array = zarr.create_array(path, shape=size, dtype=np.uint16, chunks=(CHUNK, CHUNK))
    corners = product(*(range(0, length, CHUNK) for length in size))
    for number, (top, left) in enumerate(corners):
        if number % every == 0:
            height, width = min(CHUNK, size[0] - top), min(CHUNK, size[1] - left)
            array[top : top + height, left : left + width] = pictures[number // every % len(pictures)][:height, :width]


def in_memory(model: Path, path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Return the median seconds for the labels of the first rows and columns of an image, which is in memory."""
    image: Any = zarr.open_array(path, mode="r")
    part = np.asarray(image[: size[0], : size[1]])
    with Segmenter(model) as segmenter:
        take: Any = segmenter.objects if segmenter.spec.annotation == "instances" else segmenter.segment
        seconds = in_turn({"session": lambda: take(part)}, COUNTED)
        about = {"engine": segmenter.session.name, "tile": list(segmenter.spec.tile)}
        return {name: median(each) for name, each in seconds.items()} | about


def in_blocks(model: Path, path: Path, folder: Path, *, overlays: bool = False) -> dict[str, Any]:
    """Return the seconds for the labels of an image, from opening it to the OME-Zarr, and the peak in MiB.

    The peak is that above a process that has opened the model.
    """
    return_freed_memory()  # as `unetrt predict` does
    with Segmenter(model) as segmenter:
        before, begin = peak_memory() or 0, perf_counter()
        with opened_outputs(folder, [KIND], channels=segmenter.spec.channels, overlays=overlays) as files:
            output = Output(files, segmenter.spec.annotation)
            found = predict_blocks(segmenter, model, path, output, reading=AS_ZEROS).objects
        seconds, peak = perf_counter() - begin, (peak_memory() or 0) - before
        return {"blocks": seconds, "peak": peak / MEBIBYTE, "objects": found}


def compared(model: Path, path: Path, folder: Path, crop: int) -> int:
    """Compare the objects in the middle of an image, in a part of about `crop` pixels, with those decoded in memory.

    Returns
    -------
    The number of objects that were compared.

    Raises
    ------
    ParityError
        They differ.
    """
    with ExitStack() as opened:
        segmenter = opened.enter_context(Segmenter(model))
        image = opened.enter_context(open_windows(path, AS_ZEROS, 1))
        spec = segmenter.spec
        blocks = BlockPlan(spec.plan(image.shape[2:]), (crop, crop))
        middle = blocks[(blocks.shape[0] // 2) * blocks.shape[1] + blocks.shape[1] // 2]
        statistics = FrameStatistics(spec.normalisation, image.dtype, image.shape[1:])
        affine = statistics.measure([block.part for block in blocks], lambda part: image.read(0, *part))
        # The tiles of this part alone are those of the image, which begin at multiples of the same stride.
        classes = segmenter.segment(image.read(0, *middle.part)[0], measure=lambda _: affine).labels
    labels: Any = zarr.open_array(folder / KINDS[KIND].place.format(path.stem) / OBJECTS / "0", mode="r")
    inside = (slice(spec.halo, -spec.halo),) * 2  # where the mirrored border changes nothing
    found = np.asarray(labels[middle.part])[inside]
    return require_same_objects(found, instances(classes, spec.decoding)[inside])


def require_same_objects(found: Array, expected: Array) -> int:
    """Raise ParityError if two label maps (H, W) have other objects; those at the border are left out.

    Returns
    -------
    The number of objects that were compared.
    """
    found, expected = whole_objects(found), whole_objects(expected)
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    counts = [len(np.unique(numbers[numbers > 0])) for numbers in (found, expected)]
    is_paired = not ((pairs[0] == 0) ^ (pairs[1] == 0)).any()
    if not is_paired or counts != [np.count_nonzero(pairs[0])] * 2:
        raise ParityError(f"objects in blocks differ from those in memory: {counts[0]} and {counts[1]} objects")
    return counts[0]


def whole_objects(labels: Array) -> Array:
    """Return a label map (H, W) without the objects that touch its border."""
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.where(np.isin(labels, border), 0, labels)
