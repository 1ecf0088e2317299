"""Raw frames from a user's files, one by one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

# How many images of a folder are looked at, evenly spaced.
MOST = 16


def raw_frames(images: Path, channels: int) -> Iterator[Any]:
    """Iterate over images of a file or folder as raw frames (C, H, W), of a stack the first; at most `MOST`, spread."""
    from unetrt.runtime.frames import as_frame
    from unetrt.runtime.images import list_images
    from unetrt.runtime.prediction import read_frames

    frame_axes = 2 if channels == 1 else 3
    paths = list_images(images)
    for path in paths[:: -(-len(paths) // MOST)]:
        stack = read_frames(path, channels)
        yield as_frame(stack if stack.ndim == frame_axes else stack[0], channels)
