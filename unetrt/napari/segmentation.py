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
from unetrt.runtime.live.results import decimal
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.frames import frame_axes, is_narrow
from unetrt.runtime.segment.segmenter import Progress

# Attributes that place a layer in the world; each is also the name of the event of its change.
PLACEMENT = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
# Largest condition number of a matrix that is inverted: the result has 6 digits or more in double precision.
MAX_CONDITION = 1e10
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


def shown_frame(layer: Any, dims: Any, channels: int) -> Any:
    """Return the frame of a layer that the viewer shows: (H, W), or (C, H, W) for a model of C channels.

    Parameters
    ----------
    layer
        As for `image_of`.
    dims
        The viewer's sliders, `viewer.dims`, in world coordinates and in their own units.
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
    point = np.array(dims.point[-layer.ndim :])
    point[-2:] = 0  # napari does not tilt the plane it shows: only the sliders choose it
    if units := getattr(dims, "units", None):  # of the sliders; napari 0.9 or later
        pairs = zip(units[-layer.ndim :], layer.units, strict=True)
        point *= [(1 * slider).to(own).magnitude for slider, own in pairs]
    at = np.round(layer.world_to_data(point)[:leading]).astype(int)
    return image[tuple(np.clip(at, 0, np.array(image.shape[:leading]) - 1).tolist())]


def fitted(labels: NDArray[Any], layer: Any) -> NDArray[Any]:
    """Return labels of an image layer with axes that match those of the layer from the last one on, as napari counts.

    Labels of a stack with channels, (..., H, W) for (..., C, H, W), get an axis of length 1 for the channels. Those of
    one frame keep their two axes: napari shows them at all positions of the sliders.
    """
    return np.expand_dims(labels, -3) if 2 < labels.ndim == layer.ndim - 1 else labels


def placement(layer: Any, shape: Sequence[int]) -> dict[str, Any]:
    """Return the attributes of a labels layer, also arguments of `viewer.add_labels`, that lie on an image layer.

    They place each pixel where napari draws that pixel of the image: the part of the image's whole transform for the
    last axes. What mixes these with the axes before, such as the shear of a deskewed stack, moves both on the canvas
    alike, because napari omits it when it draws a plane.

    Parameters
    ----------
    layer
        The image layer.
    shape
        Shape of the labels. An axis of length 1 reaches over the whole axis of the image.
    """
    axes = len(shape)
    if axes > layer.ndim:  # the layer was assigned an image with fewer axes meanwhile: its transform for the last ones
        affine = np.eye(axes + 1)
        affine[-layer.ndim - 1 :, -layer.ndim - 1 :] = layer.affine.affine_matrix
        own_parts = {name: getattr(layer, name) for name in ("scale", "translate", "rotate")}
        return {**own_parts, "shear": _shear(layer), "affine": affine}
    kept = np.s_[-axes:]
    scale, rotate, shear = layer.scale[kept], np.asarray(layer.rotate)[kept, kept], _shear(layer)[kept, kept]
    if np.linalg.cond(rotate) > MAX_CONDITION:  # it stands the plane upright
        rotate, shear = np.eye(axes), np.eye(axes)
    own = rotate @ shear @ np.diag(scale)
    affine = layer.affine.affine_matrix
    if axes < layer.ndim:  # what the parts above leave of the whole transform
        affine = _whole(layer)[-axes - 1 :, -axes - 1 :] @ np.linalg.inv(_homogeneous(own, layer.translate[kept]))
    data = layer.data[0] if layer.multiscale else layer.data
    lengths = [of if length == 1 else 1 for of, length in zip(data.shape[: layer.ndim][kept], shape, strict=True)]
    stretch = np.array(lengths)
    placed = {"scale": scale * stretch, "translate": layer.translate[kept] + own @ ((stretch - 1) / 2)}
    named = {name: getattr(layer, name)[kept] for name in PLACEMENT[5:] if hasattr(layer, name)}
    return {**placed, "rotate": rotate, "shear": shear, "affine": affine, **named}


def _shear(layer: Any) -> NDArray[Any]:
    """Return the shear of a layer as a matrix, which napari abbreviates to the values above the diagonal."""
    shear = np.asarray(layer.shear)
    if shear.ndim == 1:
        above, shear = shear, np.eye(layer.ndim)
        shear[np.triu_indices(layer.ndim, 1)] = above
    return shear


def _whole(layer: Any) -> NDArray[Any]:
    """Return the transform of a layer from its pixels to the world: (axes + 1, axes + 1)."""
    origin = np.array(layer.data_to_world(np.zeros(layer.ndim)))
    columns = [np.array(layer.data_to_world(unit)) - origin for unit in np.eye(layer.ndim)]
    return _homogeneous(np.stack(columns, axis=1), origin)


def _homogeneous(linear: NDArray[Any], translate: NDArray[Any]) -> NDArray[Any]:
    """Return an affine transform of n axes as one matrix, (n + 1, n + 1)."""
    matrix = np.eye(len(linear) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, translate
    return matrix


def place(labels: Any, layer: Any) -> None:
    """Move a labels layer to where an image layer lies; what is there already causes no events."""
    for name, value in placement(layer, labels.data.shape).items():
        current = getattr(labels, name)
        same = current == value if isinstance(value, tuple) else np.array_equal(np.asarray(current), value)
        if not same:
            setattr(labels, name, value)


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
        f"{count}{decimal(status.rate)} frames/s, {latency}\n{status.submitted} frames: done {status.done}, "
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
