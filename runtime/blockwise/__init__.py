"""Images that are larger than the memory, in blocks, on this machine or on a cluster.

`segment_large` is the whole of it for programs; it needs the packages of ``unetrt[distributed]``, and imports them when
it is called.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from unetrt.runtime.candidates import is_installed
from unetrt.runtime.errors import OptionError, shown

if TYPE_CHECKING:
    from unetrt.runtime.blockwise.run import RunSummary
    from unetrt.runtime.files.formats import Reading
    from unetrt.runtime.files.outputs.zarr_pyramid import Version
    from unetrt.runtime.files.pixel_size import PixelSize
    from unetrt.runtime.files.sources import AnyPath, ImageSource
    from unetrt.runtime.files.windows import ArraySource
    from unetrt.runtime.model.spec import Annotation
    from unetrt.runtime.pixels.frames import ArrayLike
    from unetrt.runtime.segment.segmenter import Segmenter

PACKAGES = ("dask", "fsspec", "zarr")


class HowInBlocks(TypedDict, total=False):
    """Options of how an image is processed in blocks; see `unetrt.runtime.blockwise.run.Blockwise`."""

    block: tuple[int, int]
    workers: int
    scheduler: str | None
    scratch: str | Path | None
    resume: bool | None
    version: "Version"


def segment_large(  # noqa: PLR0913 - those of the command line
    model: "str | Path | Segmenter",
    image: "AnyPath | ArrayLike",
    folder: str | Path,
    save: Sequence[str] = ("ome-zarr",),
    *,
    name: str | None = None,
    pixel_size: "PixelSize | None" = None,
    reading: "Reading | None" = None,
    kind: "Annotation | None" = None,
    min_area: int = 0,
    tta: bool = False,
    progress: Callable[[float], None] | None = None,
    **how: Unpack[HowInBlocks],
) -> "RunSummary":
    """Segment an image of any size in blocks, and write its labels.

    Labels equal those of the whole image, whatever the blocks. Memory depends on the block, not on the image. This is
    `unetrt predict --block` for programs:

    >>> segment_large("nuclei", "slide.ome.tif", "out", ["ome-zarr", "table"], resume=True)  # doctest: +SKIP
    >>> segment_large(segmenter, zarr.open("raw.zarr"), "out", name="raw", block=(4096, 4096))  # doctest: +SKIP

    Parameters
    ----------
    model
        A model file, the name of one that comes with unetrt, or an open `Segmenter`, which stays open. With `frame=` of
        `Segmenter` it has the tile that is planned for blocks of that size.
    image
        A file, or one of the images that `list_images` returns; the address of an OME-Zarr image or a Zarr array in a
        file system of fsspec, such as ``"s3://bucket/image.zarr"``; or an array (..., H, W), or (..., C, H, W) for a
        model of C channels, of numpy, Zarr, dask or HDF5, of integers or finite floats. Axes before these are frames,
        each segmented separately.
    folder
        Where files are written; it is created.
    save
        What is written, as `--save` of `unetrt predict` names it: ``"labels"`` (OME-TIFF), ``"ome-zarr"``, ``"rois"``,
        ``"geojson"``, ``"table"`` and ``"parquet"``.
    name
        Name of the files, such as ``"slide"``; it may contain folders. None: that of the image's file, ``"image"`` for
        an array.
    pixel_size
        Size of a pixel of an array; None: unknown. Files have their own.
    reading
        How a file is read; of an array, `axes` are the letters of its axes, such as ``"TZYX"``. None: as stored.
    kind
        ``"instances"``: objects are numbered, 1 ... n in each frame; ``"classes"``: the class map. None: as the model
        was trained.
    min_area
        Instances of fewer pixels are dropped.
    tta
        Whether probabilities are averaged over 8 rotated and reflected copies, which takes 8 times as long.
    progress
        Called with the share of the work that is done, from 0 to 1, on any thread.
    **how
        `block`, height and width in pixels of the blocks that are wished for; `workers`, blocks at once in this
        process; `scheduler`, address of a Dask cluster, whose workers get a copy of `model` and open `image`
        themselves; `scratch`, folder or address of fsspec for what is computed so far, by default in `folder`;
        `resume`, whether to go on with an unfinished run (True) or start again (False), which is refused by default;
        `version` of OME-Zarr, ``"0.4"`` or ``"0.5"``.

    Returns
    -------
    Numbers of pixels, objects and blocks, and of those blocks that this run computed.

    Raises
    ------
    FrameError
        The image cannot be read or does not fit the model.
    OptionError
        A package or an option is not there, or there is an unfinished run of the image.
    OutputError
        A file cannot be written, or another process works on the same image.
    BackendUnavailableError
        No scheduler answers at the address.

    What was computed is kept when an error is raised, also by `progress`, and `resume` goes on with it.
    """
    if missing := missing_packages():
        raise OptionError(f"segment_large needs {', '.join(missing)}: pip install 'unetrt[distributed]'")
    from unetrt.runtime.blockwise.run import Blockwise, predict_blocks
    from unetrt.runtime.files.atomic import require_writable
    from unetrt.runtime.files.formats import AS_STORED
    from unetrt.runtime.files.images import Output
    from unetrt.runtime.files.outputs import opened_outputs, require_instances, require_kinds
    from unetrt.runtime.model.onnx_file import resolved
    from unetrt.runtime.segment.segmenter import Segmenter, require_callable

    require_callable(progress=progress)
    if not isinstance(model, str | Path | Segmenter):
        raise OptionError(f"model must be the path of a model file or an open Segmenter (got {type(model).__name__})")
    if isinstance(save, str) or not isinstance(save, Sequence) or not all(isinstance(one, str) for one in save):
        raise OptionError(f"save must be a list of kinds, such as ['labels'] (got {shown(save)})")
    chosen, kinds = Blockwise(**how), require_kinds(save)
    if not (kind is None or (isinstance(kind, str) and kind in ("instances", "classes"))):
        raise OptionError(f"labels of kind {shown(kind)} are unknown: use instances or classes")
    if type(min_area) is not int or min_area < 0:
        raise OptionError(f"min_area must be a whole number of pixels, 0 or more (got {shown(min_area)})")
    source = _source(image, name, pixel_size)
    folder = require_writable(Path(folder))
    with ExitStack() as opened:
        path, segmenter = None, model
        if not isinstance(segmenter, Segmenter):
            path = resolved(segmenter)
            segmenter = opened.enter_context(Segmenter(path))
        spec = segmenter.spec
        require_instances(kinds, kind or spec.annotation)
        confident = spec.head != "labels"
        files = opened.enter_context(opened_outputs(folder, kinds, channels=spec.channels, confident=confident))
        output = Output(files, kind or spec.annotation, min_area, tta)
        return predict_blocks(segmenter, path, source, output, chosen, reading=reading or AS_STORED, progress=progress)


def missing_packages() -> list[str]:
    """Return those of the packages that blocks need that are not installed."""
    return [package for package in PACKAGES if not is_installed(package)]


def _source(image: Any, name: str | None, pixel_size: "PixelSize | None") -> "ImageSource | ArraySource":
    """Return an image with its name."""
    from unetrt.runtime.files.names import require_name
    from unetrt.runtime.files.sources import source_of, stem_of
    from unetrt.runtime.files.windows import ArraySource
    from unetrt.runtime.pixels.frames import array_of

    if name is not None:
        require_name(name)
    if isinstance(image, str) and "://" in image:
        return ArraySource(image, name or stem_of(image.rstrip("/").rpartition("/")[2]), pixel_size)
    if not isinstance(image, str | os.PathLike):
        return ArraySource(array_of(image), name or "image", pixel_size)
    if pixel_size is not None:
        raise OptionError(f"pixel_size is for arrays and addresses: that of {image} is read from it")
    source = source_of(image)
    return source if name is None else replace(source, name=name)
