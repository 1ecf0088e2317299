"""What the widget does without Qt: the array of a layer, its segmentation, the placement of labels, and texts.

Axes: for a model of one channel the last two axes of an image are (H, W), for one of C channels the last three are
(C, H, W); the axes before are a stack. Layers are only read. Neither Qt nor napari is imported here, but for `notify`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime import LiveStatus, Segmenter
from unetrt.runtime.errors import FrameError, ModelFileError, UnetrtError, one_line
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.frames import frame_axes, is_narrow
from unetrt.runtime.segment.segmenter import Progress

# Attributes that place a layer in the world, for labels with as many axes as the image.
PLACEMENT = ("scale", "translate", "rotate", "shear", "units")
# A call that reports its progress.
Call = Callable[[Progress], Any]


def image_of(layer: Any, channels: int) -> Any:
    """Return the array of an image layer for `Segmenter.segment`; lazy arrays (dask, Zarr, memmap) are not read.

    Parameters
    ----------
    layer
        An image layer (..., H, W) or, in colour, (..., H, W, 3 or 4); of a multiscale layer the finest level is used.
    channels
        Number of channels of the model. A colour image becomes (..., 3, H, W).

    Raises
    ------
    FrameError
        The layer is in colour, and the model does not have three channels.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    if not layer.rgb:
        return data
    if channels != 3:
        raise FrameError(f"layer {layer.name!r} is in colour, this model takes {channels} channels: split its channels")
    colours = data if hasattr(data, "transpose") else np.asarray(data)
    axes = range(len(colours.shape) - 3)
    return colours[..., :3].transpose(*axes, -1, -3, -2)


def shown_frame(layer: Any, point: Sequence[float], channels: int) -> Any:
    """Return the frame of a layer that the viewer shows: (H, W), or (C, H, W) for a model of C channels.

    Parameters
    ----------
    layer
        As for `image_of`.
    point
        Position of the viewer's sliders in world coordinates: `viewer.dims.point`.
    channels
        Number of channels of the model.

    Raises
    ------
    FrameError
        As for `image_of`.
    """
    image = image_of(layer, channels)
    leading = len(image.shape) - frame_axes(channels)
    if leading < 1 or (channels == 1 and is_narrow(image.shape)):  # the segmenter refuses the latter, and says why
        return image
    at = np.round(layer.world_to_data(point)[:leading]).astype(int)
    return image[tuple(np.clip(at, 0, np.array(image.shape[:leading]) - 1).tolist())]


def placement(layer: Any, axes: int) -> dict[str, Any]:
    """Return the arguments of `viewer.add_labels` that place labels with `axes` axes on an image layer.

    Labels with fewer axes than the image (of one frame, or without channels) lie in the plane of its last two axes.
    """
    if axes == layer.ndim:
        placed = {name: getattr(layer, name) for name in PLACEMENT if hasattr(layer, name)}
        return {**placed, "affine": layer.affine.affine_matrix}
    kept = [*range(axes - 2), layer.ndim - 2, layer.ndim - 1]
    return {"scale": layer.scale[kept], "translate": layer.translate[kept]}


@dataclass(frozen=True, eq=False)
class Request:
    """A segmentation to compute.

    Attributes
    ----------
    image
        The image, as `Segmenter.segment` takes it.
    kind
        `instances`: labels are object numbers; `classes`: labels are class indices.
    min_area
        Objects of fewer pixels are removed.
    """

    image: Any
    kind: Annotation
    min_area: int = 0


def load(path: str) -> Segmenter:
    """Open a model file; takes minutes if an engine is built first.

    Raises
    ------
    ModelFileError
        `path` is empty.
    UnetrtError
        What `Segmenter` raises.
    """
    if not path.strip():
        raise ModelFileError("no model is chosen: give an ONNX file that unetrt export wrote, or an engine")
    return Segmenter(Path(path).expanduser())


def labels_of(segmenter: Segmenter, request: Request, progress: Progress) -> NDArray[Any]:
    """Return the labels of an image, (..., H, W): int32 object numbers, or uint8 class indices.

    Parameters
    ----------
    segmenter, request
        The model, and the segmentation to compute.
    progress
        Called with the number of finished tiles and of all tiles; may raise to end the call.

    Raises
    ------
    UnetrtError
        What `Segmenter.objects` raises.
    """
    if request.kind == "classes":
        return segmenter.segment(request.image, progress=progress).labels
    return segmenter.objects(request.image, min_area=request.min_area, progress=progress).labels


def about(segmenter: Segmenter) -> str:
    """Return a description of a model: classes, channels and tile, session; three lines."""
    spec = segmenter.spec
    height, width = spec.tile
    channels = "1 channel" if spec.channels == 1 else f"{spec.channels} channels"
    return f"classes: {', '.join(spec.classes)}\n{channels}, tile {height} x {width} px\n{segmenter.session.name}"


def figures(status: LiveStatus, objects: int | None = None) -> str:
    """Return rate, latency and counts of a live segmenter, two lines, after the number of objects, if any."""
    count = "" if objects is None else f"{objects} objects\n"
    latency = "no frame yet" if status.latency.p50 is None else f"latency {status.latency.p50 * 1000:.0f} ms"
    failed = f", failed {status.failed}" if status.failed else ""
    return (
        f"{count}{status.rate:.1f} frames/s, {latency}\n{status.submitted} frames: done {status.done}, "
        f"dropped {status.dropped}{failed}"
    )


def explained(error: BaseException) -> str:
    """Return an error in one line, with its type unless it is a `UnetrtError`, whose message suffices."""
    return one_line(error, kind=not isinstance(error, UnetrtError))


def notify(error: BaseException) -> None:
    """Show an error as a napari notification of one line."""
    from napari.utils.notifications import show_error

    show_error(explained(error))


@contextmanager
def notified() -> Iterator[None]:
    """Show a `UnetrtError` raised in the block as a notification, and continue after the block."""
    try:
        yield
    except UnetrtError as error:
        notify(error)
