"""Which array of a layer a model segments, and where the labels belong. Layers are only looked at: no Qt, no napari."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unetrt.runtime.errors import FrameError

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
