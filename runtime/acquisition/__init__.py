"""Micro-Manager and `LiveSegmenter`: labels stored with raw data, live mode, and a camera that replays files.

Needs the extra `acquire`. Public names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unetrt.runtime.errors import BackendUnavailableError

if TYPE_CHECKING:
    from unetrt.runtime.acquisition.acquisition_store import AcquisitionStore
    from unetrt.runtime.acquisition.label_writer import LabelWriter
    from unetrt.runtime.acquisition.live_mode import FeedStatus, LiveModeFeed
    from unetrt.runtime.acquisition.replay import Replay, by_kind, load_replay_camera

__all__ = ["AcquisitionStore", "FeedStatus", "LabelWriter", "LiveModeFeed", "Replay", "by_kind", "load_replay_camera"]

# Public name -> module.
_HOMES = {
    "AcquisitionStore": "acquisition_store",
    "FeedStatus": "live_mode",
    "LabelWriter": "label_writer",
    "LiveModeFeed": "live_mode",
    "Replay": "replay",
    "by_kind": "replay",
    "load_replay_camera": "replay",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            module = import_module(f"unetrt.runtime.acquisition.{_HOMES[name]}")
        except ModuleNotFoundError as error:
            raise BackendUnavailableError(f"{name} needs {error.name}: pip install 'unetrt[acquire]'") from error
        return getattr(module, name)
    raise AttributeError(f"module 'unetrt.runtime.acquisition' has no attribute {name!r}")
