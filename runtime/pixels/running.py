"""Normalisation over a stream of frames: the `running` mode.

Measured on each frame alone, percentiles flicker, and the noise of a frame without objects is stretched to full
contrast. Over a stream, offset and width are averaged (`Running`). Blank frames do not enter the average: their
contrast is no larger than that of their noise, which is measured between neighbouring pixels.
"""

from collections.abc import Hashable
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import OptionError, shown
from unetrt.runtime.pixels.normalisation import Affine, Measure, Normalisation

# Frames of the average: about one second of a camera.
FRAMES = 32
# Ratio of a channel's contrast to that of its noise alone, below which the channel is blank. The ratio is
# 1 for normally distributed noise, and about 2 for barely visible objects.
BLANK = 1.5
# Output range, relative to that of objects, that noise fills while a stream has shown blank frames only.
FAINT = 0.2
# Standard deviation of a normal distribution relative to its median absolute deviation.
FROM_MEDIAN = 1.4826
# Least noise of integers, in grey values: less does not show.
SHOWN = 0.5
# Rows in which noise is measured.
ROWS = 64


class Running:
    """Running average of the normalisation of one stream of frames.

    Parameters
    ----------
    normalisation
        Measures each frame: percentiles, or mean and standard deviation.
    frames
        Length of the average: each frame has weight 1 / frames; the first `frames` have equal weights.

    Raises
    ------
    OptionError
        The normalisation is `fixed`.
    """

    def __init__(self, normalisation: Normalisation, frames: int = FRAMES) -> None:
        if normalisation.mode == "fixed":
            raise OptionError(
                "fixed normalisation is not measured, so it has no running average: use the normalisation of the model"
            )
        if frames < 1:
            raise OptionError(f"frames must be at least 1 (got {frames})")
        self._normalisation, self._frames = normalisation, frames
        self._quiet = normalisation.contrast_of_noise()
        self._channels: list[_Average] = []
        self._dtype: np.dtype[Any] | None = None

    def measure(self, frame: NDArray[Any]) -> Affine:
        """Add a whole raw frame (C, H, W) of integers or floats to the average, and return its affine map.

        A change of dtype or channel count starts a new average.
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
    """Average offset and width of a channel; see `Running` for the weights."""

    def __init__(self) -> None:
        self.count, self.low, self.width = 0, 0.0, 0.0

    def add(self, low: float, width: float, frames: int) -> None:
        self.count = min(self.count + 1, frames)
        self.low += (low - self.low) / self.count
        self.width += (width - self.width) / self.count


class Streams:
    """The running averages of a live segmenter, one for each stream of frames, such as a camera's in one channel.

    Parameters
    ----------
    normalisation
        The model's normalisation.
    way
        `running`, or `model`: the mode of the model, which may be `running` too.

    Raises
    ------
    OptionError
        `way` is `running` and the model's normalisation is `fixed`.
    """

    def __init__(self, normalisation: Normalisation, way: Literal["model", "running"] = "model") -> None:
        if not isinstance(way, str) or way not in ("model", "running"):
            raise OptionError(f"normalisation {shown(way)} is not one of a stream: use model or running")
        self._runs = way == "running" or normalisation.mode == "running"
        self._normalisation = normalisation
        if self._runs:
            Running(normalisation)
        self._streams: dict[Hashable, Running] = {}

    def measure_for(self, stream: Hashable) -> Measure | None:
        """Return the function that measures the next frame of a stream; None for the model's normalisation."""
        if not self._runs:
            return None
        if stream not in self._streams:
            self._streams[stream] = Running(self._normalisation)
        return self._streams[stream].measure

    def restart(self) -> None:
        """Discard all averages."""
        self._streams = {}


def noise_of(channel: NDArray[Any]) -> float:
    """Estimate the standard deviation of a channel's (H, W) noise, in grey values, from differences along rows.

    The median absolute difference of neighbours, which smooth structure does not change. At least half a grey value for
    integers.
    """
    least = SHOWN if channel.dtype.kind in "iu" else 0.0
    rows = channel[:: max(1, len(channel) // ROWS)].astype(np.float32)
    if rows.shape[-1] < 2:
        return least
    return max(least, float(FROM_MEDIAN / sqrt(2) * np.median(np.abs(np.diff(rows, axis=-1)))))
