"""Pictures of results for the browser page: grey values as a JPEG, and a colour code for each pixel's label.

The page composes the two, so that switching between overlay, frame and labels needs no request. Contrast limits and
gamma (`Display`) are applied here, to the frame's own grey values, of which a JPEG keeps 256. Frames larger than 1024
pixels are reduced by an integer step: grey values are averaged, labels subsampled.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime import LiveResult
from unetrt.runtime.errors import FrameError, printable
from unetrt.runtime.live.frame_metadata import pixel_size_of, position_of
from unetrt.runtime.pixels.drawing import COLOURS, limits, outlines, scaled
from unetrt.runtime.pixels.frames import LARGEST, as_array

# Longest side of a picture, in pixels: the area of a screen beside the plots.
LONGEST = 1024
# A pixel of a reduced picture is the mean of at most 3 x 3 pixels of the frame.
SAMPLES = 3
# Percentiles of the grey values are sampled from about 256 rows and columns.
SAMPLED = 256
JPEG_QUALITY = 90
# Maximum number of characters shown of a frame's index, and of each name.
LONGEST_TEXT = 60
# Smallest and largest gamma.
GAMMAS = 0.1, 10.0


@dataclass(frozen=True)
class Display:
    """How grey values are shown: `((value - low) / (high - low)) ** gamma`, as in napari; below 1, gamma brightens.

    Attributes
    ----------
    low, high
        Grey values shown black and white; None for the 1st and the 99.8th percentile of each frame.
    gamma
        Exponent.
    """

    low: float | None = None
    high: float | None = None
    gamma: float = 1.0

    @classmethod
    def clamped(cls, low: float | None, high: float | None, gamma: float) -> Self:
        """Return a display for any finite numbers; those that mean nothing are moved to the nearest that do."""
        low, high = (None if each is None else min(max(each, -LARGEST), LARGEST) for each in (low, high))
        return cls(low, high, min(max(gamma, GAMMAS[0]), GAMMAS[1]))

    def applied(self, grey: NDArray[np.float32]) -> tuple[tuple[float, float], NDArray[np.float32]]:
        """Return the contrast limits for grey values (H, W), and how bright these are shown, 0 to 1."""
        every = max(1, min(grey.shape) // SAMPLED)
        low, width = map(float, limits(grey[::every, ::every].astype(np.float64)))
        high = low + width if self.high is None else self.high
        low = low if self.low is None else self.low
        bright = scaled(grey.astype(np.float64), low, high - low if high > low else math.ulp(low))
        return (low, high), bright if self.gamma == 1 else bright**self.gamma


def colours() -> list[list[int]]:
    """Return the colours of labels, [red, green, blue] from 0 to 255; code 1 is the first colour."""
    table: list[list[int]] = (COLOURS * 255).astype(np.uint8).tolist()
    return table


def encoded(result: LiveResult, display: Display = Display()) -> bytes:
    """Return the picture of a `done` result.

    Returns
    -------
    Length of the header, 4 bytes, big-endian; the header, JSON; a grey JPEG of `jpeg` bytes, `height` x `width` pixels;
    and colour codes, zlib-compressed uint8 (height, width): 0 for the background, 1 to 32 for the colours of objects,
    33 to 64 for their outlines. The header states also the contrast limits (`limits`), the darkest and the brightest
    grey value of the picture (`range`), where the frame comes from, and the size of its pixels in µm (`pixel_size`),
    None if it is not known.
    """
    labels = np.asarray(result.labels)
    step = -(-max(labels.shape) // LONGEST)
    codes = label_codes(np.ascontiguousarray(labels[::step, ::step]))
    shape, dtype, small = _frame(result.frame, labels.shape, step)
    shown_limits, bright = display.applied(small)
    jpeg = _jpeg((bright * 255).astype(np.uint8))
    head = {
        "number": result.number,
        "index": index_text(result.index),
        "camera": name_text(result.stream.camera),
        "channel": name_text(result.stream.channel),
        "position": name_text(position_of(result.meta)),
        "objects": result.objects,
        "shape": shape,
        "dtype": dtype,
        "step": step,
        "pixel_size": pixel_size_of(result.meta, result.sequence, result.stream.camera),
        "limits": shown_limits,
        "range": (float(small.min()), float(small.max())),
        "height": codes.shape[0],
        "width": codes.shape[1],
        "jpeg": len(jpeg),
    }
    header = json.dumps(head, allow_nan=False).encode()
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
    return name_text(index)


def name_text(name: Any) -> str:
    """Return a name from outside as one short line of `printable` text; empty for None."""
    return "" if name is None else printable(str(name)[:LONGEST_TEXT])


def _frame(given: Any, size: tuple[int, ...], step: int) -> tuple[list[int], str, NDArray[np.float32]]:
    """Return shape, dtype and reduced grey values, float32, of a frame with labels of `size`; 0 if not on the host."""
    try:
        frame = as_array(given)
    except FrameError:
        return [], "not on the host", np.zeros(tuple(-(-side // step) for side in size), np.float32)
    shape, dtype = list(frame.shape), str(frame.dtype)
    small = reduced(frame.reshape(-1, *frame.shape[-2:]), step)
    return shape, dtype, small.mean(axis=0, dtype=np.float32)


def _jpeg(grey: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    written = BytesIO()
    Image.fromarray(grey).save(written, "JPEG", quality=JPEG_QUALITY)
    return written.getvalue()
