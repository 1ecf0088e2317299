"""What Micro-Manager needs beside `LiveSegmenter`: labels beside raw data, live mode, a camera that replays files.

Needs the extra `acquire`. The public names load on first use, and what they are built on when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetrt.runtime.acquisition.label_writer import LabelWriter
    from unetrt.runtime.acquisition.live_mode import FeedStatus, LiveModeFeed
    from unetrt.runtime.acquisition.replay import Replay, by_kind, load_replay_camera

__all__ = ["FeedStatus", "LabelWriter", "LiveModeFeed", "Replay", "by_kind", "load_replay_camera"]

# Which module a public name comes from.
_HOMES = {
    "FeedStatus": "live_mode",
    "LabelWriter": "label_writer",
    "LiveModeFeed": "live_mode",
    "Replay": "replay",
    "by_kind": "replay",
    "load_replay_camera": "replay",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"unetrt.runtime.acquisition.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'unetrt.runtime.acquisition' has no attribute {name!r}")
