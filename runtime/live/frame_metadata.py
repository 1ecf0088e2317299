"""What Micro-Manager states of a frame: its camera, channel, stage position, pixel size and image number.

Events are those of useq (`MDAEvent`), metadata those of pymmcore-plus (`FrameMetaV1`, and `image_infos` of a sequence).
Both come from a host program and may lack anything; what is missing or not valid is unknown.
"""

from collections.abc import Mapping
from typing import Any

from unetrt.runtime.files.pixel_size import LEAST, MOST
from unetrt.runtime.live.results import LiveResult, LiveSequence, StreamKey

# Keys of Micro-Manager's image metadata (MMCore, `g_Keyword_Metadata_ImageNumber` and `..._CameraLabel`).
IMAGE_NUMBER, CAMERA = "ImageNumber", "Camera"
# Key of an index: which of several cameras at once (Multi Camera), from 0, as in acquisitions of pymmcore-plus.
CAMERAS = "cam"


def stream_of(event: Any, meta: Any) -> StreamKey:
    """Return the camera and the channel of a frame, each empty if unknown.

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


def event_index(result: LiveResult) -> Mapping[Any, Any]:
    """Return the index of a frame, axis -> position on it, such as {"t": 3, "c": 0}; empty if it has another kind."""
    return result.index if isinstance(result.index, Mapping) else {}


def position_of(meta: Any) -> Any:
    """Return the name of the stage position of a frame, by its metadata; None if unknown."""
    event = meta.get("mda_event") if isinstance(meta, Mapping) else None
    return event.get("pos_name") if isinstance(event, Mapping) else getattr(event, "pos_name", None)


def camera_infos(sequence: LiveSequence | None) -> list[Mapping[str, Any]]:
    """Return the metadata of each camera of a sequence (`image_infos`); empty if unknown."""
    meta: Any = None if sequence is None else sequence.meta
    infos = meta.get("image_infos") if isinstance(meta, Mapping) else None
    return [info for info in infos if isinstance(info, Mapping)] if isinstance(infos, list | tuple) else []


def pixel_size_of(meta: Any, sequence: LiveSequence | None, camera: str = "") -> float | None:
    """Return the side of a frame's pixel in µm; None if unknown, as without a pixel size configuration, which is 0.

    Parameters
    ----------
    meta
        The metadata of the frame, which come first.
    sequence
        Its sequence, whose metadata state the pixel size of each camera.
    camera
        Device label of the camera of the frame, whose pixel size comes before that of others; empty if unknown.
    """
    cameras = sorted(camera_infos(sequence), key=lambda info: info.get("camera_label") != camera)
    for source in (meta, *cameras):
        size = source.get("pixel_size_um") if isinstance(source, Mapping) else None
        if isinstance(size, int | float) and LEAST <= size <= MOST:
            return float(size)
    return None


class ImageNumbers:
    """Counts gaps in the image numbers of cameras.

    A camera numbers its images from 0 in each (hardware) sequence, through all channels, so a number that does not
    increase starts a new count. Images lost before the first or after the last one of a sequence leave no gap and are
    not counted.

    Attributes
    ----------
    missed
        Number of missing images so far.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._last: dict[str, int] = {}

    def restart(self) -> None:
        """Start a new sequence: the next image has no predecessor."""
        self._last = {}

    def observe(self, camera: str, metadata: Any) -> None:
        """Count the images of a camera missing before this one, by its `camera_metadata`; ignored without a number."""
        try:
            number = int(metadata[IMAGE_NUMBER])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return
        last = self._last.get(camera)
        if last is not None and number > last + 1:
            self.missed += number - last - 1
        self._last[camera] = number
