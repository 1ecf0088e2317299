"""What the widget lets run off the GUI's thread: loading a model, segmenting an image. No Qt, no napari.

Which array of a layer a model segments, and where the labels belong. Layers are only looked at: no Qt, no napari.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, ModelFileError, UnetrtError
from unetrt.runtime.live.results import LiveStatus, one_line
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.instances import instances
from unetrt.runtime.segment.segmenter import Progress, Segmenter

# What says where a layer lies, where labels have as many axes as the image.
WHERE = ("scale", "translate", "rotate", "shear", "units")


def image_of(layer: Any, channels: int) -> Any:
    """Return what `Segmenter.segment` takes of an image layer, unread where it is lazy (dask, Zarr, memmap).

    Parameters
    ----------
    layer
        An image layer (..., H, W), of colours (..., H, W, 3 or 4), or of several scales, of which the finest is taken.
    channels
        Those of the model: colours become (..., 3, H, W).

    Raises
    ------
    FrameError
        The layer is in colour, and the model takes no three channels.
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
    """Return the one frame of a layer that the viewer shows: (H, W), or (C, H, W) for a model of C channels.

    Parameters
    ----------
    layer
        As for `image_of`.
    point
        Where the viewer's sliders are, in world units: `viewer.dims.point`.
    channels
        Those of the model.

    Raises
    ------
    FrameError
        As for `image_of`.
    """
    image = image_of(layer, channels)
    leading = len(image.shape) - (2 if channels == 1 else 3)
    if leading < 1:
        return image
    at = np.round(layer.world_to_data(point)[:leading]).astype(int)
    return image[tuple(np.clip(at, 0, np.array(image.shape[:leading]) - 1).tolist())]


def placement(layer: Any, axes: int) -> dict[str, Any]:
    """Return the arguments of `viewer.add_labels` that put labels of so many axes upon an image layer.

    Labels of fewer axes, of one frame or without the channels, lie in the plane of the last two.
    """
    if axes == layer.ndim:
        where = {name: getattr(layer, name) for name in WHERE if hasattr(layer, name)}
        return {**where, "affine": layer.affine.affine_matrix}
    kept = [*range(axes - 2), layer.ndim - 2, layer.ndim - 1]
    return {"scale": layer.scale[kept], "translate": layer.translate[kept]}


# Work that reports how far it is.
Call = Callable[[Progress], Any]


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be segmented, and how.

    Attributes
    ----------
    image
        What `Segmenter.segment` takes.
    kind
        `instances`: labels number the objects; `classes`: they name the class of each pixel.
    min_area
        Instances of fewer pixels are dropped.
    """

    image: Any
    kind: Annotation
    min_area: int = 0


def load(path: str) -> Segmenter:
    """Open a model file; may build an engine first, for minutes.

    Raises
    ------
    UnetrtError
        What `Segmenter` raises; ModelFileError where no file was chosen.
    """
    if not path.strip():
        raise ModelFileError("no model is chosen: give an ONNX file that unetrt export wrote, or an engine")
    return Segmenter(Path(path).expanduser())


def labels_of(segmenter: Segmenter, request: Request, progress: Progress) -> NDArray[Any]:
    """Return the labels of an image, (..., H, W): int32 instances, or uint8 classes.

    Parameters
    ----------
    segmenter, request
        What segments, and what is segmented.
    progress
        Called with the tiles done and all tiles; what it raises ends the call.

    Raises
    ------
    UnetrtError
        What `Segmenter.segment` raises.
    """
    tiles = [0, 0]

    def note(done: int, total: int) -> None:
        tiles[:] = done, total
        progress(done, total)

    classes = segmenter.segment(request.image, progress=note).labels
    if request.kind == "classes":
        return classes
    found = np.empty(classes.shape, np.int32)
    for plane in np.ndindex(classes.shape[:-2]):
        progress(*tiles)
        found[plane] = instances(classes[plane], segmenter.spec.separation_border, request.min_area)
    return found


def about(segmenter: Segmenter) -> str:
    """Return what a model says of itself, for people, on three lines."""
    spec = segmenter.spec
    height, width = spec.tile
    channels = "1 channel" if spec.channels == 1 else f"{spec.channels} channels"
    return f"classes: {', '.join(spec.classes)}\n{channels}, tile {height} x {width} px\n{segmenter.session.name}"


def figures(status: LiveStatus, objects: int | None = None) -> str:
    """Return what a live segmenter does and how fast, for people, on two lines, after the count of objects."""
    count = "" if objects is None else f"{objects} objects\n"
    latency = "no frame yet" if status.latency.p50 is None else f"latency {status.latency.p50 * 1000:.0f} ms"
    failed = f", failed {status.failed}" if status.failed else ""
    return (
        f"{count}{status.rate:.1f} frames/s, {latency}\n{status.submitted} frames: done {status.done}, "
        f"dropped {status.dropped}{failed}"
    )


def explained(error: BaseException) -> str:
    """Return an error as one line; its kind too, where the message was not written for people."""
    return " ".join(str(error).split()) if isinstance(error, UnetrtError) else one_line(error)
