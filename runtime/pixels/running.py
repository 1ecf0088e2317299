"""Normalisation over a stream of frames: the `running` mode.

Measured on each frame alone, percentiles flicker, and a frame without objects is stretched until its noise looks like
some. Over a stream both can be averaged, and blank frames told apart, by the noise between neighbouring pixels: where
the whole contrast of a frame is that of its noise, there is nothing in it.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import OptionError
from unetrt.runtime.pixels.normalisation import Affine, Measure, Normalisation

# The average follows the last so many frames, about a second of a camera.
FRAMES = 32
# A channel whose contrast is less than so many times what its noise alone would make is blank. Noise of a normal
# distribution makes 1; faint objects at the limit of what a person sees about 2.
BLANK = 1.5
# What a stream shows before anything but blank frames came: noise, at this part of the range that objects would fill.
FAINT = 0.2
# The standard deviation of a normal distribution as a multiple of its median absolute deviation from the median.
FROM_MEDIAN = 1.4826
# The noise, in grey values, below which integers do not show it.
SHOWN = 0.5
# Rows that are looked at for noise.
ROWS = 64


class Running:
    """The averages of one stream of frames, all taken of the same thing.

    Parameters
    ----------
    normalisation
        What is measured on each frame: percentiles, or mean and deviation.
    frames
        How many frames the average follows: each counts as 1 in that many, the first ones evenly.

    Raises
    ------
    OptionError
        The normalisation is `fixed`.
    """

    def __init__(self, normalisation: Normalisation, frames: int = FRAMES) -> None:
        if normalisation.mode == "fixed":
            raise OptionError(
                "a model with fixed normalisation measures nothing that could run: use the normalisation of the model"
            )
        if frames < 1:
            raise OptionError(f"an average over {frames} frames is none: use 1 or more")
        self._normalisation, self._frames = normalisation, frames
        self._quiet = normalisation.contrast_of_noise()
        self._channels: list[_Average] = []
        self._dtype: np.dtype[Any] | None = None

    def measure(self, frame: NDArray[Any]) -> Affine:
        """Take note of a whole raw frame (C, H, W), integers or floats, and return how to normalise it.

        Another dtype than the last frame's begins a new average.
        """
        if frame.dtype != self._dtype or len(frame) != len(self._channels):
            self._channels, self._dtype = [_Average() for _ in frame], frame.dtype
        limits = self._normalisation.limits(frame)
        levels = [
            self._level(average, channel, limit)
            for average, channel, limit in zip(self._channels, frame, limits, strict=True)
        ]
        return Affine.between(levels)

    def _level(self, average: "_Average", channel: NDArray[Any], limit: tuple[float, float]) -> tuple[float, float]:
        noise = self._quiet * noise_of(channel)
        low, width = limit
        if width > BLANK * noise:
            average.add(low, width, self._frames)
        elif not average.count:
            return low, max(width, noise) / FAINT
        return average.low, average.width


class _Average:
    """Offset and width of a channel, averaged; the first frames count evenly, later ones 1 in so many."""

    def __init__(self) -> None:
        self.count, self.low, self.width = 0, 0.0, 0.0

    def add(self, low: float, width: float, frames: int) -> None:
        self.count = min(self.count + 1, frames)
        self.low += (low - self.low) / self.count
        self.width += (width - self.width) / self.count


class Streams:
    """The running averages of a live segmenter: one for each channel index of the acquisition's events.

    Parameters
    ----------
    normalisation
        The model's.
    way
        `running`, or `model`: as the model says, which may be `running` too.

    Raises
    ------
    OptionError
        The model's normalisation is `fixed`, and was to run.
    """

    def __init__(self, normalisation: Normalisation, way: Literal["model", "running"] = "model") -> None:
        if way not in ("model", "running"):
            raise OptionError(f"normalisation {way!r} is unknown to a stream: use model or running")
        self._runs = way == "running" or normalisation.mode == "running"
        self._normalisation = normalisation
        if self._runs:
            Running(normalisation)
        self._streams: dict[Any, Running] = {}

    def measure_for(self, index: Any) -> Measure | None:
        """Return how to measure the next frame, which has this index; None for the model's own way."""
        if not self._runs:
            return None
        key = index.get("c") if isinstance(index, Mapping) else None
        if key not in self._streams:
            self._streams[key] = Running(self._normalisation)
        return self._streams[key].measure

    def restart(self) -> None:
        """Forget all averages: what comes next is a new stream."""
        self._streams = {}


def noise_of(channel: NDArray[Any]) -> float:
    """Return the standard deviation of a channel's (H, W) noise, in grey values, from neighbours along a row.

    Exact for noise that differs from pixel to pixel and structure that does not. Integers have half a grey value at
    least.
    """
    least = SHOWN if channel.dtype.kind in "iu" else 0.0
    rows = channel[:: max(1, len(channel) // ROWS)].astype(np.float32)
    if rows.shape[-1] < 2:
        return least
    return max(least, float(FROM_MEDIAN / sqrt(2) * np.median(np.abs(np.diff(rows, axis=-1)))))
