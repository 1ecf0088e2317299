"""Train the 2015 U-Net on annotated images and segment microscope frames of any size with it, exactly.

A model file carries everything that its use needs: the tile, the normalisation, the classes. A `Segmenter` opens one
and stitches the tiles of a frame into the result of one pass over the whole frame:

    from unetrt import Segmenter

    with Segmenter("model.onnx") as segmenter:
        classes = segmenter.segment(frame).labels  # (H, W) uint8 class indices
        cells = segmenter.objects(frame).labels  # (H, W) int32 object numbers

`unetrt.runtime` runs models, `unetrt.trainer` trains them, `unetrt.export` writes the model files. The public names
load on first use: importing `unetrt` imports neither numpy nor an engine.
"""

import os
from importlib import import_module

from unetrt._version import __version__

TYPE_CHECKING = False  # the type checkers' own: until the command line runs, Ctrl-C ends in a traceback
if TYPE_CHECKING:
    from typing import Any

    from unetrt.live_view.browser import BrowserView
    from unetrt.runtime import (
        LiveSegmenter,
        ModelSpec,
        Objects,
        Segmentation,
        Segmenter,
        UnetrtError,
        instances,
        open_session,
    )

# From 1.32, ONNX Runtime reports its use over the network unless this is set when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "BrowserView",
    "LiveSegmenter",
    "ModelSpec",
    "Objects",
    "Segmentation",
    "Segmenter",
    "UnetrtError",
    "__version__",
    "instances",
    "open_session",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> "Any":
    if name in __all__:
        return getattr(import_module("unetrt.live_view.browser" if name == "BrowserView" else "unetrt.runtime"), name)
    raise AttributeError(f"module 'unetrt' has no attribute {name!r}")
