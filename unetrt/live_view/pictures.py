"""Pictures of results for the browser page: grey values as a JPEG, and a colour code for each pixel's label.

The page composes the two, so that switching between overlay, frame and labels needs no request. Frames larger than 1024
pixels are reduced by an integer step: grey values are averaged, labels subsampled.
"""

import json
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime import LiveResult
from unetrt.runtime.errors import FrameError
from unetrt.runtime.pixels.drawing import COLOURS, outlines, stretched
from unetrt.runtime.pixels.frames import as_array

# Longest side of a picture, in pixels: the area of a screen beside the plots.
LONGEST = 1024
# A pixel of a reduced picture is the mean of at most 3 x 3 pixels of the frame.
SAMPLES = 3
# Percentiles of the grey values are sampled from about 256 rows and columns.
SAMPLED = 256
JPEG_QUALITY = 90
# Maximum number of characters shown of a frame's index.
LONGEST_TEXT = 60


def colours() -> list[list[int]]:
    """Return the colours of labels, [red, green, blue] from 0 to 255; code 1 is the first colour."""
    table: list[list[int]] = (COLOURS * 255).astype(np.uint8).tolist()
    return table


def encoded(result: LiveResult) -> bytes:
    """Return the picture of a `done` result.

    Returns
    -------
    Length of the header, 4 bytes, big-endian; the header, JSON; a grey JPEG of `jpeg` bytes, `height` x `width` pixels;
    and colour codes, zlib-compressed uint8 (height, width): 0 for the background, 1 to 32 for the colours of objects,
    33 to 64 for their outlines.
    """
    labels = np.asarray(result.labels)
    step = -(-max(labels.shape) // LONGEST)
    codes = label_codes(np.ascontiguousarray(labels[::step, ::step]))
    shape, dtype, grey = _frame(result.frame, codes.shape, step)
    jpeg = _jpeg(grey)
    head = {
        "number": result.number,
        "index": index_text(result.index),
        "objects": result.objects,
        "shape": shape,
        "dtype": dtype,
        "step": step,
        "height": codes.shape[0],
        "width": codes.shape[1],
        "jpeg": len(jpeg),
    }
    header = json.dumps(head).encode()
    return len(header).to_bytes(4, "big") + header + jpeg + zlib.compress(codes.tobytes(), 1)


def label_codes(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the colour codes of labels (H, W), uint8 (H, W): see `encoded`."""
    # The number of colours divides 256, so that the low byte of a label determines its colour.
    codes = labels.astype(np.uint8) % len(COLOURS) + np.uint8(1)
    codes *= labels > 0
    codes += outlines(labels) * np.uint8(len(COLOURS))
    return codes


def reduced(frame: NDArray[Any], step: int) -> NDArray[Any]:
    """Return a frame (..., H, W) reduced by `step` along H and W; each pixel is a mean over its block."""
    if step == 1:
        return frame
    rows, columns = (np.arange(0, size, step) for size in frame.shape[-2:])
    offsets = np.unique(np.linspace(0, step - 1, min(step, SAMPLES)).astype(int))
    total = np.zeros((*frame.shape[:-2], len(rows), len(columns)), np.float32)
    for down in offsets:
        band = frame.take(rows + down, axis=-2, mode="clip")
        for right in offsets:
            total += band.take(columns + right, axis=-1, mode="clip")
    return total / np.float32(len(offsets) ** 2)


def index_text(index: Any) -> str:
    """Return a frame's index as text, such as ``t 3  c 0``; empty if it has none."""
    if isinstance(index, Mapping):
        index = "  ".join(f"{axis} {place}" for axis, place in index.items())
    return "" if index is None else str(index)[:LONGEST_TEXT]


def _frame(given: Any, size: tuple[int, ...], step: int) -> tuple[list[int], str, NDArray[np.uint8]]:
    """Return shape, dtype and grey values, uint8 of `size`, of a frame; black if it is not in host memory."""
    try:
        frame = as_array(given)
    except FrameError:
        return [], "not on the host", np.zeros(size, np.uint8)
    small = reduced(frame.reshape(-1, *frame.shape[-2:]), step)
    grey = stretched(small.mean(axis=0, dtype=np.float32), every=max(1, min(size) // SAMPLED))
    return list(frame.shape), str(frame.dtype), (grey * 255).astype(np.uint8)


def _jpeg(grey: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    written = BytesIO()
    Image.fromarray(grey).save(written, "JPEG", quality=JPEG_QUALITY)
    return written.getvalue()
