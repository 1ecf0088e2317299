"""Frames as cameras deliver them, and as a segmenter takes them.

Camera drivers add axes of length one in front, and colour cameras put red, green and blue last: (H, W, 3), or (H, W, 4)
with opacity. A live segmenter takes one frame at a time, so that neither can be a stack. `FrameLayout` makes (H, W) or
(C, H, W) of them; everything else is left to the segmenter, which accepts it or says what is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, OptionError, shown
from unetrt.runtime.live.results import CAMERA, StreamKey
from unetrt.runtime.pixels.frames import both_readings, is_narrow

# Weights of red, green and blue in grey, in units of 2^-16: 0.299, 0.587 and 0.114 of ITU-R BT.601, rounded as in
# Pillow's conversion to "L". Their sum is 2^16, so that equal colours keep their value.
GREY = (19595, 38470, 7471)
# Lengths of the last axis of a frame with colours: red, green, blue, and perhaps opacity.
COLOURS = (3, 4)


class FrameLayout:
    """Converts the frames of a camera to the channels of a model.

    Parameters
    ----------
    count
        Number of channels of the model.
    channels
        Channels to take from frames that have several, in order, by their index from 0: of colours red is 0, green 1,
        blue 2. Empty: all, and grey of colours for a model of one channel.

    Raises
    ------
    OptionError
        `channels` are not `count` indices.
    """

    def __init__(self, count: int, channels: Sequence[int] = ()) -> None:
        if not isinstance(channels, Sequence) or not all(type(one) is int and one >= 0 for one in channels):
            raise OptionError(f"channels={shown(channels)} are not indices from 0: give a list, such as [1] for green")
        if channels and len(channels) != count:
            plural = "" if count == 1 else "s"
            raise OptionError(f"channels={shown(channels)}: the model takes {count} channel{plural}, name as many")
        self._count, self._channels = count, list(channels)

    def arrange(self, frame: Any) -> Any:
        """Return a frame as (H, W) or (C, H, W), a view where possible; frames of other shapes are returned unchanged.

        Parameters
        ----------
        frame
            (H, W), (C, H, W), (H, W, 3) or (H, W, 4), with any number of axes of length one in front.

        Raises
        ------
        FrameError
            The frame does not have the channels that were chosen, or its colours are not what the model takes.
        """
        if not isinstance(frame, np.ndarray):
            return frame
        axes = 2 if self._count == 1 and not self._channels else 3
        while frame.ndim > axes and frame.shape[0] == 1:
            frame = frame[0]
        if frame.ndim != 3:
            if self._channels:
                raise FrameError(f"a frame of shape {frame.shape} has no channels to choose from: leave out channels=")
            return frame
        has_colours = self._has_colours(frame.shape)
        planes = np.moveaxis(frame, -1, 0) if has_colours else frame
        if self._channels:
            if not has_colours and is_narrow(frame.shape):
                raise FrameError(
                    f"channels cannot be chosen from a frame of shape {frame.shape}: {both_readings(frame.shape)}; "
                    "submit frames (C, H, W)"
                )
            return self._chosen(planes)
        return self._of_colours(planes) if has_colours else frame

    def _has_colours(self, shape: tuple[int, ...]) -> bool:
        """Return whether the last of three axes holds colours; not if the first one holds the channels of the model."""
        return shape[-1] in COLOURS and min(shape[:2]) > max(COLOURS) and (self._count == 1 or shape[0] != self._count)

    def _chosen(self, planes: NDArray[Any]) -> NDArray[Any]:
        if (highest := max(self._channels)) >= len(planes):
            raise FrameError(f"channel {highest} was chosen, and the frame has {len(planes)}: 0 to {len(planes) - 1}")
        return planes[self._channels[0]] if self._count == 1 else planes[self._channels]

    def _of_colours(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Return grey, or the colours, of (3, H, W) or (4, H, W); opacity is left out unless the model takes it."""
        if self._count == 1:
            return grey(planes[:3])
        if self._count not in (3, len(planes)):
            raise FrameError(
                f"the frame has {len(planes)} colours last, and the model takes {self._count} channels: choose them "
                f"with channels={list(range(self._count))}"
            )
        return planes[: self._count]


def grey(planes: NDArray[Any]) -> NDArray[Any]:
    """Return the grey values (H, W) of red, green and blue (3, H, W): luma of ITU-R BT.601, as Pillow's mode "L".

    uint8 and uint16 keep their dtype and are rounded; others become float32.
    """
    if planes.dtype in (np.uint8, np.uint16):
        summed = np.full(planes.shape[1:], 1 << 15, np.uint32)  # half, to round; 65535 * 2^16 + 2^15 fits
        for plane, weight in zip(planes, GREY, strict=True):
            summed += plane * np.array(weight, np.uint32, ndmin=1)
        return (summed >> 16).astype(planes.dtype)
    weights = np.array(GREY, np.float32) / (1 << 16)
    mixed: NDArray[Any] = np.einsum("chw,c->hw", planes, weights, dtype=np.float32, casting="same_kind")
    return mixed


def stream_of(event: Any, meta: Any) -> StreamKey:
    """Return the camera and the channel of a frame, each empty if unknown; never raises.

    Parameters
    ----------
    event, meta
        The `useq.MDAEvent` and the metadata (pymmcore-plus, `FrameMetaV1`) of the frame.
    """
    channel = getattr(getattr(event, "channel", None), "config", None)
    meta = meta if isinstance(meta, Mapping) else {}
    images = meta.get("camera_metadata")
    cameras = (meta.get("camera_device"), images.get(CAMERA) if isinstance(images, Mapping) else None)
    camera = next((one for one in cameras if isinstance(one, str) and one), "")
    return StreamKey(camera, channel if isinstance(channel, str) else "")
