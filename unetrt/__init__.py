"""unetrt: from a folder of annotated images to a segmenter inside the microscope's acquisition program.

The public names load on first use, so that importing `unetrt` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unetrt._version import __version__

if TYPE_CHECKING:
    from unetrt.live_view.browser import BrowserView
    from unetrt.runtime import LiveSegmenter, ModelSpec, Segmentation, Segmenter, UnetrtError, instances, open_session

__all__ = [
    "BrowserView",
    "LiveSegmenter",
    "ModelSpec",
    "Segmentation",
    "Segmenter",
    "UnetrtError",
    "__version__",
    "instances",
    "open_session",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("unetrt.live_view.browser" if name == "BrowserView" else "unetrt.runtime"), name)
    raise AttributeError(f"module 'unetrt' has no attribute {name!r}")
