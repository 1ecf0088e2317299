"""unetrt.runtime: frames in, label maps out, with numpy and an inference engine; never torch.

The public names load on first use, so that importing an error class does not import numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetrt.runtime.blockwise import segment_large
    from unetrt.runtime.errors import UnetrtError
    from unetrt.runtime.files.outputs.label_tiff import write_labels
    from unetrt.runtime.files.pixel_size import PixelSize
    from unetrt.runtime.files.sources import list_images, stem_of
    from unetrt.runtime.geometry.plan import Geometry, Tile, TilePlan
    from unetrt.runtime.live.live_segmenter import LiveSegmenter
    from unetrt.runtime.live.results import (
        DroppedFrames,
        LiveResult,
        LiveSequence,
        LiveStatus,
        Outcome,
        ResultOutput,
        ResultStream,
        StreamKey,
    )
    from unetrt.runtime.model.objects import instances
    from unetrt.runtime.model.spec import ModelSpec
    from unetrt.runtime.segment.segmenter import Objects, Segmentation, Segmenter
    from unetrt.runtime.sessions import Session, open_session

__all__ = [
    "DroppedFrames",
    "Geometry",
    "LiveResult",
    "LiveSegmenter",
    "LiveSequence",
    "LiveStatus",
    "ModelSpec",
    "Objects",
    "Outcome",
    "PixelSize",
    "ResultOutput",
    "ResultStream",
    "Segmentation",
    "Segmenter",
    "Session",
    "StreamKey",
    "Tile",
    "TilePlan",
    "UnetrtError",
    "instances",
    "list_images",
    "open_session",
    "segment_large",
    "stem_of",
    "write_labels",
]

# Public name -> module.
_HOMES = {
    "DroppedFrames": "live.results",
    "Geometry": "geometry.plan",
    "LiveResult": "live.results",
    "LiveSegmenter": "live.live_segmenter",
    "LiveSequence": "live.results",
    "LiveStatus": "live.results",
    "ModelSpec": "model.spec",
    "Objects": "segment.segmenter",
    "Outcome": "live.results",
    "PixelSize": "files.pixel_size",
    "ResultOutput": "live.results",
    "ResultStream": "live.results",
    "Segmentation": "segment.segmenter",
    "Segmenter": "segment.segmenter",
    "Session": "sessions",
    "StreamKey": "live.results",
    "Tile": "geometry.plan",
    "TilePlan": "geometry.plan",
    "UnetrtError": "errors",
    "instances": "model.objects",
    "list_images": "files.sources",
    "open_session": "sessions",
    "segment_large": "blockwise",
    "stem_of": "files.sources",
    "write_labels": "files.outputs.label_tiff",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"unetrt.runtime.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'unetrt.runtime' has no attribute {name!r}")
